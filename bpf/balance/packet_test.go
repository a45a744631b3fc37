package balance

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Protocols and flags of the packets in these tests.
const (
	tcp    = 6
	udp    = 17
	icmp   = 1
	icmpv6 = 58

	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

var be = binary.BigEndian

// packet is one to build.
type packet struct {
	tags     []uint16
	src, dst netip.AddrPort
	proto    byte
	flags    byte // of TCP; 0: ACK
	payload  []byte
	size     int    // of the payload, if it is to be zeros
	options  []byte // of IPv4, a multiple of 4; in IPv6 that many bytes of destination options
	fragment uint16 // offset in units of 8 bytes
	more     bool
	id       uint16
}

// frame builds it.
func (p packet) frame() []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for _, tag := range p.tags {
		b = be.AppendUint16(be.AppendUint16(b, 0x8100), tag)
	}
	if p.dst.Addr().Is6() {
		return append(be.AppendUint16(b, 0x86dd), p.ip()...)
	}
	return append(be.AppendUint16(b, 0x0800), p.ip()...)
}

// ip is the packet without its link header.
func (p packet) ip() []byte {
	l4 := p.layer4()
	if p.dst.Addr().Is6() {
		return p.ipv6(l4)
	}
	header := 20 + len(p.options)
	fragment := p.fragment
	if p.more {
		fragment |= 0x2000
	}
	b := []byte{0x40 | byte(header/4), 0}
	b = be.AppendUint16(b, uint16(header+len(l4)))
	b = be.AppendUint16(b, p.id)
	b = be.AppendUint16(b, fragment)
	b = append(b, 63, p.proto, 0, 0)
	b = append(b, p.src.Addr().AsSlice()...)
	b = append(b, p.dst.Addr().AsSlice()...)
	b = append(b, p.options...)
	be.PutUint16(b[10:], ^sum16(0, b))
	return append(b, l4...)
}

func (p packet) ipv6(l4 []byte) []byte {
	kinds, bodies := []byte{}, []byte{}
	next := func(kind byte, body ...byte) {
		kinds = append(kinds, kind)
		bodies = append(append(bodies, 0, byte((2+len(body))/8-1)), body...)
	}
	if len(p.options) > 0 {
		next(60, make([]byte, 6)...)
	}
	if p.fragment != 0 || p.more {
		bits := p.fragment << 3
		if p.more {
			bits |= 1
		}
		next(44, byte(bits>>8), byte(bits), 0, 0, byte(p.id>>8), byte(p.id))
	}
	kinds = append(kinds, p.proto)
	for i := range kinds[1:] {
		bodies[8*i] = kinds[i+1]
	}
	b := []byte{0x60, 0, 0, 0}
	b = be.AppendUint16(b, uint16(len(bodies)+len(l4)))
	b = append(b, kinds[0], 63)
	b = append(b, p.src.Addr().AsSlice()...)
	b = append(b, p.dst.Addr().AsSlice()...)
	return append(append(b, bodies...), l4...)
}

func (p packet) layer4() []byte {
	payload := p.payload
	if p.size > 0 {
		payload = make([]byte, p.size)
	}
	if p.fragment != 0 {
		return payload
	}
	b := be.AppendUint16(be.AppendUint16(nil, p.src.Port()), p.dst.Port())
	sum := 6
	switch p.proto {
	case tcp:
		flags := p.flags
		if flags == 0 {
			flags = ack
		}
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
		sum = 16
	case udp:
		b = append(be.AppendUint16(b, uint16(8+len(payload))), 0, 0)
	default:
		return payload
	}
	b = append(b, payload...)
	be.PutUint16(b[sum:], ^sum16(pseudo(p.src.Addr(), p.dst.Addr(), p.proto, len(b)), b))
	return b
}

// icmpError is an error that a router at from sends to the service about a packet.
func icmpError(from netip.Addr, kind, code byte, about []byte, about6 bool) packet {
	to := netip.AddrFrom4([4]byte(about[12:16]))
	proto := byte(icmp)
	if about6 {
		to, proto = netip.AddrFrom16([16]byte(about[8:24])), icmpv6
	}
	return packet{src: netip.AddrPortFrom(from, 0), dst: netip.AddrPortFrom(to, 0), proto: proto,
		payload: append([]byte{kind, code, 0, 0, 0, 0, 5, 0x14}, about...)}
}

// pseudo is the sum of the pseudo header.
func pseudo(src, dst netip.Addr, proto byte, length int) uint32 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return uint32(sum16(uint32(proto)+uint32(length), b))
}

// sum16 is the Internet checksum before its last complement.
func sum16(start uint32, b []byte) uint16 {
	sum := uint64(start)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint64(be.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint64(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// hop is what one node of the site has sent another.
type hop struct {
	from, to netip.AddrPort
	kind     byte
	step     byte
	key      uint64
	port     uint16 // source; 0: any
}

const (
	kindForward = 1
	kindAsk     = 2
	kindReturn  = 3
)

// wrap is a frame of the hop with an IP packet in it.
func (h hop) wrap(inner []byte) []byte {
	proto := byte(4)
	if inner[0]>>4 == 6 {
		proto = 41
	}
	g := []byte{3, proto, 0, 0, h.kind, h.step, 0, 0}
	g = binary.NativeEndian.AppendUint64(g, h.key)
	p := packet{src: netip.AddrPortFrom(h.from.Addr(), h.port), dst: h.to, proto: udp, payload: append(g, inner...)}
	f := p.frame()
	l4 := 14 + 20
	if h.to.Addr().Is6() {
		l4 = 14 + 40
	}
	f[l4+6], f[l4+7] = 0, 0 // no UDP checksum
	return f
}

// unwrap reads a frame that leaves for another node.
func unwrap(frame []byte) (h hop, inner []byte, ok bool) {
	if len(frame) < 14+20+24 {
		return h, nil, false
	}
	ip := frame[14:]
	var l4 []byte
	var from, to netip.Addr
	switch be.Uint16(frame[12:]) {
	case 0x0800:
		if sum16(0, ip[:20]) != 0xffff || ip[9] != udp || int(be.Uint16(ip[2:])) > len(ip) {
			return h, nil, false
		}
		from, to = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		l4 = ip[20:be.Uint16(ip[2:])]
	case 0x86dd:
		if len(ip) < 64 || ip[6] != udp || int(be.Uint16(ip[4:]))+40 > len(ip) {
			return h, nil, false
		}
		from, to = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
		l4 = ip[40 : 40+be.Uint16(ip[4:])]
	default:
		return h, nil, false
	}
	if int(be.Uint16(l4[4:])) != len(l4) || be.Uint16(l4[6:]) != 0 || l4[8] != 3 {
		return h, nil, false
	}
	h = hop{from: netip.AddrPortFrom(from, 0), to: netip.AddrPortFrom(to, be.Uint16(l4[2:])), port: be.Uint16(l4),
		kind: l4[12], step: l4[13], key: binary.NativeEndian.Uint64(l4[16:])}
	inner = l4[24:]
	v6 := inner[0]>>4 == 6
	return h, slices.Clone(inner), l4[9] == map[bool]byte{false: 4, true: 41}[v6]
}
