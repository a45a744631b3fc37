// Package dnssec answers: what proves that an answer is the zone's own, or that there is nothing?
//
// Everything is signed when it is asked for, with keys that every node has, and kept: the sets of a
// zone are few, also where clients get different ones. Denial is compact (RFC 9824): a name that does
// not exist is shown as one that has no type but NXNAME, so that one record and one signature suffice,
// and nobody can walk a zone.
package dnssec
