package udpio

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ancillary data (cmsg(3)) of a message: a list of
//
//	+--------+-------+------+---------+---------+
//	| len 8  | level | type | payload | padding |   len counts header and payload, not padding
//	+--------+-------+------+---------+---------+
//
// in the machine's byte order. controlBytes holds the most that either direction needs: packet
// info (40), TOS for each family (24 + 24), segment size (24), original address for each family (32 + 48).
const controlBytes = 192

const controlHeader = unix.SizeofCmsghdr

func controlSpace(payload int) int { return controlHeader + (payload+7)&^7 }

// ancillary is what the control data of a received message said.
type ancillary struct {
	local   netip.Addr
	port    uint16 // that it was sent to; 0: not told
	tos     uint8
	segment int // size of each datagram in a train but the last, 0: one datagram
}

// parseControl reads b. It trusts no length: control data comes from the kernel, but a mistake of
// ours in sizing it must not read past its end.
func parseControl(b []byte) (a ancillary) {
	for len(b) >= controlHeader {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < controlHeader || n > len(b) {
			return a
		}
		p := b[controlHeader:n]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(p) >= unix.SizeofInet4Pktinfo:
			a.local = netip.AddrFrom4([4]byte(p[8:12])) // ipi_addr: the header's destination
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(p) >= unix.SizeofInet6Pktinfo:
			a.local = netip.AddrFrom16([16]byte(p[:16])).Unmap()
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(p) >= 4,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(p) >= 4:
			a.port = binary.BigEndian.Uint16(p[2:]) // struct sockaddr_in and _in6 begin alike
		case h.Level == unix.SOL_IP && h.Type == unix.IP_TOS && len(p) >= 1:
			a.tos = p[0]
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_TCLASS && len(p) >= 4:
			a.tos = uint8(binary.NativeEndian.Uint32(p))
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(p) >= 4:
			a.segment = int(binary.NativeEndian.Uint32(p))
		}
		next := controlSpace(n - controlHeader)
		if next >= len(b) {
			return a
		}
		b = b[next:]
	}
	return a
}

// appendControl writes the control data of an outgoing message into b, which must have the room,
// and returns what is written. to4 says that the destination is IPv4 (on a socket of either family).
func appendControl(b []byte, local netip.Addr, to4 bool, tos uint8, segment int) []byte {
	if local.IsValid() {
		if to4 && local.Is4() {
			var p []byte
			b, p = appendHeader(b, unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
			a := local.As4()
			copy(p[4:8], a[:]) // ipi_spec_dst: the source to use
		} else if !to4 && local.Is6() {
			var p []byte
			b, p = appendHeader(b, unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
			a := local.As16()
			copy(p, a[:])
		}
	}
	if tos != 0 {
		var p []byte
		if to4 {
			b, p = appendHeader(b, unix.SOL_IP, unix.IP_TOS, 4)
		} else {
			b, p = appendHeader(b, unix.SOL_IPV6, unix.IPV6_TCLASS, 4)
		}
		binary.NativeEndian.PutUint32(p, uint32(tos))
	}
	if segment != 0 {
		var p []byte
		b, p = appendHeader(b, unix.SOL_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(p, uint16(segment))
	}
	return b
}

func appendHeader(b []byte, level, kind int32, payload int) (grown, p []byte) {
	at := len(b)
	grown = b[:at+controlSpace(payload)]
	clear(grown[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&grown[at]))
	h.Level, h.Type = level, kind
	h.SetLen(controlHeader + payload)
	return grown, grown[at+controlHeader : at+controlHeader+payload]
}
