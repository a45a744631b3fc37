package wan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// superSpec describes a superpacket to build.
type superSpec struct {
	v6, udp    bool
	ipOptions  int // bytes of IPv4 options, or of an IPv6 destination options header: a multiple of 8
	tcpOptions int // bytes: a multiple of 4
	flags      byte
	id         uint16
	seq        uint32
	segment    int
	payload    []byte
}

// build returns virtio header and packet, as the kernel hands them over: lengths of the whole, and a
// pseudo-header sum in the checksum field.
func (s superSpec) build() []byte {
	var ip []byte
	proto := byte(protoTCP)
	if s.udp {
		proto = protoUDP
	}
	l4Bytes := udpBytes
	if !s.udp {
		l4Bytes = tcpBytesMin + s.tcpOptions
	}
	l4Total := l4Bytes + len(s.payload)
	if s.v6 {
		ip = make([]byte, ip6BytesMin+s.ipOptions)
		ip[0] = 0x60
		binary.BigEndian.PutUint16(ip[4:], uint16(s.ipOptions+l4Total))
		ip[6], ip[7] = proto, 64
		if s.ipOptions > 0 {
			ip[6], ip[40], ip[41] = extDestination, proto, byte(s.ipOptions/8-1)
		}
		copy(ip[8:], netip.MustParseAddr("fd00:1::1").AsSlice())
		copy(ip[24:], netip.MustParseAddr("fd00:2::2").AsSlice())
	} else {
		ip = make([]byte, ip4BytesMin+s.ipOptions)
		ip[0] = 0x40 | byte(len(ip)/4)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+l4Total))
		binary.BigEndian.PutUint16(ip[4:], s.id)
		ip[6], ip[8], ip[9] = 0x40, 64, proto
		copy(ip[12:], []byte{10, 1, 0, 1, 10, 2, 0, 2})
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum16(ip, 0)))
	}
	l4 := make([]byte, l4Bytes)
	binary.BigEndian.PutUint16(l4[0:], 1234)
	binary.BigEndian.PutUint16(l4[2:], 80)
	kind, sumAt := byte(gsoUDP), 6
	if s.udp {
		binary.BigEndian.PutUint16(l4[4:], uint16(l4Total))
	} else {
		kind, sumAt = gsoTCP4, 16
		if s.v6 {
			kind = gsoTCP6
		}
		if s.flags&tcpCWR != 0 {
			kind |= gsoECN
		}
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		l4[12], l4[13] = byte(l4Bytes/4)<<4, s.flags
	}
	binary.BigEndian.PutUint16(l4[sumAt:], fold(pseudoSum(ip, proto, l4Total)))
	head := make([]byte, vnetBytes)
	head[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(head[2:], uint16(len(ip)+l4Bytes))
	binary.NativeEndian.PutUint16(head[6:], uint16(len(ip)))
	binary.NativeEndian.PutUint16(head[8:], uint16(sumAt))
	if len(s.payload) > s.segment {
		head[1] = kind
		binary.NativeEndian.PutUint16(head[4:], uint16(s.segment))
	}
	return bytes.Join([][]byte{head, ip, l4, s.payload}, nil)
}

func pseudoSum(ip []byte, proto byte, length int) uint32 {
	addrs := ip[12:20]
	if ip[0]>>4 == 6 {
		addrs = ip[8:40]
	}
	return sum16(addrs, 0) + uint32(proto) + uint32(length)
}

// naive is the slow oracle: it makes of a (super)packet the plain packets that a network card would send,
// with all checksums complete, knowing nothing but the rules of TCP, UDP and IP.
func naive(b []byte) [][]byte {
	vnet, ip := b[:vnetBytes], b[vnetBytes:]
	l4 := int(binary.NativeEndian.Uint16(vnet[6:]))
	sumAt := l4 + int(binary.NativeEndian.Uint16(vnet[8:]))
	udp := sumAt == l4+6
	header := l4 + udpBytes
	if !udp {
		header = l4 + int(ip[l4+12]>>4)*4
	}
	payload := ip[header:]
	segment := int(binary.NativeEndian.Uint16(vnet[4:]))
	if vnet[1] == 0 {
		segment = max(1, len(payload))
	}
	var out [][]byte
	for i := 0; i == 0 || i*segment < len(payload); i++ {
		part := payload[i*segment : min((i+1)*segment, len(payload))]
		p := append(bytes.Clone(ip[:header]), part...)
		last := (i+1)*segment >= len(payload)
		proto := byte(protoTCP)
		if udp {
			proto = protoUDP
			binary.BigEndian.PutUint16(p[l4+4:], uint16(len(p)-l4))
		} else {
			seq := binary.BigEndian.Uint32(ip[l4+4:])
			binary.BigEndian.PutUint32(p[l4+4:], seq+uint32(i*segment))
			if !last {
				p[l4+13] &= ^byte(1 | 8)
			}
			if i > 0 {
				p[l4+13] &= 0x7f
			}
		}
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], ^fold(sum16(p[:l4], 0)))
		} else {
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		}
		p[sumAt], p[sumAt+1] = 0, 0
		sum := pseudoSum(p, proto, len(p)-l4)
		binary.BigEndian.PutUint16(p[sumAt:], ^fold(sum16(p[l4:], sum)))
		out = append(out, p)
	}
	return out
}

// split cuts a superpacket at the segment boundaries where cut says so, by super.part, and each part once
// more in the middle, as happens when it passes two bottlenecks.
func split(t *testing.T, whole []byte, cut func(i int) bool) [][]byte {
	t.Helper()
	s, ok := parseSuper(whole, len(whole))
	if !ok {
		t.Fatalf("superpacket not understood: %x", whole[:min(len(whole), 120)])
	}
	var parts [][]byte
	start := 0
	for at := s.segment; ; at += s.segment {
		at = min(at, s.payload)
		if at == s.payload || cut(at/s.segment) {
			var buf [headerBytesMax]byte
			n := s.part(buf[:], whole, start, at)
			payload := whole[len(whole)-s.payload:]
			parts = append(parts, append(bytes.Clone(buf[:n]), payload[start:at]...))
			start = at
		}
		if at == s.payload {
			return parts
		}
	}
}

func checkSplit(t *testing.T, spec superSpec, cuts uint64) {
	t.Helper()
	whole := spec.build()
	want := naive(whole)
	never := func(int) bool { return false }
	var once, twice [][]byte
	for _, part := range split(t, whole, func(i int) bool { return cuts>>(i%64)&1 == 1 }) {
		once = append(once, naive(part)...)
		if s, _ := parseSuper(part, len(part)); s.segment == 0 {
			twice = append(twice, naive(part)...)
			continue
		}
		half := (len(naive(part)) + 1) / 2
		for _, smaller := range split(t, part, func(i int) bool { return i == half }) {
			twice = append(twice, naive(smaller)...)
		}
	}
	var uncut [][]byte
	for _, part := range split(t, whole, never) {
		uncut = append(uncut, naive(part)...)
	}
	for name, got := range map[string][][]byte{"uncut": uncut, "split": once, "split twice": twice} {
		if !slices.EqualFunc(want, got, bytes.Equal) { // cmp compares byte by byte: minutes
			t.Errorf("%s differs from naive: v6 %v, udp %v, segment %d, payload %d: %s", name, spec.v6, spec.udp,
				spec.segment, len(spec.payload), firstDifference(want, got))
		}
	}
}

func firstDifference(want, got [][]byte) string {
	for i := range min(len(want), len(got)) {
		if !bytes.Equal(want[i], got[i]) {
			return fmt.Sprintf("packet %d\nwant %.160x\ngot  %.160x", i, want[i], got[i])
		}
	}
	return fmt.Sprintf("%d packets, want %d", len(got), len(want))
}

func TestSplitEqualsNaive(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		spec := superSpec{
			v6: i&1 == 1, udp: i&2 == 2, ipOptions: 8 * rnd.IntN(5), tcpOptions: 4 * rnd.IntN(11),
			flags: byte(rnd.Uint32()), id: uint16(rnd.Uint32()), seq: rnd.Uint32(), segment: 1 + rnd.IntN(1448),
		}
		segments := 2 + rnd.IntN(min(44, 60000/spec.segment-1))
		spec.payload = make([]byte, (segments-1)*spec.segment+1+rnd.IntN(spec.segment))
		for j := range spec.payload {
			spec.payload[j] = byte(rnd.Uint32())
		}
		checkSplit(t, spec, rnd.Uint64())
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(false, false, byte(0), byte(3), byte(0x99), uint16(65530), uint32(1<<32-1000), uint16(100), uint64(5),
		bytes.Repeat([]byte("nearcast"), 70))
	f.Add(true, true, byte(1), byte(0), byte(0), uint16(1), uint32(1), uint16(7), uint64(1<<63),
		[]byte("0123456789abcdefg"))
	f.Fuzz(func(t *testing.T, v6, udp bool, ipOpt, tcpOpt, flags byte, id uint16, seq uint32, segment uint16,
		cuts uint64, payload []byte) {
		spec := superSpec{
			v6: v6, udp: udp, ipOptions: 8 * int(ipOpt%5), tcpOptions: 4 * int(tcpOpt%11), flags: flags, id: id,
			seq: seq, segment: int(segment), payload: payload,
		}
		if segment == 0 || len(payload) <= int(segment) || len(payload) > min(60000, 64*int(segment)) {
			t.Skip()
		}
		checkSplit(t, spec, cuts)
	})
}

// FuzzParse feeds what no kernel sends: nothing may panic, and what is accepted must be splittable.
func FuzzParse(f *testing.F) {
	f.Add(superSpec{segment: 10, payload: make([]byte, 25)}.build())
	f.Add(superSpec{v6: true, udp: true, segment: 10, payload: make([]byte, 25)}.build())
	f.Add(superSpec{segment: 100, payload: make([]byte, 25)}.build())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > vnetBytes+ip4BytesMin {
			destination(b[vnetBytes:])
			transport(b[vnetBytes:])
			flowHash(b[vnetBytes:])
		}
		s, ok := parseSuper(b, len(b))
		if !ok || s.segment == 0 {
			return
		}
		var buf [headerBytesMax]byte
		for at := 0; at < s.payload; at += s.segment {
			s.part(buf[:], b, at, min(at+s.segment, s.payload))
		}
	})
}

func TestTransport(t *testing.T) {
	v4 := superSpec{segment: 100, payload: []byte("x")}.build()[vnetBytes:]
	v6 := superSpec{v6: true, udp: true, ipOptions: 16, segment: 100, payload: []byte("x")}.build()[vnetBytes:]
	fragment := bytes.Clone(v4)
	fragment[6] = 0x20
	for _, c := range []struct {
		name string
		ip   []byte
		mask Protocols
		l4   int
	}{{"tcp4", v4, TCP, 20}, {"udp6 behind options", v6, UDP, 56}, {"fragment", fragment, TCP, -1}} {
		if mask, l4 := transport(c.ip); mask != c.mask || l4 != c.l4 {
			t.Errorf("%s: mask %d, l4 at %d", c.name, mask, l4)
		}
	}
	if flowHash(v4) == flowHash(fragment) {
		t.Error("ports are not in the hash")
	}
}
