package guard

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// packet is one to build. The zero values of most fields are the usual ones.
type packet struct {
	tags     []uint16 // VLAN identifiers, outermost first
	src, dst netip.AddrPort
	proto    Proto
	flags    byte   // of TCP; 0: SYN
	options  []byte // of TCP; a multiple of 4
	payload  []byte
	seq, ack uint32

	ipOptions []byte      // of IPv4; a multiple of 4
	extension []extension // of IPv6
	fragment  uint16      // offset in units of 8 bytes
	more      bool        // fragments

	mend func(b []byte, l3, l4 int) // what is to be wrong with it; l3 and l4 are where the headers begin
}

type extension struct {
	kind byte
	body []byte // after next header and length; 6 bytes and a multiple of 8
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

var be = binary.BigEndian

// bytes builds the frame.
func (p packet) bytes() []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for _, tag := range p.tags {
		b = be.AppendUint16(be.AppendUint16(b, 0x8100), tag)
	}
	l4 := p.layer4()
	v6 := p.dst.Addr().Is6()
	if v6 {
		b = be.AppendUint16(b, 0x86dd)
	} else {
		b = be.AppendUint16(b, 0x0800)
	}
	l3 := len(b)
	if v6 {
		b = p.ipv6(b, len(l4))
	} else {
		b = p.ipv4(b, len(l4))
	}
	at := len(b)
	b = append(b, l4...)
	if p.fragment == 0 {
		p.checksum(b[at:])
	}
	if p.mend != nil {
		p.mend(b, l3, at)
	}
	return b
}

func (p packet) ipv4(b []byte, payload int) []byte {
	header := 20 + len(p.ipOptions)
	at := len(b)
	fragment := p.fragment
	if p.more {
		fragment |= 0x2000
	}
	b = append(b, 0x40|byte(header/4), 0)
	b = be.AppendUint16(b, uint16(header+payload))
	b = be.AppendUint16(b, 7)
	b = be.AppendUint16(b, fragment)
	b = append(b, 63, byte(p.proto), 0, 0)
	b = append(b, p.src.Addr().AsSlice()...)
	b = append(b, p.dst.Addr().AsSlice()...)
	b = append(b, p.ipOptions...)
	be.PutUint16(b[at+10:], ^sum16(0, b[at:]))
	return b
}

func (p packet) ipv6(b []byte, payload int) []byte {
	exts := slices.Clone(p.extension)
	if p.fragment != 0 || p.more {
		bits := p.fragment << 3
		if p.more {
			bits |= 1
		}
		exts = append(exts, extension{44, append(be.AppendUint16(nil, bits), 0, 0, 0, 9)})
	}
	kinds := make([]byte, 0, len(exts)+1)
	for _, e := range exts {
		payload += 2 + len(e.body)
		kinds = append(kinds, e.kind)
	}
	kinds = append(kinds, byte(p.proto))
	b = append(b, 0x60, 0, 0, 0)
	b = be.AppendUint16(b, uint16(payload))
	b = append(b, kinds[0], 63)
	b = append(b, p.src.Addr().AsSlice()...)
	b = append(b, p.dst.Addr().AsSlice()...)
	for i, e := range exts {
		b = append(append(b, kinds[i+1], byte((len(e.body)+2)/8-1)), e.body...)
	}
	return b
}

func (p packet) layer4() []byte {
	if p.fragment != 0 {
		return p.payload
	}
	b := be.AppendUint16(be.AppendUint16(nil, p.src.Port()), p.dst.Port())
	switch p.proto {
	case TCP:
		flags := p.flags
		if flags == 0 {
			flags = syn
		}
		b = be.AppendUint32(be.AppendUint32(b, p.seq), p.ack)
		b = append(b, byte(20+len(p.options))/4<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
		b = append(b, p.options...)
	case UDP:
		b = append(be.AppendUint16(b, uint16(8+len(p.payload))), 0, 0)
	default:
		b = nil
	}
	return append(b, p.payload...)
}

func (p packet) checksum(l4 []byte) {
	at := map[Proto]int{TCP: 16, UDP: 6}[p.proto]
	if at != 0 && len(l4) > at+1 {
		be.PutUint16(l4[at:], 0)
		be.PutUint16(l4[at:], ^sum16(pseudo(p.src.Addr(), p.dst.Addr(), p.proto, len(l4)), l4))
	}
}

// pseudo is the sum of the pseudo header.
func pseudo(src, dst netip.Addr, proto Proto, length int) uint32 {
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
