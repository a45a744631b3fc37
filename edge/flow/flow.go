// Package flow answers: what names one client flow, and how is it hashed?
package flow

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Proto is the IP protocol number of a flow.
type Proto uint8

const (
	TCP Proto = 6
	UDP Proto = 17
)

// Tuple names one client flow: where it came from and which accelerated address and port it meant.
// It is comparable and a good map key. Addresses are always unmapped (never ::ffff:a.b.c.d).
type Tuple struct {
	Src, Dst netip.AddrPort
	Proto    Proto
}

// Hash returns the hash of the whole 5-tuple under seed. It is the same on every machine and in
// every process, so that affinity holds across edges and restarts.
func (t Tuple) Hash(seed uint64) uint64 {
	h := hashAddr(seed^uint64(t.Proto)*k2, t.Src.Addr())
	h = hashAddr(h, t.Dst.Addr())
	return mix(h^uint64(t.Src.Port())<<16^uint64(t.Dst.Port()), k0)
}

// HashSource returns the hash of the source and accelerated address only (affinity SOURCE_IP: the
// 2-tuple of AWS Global Accelerator's developer guide, "Client affinity").
func (t Tuple) HashSource(seed uint64) uint64 {
	return mix(hashAddr(hashAddr(seed, t.Src.Addr()), t.Dst.Addr()), k0)
}

// HashString returns the stable hash of an identifier, for rendezvous hashing against a flow's.
func HashString(s string) uint64 {
	h := uint64(len(s)) * k1
	for len(s) >= 8 {
		h = mix(h^binary.LittleEndian.Uint64([]byte(s[:8])), k1)
		s = s[8:]
	}
	var tail [8]byte
	copy(tail[:], s)
	return mix(h^binary.LittleEndian.Uint64(tail[:]), k2)
}

// Mix combines two hashes into one.
func Mix(a, b uint64) uint64 { return mix(a^k1, b^k2) }

// Odd 64-bit constants with balanced bits, as wyhash (public domain) recommends for its mixer.
const (
	k0 = 0xa0761d6478bd642f
	k1 = 0xe7037ed1a0b428db
	k2 = 0x8ebc6af09c88c6e3
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func hashAddr(h uint64, a netip.Addr) uint64 {
	b := a.As16()
	h = mix(h^binary.LittleEndian.Uint64(b[:8]), k1)
	return mix(h^binary.LittleEndian.Uint64(b[8:]), k2)
}
