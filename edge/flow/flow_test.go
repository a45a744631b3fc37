package flow

import (
	"encoding/binary"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"testing"
)

func tuple(src, dst string, p Proto) Tuple {
	return Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), Proto: p}
}

// TestHashesStay: affinity holds across edges, versions and restarts, so these values must never change.
func TestHashesStay(t *testing.T) {
	cases := []struct {
		t            Tuple
		seed         uint64
		hash, source uint64
	}{
		{tuple("192.0.2.1:1234", "198.51.100.1:443", TCP), 0, 0xd87a01a3d2ee3b18, 0xc244c186385035e6},
		{tuple("192.0.2.1:1234", "198.51.100.1:443", UDP), 0, 0x9a45083eac1a1edd, 0xc244c186385035e6},
		{tuple("[2001:db8::1]:1234", "[2001:db8:a::1]:443", TCP), 7, 0x967f48373162d559, 0xdef419ee5dfddf8},
	}
	for _, c := range cases {
		if h, s := c.t.Hash(c.seed), c.t.HashSource(c.seed); h != c.hash || s != c.source {
			t.Errorf("%+v, seed %d: %#x, %#x; want %#x, %#x", c.t, c.seed, h, s, c.hash, c.source)
		}
	}
	for s, want := range map[string]uint64{"": 0, "a": 0x7f18067a2e2eca7c, "10.0.0.1": 0xafaafbc423173d3c,
		"an-endpoint-with-a-long-name": 0x43a7532d79ea93ca} {
		if h := HashString(s); h != want {
			t.Errorf("HashString(%q) = %#x, want %#x", s, h, want)
		}
	}
}

// slowMix is mix by schoolbook: the halves of the 128-bit product, one over the other.
func slowMix(a, b uint64) uint64 {
	p := new(big.Int).Mul(new(big.Int).SetUint64(a), new(big.Int).SetUint64(b))
	var w [16]byte
	p.FillBytes(w[:])
	return binary.BigEndian.Uint64(w[:8]) ^ binary.BigEndian.Uint64(w[8:])
}

func slowHash(t Tuple, seed uint64) uint64 {
	h := seed ^ uint64(t.Proto)*k2
	for _, a := range []netip.Addr{t.Src.Addr(), t.Dst.Addr()} {
		b := a.As16()
		for i, k := range []uint64{k1, k2} {
			h = slowMix(h^binary.LittleEndian.Uint64(b[i*8:]), k)
		}
	}
	return slowMix(h^uint64(t.Src.Port())<<16^uint64(t.Dst.Port()), k0)
}

func TestHashAgreesWithTheSlowOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		tup, seed := randomTuple(rng), rng.Uint64()
		if got, want := tup.Hash(seed), slowHash(tup, seed); got != want {
			t.Fatalf("%+v, seed %#x: %#x, want %#x", tup, seed, got, want)
		}
	}
}

func randomTuple(rng *rand.Rand) Tuple {
	addr := func() netip.Addr {
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], rng.Uint64())
		binary.LittleEndian.PutUint64(b[8:], rng.Uint64())
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16(b).Unmap()
	}
	port := func() uint16 { return uint16(rng.Uint32()) }
	return Tuple{netip.AddrPortFrom(addr(), port()), netip.AddrPortFrom(addr(), port()), []Proto{TCP, UDP}[rng.IntN(2)]}
}

// TestSource: what does not belong to affinity SOURCE_IP does not change its hash, what does does.
func TestSource(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		a := randomTuple(rng)
		b := a
		b.Proto ^= TCP ^ UDP
		b.Src = netip.AddrPortFrom(a.Src.Addr(), a.Src.Port()+1)
		b.Dst = netip.AddrPortFrom(a.Dst.Addr(), a.Dst.Port()+1)
		if a.HashSource(5) != b.HashSource(5) {
			t.Fatalf("%+v and %+v differ", a, b)
		}
		if a.Hash(5) == b.Hash(5) || a.HashSource(5) == a.HashSource(6) {
			t.Fatalf("%+v: the same hash under another tuple or seed", a)
		}
		b.Src = netip.AddrPortFrom(a.Src.Addr().Next(), a.Src.Port())
		if a.Src.Addr().Next().IsValid() && a.HashSource(5) == b.HashSource(5) {
			t.Fatalf("%+v: the next source has the same hash", a)
		}
	}
}

// TestNeighboursSpread takes flows as they come (ports one after the other, addresses of one network)
// and looks at the parts of the hash that others use: the lowest and the highest bits.
func TestNeighboursSpread(t *testing.T) {
	const flows, bins = 64_000, 64
	for name, flowOf := range map[string]func(i int) Tuple{
		"ports": func(i int) Tuple {
			return Tuple{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i)),
				netip.MustParseAddrPort("198.51.100.1:443"), TCP}
		},
		"hosts": func(i int) Tuple {
			return Tuple{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 40_000),
				netip.MustParseAddrPort("198.51.100.1:443"), TCP}
		},
		"accelerated ports": func(i int) Tuple {
			return Tuple{netip.MustParseAddrPort("[2001:db8::1]:5000"),
				netip.AddrPortFrom(netip.MustParseAddr("2001:db8:a::1"), uint16(i)), UDP}
		},
	} {
		var low, high [bins]int
		for i := range flows {
			h := flowOf(i).Hash(42)
			low[h%bins]++
			high[h>>58]++
		}
		// Chi-square with 63 degrees of freedom: 120 has a chance of about 1 in 50,000.
		for part, counts := range map[string][bins]int{"low": low, "high": high} {
			chi, want := 0.0, float64(flows)/bins
			for _, n := range counts {
				chi += (float64(n) - want) * (float64(n) - want) / want
			}
			if chi > 120 {
				t.Errorf("%s: %s bits are not even: chi-square %.0f", name, part, chi)
			}
		}
	}
}

// TestAvalanche: each bit of the ports changes half of the hash's bits, on average.
func TestAvalanche(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	const rounds = 2000
	for bit := range 16 {
		changed := 0
		for range rounds {
			a := randomTuple(rng)
			b := a
			b.Src = netip.AddrPortFrom(a.Src.Addr(), a.Src.Port()^1<<bit)
			changed += bits.OnesCount64(a.Hash(1) ^ b.Hash(1))
		}
		if mean := float64(changed) / rounds; mean < 28 || mean > 36 {
			t.Errorf("bit %d of the source port changes %.1f of 64 bits", bit, mean)
		}
	}
}

func TestHashString(t *testing.T) {
	seen := map[uint64]string{}
	add := func(s string) {
		if other, ok := seen[HashString(s)]; ok {
			t.Errorf("%q and %q have the same hash", s, other)
		}
		seen[HashString(s)] = s
	}
	for i := range 20_000 {
		add("ep-" + strconv.Itoa(i))
	}
	for n := range 20 { // zeros at the end are not the same as none
		add(string(make([]byte, n)))
	}
	if Mix(1, 2) == Mix(2, 1) {
		t.Error("Mix does not tell its arguments apart")
	}
}

// FuzzHash: any addresses at all agree with the oracle, and no tuple is a bad key.
func FuzzHash(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1}, []byte{198, 51, 100, 1}, uint16(1), uint16(2), uint64(3))
	f.Add([]byte{}, make([]byte, 16), uint16(0), uint16(0), uint64(0))
	f.Fuzz(func(t *testing.T, src, dst []byte, sport, dport uint16, seed uint64) {
		s, _ := netip.AddrFromSlice(src)
		d, _ := netip.AddrFromSlice(dst)
		if !s.IsValid() || !d.IsValid() {
			return
		}
		tup := Tuple{netip.AddrPortFrom(s, sport), netip.AddrPortFrom(d, dport), UDP}
		if got, want := tup.Hash(seed), slowHash(tup, seed); got != want {
			t.Fatalf("%+v: %#x, want %#x", tup, got, want)
		}
	})
}
