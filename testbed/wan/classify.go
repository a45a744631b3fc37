package wan

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers.
const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58

	// IPv6 extension headers that may stand before the transport header.
	extHopByHop, extRouting, extFragment, extDestination = 0, 43, 44, 60
)

// Protocols is a set of transport protocols: what Block can stop. They can be added with |.
type Protocols uint8

// The protocols that Block tells apart.
const (
	UDP Protocols = 1 << iota
	TCP
	ICMP       // of both families
	other      // all the rest
	Everything = UDP | TCP | ICMP | other
)

// destination returns the destination address of a packet.
func destination(ip []byte) (netip.Addr, bool) {
	switch {
	case len(ip) >= ip4BytesMin && ip[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(ip[16:20])), true
	case len(ip) >= ip6BytesMin && ip[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(ip[24:40])), true
	}
	return netip.Addr{}, false
}

// transport returns the protocol of a packet, and where its transport header begins: -1 in a fragment, which
// has none or may have none.
func transport(ip []byte) (mask Protocols, l4 int) {
	if ip[0]>>4 == 4 {
		l4 = int(ip[0]&15) * 4
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 { // more fragments, or an offset
			l4 = -1
		}
		return maskOf(ip[9]), l4
	}
	next, at := ip[6], ip6BytesMin
	fragment := false
	for len(ip) >= at+8 {
		switch next {
		case extHopByHop, extRouting, extDestination:
			next, at = ip[at], at+8+int(ip[at+1])*8
		case extFragment:
			fragment = true
			next, at = ip[at], at+8
		default:
			if fragment {
				at = -1
			}
			return maskOf(next), at
		}
	}
	return maskOf(next), -1
}

func maskOf(proto byte) Protocols {
	switch proto {
	case protoUDP:
		return UDP
	case protoTCP:
		return TCP
	case protoICMP, protoICMP6:
		return ICMP
	}
	return other
}

// flowHash hashes addresses, protocol and ports, as a router does that spreads flows over equal paths.
// Fragments and ICMP go by their addresses alone.
func flowHash(ip []byte) uint64 {
	mask, l4 := transport(ip)
	h := uint64(14695981039346656037) // FNV-1a, finished below: its low bits alone are poor
	add := func(b []byte) {
		for _, c := range b {
			h = (h ^ uint64(c)) * 1099511628211
		}
	}
	if ip[0]>>4 == 4 {
		add(ip[12:20])
	} else {
		add(ip[8:40])
	}
	add([]byte{byte(mask)})
	if (mask == TCP || mask == UDP) && l4 >= 0 && len(ip) >= l4+4 {
		add(ip[l4 : l4+4])
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	return h ^ h>>33
}
