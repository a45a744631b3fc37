package steer

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// routedWorld has a custom routing listener on ports 1000 to 1999 beside the standard one on port 80: eight
// ports lead to a subnet of region a, eight to one of b. Every second one is allowed.
func routedWorld() *model.Snapshot {
	s := world(model.AffinityNone, "a 100 h", "b 100 h")
	s.Accelerators = append(s.Accelerators, model.Accelerator{ID: "c", Enabled: true, Type: model.CustomRouting,
		Addresses: []netip.Addr{vip.Next()}})
	s.Listeners = append(s.Listeners, model.Listener{ID: "m", Accelerator: "c", Protocol: model.TCPUDP,
		PortRanges: []model.PortRange{{From: 1000, To: 1999}}})
	for i, region := range []model.RegionName{"a", "b"} {
		name := model.SubnetName("s-" + region)
		s.Subnets = append(s.Subnets, model.Subnet{Name: name, Region: region,
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 30)})
		from := uint16(1000 + 100*i)
		s.CustomRoutingGroups = append(s.CustomRoutingGroups, model.CustomRoutingGroup{
			ID: model.GroupID("g-custom-" + region), Listener: "m", Region: region,
			Destinations: []model.CustomRoutingDestination{{PortRange: model.PortRange{From: 7, To: 7}, Protocol: model.TCP},
				{PortRange: model.PortRange{From: 9, To: 9}, Protocol: model.TCPUDP}},
			Endpoints: []model.CustomRoutingEndpoint{{Subnet: name, Ports: []model.PortRange{{From: from, To: from + 7}},
				Allowed: []byte{0b00110011}}}})
	}
	s.Sort()
	return s
}

// The port decides, and nothing else: not the distance, the gateways' words, nor the flow's hash.
func TestPortsLead(t *testing.T) {
	s := routedWorld()
	views := map[string]View{
		"a is near":           {RTT: rtts("gw-a", 10, "gw-b", 90)},
		"b is near":           {RTT: rtts("gw-a", 90, "gw-b", 10)},
		"nothing is servable": {RTT: rtts("gw-a", 10, "gw-b", 90), Groups: words("gw-a", "g-custom-a", false)},
	}
	for name, v := range views {
		table := Compile(s, "self", v)
		l := table.ListenerByID("m")
		if l == nil || !l.Mapped() || table.ListenerByID("l").Mapped() {
			t.Fatal("the wrong listeners are mapped")
		}
		served := 0
		for port := range 65536 {
			for _, p := range []flow.Proto{flow.TCP, flow.UDP} {
				want := ""
				for i, g := range []string{"g-custom-a>gw-a", "g-custom-b>gw-b"} {
					// TCP has the first two of each four ports, UDP only the second one.
					at := port - 1000 - 100*i
					if at >= 0 && at < 8 && (at%4 == 1 || at%4 == 0 && p == flow.TCP) {
						want = g
						served++
					}
				}
				tup := flow.Tuple{Src: tuple(port).Src, Dst: netip.AddrPortFrom(vip.Next(), uint16(port)), Proto: p}
				route, ok := table.Route(tup)
				if inRange := port >= 1000 && port <= 1999; ok != inRange {
					t.Fatalf("%s: port %d: a route is %v", name, port, ok)
				} else if !ok {
					continue
				}
				got := way(route)
				if len(got) > 1 || (len(got) == 1) != (want != "") || want != "" && got[0] != want {
					t.Fatalf("%s: port %d of %v leads %v, want %q", name, port, p, got, want)
				}
				if l.Takes(uint16(port), p) != (want != "") {
					t.Fatalf("%s: port %d of %v is taken: %v", name, port, p, want == "")
				}
			}
		}
		if served != 2*(4+2) {
			t.Errorf("%s: %d ports were served", name, served)
		}
	}
	// A region whose gateways are away is not served from somewhere else.
	table := Compile(s, "self", View{RTT: rtts("gw-b", 10)})
	for port, cut := range map[uint16]bool{1000: true, 1100: false, 1002: false} { // the last one is denied
		to := flow.Tuple{Src: tuple(1).Src, Dst: netip.AddrPortFrom(vip.Next(), port), Proto: flow.TCP}
		r, ok := table.Route(to)
		if !ok || (len(way(r)) == 0) != (port != 1100) || r.Listener.CutOff(to) != cut {
			t.Errorf("port %d leads %v, cut off %v", port, way(r), r.Listener.CutOff(to))
		}
	}
}

// The table of ports outlives a change of the view, not one of the snapshot.
func TestPortTableIsTakenOver(t *testing.T) {
	s := routedWorld()
	first := Compile(s, "self", View{})
	second := Compile(s, "self", View{RTT: rtts("gw-a", 10), Previous: first})
	if first.ListenerByID("m").mapped.table != second.ListenerByID("m").mapped.table {
		t.Error("the table was made again")
	}
	changed := routedWorld()
	changed.CustomRoutingGroups[0].Endpoints[0].Allowed = nil
	third := Compile(changed, "self", View{RTT: rtts("gw-a", 10), Previous: second})
	if l := third.ListenerByID("m"); l.Takes(1000, flow.TCP) || !l.Takes(1100, flow.TCP) {
		t.Error("what was denied is let through, or the other way around")
	}
}

func TestMappedTotal(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		s := routedWorld()
		for range rng.IntN(5) {
			switch rng.IntN(5) {
			case 0:
				s.Subnets = s.Subnets[:rng.IntN(len(s.Subnets)+1)]
			case 1:
				s.Listeners = s.Listeners[:rng.IntN(len(s.Listeners)+1)]
			case 2:
				s.CustomRoutingGroups[0].Destinations = nil
			case 3:
				s.CustomRoutingGroups[1].Endpoints[0].Ports = nil
			case 4:
				s.CustomRoutingGroups = append(s.CustomRoutingGroups, s.CustomRoutingGroups[0])
			}
		}
		table := Compile(s, "self", View{RTT: rtts("gw-a", 1)})
		for port := uint16(990); port < 1210; port++ {
			r, ok := table.Route(flow.Tuple{Src: tuple(1).Src, Dst: netip.AddrPortFrom(vip.Next(), port), Proto: flow.UDP})
			if ok {
				way(r)
			}
		}
	}
}
