package blast

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// NetworksMax is how many networks there are for each IP version.
const NetworksMax = 1 << 19

// Stream says what packets are like: small ones, from many sources.
type Stream struct {
	TCP         bool // SYNs with an MSS option; otherwise UDP with 18 bytes
	From, To    net.HardwareAddr
	Destination netip.AddrPort
	Networks    int  // sources are in so many networks
	OneEach     bool // one source a network; otherwise 64 (IPv4), or some million /64 (IPv6)
}

// Network returns one of the networks that sources are in: an IPv4 prefix of 22 to 26 bits, or an IPv6 prefix of
// 32 to 40 bits.
func Network(number int, v6 bool) netip.Prefix {
	// As blast.c has it.
	block := uint32(number) * 0x9E3779B1 & (NetworksMax - 1)
	if v6 {
		var a [16]byte
		binary.BigEndian.PutUint32(a[:], 0x2a<<24|block)
		return netip.PrefixFrom(netip.AddrFrom16(a), 32+number%9)
	}
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 1<<29|block<<10)
	return netip.PrefixFrom(netip.AddrFrom4(a), 22+number%5)
}

// Networks returns the first so many networks.
func Networks(count int, v6 bool) []netip.Prefix {
	out := make([]netip.Prefix, count)
	for i := range out {
		out[i] = Network(i, v6)
	}
	return out
}

func (s Stream) validate() error {
	switch {
	case s.Networks < 1 || s.Networks > NetworksMax:
		return fmt.Errorf("%d networks are not 1 to %d", s.Networks, NetworksMax)
	case len(s.From) != 6 || len(s.To) != 6:
		return fmt.Errorf("the frame goes from %q to %q: neither may be empty", s.From, s.To)
	case !s.Destination.IsValid() || s.Destination.Port() == 0:
		return fmt.Errorf("destination %v has no address or no port", s.Destination)
	}
	return nil
}

// hosts are the bits of a source that vary within its network: the low ones of an IPv4 address, or the second
// word of an IPv6 one.
func (s Stream) hosts() uint32 {
	switch {
	case s.OneEach:
		return 0
	case s.Destination.Addr().Is4():
		return 63
	}
	return 1<<24 - 1
}

var be = binary.BigEndian

// frame returns the frame with nothing in the places that differ, and the sums of its IP header and of its
// transport header with the pseudo header. A source IPv6 address ends with 1, which the sum knows of.
func (s Stream) frame() (b []byte, ipSum, l4Sum uint32) {
	dst := s.Destination.Addr()
	l4 := be.AppendUint16(be.AppendUint16(nil, 0), s.Destination.Port())
	proto := byte(17)
	if s.TCP {
		proto = 6
		l4 = append(l4, make([]byte, 8)...)
		l4 = append(l4, 6<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4)
	} else {
		l4 = append(be.AppendUint16(l4, 8+18), make([]byte, 2+18)...)
	}
	b = append(append(b, s.To...), s.From...)
	if dst.Is4() {
		b = be.AppendUint16(b, 0x0800)
		ip := be.AppendUint16([]byte{0x45, 0}, uint16(20+len(l4)))
		ip = append(ip, 0, 0, 0x40, 0, 64, proto, 0, 0, 0, 0, 0, 0)
		ip = append(ip, dst.AsSlice()...)
		ipSum = sum(ip)
		b = append(b, ip...)
	} else {
		b = be.AppendUint16(b, 0x86dd)
		b = be.AppendUint16(append(b, 0x60, 0, 0, 0), uint16(len(l4)))
		b = append(b, proto, 64)
		source := make([]byte, 16)
		source[15] = 1
		b = append(append(b, source...), dst.AsSlice()...)
		l4Sum = sum(source)
	}
	l4Sum += sum(dst.AsSlice()) + sum([]byte{0, proto}) + sum(be.AppendUint16(nil, uint16(len(l4)))) + sum(l4)
	return append(b, l4...), ipSum, l4Sum
}

// sum adds up 16-bit words as they lie in memory; a checksum comes out the same whichever end comes first.
func sum(b []byte) (total uint32) {
	for i := 0; i < len(b); i += 2 {
		total += uint32(binary.NativeEndian.Uint16(b[i:]))
	}
	return total
}

// checksum folds a sum and complements it.
func checksum(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum == 0xffff {
		return 0xffff // zero would mean that there is none
	}
	return ^uint16(sum)
}
