package ports

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Proto is a transport protocol by its IP protocol number.
type Proto uint8

// The protocols that have ports.
const (
	TCP Proto = 6
	UDP Proto = 17
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Range is a range of ports, both ends included.
type Range struct{ First, Last uint16 }

// Rule gives what is addressed to Prefix and Ports a value.
type Rule struct {
	Prefix netip.Prefix
	Ports  Range
	Proto  Proto
	Value  uint32
}

// Validate checks one rule.
func (r Rule) Validate() error {
	switch {
	case !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6():
		return fmt.Errorf("rule %+v: prefix is not a masked IPv4 or IPv6 prefix", r)
	case r.Ports.First == 0 || r.Ports.Last < r.Ports.First:
		return fmt.Errorf("rule %+v: ports are not a range within 1-65535", r)
	case r.Proto != TCP && r.Proto != UDP:
		return fmt.Errorf("rule %+v: protocol is neither TCP nor UDP", r)
	}
	return nil
}

// span is what rules say about some ports of a prefix.
type span struct {
	first, last uint16
	value       uint32
}

// place is a key of the trie.
type place struct {
	proto  Proto
	prefix netip.Prefix
}

func (a place) compare(b place) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto),
		a.prefix.Addr().Compare(b.prefix.Addr()), // IPv4 sorts before IPv6
		cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
}

func (a place) covers(b place) bool {
	return a.proto == b.proto && a.prefix.Bits() <= b.prefix.Bits() && a.prefix.Contains(b.prefix.Addr())
}

// compile turns rules into what each place's extent says: sorted, disjoint and complete, so that the program
// needs only the longest prefix. A narrower prefix wins over a wider one port by port. Two rules of the same
// prefix may not claim a port for different values.
func compile(rules []Rule) (map[place][]span, error) {
	own := make(map[place][]span)
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			return nil, err
		}
		at := place{r.Proto, r.Prefix}
		own[at] = append(own[at], span{r.Ports.First, r.Ports.Last, r.Value})
	}
	places := make([]place, 0, len(own))
	for at := range own {
		places = append(places, at)
	}
	slices.SortFunc(places, place.compare)

	out := make(map[place][]span, len(own))
	var outer []place // the places that cover the next one, widest first
	for _, at := range places {
		spans, err := merge(own[at])
		if err != nil {
			return nil, fmt.Errorf("%v %v: %w", at.proto, at.prefix, err)
		}
		for len(outer) > 0 && !outer[len(outer)-1].covers(at) {
			outer = outer[:len(outer)-1]
		}
		if len(outer) > 0 {
			spans = overlay(out[outer[len(outer)-1]], spans)
		}
		if len(spans) > spansMax {
			return nil, fmt.Errorf("%v %v: more than %d port ranges", at.proto, at.prefix, spansMax)
		}
		outer = append(outer, at)
		out[at] = spans
	}
	return out, nil
}

// merge sorts spans and joins those that touch or overlap with one value.
func merge(spans []span) ([]span, error) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	out := spans[:0:0]
	for _, s := range spans {
		if len(out) > 0 {
			last := &out[len(out)-1]
			if s.first <= last.last && s.value != last.value {
				return nil, fmt.Errorf("port %d has the values %d and %d", s.first, last.value, s.value)
			}
			if s.value == last.value && uint32(s.first) <= uint32(last.last)+1 {
				last.last = max(last.last, s.last)
				continue
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// overlay returns what wide says where narrow says nothing, and else what narrow says. Both are sorted and
// disjoint, and so is the result.
func overlay(wide, narrow []span) []span {
	out := slices.Clone(narrow)
	for _, w := range wide {
		next := uint32(w.first) // the first port of w that is not looked at yet; may become 65536
		i, _ := slices.BinarySearchFunc(narrow, w.first, func(n span, port uint16) int {
			return cmp.Compare(n.last, port)
		})
		for ; i < len(narrow) && narrow[i].first <= w.last; i++ {
			if uint32(narrow[i].first) > next {
				out = append(out, span{uint16(next), narrow[i].first - 1, w.value})
			}
			next = uint32(narrow[i].last) + 1
		}
		if next <= uint32(w.last) {
			out = append(out, span{uint16(next), w.last, w.value})
		}
	}
	out, _ = merge(out) // nothing overlaps, so no values contradict each other
	return out
}

// Key is the key of the prefixes trie: struct prefix of include/ports.h.
type Key struct {
	Bits     uint32 // 32 for protocol and family, then those of the address
	Protocol uint8
	Family   uint8
	_        uint16
	Address  [4]uint32 // network order; IPv4 is the first word alone
}

// KeyOf returns the key of a prefix.
func KeyOf(p Proto, prefix netip.Prefix) Key {
	return Key{
		Bits: 32 + uint32(prefix.Bits()), Protocol: uint8(p),
		Family: Family(prefix.Addr()), Address: Words(prefix.Addr()),
	}
}

func (a place) key() Key { return KeyOf(a.proto, a.prefix) }

// placeOf is the inverse of key.
func placeOf(k Key) (place, error) {
	var raw [16]byte
	for i, w := range k.Address {
		binary.NativeEndian.PutUint32(raw[4*i:], w)
	}
	addr := netip.AddrFrom16(raw)
	if k.Family == unix.AF_INET {
		addr = netip.AddrFrom4([4]byte(raw[:4]))
	}
	prefix, err := addr.Prefix(int(k.Bits) - 32)
	if err != nil {
		return place{}, fmt.Errorf("trie entry %+v: %w", k, err)
	}
	return place{Proto(k.Protocol), prefix}, nil
}

// Family returns the address family of an address that is not IPv4 mapped into IPv6.
func Family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Words returns an address as a program sees it: in network order, IPv4 in the first word.
func Words(a netip.Addr) (w [4]uint32) {
	for i, raw := 0, a.AsSlice(); i < len(raw); i += 4 {
		w[i/4] = binary.NativeEndian.Uint32(raw[i:])
	}
	return w
}
