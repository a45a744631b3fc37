package ports

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var spanOpts = cmp.AllowUnexported(span{}, place{})

func TestCompile(t *testing.T) {
	pfx := netip.MustParsePrefix
	wide, narrow := pfx("192.0.2.0/24"), pfx("192.0.2.7/32")
	for _, tc := range []struct {
		name  string
		rules []Rule
		want  map[place][]span
		fails bool
	}{
		{name: "nothing", want: map[place][]span{}},
		{name: "neighbours join",
			rules: []Rule{{wide, Range{81, 90}, TCP, 1}, {wide, Range{80, 80}, TCP, 1}},
			want:  map[place][]span{{TCP, wide}: {{80, 90, 1}}}},
		{name: "protocols are apart",
			rules: []Rule{{wide, Range{53, 53}, TCP, 1}, {wide, Range{53, 53}, UDP, 2}},
			want:  map[place][]span{{TCP, wide}: {{53, 53, 1}}, {UDP, wide}: {{53, 53, 2}}}},
		{name: "narrow inside wide",
			rules: []Rule{{wide, Range{1, 65535}, TCP, 0}, {narrow, Range{80, 81}, TCP, 3}},
			want: map[place][]span{{TCP, wide}: {{1, 65535, 0}},
				{TCP, narrow}: {{1, 79, 0}, {80, 81, 3}, {82, 65535, 0}}}},
		{name: "narrow at the ends",
			rules: []Rule{{wide, Range{10, 20}, TCP, 0}, {narrow, Range{5, 10}, TCP, 3},
				{narrow, Range{20, 65535}, TCP, 3}},
			want: map[place][]span{{TCP, wide}: {{10, 20, 0}},
				{TCP, narrow}: {{5, 10, 3}, {11, 19, 0}, {20, 65535, 3}}}},
		{name: "contradiction", fails: true,
			rules: []Rule{{wide, Range{1, 100}, TCP, 0}, {wide, Range{100, 200}, TCP, 1}}},
		{name: "port 0", fails: true, rules: []Rule{{wide, Range{0, 10}, TCP, 0}}},
		{name: "unmasked", fails: true, rules: []Rule{{pfx("192.0.2.1/24"), Range{1, 1}, TCP, 0}}},
		{name: "no protocol", fails: true, rules: []Rule{{wide, Range{1, 1}, 0, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := compile(tc.rules)
			if (err != nil) != tc.fails {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tc.want, got, spanOpts, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// slowSlot is the definition: of the rules that cover address and port, the one with the longest prefix.
func slowSlot(rules []Rule, proto Proto, a netip.Addr, port uint16) int {
	slot, bits := -1, -1
	for _, r := range rules {
		if r.Proto == proto && r.Prefix.Contains(a) && r.Ports.First <= port && port <= r.Ports.Last &&
			r.Prefix.Bits() > bits {
			slot, bits = int(r.Value), r.Prefix.Bits()
		}
	}
	return slot
}

// fastSlot is what the program does with compiled rules.
func fastSlot(compiled map[place][]span, proto Proto, a netip.Addr, port uint16) int {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, _ := a.Prefix(bits)
		spans, ok := compiled[place{proto, p}]
		if !ok {
			continue
		}
		i, found := slices.BinarySearchFunc(spans, port, func(s span, port uint16) int {
			switch {
			case port < s.first:
				return 1
			case port > s.last:
				return -1
			}
			return 0
		})
		if found {
			return int(spans[i].value)
		}
		return -1
	}
	return -1
}

// randomRules returns rules in a small space, so that they nest and touch; some contradict each other.
func randomRules(rnd *rand.Rand, n int) []Rule {
	var rules []Rule
	for range n {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(8))})
		bits := 28 + rnd.IntN(5)
		if rnd.IntN(2) == 0 {
			raw := [16]byte{0: 0x20, 1: 1, 15: byte(rnd.IntN(8))}
			a, bits = netip.AddrFrom16(raw), 124+rnd.IntN(5)
		}
		p, _ := a.Prefix(bits)
		first := uint16(1 + rnd.IntN(40))
		last := first + uint16(rnd.IntN(10))
		if rnd.IntN(10) == 0 {
			first, last = 65535-uint16(rnd.IntN(10)), 65535
		}
		rules = append(rules, Rule{p, Range{first, last}, []Proto{TCP, UDP}[rnd.IntN(2)], uint32(rnd.IntN(3))})
	}
	return rules
}

func TestCompileAgainstOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	compared := 0
	for range 3000 {
		rules := randomRules(rnd, 1+rnd.IntN(6))
		compiled, err := compile(rules)
		if err != nil {
			continue // a contradiction
		}
		for _, spans := range compiled {
			for i := 1; i < len(spans); i++ {
				if spans[i].first <= spans[i-1].last {
					t.Fatalf("%+v: spans overlap: %+v", rules, spans)
				}
			}
		}
		for host := range byte(8) {
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, host}),
				netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: host})} {
				for _, proto := range []Proto{TCP, UDP} {
					for _, port := range []uint16{1, 9, 20, 30, 39, 40, 45, 50, 65525, 65530, 65535} {
						compared++
						want, got := slowSlot(rules, proto, a, port), fastSlot(compiled, proto, a, port)
						if want != got {
							t.Fatalf("%+v: %v %v port %d: got slot %d, want %d", rules, proto, a, port, got, want)
						}
					}
				}
			}
		}
	}
	if compared < 100000 {
		t.Fatalf("only %d look-ups compared: too many contradictions", compared)
	}
}

func TestPlaceSurvivesTheTrie(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "192.0.2.0/24", "192.0.2.1/32", "::/0", "2001:db8::/33", "2001:db8::1/128"} {
		at := place{UDP, netip.MustParsePrefix(s)}
		if got, err := placeOf(at.key()); err != nil || got != at {
			t.Errorf("%v became %v, %v", at, got, err)
		}
	}
}
