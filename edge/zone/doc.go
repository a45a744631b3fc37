// Package zone answers: what is at this name? It holds the zones that operators host and the one of the
// accelerators' names, as immutable tables of records in wire form, and does no I/O.
//
// Names here are in wire form (length-prefixed labels, RFC 1035 3.1) and lower case: [Set.Find] and
// [Zone.Lookup] are asked for what came in a query, and allocate nothing.
package zone
