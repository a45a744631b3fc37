package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// ErrFull says that the rules need more prefixes or ranges than the maps have.
var ErrFull = errors.New("port tables are full")

// Extent is a value of the prefixes trie: struct extent of include/ports.h.
type Extent struct{ Start, Count uint32 }

// Entry is a value of the ranges array: struct range of include/ports.h.
type Entry struct {
	First, Last uint16
	Value       uint32
}

// extent is a part of the ranges array that holds one content; what is shared counts its users.
type extent struct {
	start, count uint32
	users        int
}

// Table is this process's picture of the prefixes and ranges maps. It is rebuilt from the maps themselves, so
// nothing but them has to survive the daemon.
type Table struct {
	prefixes, ranges *ebpf.Map
	places           map[place]string   // what is in the trie, by content
	extents          map[string]*extent // content → where it is
	free             []extent           // sorted by start, never touching one another
}

// Open reads the maps, which have keys and values of this package.
func Open(prefixes, ranges *ebpf.Map) (*Table, error) {
	t := &Table{
		prefixes: prefixes, ranges: ranges,
		places: map[place]string{}, extents: map[string]*extent{},
	}
	var k Key
	var e Extent
	entries := prefixes.Iterate()
	for entries.Next(&k, &e) {
		at, err := placeOf(k)
		if err != nil {
			return nil, err
		}
		content, err := t.read(e)
		if err != nil {
			return nil, err
		}
		if t.extents[content] == nil {
			t.extents[content] = &extent{start: e.Start, count: e.Count}
		}
		if t.extents[content].start != e.Start {
			// The same content twice happens when a daemon died between two steps; the places of one of the
			// copies get a name of their own and move at the next change.
			content = fmt.Sprintf("%s copy at %d", content, e.Start)
			t.extents[content] = &extent{start: e.Start, count: e.Count}
		}
		t.extents[content].users++
		t.places[at] = content
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read prefixes: %w", err)
	}
	t.findFree()
	return t, nil
}

func (t *Table) read(e Extent) (string, error) {
	if e.Start+e.Count < e.Start || e.Start+e.Count > t.ranges.MaxEntries() {
		return "", fmt.Errorf("extent %+v lies outside the ranges", e)
	}
	var content []byte
	var r Entry
	for i := e.Start; i < e.Start+e.Count; i++ {
		if err := t.ranges.Lookup(i, &r); err != nil {
			return "", fmt.Errorf("read range %d: %w", i, err)
		}
		content = appendSpan(content, span{r.First, r.Last, r.Value})
	}
	return string(content), nil
}

// findFree makes the free list from what the extents leave.
func (t *Table) findFree() {
	used := make([]extent, 0, len(t.extents))
	for _, e := range t.extents {
		used = append(used, *e)
	}
	slices.SortFunc(used, func(a, b extent) int { return int(int64(a.start) - int64(b.start)) })
	t.free = t.free[:0]
	next := uint32(0)
	for _, e := range used {
		if e.start > next {
			t.free = append(t.free, extent{start: next, count: e.start - next})
		}
		next = e.start + e.count
	}
	if next < t.ranges.MaxEntries() {
		t.free = append(t.free, extent{start: next, count: t.ranges.MaxEntries() - next})
	}
}

// Update makes the maps say what the rules say. Every (protocol, prefix) changes by one write, after what it
// points to is complete, and those whose rules did not change are not touched. A bad rule and ErrFull change
// nothing. Update is not for concurrent use, here or with another process.
func (t *Table) Update(rules []Rule) error {
	want, err := compile(rules)
	if err != nil {
		return err
	}
	if len(want) > t.placesMax() {
		return fmt.Errorf("%w: %d prefixes, and there is room for %d", ErrFull, len(want), t.placesMax())
	}
	contents := make(map[place]string, len(want))
	var fresh []string // contents that this update allocated
	for at, spans := range want {
		content := contentOf(spans)
		contents[at] = content
		if t.extents[content] != nil {
			continue
		}
		if err := t.place(content, spans); err != nil {
			for _, c := range fresh {
				delete(t.extents, c)
			}
			t.findFree()
			return err
		}
		fresh = append(fresh, content)
	}
	err = t.swap(contents)
	WaitForPrograms() // one may still be reading an extent that nothing points to any more
	for content, e := range t.extents {
		if e.users == 0 {
			delete(t.extents, content)
		}
	}
	t.findFree()
	return err
}

// swap points the places to their new contents, and removes the places that have none.
func (t *Table) swap(contents map[place]string) error {
	for at, content := range contents {
		old, had := t.places[at]
		if had && old == content {
			continue
		}
		e := t.extents[content]
		value := Extent{Start: e.start, Count: e.count}
		if err := t.prefixes.Put(at.key(), value); err != nil {
			return fmt.Errorf("write %v %v: %w", at.proto, at.prefix, err)
		}
		e.users++
		if had {
			t.extents[old].users--
		}
		t.places[at] = content
	}
	for at, content := range t.places {
		if _, wanted := contents[at]; wanted {
			continue
		}
		if err := t.prefixes.Delete(at.key()); err != nil {
			return fmt.Errorf("delete %v %v: %w", at.proto, at.prefix, err)
		}
		t.extents[content].users--
		delete(t.places, at)
	}
	return nil
}

// place writes a content into a free part of the ranges, the first that is large enough.
func (t *Table) place(content string, spans []span) error {
	need := uint32(len(spans))
	i := slices.IndexFunc(t.free, func(e extent) bool { return e.count >= need })
	if i < 0 {
		return fmt.Errorf("%w: no %d port ranges in a row are free", ErrFull, need)
	}
	start := t.free[i].start
	keys, values := make([]uint32, need), make([]Entry, need)
	for j, s := range spans {
		keys[j] = start + uint32(j)
		values[j] = Entry{First: s.first, Last: s.last, Value: s.value}
	}
	if _, err := t.ranges.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("write port ranges: %w", err)
	}
	t.free[i].start += need
	t.free[i].count -= need
	if t.free[i].count == 0 {
		t.free = slices.Delete(t.free, i, i+1)
	}
	t.extents[content] = &extent{start: start, count: need}
	return nil
}

// placesMax leaves half of the trie free, as new places are written before old ones are deleted.
func (t *Table) placesMax() int { return int(t.prefixes.MaxEntries() / 2) }

// contentOf encodes spans as a map key.
func contentOf(spans []span) string {
	b := make([]byte, 0, 8*len(spans))
	for _, s := range spans {
		b = appendSpan(b, s)
	}
	return string(b)
}

func appendSpan(b []byte, s span) []byte {
	b = binary.BigEndian.AppendUint16(b, s.first)
	b = binary.BigEndian.AppendUint16(b, s.last)
	return binary.BigEndian.AppendUint32(b, s.value)
}

// Usage says how much of the maps is in use.
type Usage struct {
	Prefixes, PrefixesMax int // (protocol, prefix) pairs
	Ranges, RangesMax     int // port ranges; equal contents share them
}

// Usage returns it as of the last Update.
func (t *Table) Usage() Usage {
	u := Usage{Prefixes: len(t.places), PrefixesMax: t.placesMax(), RangesMax: int(t.ranges.MaxEntries())}
	u.Ranges = u.RangesMax
	for _, e := range t.free {
		u.Ranges -= int(e.count)
	}
	return u
}
