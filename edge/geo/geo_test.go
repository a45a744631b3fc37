package geo

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// oracle finds the longest prefix by looking at all.
func oracle(prefixes []netip.Prefix, a netip.Addr) int {
	best := -1
	for i, p := range prefixes {
		if p.Contains(a) && (best < 0 || p.Bits() >= prefixes[best].Bits()) {
			best = i
		}
	}
	return best
}

// TestTrie compares with the oracle, and checks that every address within the scope has the same answer.
func TestTrie(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	within := func(p netip.Prefix) netip.Addr {
		b := p.Addr().As4()
		for i := p.Bits(); i < 32; i++ {
			b[i/8] ^= byte(rng.IntN(2)) << (7 - i%8)
		}
		return netip.AddrFrom4(b)
	}
	for round := range 50 {
		var tr trie
		var prefixes []netip.Prefix
		for range rng.IntN(200) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))}),
				rng.IntN(33)).Masked()
			tr.insert(p, len(prefixes))
			prefixes = append(prefixes, p)
		}
		for range 200 {
			a := netip.AddrFrom4([4]byte{10, byte(rng.IntN(5)), byte(rng.IntN(256)), byte(rng.IntN(256))})
			got, scope := tr.find(a)
			if want := oracle(prefixes, a); got != want {
				t.Fatalf("round %d: %v: %d, want %d of %v", round, a, got, want, prefixes)
			}
			p, err := a.Prefix(scope)
			if err != nil {
				t.Fatal(err)
			}
			for range 8 {
				if other := within(p); oracle(prefixes, other) != got {
					t.Fatalf("round %d: %v has scope %v, but %v is otherwise", round, a, p, other)
				}
			}
		}
	}
}

// TestLiveness walks through what a node may do.
func TestLiveness(t *testing.T) {
	at := time.Unix(0, 0)
	l := NewLiveness(at)
	up := Evidence{Tunnel: true, TunnelUp: true, Gossip: true}
	cut := Evidence{Tunnel: true, Gossip: true}
	dead := Evidence{Tunnel: true}
	step := func(after time.Duration, e Evidence, want bool, what string) {
		t.Helper()
		at = at.Add(after)
		if got, _ := l.Observe(at, "n", e); got != want {
			t.Errorf("%s at %v: %v", what, at.Sub(time.Unix(0, 0)), got)
		}
	}
	step(0, Evidence{}, true, "not seen yet")
	step(time.Second, up, true, "up")
	step(time.Minute, cut, false, "the tunnel breaks")
	step(10*time.Second, cut, false, "gossip may not know yet")
	step(21*time.Second, cut, false, "gossip says it lives: held for a moment")
	step(3*time.Second, cut, true, "only the path is cut")
	step(time.Second, up, true, "the path is back")
	step(time.Minute, dead, false, "it dies")
	step(time.Hour, dead, false, "it is dead")
	step(time.Second, up, false, "it comes back")
	step(5*time.Second, up, true, "it has been there for long enough")
	// R-HC5: flapping at 0.5 Hz for 5 minutes makes at most 2 changes.
	changes, last := 0, true
	for i := range 300 {
		e := dead
		if i%2 == 1 {
			e = up
		}
		at = at.Add(time.Second)
		if now, _ := l.Observe(at, "n", e); now != last {
			changes, last = changes+1, now
		}
	}
	if changes > 2 {
		t.Errorf("%d changes while it flapped", changes)
	}
	// Never seen at all.
	if ok, _ := NewLiveness(at).Observe(at.Add(time.Minute), "m", Evidence{}); ok {
		t.Error("a node that nobody ever saw is alive")
	}
}

// TestWeights: a site keeps its share of the networks, always the same ones.
func TestWeights(t *testing.T) {
	sites := []model.Site{{Name: "a", Latitude: 50, Longitude: 8}, {Name: "b", Latitude: 1, Longitude: 103}}
	s := &model.Snapshot{Sites: sites, Pools: []model.Pool{{Name: "p", Kind: model.PoolNode}},
		Steering: model.Steering{DefaultSite: "a", Weights: []model.SteeringWeight{{Site: "a", Percent: 30}}},
		Nodes: []model.Node{
			{ID: "1", Site: "a", Edge: true, ServiceAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
			{ID: "2", Site: "b", Edge: true, ServiceAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
		}}
	table := Compile(NewMap(sites, s.Steering, nil, nil), s, func(*model.Node) string { return "" })
	scratch, kept := new(Scratch), 0
	for i := range 20000 {
		a := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1})
		c := table.Choose(table.Pool("p"), a, false, scratch)
		if c.Site == "a" {
			kept++
		}
		if c.Scope < 24 {
			t.Fatalf("scope %d is wider than the network whose hash decided", c.Scope)
		}
		b := a.As4()
		b[3] = 200
		if again := table.Choose(table.Pool("p"), netip.AddrFrom4(b), false, scratch); again.Site != c.Site {
			t.Fatalf("%v: another site for the same network", a)
		}
	}
	if kept < 5800 || kept > 6200 {
		t.Errorf("a site of weight 30%% kept %d of 20000 networks", kept)
	}
}

// TestMeasured: measured round trips come before what is only guessed.
func TestMeasured(t *testing.T) {
	sites := []model.Site{{Name: "a", Latitude: 50, Longitude: 8}, {Name: "b", Latitude: 1, Longitude: 103}}
	known := []model.ClientNetwork{measured("198.51.100.0/24", "b", 20, "a", 180)}
	m := NewMap(sites, model.Steering{}, nil, known)
	s := new(Scratch)
	if j := m.judge(netip.MustParseAddr("198.51.100.9"), s); j.source != SourceRTT || s.scores[1] >= s.scores[0] || j.scope != 24 {
		t.Errorf("%+v %v", j, s.scores)
	}
	if j := m.judge(netip.MustParseAddr("198.51.101.9"), s); j.source != SourceDefault || s.scores[0] >= s.scores[1] {
		t.Errorf("%+v %v", j, s.scores)
	}
	m = NewMap(sites, model.Steering{IgnoreRTT: true}, nil, known)
	if j := m.judge(netip.MustParseAddr("198.51.100.9"), s); j.source != SourceDefault {
		t.Errorf("round trips that shall be ignored: %+v", j)
	}
}

// measured is a network with round trips in milliseconds to sites.
func measured(prefix string, pairs ...any) model.ClientNetwork {
	n := model.ClientNetwork{Prefix: netip.MustParsePrefix(prefix)}
	for i := 0; i < len(pairs); i += 2 {
		n.Sites = append(n.Sites, model.ClientSite{Site: model.SiteName(pairs[i].(string)), Samples: 9,
			RTT: time.Duration(pairs[i+1].(int)) * time.Millisecond})
	}
	return n
}

func TestCentres(t *testing.T) {
	all := centres()
	if len(all) < 240 {
		t.Fatalf("%d countries", len(all))
	}
	de, sg, id := all["DE"], all["SG"], all["ID"]
	if d := kilometres(de.chord(sg)); d < 9500 || d > 10700 {
		t.Errorf("Germany and Singapore are %.0f km apart", d)
	}
	if sg.chord(id) > sg.chord(de) {
		t.Error("Singapore is nearer to Germany than to Indonesia")
	}
}
