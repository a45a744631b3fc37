package steer

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// portTable finds the listener of a port of one address. Ranges are sorted and don't overlap.
type portTable struct {
	tcp, udp []portEntry
}

type portEntry struct {
	from, to uint16
	listener *Listener
}

func (p *portTable) of(proto flow.Proto) *[]portEntry {
	switch proto {
	case flow.TCP:
		return &p.tcp
	case flow.UDP:
		return &p.udp
	}
	return nil
}

// find is a binary search by hand: it is on the way of every datagram that begins a flow.
func (p *portTable) find(port uint16, proto flow.Proto) *Listener {
	list := p.of(proto)
	if list == nil {
		return nil
	}
	entries := *list
	low, high := 0, len(entries)
	for low < high {
		mid := int(uint(low+high) / 2)
		switch e := &entries[mid]; {
		case port < e.from:
			high = mid
		case port > e.to:
			low = mid + 1
		default:
			return e.listener
		}
	}
	return nil
}

// assignPorts makes the port tables. The listeners come in the order of their ids, and a range that
// overlaps one of an earlier listener is left out.
func assignPorts(t *Table) {
	type key struct {
		addr  netip.Addr
		proto flow.Proto
	}
	claimed := map[key][]portEntry{}
	for _, l := range t.listeners {
		for _, addr := range l.Addresses {
			for _, proto := range []flow.Proto{flow.TCP, flow.UDP} {
				if !l.Protocol.Has(protocolOf(proto)) {
					continue
				}
				k := key{addr, proto}
				for _, r := range l.PortRanges {
					claimed[k] = append(claimed[k], portEntry{r.From, r.To, l})
				}
			}
		}
	}
	for k, entries := range claimed {
		ports := t.ports[k.addr]
		if ports == nil {
			ports = &portTable{}
			t.ports[k.addr] = ports
		}
		*ports.of(k.proto) = disjoint(entries)
	}
}

// disjoint sorts ranges and leaves out what overlaps an earlier one. In a consistent snapshot none
// does, which the sorted list shows at once.
func disjoint(entries []portEntry) []portEntry {
	sorted := slices.Clone(entries)
	sortEntries(sorted)
	overlap := slices.ContainsFunc(sorted, func(e portEntry) bool { return e.from > e.to })
	for i := 1; i < len(sorted) && !overlap; i++ {
		overlap = sorted[i].from <= sorted[i-1].to
	}
	if !overlap {
		return sorted
	}
	var kept []portEntry
	for _, e := range entries {
		clash := func(o portEntry) bool { return e.from <= o.to && o.from <= e.to }
		if e.from <= e.to && !slices.ContainsFunc(kept, clash) {
			kept = append(kept, e)
		}
	}
	sortEntries(kept)
	return kept
}

func sortEntries(entries []portEntry) {
	slices.SortFunc(entries, func(a, b portEntry) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
}

func protocolOf(p flow.Proto) model.Protocol {
	if p == flow.UDP {
		return model.UDP
	}
	return model.TCP
}
