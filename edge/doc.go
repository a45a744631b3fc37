// Package edge answers: in which order do the parts of a node come up, change and go down?
package edge
