// Package zonefile answers: what does a zone file say, may it be served, and which keys sign it?
//
// Controllers ask it before they take a zone, nodes when they compile one; it is the one place that
// reads zone text, so the two cannot differ.
package zonefile
