package model

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// randomNetworks are sorted and disjoint, and not always as few as possible.
func randomNetworks(rng *rand.Rand) (all []netip.Prefix) {
	var grow func(p netip.Prefix, longest int)
	grow = func(p netip.Prefix, longest int) {
		switch n := rng.IntN(8); {
		case n < 2 && p.Bits() > 3:
			all = append(all, p)
		case n < 4 && p.Bits() > 3 || p.Bits() == longest: // so many of both that it ends
		default:
			half, _ := p.Addr().Prefix(p.Bits() + 1)
			grow(half, longest)
			b := half.Addr().AsSlice()
			b[p.Bits()/8] |= 1 << (7 - p.Bits()%8)
			a, _ := netip.AddrFromSlice(b)
			grow(netip.PrefixFrom(a, p.Bits()+1), longest)
		}
	}
	grow(netip.MustParsePrefix("0.0.0.0/0"), 32)
	grow(netip.MustParsePrefix("::/0"), 40)
	return all
}

func TestPackNetworks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	some, ends := 0, []string{"0.0.0.0/32", "255.255.255.255/32", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"}
	for range 500 {
		all := randomNetworks(rng)
		if rng.IntN(20) == 0 {
			all = nil
			for _, e := range ends {
				if rng.IntN(2) == 0 {
					all = append(all, netip.MustParsePrefix(e))
				}
			}
		}
		var few []netip.Prefix
		for _, p := range all {
			few = AppendNetwork(few, p)
		}
		packed := PackNetworks(few)
		back, err := UnpackNetworks(packed)
		if err != nil || !slices.Equal(back, few) {
			t.Fatalf("%v came back as %v, %v", few, back, err)
		}
		if len(few) > 3 {
			some++
		}
		for range 20 { // fewer networks mean the same addresses
			a := netip.AddrFrom4([4]byte{byte(rng.Uint32()), byte(rng.Uint32()), 0, byte(rng.Uint32())})
			if rng.IntN(2) == 0 {
				a = netip.AddrFrom16([16]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
			}
			contains := func(p netip.Prefix) bool { return p.Contains(a) }
			if slices.ContainsFunc(all, contains) != slices.ContainsFunc(few, contains) {
				t.Fatalf("%v: %v became %v", a, all, few)
			}
		}
		if len(packed) == 0 {
			continue
		}
		for n := range min(len(packed), 100) { // no part of a set is one
			if _, err := CountNetworks(packed[:n]); err == nil && n > 0 {
				t.Fatalf("%d of %d bytes were read", n, len(packed))
			}
		}
		if _, err := CountNetworks(append(bytes.Clone(packed), 0)); err == nil {
			t.Fatal("a byte more was read")
		}
	}
	if some < 100 {
		t.Errorf("only %d sets had several networks", some)
	}
}

func TestBadNetworks(t *testing.T) {
	deep := append([]byte{packedV4}, bytes.Repeat([]byte{0b01010101}, 9)...)
	mapped := PackNetworks([]netip.Prefix{netip.MustParsePrefix("::ffff:0:0/96")})
	for name, b := range map[string][]byte{
		"no family": {0, 0}, "another family": {4, 0}, "nothing behind the head": {packedV4}, "too deep": deep,
		"two halves": {packedV4, 0b11000000}, "one family of two": {packedV4 | packedV6, 0b01010100},
		"a bit behind the end": {packedV4, 0b00000001}, "IPv4 in IPv6": mapped,
	} {
		if n, err := CountNetworks(b); err == nil {
			t.Errorf("%s: %d networks", name, n)
		}
	}
}

// FuzzUnpackNetworks: what can be read is sorted, masked and disjoint, and is packed as it was.
func FuzzUnpackNetworks(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		var few []netip.Prefix
		for _, p := range randomNetworks(rng) {
			few = AppendNetwork(few, p)
		}
		f.Add(PackNetworks(few))
	}
	f.Add([]byte{3, 0b00000000})
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := UnpackNetworks(b)
		n, err2 := CountNetworks(b)
		if (err == nil) != (err2 == nil) || err == nil && n != len(all) {
			t.Fatalf("%d networks, %v; counted %d, %v", len(all), err, n, err2)
		}
		if err != nil {
			return
		}
		for i, p := range all {
			if p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 || i > 0 && all[i-1].Overlaps(p) {
				t.Fatalf("%v after %v", p, all[:i])
			}
		}
		if again := PackNetworks(all); !bytes.Equal(again, b) {
			t.Fatalf("% x became % x", b, again)
		}
	})
}

func TestCountryCodes(t *testing.T) {
	n := 0
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			if CountryCode(string(a) + string(b)).Known() {
				n++
			}
		}
	}
	if n != CountriesMax || len(countryCodes) != 3*n+1 {
		t.Errorf("%d codes", n)
	}
	for _, bad := range []CountryCode{"", "D", "de", "DEU", " D", "D ", "E A", "ZZ", "EU"} {
		if bad.Known() {
			t.Errorf("%q is known", bad)
		}
	}
}
