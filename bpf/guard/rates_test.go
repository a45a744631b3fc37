package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// tokens is how many of a rate of one a second may have come since.
func tokens(since time.Time) int { return int(time.Since(since)/time.Second) + 1 }

// burst sends one packet after another and returns what became of them, and how many tokens of a rate of one
// a second may have come meanwhile.
func burst(t *testing.T, g *Guard, n int, packets ...packet) (got map[Reason]int, late int) {
	t.Helper()
	began := time.Now()
	got = map[Reason]int{}
	for i := range n {
		_, why, _ := g.run(t, packets[i%len(packets)].bytes())
		got[why]++
	}
	return got, tokens(began)
}

func TestRates(t *testing.T) {
	rules := testRules()
	rules.Listeners[0].Source = Rate{PerSecond: 1, Burst: 5}
	rules.Listeners[1].Total = Rate{PerSecond: 1, Burst: 7}
	g := loaded(t, rules, Config{})
	began := time.Now()
	check := func(what string, n, pass int, refused Reason, packets ...packet) {
		t.Helper()
		got, late := burst(t, g, n, packets...)
		if pass == 0 { // the bucket was emptied before
			late = tokens(began)
		}
		if p := got[PassListener]; p < pass || p > pass+late || p+got[refused] != n {
			t.Errorf("%s: %v, and not %d let through", what, got, pass)
		}
	}
	web := packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP}
	other := web
	other.src = at("198.51.100.2:9")
	established := web
	established.flags = ack
	v6 := packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP}
	neighbour, stranger := v6, v6
	neighbour.src, stranger.src = at("[2001:db8::ffff]:9"), at("[2001:db8:0:1::1]:9")
	game := packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP}
	elsewhere := game
	elsewhere.src = at("198.51.100.2:9")

	check("one source", 20, 5, DropSource, web)
	check("another source", 20, 5, DropSource, other)
	check("packets of flows", 50, 50, DropSource, established)
	check("a /64", 20, 5, DropSource, v6, neighbour)
	check("another /64", 20, 5, DropSource, stranger)
	check("all sources", 30, 7, DropListener, game, elsewhere)

	must(t, g.Update(rules)) // what did not change keeps its buckets
	check("the same source after an update", 10, 0, DropSource, web)
	rules.Listeners[0].Source = Rate{}
	must(t, g.Update(rules))
	check("no rate", 10, 10, DropSource, web)
}

// The number of a listener that is gone is another's later, with full buckets.
func TestNumbersAreReused(t *testing.T) {
	rules := testRules()
	rules.Listeners = rules.Listeners[1:2]
	rules.Listeners[0].Total = Rate{PerSecond: 1, Burst: 3}
	g := loaded(t, rules, Config{ListenersMax: 2})
	game := packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP}
	for i := range 10 {
		rules.Listeners[0].Name = fmt.Sprint("game", i)
		must(t, g.Update(rules))
		if got, late := burst(t, g, 10, game); got[PassListener] < 3 || got[PassListener] > 3+late {
			t.Fatalf("listener %d: %v", i, got)
		}
	}
}

func TestUpdateTakesBack(t *testing.T) {
	rules := testRules()
	g := loaded(t, rules, Config{})
	must(t, g.Update(Rules{}))
	for _, f := range fixtures {
		if _, why, _ := g.run(t, f.bytes()); why != PassForeign {
			t.Errorf("%s: %v without rules", f.name, why)
		}
	}
	must(t, g.Update(rules))
	for _, f := range fixtures {
		if _, why, _ := g.run(t, f.bytes()); why != f.want {
			t.Errorf("%s: %v, not %v, with the rules back", f.name, why, f.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	small := loaded(t, Rules{}, Config{AddressesMax: 1, ListenersMax: 1, ListedMax: 1})
	p := netip.MustParsePrefix("192.0.2.0/24")
	for name, r := range map[string]Rules{
		"addresses": {Addresses: testRules().Addresses},
		"lists":     {Lists: testRules().Lists},
		"listeners": {Listeners: []Listener{
			{Name: "a", Prefixes: []netip.Prefix{p}, Ports: []Ports{{1, 1}}, Proto: TCP},
			{Name: "b", Prefixes: []netip.Prefix{p}, Ports: []Ports{{2, 2}}, Proto: TCP},
		}},
	} {
		if err := small.Update(r); !errors.Is(err, ErrFull) {
			t.Errorf("too many %s: %v", name, err)
		}
	}
	for name, r := range map[string]Rules{
		"a prefix with host bits": {Addresses: []Address{{Prefix: netip.MustParsePrefix("192.0.2.1/24")}}},
		"no name":                 {Listeners: []Listener{{}}},
		"an unknown list":         {Listeners: []Listener{{Name: "a", Deny: "x"}}},
		"a rate without burst":    {Listeners: []Listener{{Name: "a", Source: Rate{PerSecond: 1}}}},
		"a rate beyond all":       {Listeners: []Listener{{Name: "a", Flood: Rate{PerSecond: 2e9, Burst: 1}}}},
		"a list of a mapped address": {Lists: map[string][]netip.Prefix{"x": {
			netip.MustParsePrefix("::ffff:1.2.3.4/128")}}},
	} {
		if err := small.Update(r); err == nil || errors.Is(err, ErrFull) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEvents(t *testing.T) {
	rules := testRules()
	g := loaded(t, rules, Config{SampleEvery: 1})
	ctx, stop := context.WithCancel(context.Background())
	got := make(chan Event, 2*len(fixtures))
	ended := make(chan error, 1)
	go func() { ended <- g.Events(ctx, func(e Event) { got <- e }) }()
	want := 0
	for _, f := range fixtures {
		frame := f.bytes()
		if g.run(t, frame); !f.want.Dropped() {
			continue
		}
		want++
		var e Event
		select {
		case e = <-got:
		case err := <-ended:
			t.Fatalf("events ended: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: no event", f.name)
		}
		if e.Reason != f.want || e.Length != len(frame) {
			t.Errorf("%s: event %+v", f.name, e)
		}
		if e.Reason != DropMalformed && (e.Source.Addr() != f.src.Addr() || e.Destination.Addr() != f.dst.Addr()) {
			t.Errorf("%s: event of %v to %v", f.name, e.Source, e.Destination)
		}
		if e.Reason == DropNobody && f.proto == TCP && (e.Source != f.src || e.Destination != f.dst || e.Proto != TCP) {
			t.Errorf("%s: event %+v", f.name, e)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if want < 10 || len(got) > 0 {
		t.Errorf("%d events, and %d that nobody waits for", want, len(got))
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range reasons {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d is called %q", uint32(r), r)
		}
		seen[r.String()] = true
	}
}
