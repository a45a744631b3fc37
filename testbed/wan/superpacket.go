package wan

import "encoding/binary"

// A superpacket is what the kernel hands over instead of many packets that differ only as TCP or UDP segments
// of one send do (TSO, USO). In front of it is a virtio_net_hdr, in the machine's byte order:
//
//	 0        1           2         4          6            8           10
//	| flags  | gso type  | hdr len | gso size | csum start | csum offs | IP header, L4 header, payload …
//
// gso size is the payload of each segment but the last. The checksum at csum start + csum offs is left to be
// completed by whoever puts the packet on a wire; it holds the sum of the pseudo-header until then.
const (
	vnetBytes = 10

	gsoTCP4 = 1
	gsoTCP6 = 4
	gsoUDP  = 5
	gsoECN  = 0x80 // a flag on top of the type: the first segment has CWR

	tcpFIN, tcpPSH, tcpCWR = 0x01, 0x08, 0x80

	tcpBytesMin, udpBytes    = 20, 8
	ip4BytesMin, ip6BytesMin = 20, 40
)

// super is what splitting needs to know of a superpacket. For any other packet segment is 0.
type super struct {
	udp     bool
	l4      int // offset of the TCP or UDP header in the IP packet
	header  int // length of the IP and L4 headers
	payload int // bytes after them
	segment int // payload bytes of a segment
}

// parseSuper reads the virtio header and what it points to. b may end after the headers; total is the length
// of the whole, virtio header included. ok is false for what no kernel sends.
func parseSuper(b []byte, total int) (s super, ok bool) {
	if len(b) < vnetBytes+ip4BytesMin || total < len(b) {
		return s, false
	}
	ip := b[vnetBytes:]
	if len(ip) < ipBytesMin(ip) {
		return s, false
	}
	kind := b[1] &^ gsoECN
	if kind == 0 {
		return super{payload: total - vnetBytes}, true
	}
	s.segment = int(binary.NativeEndian.Uint16(b[4:]))
	s.l4 = int(binary.NativeEndian.Uint16(b[6:]))
	if s.l4 < ipBytesMin(ip) || s.segment == 0 {
		return s, false
	}
	switch kind {
	case gsoUDP:
		s.udp = true
		s.header = s.l4 + udpBytes
	case gsoTCP4, gsoTCP6:
		if len(ip) < s.l4+tcpBytesMin {
			return s, false
		}
		s.header = s.l4 + int(ip[s.l4+12]>>4)*4
		if s.header < s.l4+tcpBytesMin {
			return s, false
		}
	default:
		return s, false
	}
	s.payload = total - vnetBytes - s.header
	return s, s.payload > 0 && len(ip) >= s.header && vnetBytes+s.header <= headerBytesMax
}

// ipBytesMin returns the shortest IP header of b's version; more than any packet has for no version at all.
func ipBytesMin(ip []byte) int {
	switch ip[0] >> 4 {
	case 4:
		return ip4BytesMin
	case 6:
		return ip6BytesMin
	}
	return 1 << 20
}

// part writes into dst the headers (virtio, IP, L4) of the superpacket, or single packet, that carries only
// the payload bytes [from, to) of s, and returns their length. whole holds the headers of s; from must be the
// start of a segment and to the end of one.
func (s *super) part(dst, whole []byte, from, to int) int {
	h := dst[:vnetBytes+s.header]
	copy(h, whole)
	if to-from <= s.segment {
		h[1] = 0
		binary.NativeEndian.PutUint16(h[4:], 0)
	}
	ip := h[vnetBytes:]
	l4 := ip[s.l4:]
	l4Bytes := s.header - s.l4 + to - from
	var sum uint32
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(s.header+to-from))
		id := binary.BigEndian.Uint16(ip[4:])
		binary.BigEndian.PutUint16(ip[4:], id+uint16(from/s.segment))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum16(ip[:s.l4], 0)))
		sum = sum16(ip[12:20], 0)
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(s.header-ip6BytesMin+to-from))
		sum = sum16(ip[8:40], 0)
	}
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(l4Bytes))
		binary.BigEndian.PutUint16(l4[6:], fold(sum+protoUDP+uint32(l4Bytes)))
		return len(h)
	}
	binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(from))
	if to != s.payload {
		l4[13] &^= tcpFIN | tcpPSH // they belong to the last segment
	}
	if from != 0 {
		l4[13] &^= tcpCWR // and this to the first
	}
	binary.BigEndian.PutUint16(l4[16:], fold(sum+protoTCP+uint32(l4Bytes)))
	return len(h)
}

// sum16 adds b, as big-endian 16-bit words, to s. At most 64 KB, so that 32 bits hold it.
func sum16(b []byte, s uint32) uint32 {
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
	}
	return s
}

// fold brings a sum to 16 bits with end-around carry.
func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
