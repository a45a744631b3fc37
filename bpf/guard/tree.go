package guard

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// This file compiles listed prefixes to what lists.h searches. What holds for an address changes at borders only,
// at the first address of a prefix and behind its last one, so the borders in order say everything:
//
//	entries → borders (of 128 bits) → nest (of 64 bits) → tree
//
//	line 0, 1        heads of the trees of IPv4 and IPv6, by the first 64 bits of the address
//	heads            of the trees of /64s within which there are borders, by the last 64 bits
//	nodes            8 borders, between 9 lines of the next level
//	leaves           5 borders, between 6 values: a membership's line, a tree's head, or 0
//	memberships      each once
//
// A search takes one line a level, 6 for 100,000 prefixes, and all but the last one or two of these stay in the CPU's
// caches. A trie would take a node for each time that the number of prefixes doubles.

const (
	lineBytes  = 64
	nodeKeys   = 8
	leafValues = 6
	treeLevels = 8       // of nodes
	nested     = 1 << 31 // in a value: it is a tree's head
	unused     = ^uint64(0)
)

// line is one of the array's: a struct node, leaf, tree or membership of maps.h.
type line [lineBytes / 8]uint64

// set writes the i-th word of 32 bits.
func (l *line) set(i int, v uint32) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], l[i/2])
	binary.NativeEndian.PutUint32(b[4*(i%2):], v)
	l[i/2] = binary.NativeEndian.Uint64(b[:])
}

// border is an address from which on something holds. IPv4 addresses are the first bits.
type border struct {
	hi, lo uint64
	value  uint32
}

type compiler struct {
	lines   []line
	numbers map[membership]uint32
	last    membership // whose number was asked for last, which it often is again
	number  uint32

	lows      []uint64 // of the /64 that is compiled
	lowValues []uint32
}

// compile makes the array of entries, which are sorted, each once and covered.
func compile(entries []entry) []line {
	c := compiler{lines: make([]line, 2, 2+len(entries)/2), numbers: map[membership]uint32{{}: 0}}
	v6, _ := slices.BinarySearchFunc(entries, 33, func(e entry, bits int) int { return e.prefix.Addr().BitLen() - bits })
	for head, family := range [][]entry{entries[:v6], entries[v6:]} {
		c.lines[head] = c.tree(c.nest(c.borders(family)))
	}
	return c.lines
}

// of returns the line of a membership.
func (c *compiler) of(m membership) uint32 {
	if m == c.last {
		return c.number
	}
	number, ok := c.numbers[m]
	if !ok {
		number = uint32(len(c.lines))
		c.numbers[m] = number
		l := line{}
		copy(l[:], m.Lists[:])
		l.set(2*len(m.Lists), m.Country)
		c.lines = append(c.lines, l)
	}
	c.last, c.number = m, number
	return number
}

// borders are those of one family's entries. The first one is at 0.
func (c *compiler) borders(entries []entry) []border {
	out := make([]border, 1, 2+2*len(entries))
	put := func(hi, lo uint64, value uint32) {
		last := &out[len(out)-1]
		switch {
		case last.value == value:
		case last.hi != hi || last.lo != lo:
			out = append(out, border{hi, lo, value})
		case len(out) > 1 && out[len(out)-2].value == value:
			out = out[:len(out)-1]
		default:
			last.value = value
		}
	}
	var outer []int // those that cover the next one, widest first
	leave := func() {
		i := outer[len(outer)-1]
		outer = outer[:len(outer)-1]
		value := uint32(0)
		if len(outer) > 0 {
			value = c.of(entries[outer[len(outer)-1]].on)
		}
		if hi, lo, ok := behind(entries[i].prefix); ok {
			put(hi, lo, value)
		}
	}
	for i, e := range entries {
		for len(outer) > 0 && !covers(entries[outer[len(outer)-1]].prefix, e.prefix) {
			leave()
		}
		hi, lo := halves(e.prefix.Addr())
		put(hi, lo, c.of(e.on))
		outer = append(outer, i)
	}
	for len(outer) > 0 {
		leave()
	}
	return out
}

func halves(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:])) << 32, 0
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// behind is the first address behind a prefix; there is none behind the last one.
func behind(p netip.Prefix) (hi, lo uint64, ok bool) {
	hi, lo = halves(p.Addr())
	if p.Bits() <= 64 {
		hi += 1 << (64 - p.Bits())
		return hi, lo, hi != 0 && p.Bits() > 0
	}
	lo += 1 << (128 - p.Bits())
	if lo == 0 {
		hi++
	}
	return hi, lo, hi != 0 || lo != 0
}

// nest makes borders of 64 bits: a /64 within which there are some gets a tree of its own.
func (c *compiler) nest(all []border) (keys []uint64, values []uint32) {
	before := uint32(0)
	for len(all) > 0 {
		hi, n := all[0].hi, 1
		for n < len(all) && all[n].hi == hi {
			n++
		}
		within, last := all[:n], all[n-1].value
		all = all[n:]
		if n == 1 && within[0].lo == 0 {
			keys, values = append(keys, hi), append(values, last)
			before = last
			continue
		}
		lows, lowValues := c.lows[:0], c.lowValues[:0]
		if within[0].lo != 0 {
			lows, lowValues = append(lows, 0), append(lowValues, before)
		}
		for _, b := range within {
			lows, lowValues = append(lows, b.lo), append(lowValues, b.value)
		}
		c.lows, c.lowValues = lows, lowValues
		head := c.tree(lows, lowValues)
		c.lines = append(c.lines, head)
		keys, values = append(keys, hi), append(values, nested|uint32(len(c.lines)-1))
		if next := hi + 1; next != 0 && (len(all) == 0 || all[0].hi != next) {
			keys, values = append(keys, next), append(values, last)
		}
		before = last
	}
	return keys, values
}

// tree appends a tree's nodes and leaves, and returns its head. The first key is 0.
func (c *compiler) tree(keys []uint64, values []uint32) (head line) {
	sizes := [treeLevels + 1]int{(len(keys) + leafValues - 1) / leafValues} // of the levels, the leaves first
	levels, width := 0, leafValues                                          // width: how many keys are below a line of the next level
	for ; sizes[levels] > 1; levels++ {
		sizes[levels+1] = (sizes[levels] + nodeKeys) / (nodeKeys + 1)
		width *= nodeKeys + 1
	}
	head.set(0, uint32(levels))
	for level := range levels {
		width /= nodeKeys + 1
		head.set(1+level, uint32(len(c.lines)))
		for i := range sizes[levels-level] {
			node := line{}
			for k := range node {
				node[k] = borderAt(keys, (i*(nodeKeys+1)+k+1)*width)
			}
			c.lines = append(c.lines, node)
		}
	}
	head.set(1+levels, uint32(len(c.lines)))
	for at := 0; at < len(keys); at += leafValues {
		leaf := line{}
		for k := range leafValues {
			if k > 0 {
				leaf[k-1] = borderAt(keys, at+k)
			}
			if at+k < len(keys) {
				leaf.set(2*(leafValues-1)+k, values[at+k])
			}
		}
		c.lines = append(c.lines, leaf)
	}
	return head
}

// borderAt is the key as nodes and leaves have it: addresses beyond it, not those from it on, lie behind.
func borderAt(keys []uint64, i int) uint64 {
	if i < len(keys) {
		return keys[i] - 1
	}
	return unused
}
