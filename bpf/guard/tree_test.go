package guard

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

// tangled are prefixes of all lengths, many of them within each other, or beside each other.
func tangled(rnd *rand.Rand, n int) []netip.Prefix {
	all := make([]netip.Prefix, 0, n)
	for range n {
		b := make([]byte, 4)
		if rnd.IntN(2) == 0 {
			b = make([]byte, 16)
		}
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		a, _ := netip.AddrFromSlice(b)
		bits := a.BitLen() - rnd.IntN(a.BitLen()*5/8)
		if rnd.IntN(16) == 0 {
			bits = rnd.IntN(a.BitLen() + 1)
		}
		if other := rnd.IntN(len(all) + 1); rnd.IntN(8) > 0 && other < len(all) { // near another one
			p := all[other]
			a = p.Addr()
			switch b := a.AsSlice(); rnd.IntN(3) {
			case 0:
				a = last(p)
			case 1:
				at := rnd.IntN(a.BitLen())
				b[at/8] ^= 0x80 >> (at % 8)
				a, _ = netip.AddrFromSlice(b)
			}
			bits = min(a.BitLen(), p.Bits()+rnd.IntN(9))
		}
		p, _ := a.Prefix(bits)
		if !a.Is4In6() {
			all = append(all, p)
		}
	}
	return all
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Around all borders, and elsewhere, the program finds what the oracle finds, whatever the number of levels.
func TestListsBySlowOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	seen, levels := map[Reason]int{}, map[uint64]bool{}
	g := loaded(t, Rules{}, Config{})
	for _, n := range []int{0, 1, 2, 3, 5, 8, 20, 60, 200, 1000, 8000} {
		rules := tangledRules(rnd, n)
		must(t, g.Update(rules))
		for _, head := range compile(cover(g.gather(rules.Lists, rules.Countries)))[:2] {
			levels[head[0]&0xffffffff] = true
		}
		all := slices.Concat(rules.Lists["a"], rules.Lists["b"], rules.Countries["P"], rules.Countries["Q"])
		for range 30 + min(300, n) {
			source := randomAddr(rnd)
			if len(all) > 0 {
				p := all[rnd.IntN(len(all))]
				source = []netip.Addr{p.Addr(), last(p), p.Addr().Prev(), last(p).Next(), source}[rnd.IntN(5)]
			}
			if !source.IsValid() || source.Is4In6() {
				continue // there is none before the first address, nor behind the last one
			}
			for port := range uint16(3) {
				frame := from("", source.String(), 1+port, 0).bytes()
				_, why, _ := g.run(t, frame)
				seen[why]++
				if slow := judgeSlowly(&rules, frame); why != slow {
					t.Fatalf("%d prefixes: %v to port %d: %v, and the oracle says %v", n, source, 1+port, why, slow)
				}
			}
		}
	}
	for _, r := range []Reason{PassListener, DropDenied, DropCountry} {
		if seen[r] < 200 {
			t.Errorf("only %d packets were %v", seen[r], r)
		}
	}
	if len(levels) < 5 {
		t.Errorf("trees had only so many levels: %v", levels)
	}
}

// tangledRules are listeners of ports 1 to 3 beside each of two lists and two countries of n prefixes.
func tangledRules(rnd *rand.Rand, n int) Rules {
	v4, v6 := netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("2001:db8:a::7/128")
	r := Rules{
		Addresses: []Address{{Prefix: v4}, {Prefix: v6}},
		Lists:     map[string][]netip.Prefix{"a": tangled(rnd, n), "b": tangled(rnd, n)},
		Countries: map[string][]netip.Prefix{"P": tangled(rnd, n), "Q": tangled(rnd, n)},
		Listeners: []Listener{{Deny: "a"}, {Deny: "b", DenyCountries: []string{"P"}}, {Allow: "b", DenyCountries: []string{"Q"}}},
	}
	for i := range r.Listeners {
		l, port := &r.Listeners[i], uint16(1+i)
		l.Name, l.Prefixes, l.Proto, l.Ports = fmt.Sprint(port), []netip.Prefix{v4, v6}, TCP, []Ports{{port, port}}
	}
	return r
}

// While lists change, each packet meets the old ones or the new ones, never something between: what both deny is
// denied all the time.
func TestListsAreReplacedWhole(t *testing.T) {
	rules := testRules()
	rules.Lists["bad"] = large(3000, 1)
	g := loaded(t, rules, Config{})
	frames := make([][]byte, 0, 64)
	for i := range cap(frames) {
		src := rules.Lists["bad"][i*len(rules.Lists["bad"])/cap(frames)].Addr()
		f := from("", src.String(), 80, 0)
		frames = append(frames, f.bytes())
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		bad := rules.Lists["bad"]
		for i := range 25 {
			rules.Lists["bad"] = append(slices.Clip(bad), large(1+100*i, uint64(i))...)
			if err := g.Update(rules); err != nil {
				t.Error(err)
			}
		}
	})
	runs := 0
	for {
		select {
		case <-stop:
			wg.Wait()
			if runs == 0 {
				t.Error("no packet came meanwhile")
			}
			return
		default:
		}
		frame := frames[runs%len(frames)]
		out := make([]byte, len(frame)+256)
		verdict, err := g.objs.Guard.Run(runOptions(frame, &out))
		must(t, err)
		if runs++; verdict != xdpDrop {
			t.Fatalf("packet %d: verdict %d", runs, verdict)
		}
	}
}
