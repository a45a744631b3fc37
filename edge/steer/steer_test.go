package steer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

const ms = time.Millisecond

var vip = netip.MustParseAddr("192.0.2.1")

// world is a snapshot with one listener on vip port 80. Its groups are written "region:dial:health",
// where health has a letter an endpoint: h healthy, u unhealthy, i initial, and capitals for weight 0.
// Each region has one gateway, gw-REGION; those whose name begins with "direct" have none.
func world(affinity model.Affinity, groups ...string) *model.Snapshot {
	s := &model.Snapshot{Revision: 7, Cluster: "test"}
	s.Accelerators = []model.Accelerator{{ID: "a", Enabled: true, Addresses: []netip.Addr{vip}}}
	s.Listeners = []model.Listener{{ID: "l", Accelerator: "a", Protocol: model.TCPUDP,
		PortRanges: []model.PortRange{{From: 80, To: 80}}, Affinity: affinity}}
	s.Sites = []model.Site{{Name: "here", Region: "home"}}
	s.Nodes = []model.Node{{ID: "self", Site: "here", Edge: true}}
	for _, spec := range groups {
		var region, health string
		var dial float32
		if _, err := fmt.Sscanf(spec, "%s %g %s", &region, &dial, &health); err != nil {
			panic(spec + ": " + err.Error())
		}
		g := model.EndpointGroup{ID: model.GroupID("g-" + region), Listener: "l",
			Region: model.RegionName(region), TrafficDial: dial}
		for i, letter := range health {
			e := model.Endpoint{ID: model.EndpointID(fmt.Sprintf("%s-%d", region, i)), Weight: 128}
			switch letter {
			case 'h', 'H':
				e.Health = model.HealthHealthy
			case 'u', 'U':
				e.Health = model.HealthUnhealthy
			}
			if letter < 'a' && letter != '-' {
				e.Weight = 0
			}
			if letter != '-' {
				g.Endpoints = append(g.Endpoints, e)
			}
		}
		s.Groups = append(s.Groups, g)
		if region[:min(6, len(region))] != "direct" {
			site := model.SiteName("site-" + region)
			s.Sites = append(s.Sites, model.Site{Name: site, Region: g.Region})
			s.Nodes = append(s.Nodes, model.Node{ID: model.NodeID("gw-" + region), Site: site, Gateway: true})
		}
	}
	s.Sort()
	return s
}

func rtts(pairs ...any) map[model.NodeID]time.Duration {
	m := map[model.NodeID]time.Duration{}
	for i := 0; i < len(pairs); i += 2 {
		m[model.NodeID(pairs[i].(string))] = time.Duration(pairs[i+1].(int)) * ms
	}
	return m
}

func words(node, group string, servable bool) map[model.NodeID]map[model.GroupID]bool {
	return map[model.NodeID]map[model.GroupID]bool{
		model.NodeID(node): {model.GroupID(group): servable},
	}
}

func tuple(i int) flow.Tuple {
	src := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	return flow.Tuple{Src: netip.AddrPortFrom(src, uint16(1024+i%60000)), Dst: netip.AddrPortFrom(vip, 80), Proto: flow.TCP}
}

// way is a route in words: "g-a>gw-a g-b>direct g-a>gw-a!" (the mark is failing open).
func way(r Route) (way []string) {
	for c, ok := r.Next(); ok; c, ok = r.Next() {
		to := "direct"
		if !c.Direct {
			gw, _ := c.Gateway(0)
			to = string(gw)
		}
		if c.FailOpen {
			to += "!"
		}
		way = append(way, string(c.Group.ID)+">"+to)
	}
	return way
}

func TestWays(t *testing.T) {
	near := rtts("gw-a", 10, "gw-b", 50, "gw-c", 100, "gw-d", 200)
	tests := []struct {
		name   string
		groups []string
		view   View
		want   []string
	}{
		{"nearest first", []string{"a 100 h", "b 100 h"}, View{RTT: near},
			[]string{"g-a>gw-a", "g-b>gw-b", "g-a>gw-a!"}},
		{"distance is what counts, not the name", []string{"a 100 h", "b 100 h"},
			View{RTT: rtts("gw-a", 60, "gw-b", 50)}, []string{"g-b>gw-b", "g-a>gw-a", "g-b>gw-b!"}},
		{"a dial of zero takes nothing, but is a candidate", []string{"a 0 h", "b 100 h"}, View{RTT: near},
			[]string{"g-b>gw-b", "g-a>gw-a", "g-a>gw-a!"}},
		{"all dials at zero: the nearest", []string{"a 0 h", "b 0 h"}, View{RTT: near},
			[]string{"g-a>gw-a", "g-b>gw-b", "g-a>gw-a!"}},
		{"one group keeps all, whatever its dial", []string{"a 1 h"}, View{RTT: near},
			[]string{"g-a>gw-a", "g-a>gw-a!"}},
		{"unhealthy: next, dial ignored", []string{"a 100 u", "b 0 h", "c 100 h"}, View{RTT: near},
			[]string{"g-b>gw-b", "g-c>gw-c", "g-a>gw-a!"}},
		{"initial is not healthy", []string{"a 100 i", "b 100 h"}, View{RTT: near},
			[]string{"g-b>gw-b", "g-a>gw-a!"}},
		{"healthy of weight zero does not count", []string{"a 100 Hu", "b 100 h"}, View{RTT: near},
			[]string{"g-b>gw-b", "g-a>gw-a!"}},
		{"more than three groups are tried", []string{"a 100 u", "b 100 u", "c 100 u", "d 100 h"},
			View{RTT: near}, []string{"g-d>gw-d", "g-a>gw-a!"}},
		{"nothing healthy: the nearest, open", []string{"a 100 u", "b 100 u"}, View{RTT: near},
			[]string{"g-a>gw-a!"}},
		{"open: weight above zero before weight zero", []string{"a 100 H", "b 100 u"}, View{RTT: near},
			[]string{"g-b>gw-b!"}},
		{"open: weight zero if there is nothing else", []string{"a 100 H", "b 100 -"}, View{RTT: near},
			[]string{"g-a>gw-a!"}},
		{"empty groups lead nowhere", []string{"a 100 -", "b 100 -"}, View{RTT: near}, nil},
		{"unreachable: next", []string{"a 100 h", "b 100 h"}, View{RTT: rtts("gw-b", 50)},
			[]string{"g-b>gw-b", "g-b>gw-b!"}},
		{"open skips what cannot be reached", []string{"a 100 u", "b 100 u"}, View{RTT: rtts("gw-b", 50)},
			[]string{"g-b>gw-b!"}},
		{"nothing can be reached", []string{"a 100 h", "b 100 h"}, View{}, nil},
		{"a gateway's no beats the snapshot", []string{"a 100 h", "b 100 h"},
			View{RTT: near, Groups: words("gw-a", "g-a", false)}, []string{"g-b>gw-b", "g-a>gw-a!"}},
		{"a gateway's yes beats the snapshot", []string{"a 100 u", "b 100 h"},
			View{RTT: near, Groups: words("gw-a", "g-a", true)}, []string{"g-a>gw-a", "g-b>gw-b", "g-a>gw-a!"}},
		{"a yes does not give weight", []string{"a 100 H", "b 100 h"},
			View{RTT: near, Groups: words("gw-a", "g-a", true)}, []string{"g-b>gw-b", "g-b>gw-b!"}},
		{"a gateway's word counts for its own groups' gateways only", []string{"a 100 h", "b 100 h"},
			View{RTT: near, Groups: words("gw-b", "g-a", false)}, []string{"g-a>gw-a", "g-b>gw-b", "g-a>gw-a!"}},
		{"no gateway: dialled straight, last when its distance is unknown", []string{"direct1 100 h", "b 100 h"},
			View{RTT: near}, []string{"g-b>gw-b", "g-direct1>direct", "g-b>gw-b!"}},
		{"no gateway, known distance", []string{"direct1 100 h", "b 100 h"},
			View{RTT: near, Direct: map[model.RegionName]time.Duration{"direct1": 5 * ms}},
			[]string{"g-direct1>direct", "g-b>gw-b", "g-direct1>direct!"}},
		{"no gateway, unhealthy", []string{"direct1 100 u"}, View{RTT: near}, []string{"g-direct1>direct!"}},
		{"draining is better than nothing", []string{"a 100 h", "b 100 h"},
			View{RTT: near, Draining: map[model.NodeID]bool{"gw-a": true}},
			[]string{"g-a>gw-a", "g-b>gw-b", "g-a>gw-a!"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table := Compile(world(model.AffinityNone, test.groups...), "self", test.view)
			for i := range 50 { // what is not shared is the same for every flow
				r, ok := table.Route(tuple(i))
				if !ok {
					t.Fatal("no route")
				}
				if got := way(r); !slices.Equal(got, test.want) {
					t.Fatalf("way is %v, want %v", got, test.want)
				}
			}
		})
	}
}

// shares counts the first choices of n flows, in percent.
func shares(table *Table, n int) map[string]float64 {
	got := map[string]float64{}
	for i := range n {
		r, _ := table.Route(tuple(i))
		if c, ok := r.Next(); ok {
			got[string(c.Group.Region)] += 100 / float64(n)
		}
	}
	return got
}

func TestDials(t *testing.T) {
	near := rtts("gw-a", 10, "gw-b", 50, "gw-c", 100)
	tests := []struct {
		groups []string
		want   map[string]float64
	}{
		{[]string{"a 100 h", "b 100 h"}, map[string]float64{"a": 100}},
		{[]string{"a 25 h", "b 100 h"}, map[string]float64{"a": 25, "b": 75}},
		// The guide's example: two regions at 50 each keep half of their own and give half away.
		{[]string{"a 50 h", "b 50 h"}, map[string]float64{"a": 50, "b": 50}},
		{[]string{"a 50 h", "b 50 h", "c 50 h"}, map[string]float64{"a": 50, "b": 25, "c": 25}},
		{[]string{"a 50 h", "b 0 h"}, map[string]float64{"a": 100}},
		{[]string{"a 0 h", "b 30 h", "c 0 h"}, map[string]float64{"b": 100}},
		{[]string{"a 33.3 h", "b 50 h", "c 100 h"}, map[string]float64{"a": 33.3, "b": 33.35, "c": 33.35}},
		// What the dials gave to a group that cannot be served goes to the nearest that can.
		{[]string{"a 60 h", "b 50 u", "c 100 h"}, map[string]float64{"a": 80, "c": 20}},
		{[]string{"a 60 u", "b 0 h", "c 100 h"}, map[string]float64{"b": 60, "c": 40}},
	}
	for _, test := range tests {
		for _, affinity := range []model.Affinity{model.AffinityNone, model.AffinitySourceIP} {
			got := shares(Compile(world(affinity, test.groups...), "self", View{RTT: near}), 200_000)
			for region, want := range test.want {
				if got[region] < want-0.5 || got[region] > want+0.5 {
					t.Errorf("%v, affinity %v: %s has %.2f %%, want %.2f", test.groups, affinity, region, got[region], want)
				}
			}
		}
	}
}

// TestDialMovesOnlyWhatItMust: turning a dial from 60 to 50 takes a tenth of the flows away, and moves no other.
func TestDialMovesOnlyWhatItMust(t *testing.T) {
	near := rtts("gw-a", 10, "gw-b", 50)
	before := Compile(world(model.AffinityNone, "a 60 h", "b 100 h"), "self", View{RTT: near})
	after := Compile(world(model.AffinityNone, "a 50 h", "b 100 h"), "self", View{RTT: near})
	moved := 0
	for i := range 100_000 {
		b, _ := before.Route(tuple(i))
		a, _ := after.Route(tuple(i))
		cb, _ := b.Next()
		ca, _ := a.Next()
		if cb.Group.ID != ca.Group.ID {
			moved++
			if ca.Group.Region != "b" {
				t.Fatal("a flow moved to the group that was turned down")
			}
		}
	}
	if moved < 9_500 || moved > 10_500 {
		t.Errorf("%d of 100000 flows moved, want a tenth", moved)
	}
}

func TestSourceAffinity(t *testing.T) {
	s := world(model.AffinitySourceIP, "a 50 h", "b 50 h")
	s.Listeners[0].PortRanges[0].To = 90
	table := Compile(s, "self", View{RTT: rtts("gw-a", 10, "gw-b", 50)})
	for i := range 100 {
		want := ""
		for port := range 50 {
			tu := tuple(i)
			tu.Src = netip.AddrPortFrom(tu.Src.Addr(), uint16(2000+port*7))
			tu.Dst = netip.AddrPortFrom(vip, uint16(80+port%10))
			if port%2 == 1 {
				tu.Proto = flow.UDP
			}
			r, ok := table.Route(tu)
			if !ok {
				t.Fatal("no route")
			}
			c, _ := r.Next()
			if want == "" {
				want = string(c.Group.ID)
			}
			if string(c.Group.ID) != want {
				t.Fatal("one source went to two groups")
			}
		}
	}
}

func TestGateways(t *testing.T) {
	s := world(model.AffinityNone, "a 100 h")
	for _, id := range []model.NodeID{"gw-a2", "gw-a3", "gw-far"} {
		s.Nodes = append(s.Nodes, model.Node{ID: id, Site: "site-a", Gateway: true})
	}
	s.Sort()
	view := View{RTT: rtts("gw-a", 10, "gw-a2", 11, "gw-a3", 12, "gw-far", 30)}
	count := func(v View, self model.NodeID) map[model.NodeID]int {
		table, got := Compile(s, self, v), map[model.NodeID]int{}
		for i := range 30_000 {
			r, _ := table.Route(tuple(i))
			c, _ := r.Next()
			seen := map[model.NodeID]bool{}
			for j := 0; ; j++ {
				gw, ok := c.Gateway(j)
				if !ok {
					break
				}
				if j == 0 {
					got[gw]++
				}
				seen[gw] = true
			}
			if len(seen) != 4 && v.Groups == nil && v.Draining == nil {
				t.Fatalf("only %v are tried", seen)
			}
		}
		return got
	}
	for gw, n := range count(view, "self") {
		if gw == "gw-far" || n < 9_500 || n > 10_500 {
			t.Errorf("%s has %d of 30000 flows", gw, n)
		}
	}
	if got := count(view, "gw-a2"); got["gw-a2"] != 30_000 {
		t.Errorf("this node is a gateway and does not serve all: %v", got)
	}
	view.Draining = map[model.NodeID]bool{"gw-a": true, "gw-a2": true}
	if got := count(view, "self"); got["gw-a3"] != 30_000 {
		t.Errorf("draining gateways get flows: %v", got)
	}
	view.Draining = nil
	view.Groups = words("gw-a3", "g-a", false)
	if got := count(view, "self"); got["gw-a3"] != 0 || got["gw-a"] == 0 || got["gw-a2"] == 0 {
		t.Errorf("a gateway that said no gets flows, or others do not: %v", got)
	}
}

func TestHysteresis(t *testing.T) {
	s := world(model.AffinityNone, "a 100 h", "b 100 h", "c 100 h", "d 100 h")
	var table *Table
	step := func(want string, pairs ...any) {
		t.Helper()
		table = Compile(s, "self", View{RTT: rtts(pairs...), Previous: table})
		order := ""
		for _, r := range table.Regions() {
			order += string(r)
		}
		if order != want {
			t.Errorf("order is %s, want %s", order, want)
		}
	}
	step("abcd", "gw-a", 50, "gw-b", 52, "gw-c", 90, "gw-d", 200)
	step("abcd", "gw-a", 53, "gw-b", 50, "gw-c", 90, "gw-d", 200) // noise
	step("bacd", "gw-a", 56, "gw-b", 50, "gw-c", 90, "gw-d", 200)
	step("bacd", "gw-a", 52, "gw-b", 56, "gw-c", 90, "gw-d", 200) // noise again
	step("bcda", "gw-b", 56, "gw-c", 90, "gw-d", 200)             // a is gone: unknown, last
	step("abcd", "gw-a", 10, "gw-b", 56, "gw-c", 90, "gw-d", 200) // and back
	step("dcab", "gw-a", 50, "gw-b", 60, "gw-c", 40, "gw-d", 30)  // all at once
	step("dcab", "gw-a", 49, "gw-b", 51, "gw-c", 43, "gw-d", 44)  // all within noise of their neighbours
	step("dcab", "gw-a", 44, "gw-b", 46, "gw-c", 46, "gw-d", 48)  // still
	step("bdca", "gw-a", 46, "gw-b", 42, "gw-c", 46, "gw-d", 47)  // b is better than the first
}

func TestListener(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s := &model.Snapshot{Cluster: "test"}
	s.Pools = []model.Pool{{Name: "shared", Kind: model.PoolNode}, {Name: "elsewhere", Kind: model.PoolNode, Sites: []model.SiteName{"there"}}}
	s.Sites = []model.Site{{Name: "here"}, {Name: "there"}}
	own := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
	s.Nodes = []model.Node{{ID: "self", Site: "here", ServiceAddresses: own}}
	vip6 := netip.MustParseAddr("2001:db8:1::1")
	s.Accelerators = []model.Accelerator{
		{ID: "any", Enabled: true, Addresses: []netip.Addr{vip, vip6}},
		{ID: "node", Enabled: true, Pools: []model.PoolName{"shared"}},
		{ID: "off", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}},
		{ID: "there", Enabled: true, Pools: []model.PoolName{"elsewhere"}},
	}
	for i := range 10_000 { // disjoint ranges of 6 ports with gaps, and some that clash
		from := uint16(1 + i*6)
		s.Listeners = append(s.Listeners, model.Listener{
			ID: model.ListenerID(fmt.Sprintf("%08x", i)), Accelerator: []model.AcceleratorID{"any", "node", "off", "there"}[i%4],
			Protocol:   model.Protocol(1 + i%3),
			PortRanges: []model.PortRange{{From: from, To: from + uint16(rng.IntN(6))}, {From: from % 100 * 50, To: from % 100 * 51}},
		})
	}
	s.Sort()
	table := Compile(s, "self", View{})

	// The oracle looks through everything, in the order of ids.
	oracle := func(dst netip.AddrPort, p flow.Proto) model.ListenerID {
		type claim struct{ from, to uint16 }
		taken := []claim{}
		for i := range s.Listeners {
			l := &s.Listeners[i]
			serves := l.Accelerator == "any" && (dst.Addr() == vip || dst.Addr() == vip6) || l.Accelerator == "node" && slices.Contains(own, dst.Addr())
			if !serves || !l.Protocol.Has(protocolOf(p)) {
				continue
			}
			for _, r := range l.PortRanges {
				if r.From > r.To || slices.ContainsFunc(taken, func(c claim) bool { return c.from <= r.To && r.From <= c.to }) {
					continue
				}
				taken = append(taken, claim{r.From, r.To})
				if r.Contains(dst.Port()) {
					return l.ID
				}
			}
		}
		return ""
	}
	dsts := append([]netip.Addr{vip, vip6, netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("8.8.8.8")}, own...)
	found := 0
	for range 3_000 {
		dst := netip.AddrPortFrom(dsts[rng.IntN(len(dsts))], uint16(rng.IntN(65536)))
		proto := []flow.Proto{flow.TCP, flow.UDP}[rng.IntN(2)]
		want := oracle(dst, proto)
		var got model.ListenerID
		if l := table.Listener(dst, proto); l != nil {
			got = l.ID
			found++
		}
		if got != want {
			t.Fatalf("%v %v: %q, want %q", dst, proto, got, want)
		}
	}
	if found < 100 {
		t.Fatalf("only %d of 3000 lookups found a listener", found)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(vip.As16()), 1)
	if table.Listener(mapped, flow.TCP) != table.Listener(netip.AddrPortFrom(vip, 1), flow.TCP) {
		t.Error("a mapped address is another one")
	}
	if table.Listener(netip.AddrPortFrom(vip, 1), flow.Proto(1)) != nil {
		t.Error("ICMP has a listener")
	}
}

func TestNoAllocation(t *testing.T) {
	table := Compile(world(model.AffinityNone, "a 50 h", "b 0 u", "c 100 h"), "self",
		View{RTT: rtts("gw-a", 10, "gw-b", 50, "gw-c", 100)})
	tu := tuple(3)
	allocs := testing.AllocsPerRun(1000, func() {
		r, _ := table.Route(tu)
		for c, ok := r.Next(); ok; c, ok = r.Next() {
			c.Gateway(0)
		}
	})
	if allocs != 0 {
		t.Errorf("a route allocates %v times", allocs)
	}
}

// TestCompileTotal: whatever a snapshot holds, Compile does not panic, and neither do routes.
func TestCompileTotal(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		s := world(model.AffinityNone, "a 50 hu", "b 10 h", "direct 20 h")
		for range rng.IntN(6) {
			switch rng.IntN(6) {
			case 0:
				s.Sites = s.Sites[:rng.IntN(len(s.Sites)+1)]
			case 1:
				s.Nodes = s.Nodes[:rng.IntN(len(s.Nodes)+1)]
			case 2:
				s.Groups = append(s.Groups, model.EndpointGroup{ID: "x", Listener: "nowhere", Region: "lost"})
			case 3:
				s.Listeners = append(s.Listeners, s.Listeners...)
			case 4:
				s.Accelerators[0].Pools = []model.PoolName{"missing"}
			case 5:
				s.Groups = append(s.Groups, s.Groups...)
			}
		}
		v := View{RTT: rtts("gw-a", rng.IntN(100)-50, "gw-zzz", 3)}
		if rng.IntN(2) == 0 {
			v.Previous = Compile(world(model.AffinityNone, "b 1 h"), "self", View{})
		}
		table := Compile(s, model.NodeID([]string{"self", "gw-a", ""}[rng.IntN(3)]), v)
		for i := range 10 {
			if r, ok := table.Route(tuple(i)); ok {
				way(r)
			}
		}
	}
}

func TestCompileIsPure(t *testing.T) {
	s := world(model.AffinityNone, "a 50 h", "b 60 u", "c 100 h", "direct 50 h")
	v := View{RTT: rtts("gw-a", 10, "gw-b", 50, "gw-c", 10), Groups: words("gw-a", "g-a", true)}
	a, b := Compile(s, "self", v), Compile(s, "self", v)
	for i := range 1000 {
		ra, _ := a.Route(tuple(i))
		rb, _ := b.Route(tuple(i))
		if diff := cmp.Diff(way(ra), way(rb)); diff != "" {
			t.Fatal(diff)
		}
	}
}
