// Package tidy answers: does the tree still have the shape that we agreed on? Its tests read the
// source itself, in process (a test that asks the go command would pass from the test cache after
// the rule was broken): who imports whom, documentation, sizes, generated files, forbidden words.
package tidy
