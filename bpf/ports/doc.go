// Package ports answers: how do kernel programs look up an address and a port among thousands of prefixes and
// port ranges, while these change?
//
//	prefixes (LPM trie)  protocol, family, address → extent {start, count}
//	ranges (array)       [start, start+count): sorted, disjoint {first port, last port, value}
//
// The program takes the longest prefix and does one binary search (include/ports.h). What a wider prefix says
// is compiled into the narrower ones. Equal contents share an extent, and extents are never written while
// something points to them: a change builds the new extent aside, points the prefix to it by one write, waits
// until no program can still be reading the old one, and only then frees that.
package ports

// spansMax is how many port ranges one prefix can have: the program's binary search ends there.
const spansMax = 1 << 16
