package catalog

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// allocate gives an accelerator on anycast pools its addresses: one of each pool and family, in the order
// IPv4 of the first pool, of the second, IPv6 of the first, of the second. Those that it has already stay.
func (ch *change) allocate(a *model.Accelerator) error {
	if p := ch.pools.get(a.Pools[0]); p.Kind == model.PoolNode {
		return nil
	}
	want := slices.Clone(a.Addresses)
	used := ch.usedAddresses(a.ID)
	for i, addr := range want {
		path := fmt.Sprintf("accelerator.addresses[%d]", i)
		p := ch.poolHolding(addr)
		switch owner, taken := used[addr]; {
		case p == nil || !slices.Contains(a.Pools, p.Name):
			return field(ReasonNone, path, "%v is in none of the pools %v", addr, a.Pools)
		case taken:
			return field(ReasonInUse, path, "%v belongs to accelerator %s", addr, owner)
		}
		for _, other := range want[:i] {
			if other.Is4() == addr.Is4() && ch.poolHolding(other) == p {
				return field(ReasonNone, path, "%v and %v are both of pool %s; an accelerator has one of each",
					other, addr, p.Name)
			}
		}
	}
	families := []bool{true}
	if a.IPAddressType == model.DualStack {
		families = append(families, false)
	}
	a.Addresses = nil
	for _, ipv4 := range families {
		for _, name := range a.Pools {
			addr, err := ch.addressOf(ch.pools.get(name), a.ID, ipv4, want, used)
			if err != nil {
				return err
			}
			path := fmt.Sprintf("accelerator.addresses[%d]", len(a.Addresses))
			if err := ch.checkPoolAllowed(a, ch.pools.get(name), addr, path); err != nil {
				return err
			}
			a.Addresses = append(a.Addresses, addr)
		}
	}
	return nil
}

// addressOf returns the one of want that is of this pool and family, or else a free one.
func (ch *change) addressOf(p *model.Pool, id model.AcceleratorID, ipv4 bool, want []netip.Addr,
	used map[netip.Addr]model.AcceleratorID) (netip.Addr, error) {
	for _, addr := range want {
		if addr.Is4() == ipv4 && p == ch.poolHolding(addr) {
			return addr, nil
		}
	}
	if addr, ok := freeAddress(p, string(id), ipv4, used); ok {
		return addr, nil
	}
	family := "IPv6"
	if ipv4 {
		family = "IPv4"
	}
	return netip.Addr{}, precondition(ReasonNoAddresses, "pool %s has no free %s address; add a prefix",
		p.Name, family)
}

// freeAddress returns an address of p that nobody has. Where the search begins depends on id alone: an
// accelerator's addresses say nothing about how many there are, and neighbours in time are not
// neighbours in space.
func freeAddress(p *model.Pool, id string, ipv4 bool,
	used map[netip.Addr]model.AcceleratorID) (netip.Addr, bool) {
	var ranges []addressRange
	var total uint64
	for _, prefix := range p.Prefixes {
		if prefix.Addr().Is4() == ipv4 {
			r := usable(prefix)
			ranges = append(ranges, r)
			total += r.n
		}
	}
	if total == 0 {
		return netip.Addr{}, false
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%v", id, p.Name, ipv4)
	start := h.Sum64() % total
	// One more than are used at all must find a free one, if there is one.
	for i := range min(total, uint64(len(used))+1) {
		at := (start + i) % total
		for _, r := range ranges {
			if at < r.n {
				if addr := r.at(at); !has(used, addr) {
					return addr, true
				}
				break
			}
			at -= r.n
		}
	}
	return netip.Addr{}, false
}

// addressRange is n addresses from first on.
type addressRange struct {
	first netip.Addr
	n     uint64
}

// usable returns the addresses of a prefix that are given out by themselves: without the network's and
// the broadcast address of IPv4 and the subnet router's anycast address of IPv6 (RFC 4291 2.6.1), which some
// networks still treat so. Asked for by name they can be had.
func usable(p netip.Prefix) addressRange {
	free := p.Addr().BitLen() - p.Bits()
	n := uint64(1) << min(free, 32) // 2^32 addresses of a larger prefix are enough to choose from
	switch {
	case free <= 1:
		return addressRange{p.Addr(), n}
	case p.Addr().Is4():
		return addressRange{p.Addr().Next(), n - 2}
	}
	return addressRange{p.Addr().Next(), n - 1}
}

// at returns the i-th address of the range.
func (r addressRange) at(i uint64) netip.Addr {
	if r.first.Is4() {
		b := r.first.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i))
		return netip.AddrFrom4(b)
	}
	// A range has at most 2^32 addresses and a prefix more than that has 32 zero bits at its end, so
	// the low half never carries.
	b := r.first.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+i)
	return netip.AddrFrom16(b)
}

// usedAddresses returns who has each accelerated address, except those of the accelerator but.
func (o *objects) usedAddresses(but model.AcceleratorID) map[netip.Addr]model.AcceleratorID {
	used := map[netip.Addr]model.AcceleratorID{}
	for a := range o.accelerators.all() {
		if a.ID != but {
			for _, addr := range a.Addresses {
				used[addr] = a.ID
			}
		}
	}
	return used
}

// hasFree reports whether p has what a needs of it.
func (ch *change) hasFree(p *model.Pool, a *model.Accelerator) bool {
	used := ch.usedAddresses("")
	_, v4 := freeAddress(p, string(a.ID), true, used)
	if a.IPAddressType != model.DualStack {
		return v4
	}
	_, v6 := freeAddress(p, string(a.ID), false, used)
	return v4 && v6
}

// poolHolding returns the pool that has addr, or nil. Pools do not overlap.
func (o *objects) poolHolding(addr netip.Addr) *model.Pool {
	for p := range o.pools.all() {
		for _, prefix := range p.Prefixes {
			if prefix.Contains(addr) {
				return p
			}
		}
	}
	return nil
}

// onlyFamilies returns those of a's addresses that its IPAddressType has.
func onlyFamilies(a model.Accelerator) []netip.Addr {
	if a.IPAddressType == model.DualStack {
		return a.Addresses
	}
	return slices.DeleteFunc(slices.Clone(a.Addresses), netip.Addr.Is6)
}

func has[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	return ok
}
