package balance

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"slices"
)

// Rows is the length M of a Maglev table: a prime, and a hundred times more than a site has nodes, so that
// shares are even to about one per cent (Maglev, NSDI 2016, 5.3).
const Rows = 65537

// Share is a member of a table.
type Share struct {
	Name   string // unique; the table is a function of names and weights alone, not of their order
	Weight int    // > 0; rows are shared out in proportion
}

// Table says for each row which share has it, by its index; nil without shares.
//
// It is Maglev's (section 3.4): every share has a permutation of the rows, made from its name, and takes the next
// row of it that is free when its turn comes. Turns are by weight: a share of half the greatest weight has every
// second one.
func Table(shares []Share) []uint8 {
	if len(shares) == 0 {
		return nil
	}
	order := make([]int, len(shares))
	greatest := 0
	for i, s := range shares {
		order[i] = i
		greatest = max(greatest, s.Weight)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(shares[a].Name, shares[b].Name) })
	type turn struct{ at, skip, credit int }
	turns := make([]turn, len(shares))
	for i, s := range shares {
		offset, skip := nameHash(s.Name)
		turns[i] = turn{at: int(offset % Rows), skip: 1 + int(skip%(Rows-1))}
	}
	const free = 255
	table := make([]uint8, Rows)
	for i := range table {
		table[i] = free
	}
	for filled := 0; ; {
		for _, i := range order {
			t := &turns[i]
			if t.credit += shares[i].Weight; t.credit < greatest {
				continue
			}
			t.credit -= greatest
			for table[t.at] != free {
				t.at = (t.at + t.skip) % Rows
			}
			table[t.at] = uint8(i)
			if filled++; filled == Rows {
				return table
			}
		}
	}
}

// nameHash is two numbers that belong to a name, the same on every machine and in every release.
func nameHash(name string) (offset, skip uint64) {
	h := fnv.New128a()
	h.Write([]byte(name))
	sum := h.Sum(nil)
	return mix64(binary.BigEndian.Uint64(sum)), mix64(binary.BigEndian.Uint64(sum[8:]))
}

// mix64 spreads names that differ in one character (the finalizer of SplitMix64).
func mix64(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
