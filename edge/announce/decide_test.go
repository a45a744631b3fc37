package announce

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

var epoch = time.Unix(1_700_000_000, 0)

// world is three sites of one edge each; pool a has two accelerated addresses, pool b none.
func world() *model.Snapshot {
	s := &model.Snapshot{
		Pools: []model.Pool{
			{Name: "a", Kind: model.PoolAnycast, Zone: "a", Prefixes: []netip.Prefix{prefix("198.51.100.0/28")}},
			{Name: "b", Kind: model.PoolAnycast, Zone: "b", Prefixes: []netip.Prefix{prefix("203.0.113.0/28")}},
		},
		Accelerators: []model.Accelerator{{ID: "x", Enabled: true,
			Addresses: []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}}},
	}
	for _, name := range []string{"fra", "iad", "sin"} {
		s.Sites = append(s.Sites, model.Site{Name: model.SiteName(name),
			BGP: &model.SiteBGP{LocalASN: 64500, DrainTime: 5 * time.Second}})
		s.Nodes = append(s.Nodes, model.Node{ID: model.NodeID("n-" + name), Name: name, Edge: true,
			Site: model.SiteName(name)})
	}
	return s
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// good is a node at fra that announces pool a, with two others that do, too.
func good() Input {
	in := Input{Snapshot: world(), Self: "n-fra", Started: epoch.Add(-time.Hour), Now: epoch,
		Doors: map[netip.Addr]Doors{addr("198.51.100.1"): {Open: 3}, addr("198.51.100.2"): {Open: 3}},
		Fleet: map[model.NodeID]Member{"n-iad": {Announcing: true}, "n-sin": {Announcing: true}},
	}
	in.Previous = []Entry{{Prefix: prefix("198.51.100.0/28"), Phase: Announced, Since: epoch.Add(-time.Hour)}}
	return in
}

func TestDecide(t *testing.T) {
	shut := map[netip.Addr]Doors{addr("198.51.100.1"): {Missing: 6}}
	partly := map[netip.Addr]Doors{addr("198.51.100.1"): {Open: 5, Missing: 1}}
	fresh := func(in *Input) { in.Previous, in.Started = nil, epoch }
	alone := func(in *Input) { in.Fleet = nil }
	self := func(in *Input) *model.Node { return in.Snapshot.Node("n-fra") }
	cases := []struct {
		name   string
		change func(*Input)
		phase  Phase
		held   bool
		reason string // a part of it
	}{
		{"all is well", func(*Input) {}, Announced, false, "served here"},
		{"at once at the start", fresh, Announced, false, "served here"},
		{"alone", alone, Announced, false, "served here"},
		{"doors shut at the start", func(in *Input) { fresh(in); in.Doors = shut }, Withdrawn, false, "none of its 6"},
		{"doors partly shut at the start", func(in *Input) { fresh(in); in.Doors = partly }, Withdrawn, false, "waiting for 1 of 6"},
		{"and later", func(in *Input) { in.Previous, in.Doors = nil, partly }, Announced, false, "but for 1 of 6"},
		{"partly shut while announced", func(in *Input) { in.Doors = partly }, Announced, false, "but for 1 of 6"},
		{"sick: first asks", func(in *Input) { in.Doors = shut }, Announced, false, "first the others are asked"},
		{"sick for long", func(in *Input) { in.Doors = shut; in.Previous[0].Out = epoch.Add(-3 * time.Second) }, Withdrawn, false, "none of its 6"},
		{"sick and alone", func(in *Input) { in.Doors = shut; alone(in); in.Previous[0].Out = epoch.Add(-time.Hour) }, Announced, true, "at least 1 sites"},
		{"node drained", func(in *Input) { self(in).State = model.NodeDraining }, Draining, false, "node restore"},
		{"announcements drained", func(in *Input) { self(in).AnnounceDrained = true }, Draining, false, "announce restore"},
		{"site drained", func(in *Input) { in.Snapshot.Site("fra").BGP.Drained = true }, Draining, false, "site's announcements"},
		{"drained for long", func(in *Input) {
			self(in).State = model.NodeDraining
			in.Previous[0].Phase, in.Previous[0].Since = Draining, epoch.Add(-5*time.Second)
		}, Withdrawn, false, "drained"},
		{"restored while draining", func(in *Input) { in.Previous[0].Phase = Draining }, Announced, false, "served here"},
		{"drained and alone", func(in *Input) { self(in).State = model.NodeDraining; alone(in) }, Announced, true, "kept"},
		{"the others do not announce", func(in *Input) {
			self(in).State = model.NodeDraining
			in.Fleet = map[model.NodeID]Member{"n-iad": {}, "n-sin": {}}
		}, Announced, true, "0 others"},
		{"stopping and alone", func(in *Input) { in.Leaving = true; alone(in) }, Draining, false, "stopping"},
		{"a floor of three", func(in *Input) { self(in).State = model.NodeDraining; in.Snapshot.AnnounceFloor = 3 }, Announced, true, "at least 3"},
		{"a floor of two", func(in *Input) { self(in).State = model.NodeDraining; in.Snapshot.AnnounceFloor = 2 }, Draining, false, ""},
		{"accelerator disabled", func(in *Input) { in.Snapshot.Accelerators[0].Enabled = false }, Draining, false, "no enabled accelerator"},
		{"no listener", func(in *Input) { in.Doors = nil }, Draining, false, "no listener"},
		{"pool is not the site's", func(in *Input) { in.Snapshot.Site("fra").BGP.Pools = []model.PoolName{"b"} }, Withdrawn, false, "-"},
		{"aggregated", func(in *Input) { in.Snapshot.AnnounceAggregates = []netip.Prefix{prefix("198.51.100.0/24")} }, Announced, false, "served here"},
	}
	for _, c := range cases {
		in := good()
		c.change(&in)
		plan := Decide(in)
		if plan.Off != "" {
			t.Errorf("%s: off: %s", c.name, plan.Off)
			continue
		}
		e := Entry{Reason: "-"}
		for _, x := range plan.Entries {
			if x.Prefix.Contains(addr("198.51.100.1")) {
				e = x
			}
		}
		if e.Phase != c.phase || e.Held != c.held || !strings.Contains(e.Reason, c.reason) {
			t.Errorf("%s: %s, held %v (%s), want %s, %v (%s)", c.name, phaseText[e.Phase], e.Held, e.Reason,
				phaseText[c.phase], c.held, c.reason)
		}
		if c.name == "aggregated" && e.Prefix != prefix("198.51.100.0/24") {
			t.Errorf("announced is %v", e.Prefix)
		}
		if len(plan.Entries) > 1 && plan.Entries[1].Phase != Withdrawn {
			t.Errorf("%s: pool b, which nobody uses, is %s", c.name, phaseText[plan.Entries[1].Phase])
		}
	}
	if len(cases) < 20 {
		t.Error("cases are missing")
	}
}

func TestDecideOff(t *testing.T) {
	for want, change := range map[string]func(*Input){
		"no snapshot": func(in *Input) { in.Snapshot = nil },
		"not in the":  func(in *Input) { in.Self = "n-no" },
		"no edge":     func(in *Input) { in.Snapshot.Node("n-fra").Edge = false },
		"has no BGP":  func(in *Input) { in.Snapshot.Site("fra").BGP = nil },
	} {
		in := good()
		change(&in)
		if p := Decide(in); !strings.Contains(p.Off, want) || !p.gone() {
			t.Errorf("off is %q, want %q", p.Off, want)
		}
	}
}

// TestFloorUnderPanic: every site believes that it is sick, or is drained, all at once, with gossip as late
// as it may be. However it goes, the floor holds, and all agree on who holds it.
func TestFloorUnderPanic(t *testing.T) {
	for floor := 1; floor <= 3; floor++ {
		for _, sick := range []bool{true, false} {
			s := world()
			s.AnnounceFloor = floor
			entries := map[model.NodeID][]Entry{}
			fleet := map[model.NodeID]Member{}
			for i := range s.Nodes {
				id := s.Nodes[i].ID
				entries[id] = []Entry{{Prefix: prefix("198.51.100.0/28"), Phase: Announced, Since: epoch}}
				fleet[id] = Member{Announcing: true}
				if !sick {
					s.Nodes[i].State = model.NodeDraining
				}
			}
			doors := map[netip.Addr]Doors{addr("198.51.100.1"): {Open: 1}}
			if sick {
				doors = map[netip.Addr]Doors{addr("198.51.100.1"): {Missing: 1}}
			}
			for step := range 40 {
				now := epoch.Add(time.Duration(step) * 500 * time.Millisecond)
				next := map[model.NodeID]Member{}
				for i := range s.Nodes {
					id := s.Nodes[i].ID
					p := Decide(Input{Snapshot: s, Self: id, Doors: doors, Started: epoch.Add(-time.Hour), Fleet: fleet,
						Previous: entries[id], Now: now})
					entries[id] = p.Entries
					next[id] = Member{Announcing: p.complete(), WantsOut: p.wantsOut()}
				}
				fleet = next // the others hear of it a round later
				up := 0
				for _, e := range entries {
					if e[0].Phase != Withdrawn {
						up++
					}
				}
				if up < floor {
					t.Fatalf("floor %d, sick %v: %d sites announce after %v", floor, sick, up, now.Sub(epoch))
				}
				if step == 39 && up != floor {
					t.Errorf("floor %d, sick %v: %d sites announce in the end", floor, sick, up)
				}
			}
		}
	}
}

// TestDrainTimes walks a drain through time.
func TestDrainTimes(t *testing.T) {
	in := good()
	in.Snapshot.Node("n-fra").State = model.NodeDraining
	phases := map[time.Duration]Phase{0: Draining, time.Second: Draining, 4900 * time.Millisecond: Draining,
		5 * time.Second: Withdrawn, time.Minute: Withdrawn}
	for _, at := range []time.Duration{0, time.Second, 4900 * time.Millisecond, 5 * time.Second, time.Minute} {
		in.Now = epoch.Add(at)
		p := Decide(in)
		in.Previous = p.Entries
		if p.Entries[0].Phase != phases[at] {
			t.Errorf("after %v it is %s", at, phaseText[p.Entries[0].Phase])
		}
		if at == 0 && p.Wake != epoch.Add(5*time.Second) {
			t.Errorf("the next decision is due %v", p.Wake)
		}
	}
}
