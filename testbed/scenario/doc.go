// Package scenario answers: does the product keep its promises when things break? Its tests start
// the shipped binaries in worlds of network namespaces, break something on purpose and look at what
// clients saw. They need root, and NEARCAST_BIN with the directory of the built binaries.
package scenario
