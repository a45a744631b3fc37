package guard

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// Listeners of testRules: 9000 denies XX, 9001 allows HH and II, guests, and no exiles, 9002 allows guests alone.
var countryFixtures = []fixture{
	from("a country that is not denied", "100.65.0.1", 9000, PassListener),
	from("no country", "198.51.100.1", 9000, PassListener),
	from("a denied country", "100.64.0.1", 9000, DropCountry),
	from("a denied country in IPv6", "2001:db8:1000::1", 9000, DropCountry),
	from("a guest elsewhere is of the denied country", "100.64.5.1", 9000, DropCountry),
	from("a denied network", "203.0.113.1", 9000, DropDenied),
	from("an allowed country", "100.65.0.1", 9001, PassListener),
	from("an allowed country in IPv6", "2001:db8:2000::1", 9001, PassListener),
	from("another one within it", "100.65.9.1", 9001, PassListener),
	from("a country that is not allowed", "100.64.0.1", 9001, DropCountry),
	from("no country where some are allowed", "198.51.100.1", 9001, DropCountry),
	from("no country where some are allowed in IPv6", "2001:db8:3000::1", 9001, DropCountry),
	from("a guest from a country that is not allowed", "100.64.5.1", 9001, PassListener),
	from("a guest in IPv6", "2001:db8:1000:5::1", 9001, PassListener),
	from("an exile of an allowed country", "100.65.128.1", 9001, DropDenied),
	from("an exile in IPv6", "2001:db8:2000:5::1", 9001, DropDenied),
	from("a guest of the denied country", "100.64.5.1", 9002, PassListener),
	from("the denied country, where only guests are allowed", "100.64.0.1", 9002, DropCountry),
	from("who is no guest", "100.65.0.1", 9002, DropDenied),
}

func from(name, source string, port uint16, want Reason) fixture {
	dst := "192.0.2.7"
	if netip.MustParseAddr(source).Is6() {
		dst = "2001:db8:a::7"
	}
	return fixture{name, packet{src: netip.AddrPortFrom(netip.MustParseAddr(source), 9),
		dst: netip.AddrPortFrom(netip.MustParseAddr(dst), port), proto: TCP}, want}
}

// randomRules have few addresses, so that prefixes lie within each other.
func randomRules(rnd *rand.Rand) Rules {
	v4, v6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48")
	r := Rules{Addresses: []Address{{Prefix: v4}, {Prefix: v6}}, Lists: map[string][]netip.Prefix{},
		Countries: map[string][]netip.Prefix{}}
	some := func(names string, in map[string][]netip.Prefix) (chosen []string) {
		for _, name := range names {
			if rnd.IntN(3) == 0 {
				continue
			}
			chosen = append(chosen, string(name))
			for range rnd.IntN(12) {
				in[string(name)] = append(in[string(name)], randomSource(rnd))
			}
			in[string(name)] = slices.Clip(in[string(name)])
		}
		rnd.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		return chosen
	}
	lists, countries := some("abcd", r.Lists), some("PQRSTUV", r.Countries)
	for port := range uint16(6) {
		l := Listener{Name: fmt.Sprint(port), Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{1 + port, 1 + port}}, Proto: TCP}
		if len(lists) > 0 && rnd.IntN(2) == 0 {
			l.Allow = lists[rnd.IntN(len(lists))]
		}
		if len(lists) > 0 && rnd.IntN(2) == 0 {
			l.Deny = lists[rnd.IntN(len(lists))]
		}
		n := len(countries)
		if rnd.IntN(2) == 0 {
			l.AllowCountries = countries[:rnd.IntN(n+1)]
		}
		if rnd.IntN(2) == 0 {
			l.DenyCountries = countries[n-rnd.IntN(n+1):]
		}
		r.Listeners = append(r.Listeners, l)
	}
	return r
}

func randomAddr(rnd *rand.Rand) netip.Addr {
	if rnd.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{100, 64, byte(rnd.IntN(4)), byte(rnd.IntN(256))})
	}
	a := netip.MustParseAddr("2001:db8::1").As16()
	a[5], a[6] = byte(rnd.IntN(4)), byte(rnd.IntN(256))
	return netip.AddrFrom16(a)
}

func randomSource(rnd *rand.Rand) netip.Prefix {
	a := randomAddr(rnd)
	bits := 20 + rnd.IntN(13)
	if a.Is6() {
		bits = 36 + rnd.IntN(25)
	}
	p, _ := a.Prefix(bits)
	return p
}

// Whatever rules follow on whatever rules, the program says what the oracle says. In the middle of an update, the old
// listeners find the old lists whole.
func TestCountriesBySlowOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	g := loaded(t, Rules{}, Config{})
	var before Rules
	seen := map[Reason]int{}
	for round := range 60 {
		rules := randomRules(rnd)
		if round%4 == 1 { // lists come and go, and the networks stay: no source may be dropped meanwhile
			rules.Lists, rules.Countries = before.Lists, before.Countries
			rules.Listeners = nil
			must(t, g.number(Rules{}))
			must(t, g.addLists(Rules{}))
			for range 50 {
				g.compare(t, &before, randomPacket(rnd), "half way")
			}
		}
		must(t, g.Update(rules))
		for range 60 {
			frame := randomPacket(rnd)
			_, why, _ := g.run(t, frame)
			seen[why]++
			if slow := judgeSlowly(&rules, frame); why != slow {
				t.Fatalf("round %d: %v, and the oracle says %v: % x\n%+v", round, why, slow, frame, rules)
			}
		}
		before = rules
	}
	for _, r := range []Reason{PassListener, DropDenied, DropCountry} {
		if seen[r] < 100 {
			t.Errorf("only %d packets were %v", seen[r], r)
		}
	}
	must(t, g.Update(Rules{}))
	if n, _ := g.Listed(); n != 0 {
		t.Errorf("%d prefixes are left", n)
	}
}

func randomPacket(rnd *rand.Rand) []byte {
	p := packet{src: netip.AddrPortFrom(randomAddr(rnd), 9), dst: at("192.0.2.7:1"), proto: TCP}
	if p.src.Addr().Is6() {
		p.dst = at("[2001:db8:a::7]:1")
	}
	p.dst = netip.AddrPortFrom(p.dst.Addr(), uint16(1+rnd.IntN(6)))
	return p.bytes()
}

// large are n networks of a country, sorted, of both families.
func large(n int, seed uint64) []netip.Prefix {
	rnd := rand.New(rand.NewPCG(seed, 1))
	all := make([]netip.Prefix, 0, n)
	for range n {
		a := netip.AddrFrom4([4]byte{byte(1 + rnd.IntN(220)), byte(rnd.Uint32()), byte(rnd.Uint32()), 0})
		bits := 20 + rnd.IntN(5)
		if rnd.IntN(2) == 0 {
			b := [16]byte{0x24, byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())}
			a, bits = netip.AddrFrom16(b), 32+rnd.IntN(17)
		}
		p, _ := a.Prefix(bits)
		all = append(all, p)
	}
	slices.SortFunc(all, comparePrefixes)
	return slices.Compact(all)
}

// What costs much is not done again: an update that leaves lists as they are does not look at them.
func TestListsStay(t *testing.T) {
	rules := testRules()
	rules.Countries["XX"] = large(20_000, 1)
	g := loaded(t, rules, Config{})
	first := g.linesID(t)
	rules.Listeners = rules.Listeners[1:]
	rules.Lists = maps.Clone(rules.Lists)
	rules.Lists["bad"] = slices.Clone(rules.Lists["bad"])
	must(t, g.Update(rules))
	if now := g.linesID(t); now != first {
		t.Error("lists were made anew for a listener's sake")
	}
	rules.Lists["bad"] = append(rules.Lists["bad"], netip.MustParsePrefix("9.9.9.0/24"))
	must(t, g.Update(rules))
	if now := g.linesID(t); now == first {
		t.Error("a list changed, and the lines did not")
	}
}

// linesID is the kernel's number of the array that the program searches.
func (g *Guard) linesID(t *testing.T) (id ebpf.MapID) {
	t.Helper()
	must(t, g.objs.Lists.Lookup(uint32(0), &id))
	return id
}

func TestTooManyCountries(t *testing.T) {
	r := Rules{Countries: map[string][]netip.Prefix{}}
	for i := range countriesMax + 1 {
		r.Countries[fmt.Sprint(i)] = nil
	}
	if r.Validate() == nil {
		t.Error("256 countries were taken")
	}
	r = testRules()
	r.Listeners[0].DenyCountries = []string{"nowhere"}
	if r.Validate() == nil {
		t.Error("a country that is not there was taken")
	}
}

// BenchmarkPacketByLists is what a SYN costs, by what its listener asks of its source.
func BenchmarkPacketByLists(b *testing.B) {
	rules := testRules()
	rules.Countries = map[string][]netip.Prefix{"HH": large(300_000, 2), "XX": large(1000, 3), "II": nil}
	delete(rules.Lists, "guests")
	rules.Lists["guests"] = nil
	plain := rules
	plain.Countries = map[string][]netip.Prefix{"HH": nil, "XX": nil, "II": nil}
	for _, c := range []struct {
		name  string
		port  uint16
		rules Rules
	}{
		{"without lists", 22, plain}, {"small lists", 9000, plain}, {"300k prefixes", 9000, rules},
	} {
		for _, family := range []string{"192.0.2.7", "2001:db8:a::7"} {
			b.Run(fmt.Sprintf("%s to %s", c.name, family), func(b *testing.B) {
				r := c.rules
				if c.port == 22 { // a listener that asks for nothing
					r.Listeners = []Listener{{Name: "plain", Prefixes: r.Listeners[0].Prefixes, Ports: []Ports{{22, 22}}, Proto: TCP}}
				}
				benchSources(b, loaded(b, r, Config{}), family, c.port)
			})
		}
	}
}

// benchSources runs SYNs of many sources, each several times in a row in the kernel: what a packet costs is in
// the kernel's own figure.
func benchSources(b *testing.B, g *Guard, dst string, port uint16) {
	rnd := rand.New(rand.NewPCG(5, 6))
	frames := make([][]byte, 512)
	for i := range frames {
		src := netip.AddrFrom4([4]byte{byte(1 + rnd.IntN(99)), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32())})
		if netip.MustParseAddr(dst).Is6() {
			src = netip.AddrFrom16([16]byte{0x24, byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), byte(rnd.Uint32()), 1})
		}
		frames[i] = packet{src: netip.AddrPortFrom(src, 9), dst: netip.AddrPortFrom(netip.MustParseAddr(dst), port), proto: TCP}.bytes()
	}
	const repeat = 200
	out := make([]byte, 256)
	packets, total := 0, 0.0
	for b.Loop() {
		opts := runOptions(frames[packets/repeat%len(frames)], &out)
		opts.Repeat = repeat
		_, spent, err := g.objs.Guard.Benchmark(opts.Data, repeat, nil)
		must(b, err)
		packets += repeat
		total += float64(spent.Nanoseconds()) * repeat
	}
	b.ReportMetric(total/float64(packets), "ns/packet")
}

// BenchmarkUpdate is what an update costs beside 300,000 prefixes of countries.
func BenchmarkUpdate(b *testing.B) {
	rules := testRules()
	rules.Countries["HH"] = large(300_000, 2)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			g, err := Load(Config{})
			must(b, err)
			must(b, g.Update(rules))
			must(b, g.Close())
		}
	})
	g := loaded(b, rules, Config{})
	b.Run("a listener", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			rules.Listeners[0].Source = Rate{PerSecond: 1 + i%2, Burst: 5}
			must(b, g.Update(rules))
		}
	})
	b.Run("a network of a list", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			rules.Lists["bad"] = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{9, 9, byte(i), 0}), 24)}
			must(b, g.Update(rules))
		}
	})
}
