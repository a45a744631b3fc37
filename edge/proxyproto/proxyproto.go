// Package proxyproto answers: how does the address of a client travel in front of its bytes (the PROXY
// protocol of HAProxy, versions 1 and 2)?
//
// Version 1 is a line, at most 107 bytes:
//
//	PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n
//
// Version 2 is binary:
//
//	+----------------------+---------+---------+--------+-----------+------------------
//	| signature (12 bytes) | version | family, | length | addresses | TLVs (type 1,
//	|                      | command | proto   | 2      | and ports |  length 2, value)
//	+----------------------+---------+---------+--------+-----------+------------------
//
// Who reads a header must know that it comes from somebody who may say such things: the bytes alone
// prove nothing, and a client that may speak for itself could be anybody. Nothing here guesses.
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
)

// Sizes, in bytes. The specification gives the first; the second is ours: it has room for the TLVs
// of a TLS client certificate's names, and bounds what an unfinished header can hold.
const (
	V1Max = 107
	V2Max = 16 + 4096

	// HeaderMax is the longest header that Parse accepts.
	HeaderMax = V2Max

	// DatagramMax is the longest header that AppendV2 makes.
	DatagramMax = v2Fixed + 36
)

// Errors of Parse. After any of them the connection is of no use.
var (
	ErrMissing   = errors.New("no PROXY header where one must be")
	ErrMalformed = errors.New("malformed PROXY header")
)

const v2Fixed = 16

// signature begins every header of version 2; no other protocol begins like this.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	v1Prefix = "PROXY "

	commandLocal = 0x20
	commandProxy = 0x21

	tcp4 = 0x11
	udp4 = 0x12
	tcp6 = 0x21
	udp6 = 0x22

	typeCRC32C = 0x03
)

// Header is what a header says.
type Header struct {
	// Src and Dst are the client's address and the one it connected to. They are invalid when the
	// header gives none (LOCAL, UNKNOWN, or a family without IP addresses): the connection's own
	// addresses hold then.
	Src, Dst netip.AddrPort
}

// Valid reports whether the header gives addresses.
func (h Header) Valid() bool { return h.Src.IsValid() }

// AppendV1 appends a header of version 1 for a TCP connection. Where the families differ, the IPv4
// address is written as an IPv6 one (::ffff:a.b.c.d).
func AppendV1(b []byte, src, dst netip.AddrPort) []byte {
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	family := "TCP4 "
	if s.Is6() || d.Is6() {
		family = "TCP6 "
		s, d = netip.AddrFrom16(s.As16()), netip.AddrFrom16(d.As16())
	}
	b = append(append(b, v1Prefix...), family...)
	b = append(s.AppendTo(b), ' ')
	b = append(d.AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(src.Port()), 10), ' ')
	b = strconv.AppendUint(b, uint64(dst.Port()), 10)
	return append(b, '\r', '\n')
}

// AppendV2 appends a header of version 2, for a datagram or for a TCP connection. Families are mixed
// as in version 1.
func AppendV2(b []byte, src, dst netip.AddrPort, datagram bool) []byte {
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	b = append(append(b, signature...), commandProxy)
	family, size := byte(tcp4), uint16(12)
	if s.Is6() || d.Is6() {
		family, size = tcp6, 36
	}
	if datagram {
		family++
	}
	b = binary.BigEndian.AppendUint16(append(b, family), size)
	if size == 12 {
		s4, d4 := s.As4(), d.As4()
		b = append(append(b, s4[:]...), d4[:]...)
	} else {
		s16, d16 := s.As16(), d.As16()
		b = append(append(b, s16[:]...), d16[:]...)
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, src.Port()), dst.Port())
}

// Parse reads the header that b begins with, and returns its length. While b is a beginning that may
// still become a header, n is 0 and err nil: read more. b is bounded by HeaderMax: longer headers
// are malformed as soon as they can be told.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case hasBeginning(b, signature):
		return parseV2(b)
	case hasBeginning(b, v1Prefix):
		return parseV1(b)
	}
	return Header{}, 0, ErrMissing
}

// hasBeginning reports whether b begins with s, or could once there is more of it.
func hasBeginning(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func parseV1(b []byte) (h Header, n int, err error) {
	end := bytes.Index(b[:min(len(b), V1Max)], []byte("\r\n"))
	if end < 0 {
		if len(b) >= V1Max {
			return h, 0, malformed("no end within %d bytes", V1Max)
		}
		return h, 0, nil
	}
	n = end + 2
	fields := bytes.Split(b[:end], []byte(" "))
	if len(fields) < 2 {
		return h, 0, malformed("too short")
	}
	family := string(fields[1])
	if family == "UNKNOWN" { // whatever follows is ignored
		return h, n, nil
	}
	if family != "TCP4" && family != "TCP6" {
		return h, 0, malformed("unknown family")
	}
	if len(fields) != 6 {
		return h, 0, malformed("%d fields", len(fields))
	}
	h.Src, err = parseV1Pair(family, fields[2], fields[4])
	if err == nil {
		h.Dst, err = parseV1Pair(family, fields[3], fields[5])
	}
	if err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

func parseV1Pair(family string, addr, port []byte) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(string(addr))
	if err != nil || a.Zone() != "" || a.Is4() != (family == "TCP4") {
		return netip.AddrPort{}, malformed("address is not of %s", family)
	}
	p, err := strconv.ParseUint(string(port), 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' || port[0] == '+' {
		return netip.AddrPort{}, malformed("impossible port")
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

func parseV2(b []byte) (h Header, n int, err error) {
	if len(b) > 12 && b[12] != commandProxy && b[12] != commandLocal {
		return h, 0, malformed("version and command 0x%02x", b[12])
	}
	if len(b) < v2Fixed {
		return h, 0, nil
	}
	n = v2Fixed + int(binary.BigEndian.Uint16(b[14:]))
	if n > V2Max {
		return h, 0, malformed("%d bytes", n)
	}
	if len(b) < n {
		return h, 0, nil
	}
	body, size := b[v2Fixed:n], 0
	switch b[13] {
	case tcp4, udp4:
		size = 12
	case tcp6, udp6:
		size = 36
	}
	if b[12] == commandLocal || size == 0 {
		return h, n, nil // the body, if any, is to be skipped
	}
	if len(body) < size {
		return h, 0, malformed("%d bytes of addresses", len(body))
	}
	if err := checkTLVs(b[:n], v2Fixed+size); err != nil {
		return h, 0, err
	}
	ip := (size - 4) / 2
	src, _ := netip.AddrFromSlice(body[:ip])
	dst, _ := netip.AddrFromSlice(body[ip : 2*ip])
	ports := body[2*ip:]
	h.Src = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
	h.Dst = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	return h, n, nil
}

// checkTLVs walks over the TLVs that begin at from: their lengths must fit, and a checksum hold.
func checkTLVs(header []byte, from int) error {
	for at := from; at < len(header); {
		if len(header)-at < 3 {
			return malformed("a TLV is cut off")
		}
		size := int(binary.BigEndian.Uint16(header[at+1:]))
		value := at + 3
		if len(header)-value < size {
			return malformed("a TLV is longer than the header")
		}
		if header[at] == typeCRC32C {
			if size != 4 {
				return malformed("checksum of %d bytes", size)
			}
			// It covers the whole header with its own bytes as zero.
			table := crc32.MakeTable(crc32.Castagnoli)
			sum := crc32.Update(0, table, header[:value])
			sum = crc32.Update(sum, table, make([]byte, 4))
			sum = crc32.Update(sum, table, header[value+4:])
			if sum != binary.BigEndian.Uint32(header[value:]) {
				return malformed("wrong checksum")
			}
		}
		at = value + size
	}
	return nil
}
