package guard

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/nearcast/nearcast/bpf/ports"
)

// This file keeps the trie of source prefixes. It may have a million entries, so it works on sorted slices, and
// not at all when no list has changed:
//
//	rules → gather (each prefix with its own lists) → cover (and those of wider prefixes) → write what differs

// membership is a set of lists, a bit each, and the number of a country, or 0.
type membership = guardMembership

// entry is a source prefix and what it is on.
type entry struct {
	prefix netip.Prefix
	on     membership
}

// listed is what the trie holds, and the lists that it came from.
type listed struct {
	in               []entry // sorted
	lists, countries map[string][]netip.Prefix
	dirty            bool // in is not what lists and countries make
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

// cover gives each prefix what wider ones are on, too: the trie finds only the narrowest.
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

// addLists puts new lists beside the old ones: whichever of the two listeners point to is whole.
func (g *Guard) addLists(r Rules) error {
	l := &g.listed
	if !l.dirty && sameLists(l.lists, r.Lists) && sameLists(l.countries, r.Countries) {
		return nil
	}
	l.dirty = true
	want := g.gather(r.Lists, r.Countries)
	if room := int(g.objs.Lists.MaxEntries() / 2); len(want) > room {
		return fmt.Errorf("%w: %d listed prefixes, and there is room for %d", ErrFull, len(want), room)
	}
	return g.write(cover(merge(want, g.gather(l.lists, l.countries))), false)
}

// settleLists takes away what is not of the new lists.
func (g *Guard) settleLists(r Rules) error {
	l := &g.listed
	if !l.dirty {
		return nil
	}
	if err := g.write(cover(g.gather(r.Lists, r.Countries)), true); err != nil {
		return err
	}
	l.lists, l.countries, l.dirty = maps.Clone(r.Lists), maps.Clone(r.Countries), false
	return nil
}

func sameLists(a, b map[string][]netip.Prefix) bool {
	return maps.EqualFunc(a, b, func(x, y []netip.Prefix) bool {
		return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0] || slices.Equal(x, y))
	})
}

// write makes the trie say what want says, of prefixes that want has; of others if they are to go.
func (g *Guard) write(want []entry, remove bool) error {
	in, err := syncEntries(g.objs.Lists, g.listed.in, want, remove)
	g.listed.in = in
	if err != nil {
		return fmt.Errorf("write lists: %w", err)
	}
	return nil
}

// syncEntries returns what is in the trie afterwards, also after an error.
func syncEntries(trie *ebpf.Map, has, want []entry, remove bool) ([]entry, error) {
	now := make([]entry, 0, max(len(has), len(want)))
	for len(has) > 0 || len(want) > 0 {
		order := -1
		switch {
		case len(has) == 0:
			order = 1
		case len(want) > 0:
			order = comparePrefixes(has[0].prefix, want[0].prefix)
		}
		if order < 0 { // only in the trie
			if !remove {
				now = append(now, has[0])
			} else if err := trie.Delete(ports.KeyOf(0, has[0].prefix)); err != nil {
				return append(now, has...), err
			}
			has = has[1:]
			continue
		}
		if order > 0 || has[0].on != want[0].on {
			if err := trie.Put(ports.KeyOf(0, want[0].prefix), want[0].on); err != nil {
				return append(now, has...), err
			}
		}
		now, want = append(now, want[0]), want[1:]
		if order == 0 {
			has = has[1:]
		}
	}
	return now, nil
}
