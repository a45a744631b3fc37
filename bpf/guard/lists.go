package guard

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// This file says which source prefixes are on which lists. There may be a million, so it works on sorted slices,
// and not at all when no list has changed:
//
//	rules → gather (each prefix with its own lists) → cover (and those of wider prefixes) → compile (tree.go)

// membership is a set of lists, a bit each, and the number of a country, or 0.
type membership = guardMembership

// entry is a source prefix and what it is on.
type entry struct {
	prefix netip.Prefix
	on     membership
}

// listed is what the program's tree was made of.
type listed struct {
	lists, countries map[string][]netip.Prefix
	prefixes         int
}

func with(m membership, list uint32) membership {
	m.Lists[list/64] |= 1 << (list % 64)
	return m
}

// join is what a source is on that is on a and on b. Of two countries a's counts.
func join(a, b membership) membership {
	for i := range a.Lists {
		a.Lists[i] |= b.Lists[i]
	}
	a.Country = cmp.Or(a.Country, b.Country)
	return a
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// gather returns every listed prefix once, sorted, with the lists that it is on itself.
func (g *Guard) gather(lists, countries map[string][]netip.Prefix) []entry {
	var parts [][]entry
	for _, name := range slices.Sorted(maps.Keys(countries)) {
		parts = append(parts, entries(countries[name], membership{Country: 1 + g.countries.numbers[name]}))
	}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		parts = append(parts, entries(lists[name], with(membership{}, g.lists.numbers[name])))
	}
	if len(parts) == 0 {
		return nil
	}
	for len(parts) > 1 { // in pairs, so that each entry is moved a few times only
		for i := range len(parts) / 2 {
			parts[i] = merge(parts[2*i], parts[2*i+1])
		}
		if len(parts)%2 == 1 {
			parts[len(parts)/2] = parts[len(parts)-1]
		}
		parts = parts[:(len(parts)+1)/2]
	}
	return parts[0]
}

// entries makes sorted entries of prefixes.
func entries(prefixes []netip.Prefix, on membership) []entry {
	if !slices.IsSortedFunc(prefixes, comparePrefixes) {
		prefixes = slices.SortedFunc(slices.Values(prefixes), comparePrefixes)
	}
	out := make([]entry, 0, len(prefixes))
	for i, p := range prefixes {
		if i == 0 || p != prefixes[i-1] {
			out = append(out, entry{p, on})
		}
	}
	return out
}

// merge returns the entries of both; those with one prefix become one.
func merge(a, b []entry) []entry {
	out := make([]entry, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := comparePrefixes(a[0].prefix, b[0].prefix); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out = append(out, entry{a[0].prefix, join(a[0].on, b[0].on)})
			a, b = a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// cover gives each prefix what wider ones are on, too: only the narrowest is found.
func cover(all []entry) []entry {
	var outer []int // those that cover the next one, widest first
	for i := range all {
		for len(outer) > 0 && !covers(all[outer[len(outer)-1]].prefix, all[i].prefix) {
			outer = outer[:len(outer)-1]
		}
		if len(outer) > 0 {
			all[i].on = join(all[i].on, all[outer[len(outer)-1]].on)
		}
		outer = append(outer, i)
	}
	return all
}

func covers(wide, p netip.Prefix) bool { return wide.Bits() <= p.Bits() && wide.Contains(p.Addr()) }

// addLists puts new lists beside those that are to go: whichever of the two listeners point to is whole.
func (g *Guard) addLists(r Rules) error {
	l := &g.listed
	if sameLists(l.lists, r.Lists) && sameLists(l.countries, r.Countries) {
		return nil
	}
	want := g.gather(r.Lists, r.Countries)
	if room := g.room(); len(want) > room {
		return fmt.Errorf("%w: %d listed prefixes, and there is room for %d", ErrFull, len(want), room)
	}
	lists, countries := without(l.lists, r.Lists), without(l.countries, r.Countries)
	if err := g.writeLists(cover(merge(want, g.gather(lists, countries)))); err != nil {
		return err
	}
	maps.Copy(lists, r.Lists)
	maps.Copy(countries, r.Countries)
	l.lists, l.countries = lists, countries
	return nil
}

// settleLists takes away what is not of the new lists.
func (g *Guard) settleLists(r Rules) error {
	l := &g.listed
	if len(l.lists) == len(r.Lists) && len(l.countries) == len(r.Countries) {
		return nil // nothing of the old was kept
	}
	if err := g.writeLists(cover(g.gather(r.Lists, r.Countries))); err != nil {
		return err
	}
	l.lists, l.countries = maps.Clone(r.Lists), maps.Clone(r.Countries)
	return nil
}

// without returns those of all whose names others don't have.
func without(all, others map[string][]netip.Prefix) map[string][]netip.Prefix {
	left := map[string][]netip.Prefix{}
	for name, prefixes := range all {
		if _, ok := others[name]; !ok {
			left[name] = prefixes
		}
	}
	return left
}

func sameLists(a, b map[string][]netip.Prefix) bool {
	return maps.EqualFunc(a, b, func(x, y []netip.Prefix) bool {
		return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0] || slices.Equal(x, y))
	})
}

func (g *Guard) room() int { return orDefault(g.cfg.ListedMax, DefaultListedMax) }

// writeLists puts a tree of the entries in the place of the one that the program searches: a packet meets the one
// or the other. The kernel frees the old one when no packet is on it.
func (g *Guard) writeLists(entries []entry) error {
	lines := compile(entries)
	spec := g.lines.Copy()
	spec.MaxEntries = uint32(len(lines))
	m, err := ebpf.NewMap(spec)
	if err == nil {
		defer m.Close()
		err = fill(m, lines)
	}
	if err == nil {
		err = g.objs.Lists.Put(uint32(0), m)
	}
	if err != nil {
		return fmt.Errorf("write lists of %d prefixes in %d bytes: %w", len(entries), len(lines)*lineBytes, err)
	}
	g.listed.prefixes = len(entries)
	return nil
}

// fill writes an array by its pages, which costs no system call a line.
func fill(m *ebpf.Map, lines []line) error {
	size := len(lines) * lineBytes
	pages, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map memory: %w", err)
	}
	for i := range lines {
		for k, word := range lines[i] {
			binary.NativeEndian.PutUint64(pages[i*lineBytes+8*k:], word)
		}
	}
	return unix.Munmap(pages)
}
