package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// A packed set of networks is a byte, and a tree for each family that the set has something of:
//
//	+--------+---------------+---------------+
//	| 1 | 2  | tree of IPv4  | tree of IPv6  |    1: there is a tree of IPv4, 2: of IPv6
//	+--------+---------------+---------------+
//
// A tree is its nodes in order, the left half of a network (its next bit is 0) before the right one, two bits a
// node and the first one in a byte's highest bits; a byte's rest is 0. The first node is 0.0.0.0/0 or ::/0.
//
//	00  all of the network, and no nodes below it      01  a part of the left half: its node follows
//	10  a part of the right half: its node follows     11  of both: the left node with all below it, then the right
//
// So whatever can be read is sorted, masked and disjoint. It is read only in its shortest form: two whole halves
// are one network. An empty set has no bytes.
const (
	packedV4, packedV6 = 1, 2

	nodeWhole, nodeLeft, nodeRight, nodeBoth = 0, 1, 2, 3
)

// PackNetworks packs networks that are sorted by address, masked, disjoint and as few as possible, as AppendNetwork
// makes them. IPv4 comes first.
func PackNetworks(networks []netip.Prefix) []byte {
	split := slices.IndexFunc(networks, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if split < 0 {
		split = len(networks)
	}
	if len(networks) == 0 {
		return nil
	}
	w := packer{b: []byte{0}}
	for flag, family := range map[byte][]netip.Prefix{packedV4: networks[:split], packedV6: networks[split:]} {
		if len(family) > 0 {
			w.b[0] |= flag
		}
	}
	for _, family := range [][]netip.Prefix{networks[:split], networks[split:]} {
		if len(family) > 0 {
			w.tree(family, 0)
		}
	}
	return w.b
}

type packer struct {
	b     []byte
	nodes int
}

func (w *packer) node(code byte) {
	if w.nodes%4 == 0 {
		w.b = append(w.b, 0)
	}
	w.b[len(w.b)-1] |= code << (6 - 2*(w.nodes%4))
	w.nodes++
}

// tree packs networks that all lie in one of length depth.
func (w *packer) tree(networks []netip.Prefix, depth int) {
	if networks[0].Bits() <= depth {
		w.node(nodeWhole)
		return
	}
	split := 0 // binary search by hand: this is most of the work
	for lo, hi := 0, len(networks); ; split = lo {
		if lo >= hi {
			break
		}
		if m := (lo + hi) / 2; bitOf(networks[m].Addr(), depth) {
			hi = m
		} else {
			lo = m + 1
		}
	}
	switch split {
	case 0:
		w.node(nodeRight)
	case len(networks):
		w.node(nodeLeft)
	default:
		w.node(nodeBoth)
	}
	if split > 0 {
		w.tree(networks[:split], depth+1)
	}
	if split < len(networks) {
		w.tree(networks[split:], depth+1)
	}
}

func bitOf(a netip.Addr, i int) bool {
	if a.Is4() {
		b := a.As4()
		return b[i/8]>>(7-i%8)&1 == 1
	}
	b := a.As16()
	return b[i/8]>>(7-i%8)&1 == 1
}

// UnpackNetworks reads a packed set.
func UnpackNetworks(packed []byte) ([]netip.Prefix, error) {
	n, err := CountNetworks(packed)
	if err != nil || n == 0 {
		return nil, err
	}
	out := make([]netip.Prefix, 0, n)
	r := unpacker{b: packed, take: func(p netip.Prefix) { out = append(out, p) }}
	return out, r.read()
}

// CountNetworks checks a packed set and says how many networks it has.
func CountNetworks(packed []byte) (int, error) {
	r := unpacker{b: packed}
	err := r.read()
	return r.count, err
}

type unpacker struct {
	b      []byte
	nodes  int
	count  int
	family int      // bits of its addresses
	at     [16]byte // address of the node that is read
	take   func(netip.Prefix)
}

var (
	errPackedShort   = errors.New("ends in the middle of a set of networks")
	errPackedTail    = errors.New("has bytes behind a set of networks")
	errPackedFamily  = errors.New("is a set of networks of no known family")
	errPackedDeep    = errors.New("has a network that is longer than its addresses")
	errPackedForm    = errors.New("is a set of networks that is not in its shortest form")
	errPackedMapped  = errors.New("has an IPv4 network written as IPv6")
	packedNetworkMax = CountryNetworksMax
)

func (r *unpacker) read() error {
	if len(r.b) == 0 {
		return nil
	}
	flags := r.b[0]
	if flags == 0 || flags > packedV4|packedV6 {
		return errPackedFamily
	}
	for _, f := range []struct {
		flag byte
		bits int
	}{{packedV4, 32}, {packedV6, 128}} {
		if flags&f.flag == 0 {
			continue
		}
		r.family, r.at = f.bits, [16]byte{}
		if _, err := r.tree(0); err != nil {
			return err
		}
	}
	used := 1 + (r.nodes+3)/4
	if used != len(r.b) || r.nodes%4 != 0 && r.b[used-1]<<(2*(r.nodes%4)) != 0 {
		return errPackedTail
	}
	return nil
}

// tree reads a node and all below it, and says whether it is whole.
func (r *unpacker) tree(depth int) (whole bool, err error) {
	i := 1 + r.nodes/4
	if i >= len(r.b) {
		return false, errPackedShort
	}
	code := r.b[i] >> (6 - 2*(r.nodes%4)) & 3
	r.nodes++
	if code == nodeWhole {
		return true, r.network(depth)
	}
	if depth == r.family {
		return false, errPackedDeep
	}
	var left, right bool
	if code&nodeLeft != 0 {
		if left, err = r.tree(depth + 1); err != nil {
			return false, err
		}
	}
	if code&nodeRight != 0 {
		r.at[depth/8] |= 1 << (7 - depth%8)
		right, err = r.tree(depth + 1)
		r.at[depth/8] &^= 1 << (7 - depth%8)
		if err != nil {
			return false, err
		}
	}
	if left && right {
		return false, errPackedForm
	}
	return false, nil
}

func (r *unpacker) network(depth int) error {
	if r.count++; r.count > packedNetworkMax {
		return fmt.Errorf("has more than %d networks", packedNetworkMax)
	}
	a := netip.AddrFrom16(r.at)
	if r.family == 32 {
		a = netip.AddrFrom4([4]byte(r.at[:4]))
	} else if a.Is4In6() && depth >= 96 {
		return errPackedMapped
	}
	if r.take != nil {
		r.take(netip.PrefixFrom(a, depth))
	}
	return nil
}

// AppendNetwork appends p to networks, which are sorted, masked and disjoint and all before p, and makes two halves
// of one network that network.
func AppendNetwork(networks []netip.Prefix, p netip.Prefix) []netip.Prefix {
	for len(networks) > 0 {
		last := networks[len(networks)-1]
		if last.Bits() != p.Bits() || p.Bits() == 0 || last.Addr().BitLen() != p.Addr().BitLen() {
			break
		}
		wide, err := last.Addr().Prefix(p.Bits() - 1)
		if err != nil || !wide.Contains(p.Addr()) {
			break
		}
		networks, p = networks[:len(networks)-1], wide
	}
	return append(networks, p)
}
