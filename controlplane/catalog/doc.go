// Package catalog answers: what configuration may this cluster have, and what does it have?
//
// Every rule of the configuration lives here once, whichever API a change comes through. Every change
// is one transaction of the store that holds only if no other change came between reading and
// writing, so rules that span objects (ports that must not overlap, addresses given once, quotas) hold
// whatever operators do at the same time at different controllers.
package catalog
