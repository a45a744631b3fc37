package model

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// goodSnapshot is a small fleet with one accelerator of each kind. Every call makes a new one.
func goodSnapshot() *Snapshot {
	return &Snapshot{
		Revision: 42,
		Cluster:  "prod",
		Accelerators: []Accelerator{{
			ID: "a-any", Name: "web", Enabled: true, IPAddressType: DualStack, Project: "default",
			Pools: []PoolName{"any-1", "any-2"}, Addresses: addrs("192.0.2.1", "198.51.100.1", "2001:db8:1::1"),
			DNSName: "a0123456789abcdef.nearcast.internal", Tags: map[string]string{"env": "prod"},
			Created: time.Unix(1700000000, 5).UTC(), Modified: time.Unix(1700000001, 0).UTC(), Revision: 41,
		}, {
			ID: "a-node", Name: "game", Enabled: true, Project: "default", Pools: []PoolName{"nodes"},
		}, {
			ID: "a-node2", Name: "voice", Enabled: true, Project: "default", Pools: []PoolName{"nodes-ams"},
		}},
		Listeners: []Listener{
			listener("l-any", "a-any", TCP, PortRange{443, 443}, PortRange{8000, 8999}),
			listener("l-any-udp", "a-any", UDP, PortRange{443, 443}),
			listener("l-node", "a-node", TCPUDP, PortRange{1, 1000}),
			listener("l-node2", "a-node2", TCPUDP, PortRange{1001, 65535}),
		},
		Groups: []EndpointGroup{
			group("g-1", "l-any", "eu-ams-1", "10.0.0.1", "app.example.com", "2001:db8:9::1"),
			group("g-2", "l-any", "us-nyc-1", "10.1.0.1"),
			group("g-3", "l-node", "eu-ams-1"),
		},
		Pools: []Pool{
			{Name: "any-1", Kind: PoolAnycast, Zone: "z1", Prefixes: prefixes("192.0.2.0/24", "2001:db8:1::/48")},
			{Name: "any-2", Kind: PoolAnycast, Zone: "z2", Prefixes: prefixes("198.51.100.0/24")},
			{Name: "nodes", Kind: PoolNode},
			{Name: "nodes-ams", Kind: PoolNode, Sites: []SiteName{"ams"}},
		},
		Regions: []Region{{Name: "eu-ams-1", Description: "Amsterdam"}, {Name: "us-nyc-1"}},
		Sites:   []Site{{Name: "ams", Region: "eu-ams-1", Latitude: 52.37, Longitude: 4.9}, {Name: "nyc", Region: "us-nyc-1"}},
		Nodes: []Node{{
			ID: "n-1", Name: "ams-1", Site: "ams", Edge: true, Gateway: true,
			BackboneAddresses: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:7444")},
			GossipAddress:     netip.MustParseAddrPort("[2001:db8:a::1]:7445"), ServiceAddresses: addrs("203.0.113.1"),
		}, {ID: "n-2", Name: "nyc-1", Site: "nyc", Edge: true, State: NodeDraining}},
		GossipKeys:            [][]byte{[]byte("0123456789abcdef"), make([]byte, 32)},
		EndpointAllowNetworks: prefixes("10.0.0.0/8"),
	}
}

func addrs(ss ...string) (out []netip.Addr) {
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func listener(id ListenerID, a AcceleratorID, p Protocol, ports ...PortRange) Listener {
	return Listener{ID: id, Accelerator: a, Protocol: p, PortRanges: ports,
		TCPIdleTimeout: DefaultTCPIdleTimeout, UDPIdleTimeout: DefaultUDPIdleTimeout}
}

func group(id GroupID, l ListenerID, r RegionName, hosts ...string) EndpointGroup {
	g := EndpointGroup{ID: id, Listener: l, Region: r, TrafficDial: 100, HealthCheck: HealthCheck{
		Port: 443, Path: "/", Interval: 30 * time.Second, Timeout: 5 * time.Second,
		HealthyThreshold: 3, UnhealthyThreshold: 3, ExpectedCodes: "200-399",
	}}
	for _, h := range hosts {
		g.Endpoints = append(g.Endpoints, Endpoint{ID: EndpointID(h), Weight: 128, Host: h})
	}
	return g
}

func TestConsistentAcceptsAGoodSnapshot(t *testing.T) {
	if err := goodSnapshot().Consistent(); err != nil {
		t.Fatal(err)
	}
	if err := (&Snapshot{Cluster: "empty"}).Consistent(); err != nil {
		t.Fatal(err)
	}
}

// fieldsOf returns the paths that an error names, failing unless it is FieldErrors.
func fieldsOf(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	var es FieldErrors
	if !errors.As(err, &es) || len(es) == 0 {
		t.Fatalf("not FieldErrors: %v", err)
	}
	var fields []string
	for _, e := range es {
		if e.Field == "" || e.Message == "" {
			t.Errorf("an error lacks its field or message: %+v", e)
		}
		fields = append(fields, e.Field)
	}
	return fields
}

func TestConsistentRefuses(t *testing.T) {
	nan := float32(math.NaN())
	cases := []struct {
		name  string
		spoil func(*Snapshot)
		field string // that at least one error names
		says  string // that its message says
	}{
		{"no cluster", func(s *Snapshot) { s.Cluster = "" }, "cluster", "is missing"},
		{"gossip key", func(s *Snapshot) { s.GossipKeys[1] = []byte("short") },
			"gossip_keys[1]", "5 bytes"},
		{"zero prefix", func(s *Snapshot) { s.EndpointAllowNetworks[0] = netip.Prefix{} },
			"endpoint_allow_networks[0]", ""},
		{"accelerator twice", func(s *Snapshot) { s.Accelerators[1].ID = "a-any" },
			"accelerators[a-any]", "twice"},
		{"listener twice", func(s *Snapshot) { s.Listeners[1].ID = "l-any" },
			"listeners[l-any]", "twice"},
		{"group twice", func(s *Snapshot) { s.Groups[1].ID = "g-1" }, "groups[g-1]", "twice"},
		{"node twice", func(s *Snapshot) { s.Nodes[1].ID = "n-1" }, "nodes[n-1]", "twice"},
		{"node name twice", func(s *Snapshot) { s.Nodes[1].Name = "ams-1" },
			"nodes[n-2].name", "another node"},
		{"pool twice", func(s *Snapshot) { s.Pools[1].Name = "any-1" }, "pools[any-1]", "twice"},
		{"region twice", func(s *Snapshot) { s.Regions[1].Name = "eu-ams-1" },
			"regions[eu-ams-1]", "twice"},
		{"site twice", func(s *Snapshot) { s.Sites[1].Name = "ams" }, "sites[ams]", "twice"},
		{"no id", func(s *Snapshot) { s.Listeners[0].ID = "" }, "listeners[0]", "no key"},
		{"unknown accelerator", func(s *Snapshot) { s.Listeners[0].Accelerator = "gone" },
			"listeners[l-any].accelerator_id", `"gone"`},
		{"unknown listener", func(s *Snapshot) { s.Groups[0].Listener = "gone" },
			"groups[g-1].listener_id", `"gone"`},
		{"unknown region of a group", func(s *Snapshot) { s.Groups[0].Region = "mars" },
			"groups[g-1].region", `"mars"`},
		{"unknown region of a site", func(s *Snapshot) { s.Sites[0].Region = "mars" },
			"sites[ams].region", `"mars"`},
		{"unknown site of a node", func(s *Snapshot) { s.Nodes[0].Site = "x" }, "nodes[n-1].site", `"x"`},
		{"unknown site of a pool", func(s *Snapshot) { s.Pools[3].Sites[0] = "x" },
			"pools[nodes-ams].sites[0]", `"x"`},
		{"unknown pool", func(s *Snapshot) { s.Accelerators[0].Pools[1] = "x" },
			"accelerators[a-any].pools[1]", `"x"`},
		{"region of a listener twice", func(s *Snapshot) { s.Groups[1].Region = "eu-ams-1" },
			"groups[g-2].region", "one group"},
		{"no pools", func(s *Snapshot) { s.Accelerators[1].Pools = nil },
			"accelerators[a-node].pools", "empty"},
		{"pool named twice", func(s *Snapshot) { s.Accelerators[0].Pools[1] = "any-1" },
			"accelerators[a-any].pools[1]", "twice"},
		{"one zone", func(s *Snapshot) { s.Pools[1].Zone = "z1" },
			"accelerators[a-any].pools[1]", "zone"},
		{"mixed pools", func(s *Snapshot) { s.Accelerators[0].Pools[1] = "nodes" },
			"accelerators[a-any].pools", "mixes"},
		{"addresses on a node pool", func(s *Snapshot) { s.Accelerators[1].Addresses = addrs("192.0.2.9") },
			"accelerators[a-node].addresses", "must be empty"},
		{"no addresses on anycast", func(s *Snapshot) { s.Accelerators[0].Addresses = nil },
			"accelerators[a-any].addresses", "is empty"},
		{"address outside its pools", func(s *Snapshot) { s.Accelerators[0].Addresses[0] = netip.MustParseAddr("203.0.113.7") },
			"accelerators[a-any].addresses[0]", "none of"},
		{"two addresses of a pool", func(s *Snapshot) { s.Accelerators[0].Addresses[1] = netip.MustParseAddr("192.0.2.2") },
			"accelerators[a-any].addresses[1]", "second address"},
		{"IPv6 on IPV4", func(s *Snapshot) { s.Accelerators[0].IPAddressType = IPv4 },
			"accelerators[a-any].addresses[2]", "DUAL_STACK"},
		{"an address of two accelerators", func(s *Snapshot) {
			s.Accelerators[1].Pools = []PoolName{"any-1"}
			s.Accelerators[1].Addresses = addrs("192.0.2.1")
		}, "accelerators[a-node].addresses[0]", "belongs to accelerator"},
		{"pools that overlap", func(s *Snapshot) { s.Pools[1].Prefixes = prefixes("192.0.2.128/25") },
			"pools[any-2].prefixes", "overlaps"},
		{"pools that overlap, wide one first", func(s *Snapshot) {
			s.Pools[0].Prefixes = prefixes("192.0.0.0/16", "192.0.2.0/24")
			s.Pools[1].Prefixes = prefixes("192.0.200.0/24")
		}, "pools[any-2].prefixes", "overlaps"},
		{"own ranges overlap", func(s *Snapshot) { s.Listeners[0].PortRanges[1].From = 400 },
			"listeners[l-any].port_ranges[1]", "overlaps"},
		{"ports of one accelerator", func(s *Snapshot) { s.Listeners[1].Protocol = TCPUDP },
			"listeners[l-any-udp].port_ranges", "overlaps"},
		{"ports of shared nodes", func(s *Snapshot) { s.Listeners[3].PortRanges[0].From = 1000 },
			"listeners[l-node2].port_ranges", "l-node"},
		{"unresolved endpoint", func(s *Snapshot) { s.Groups[0].Endpoints[0].Host = "" },
			"groups[g-1].endpoints[0].host", "not resolved"},
		{"endpoint twice", func(s *Snapshot) { s.Groups[0].Endpoints[1].ID = "10.0.0.1" },
			"groups[g-1].endpoints[1].id", "twice"},
		{"dial", func(s *Snapshot) { s.Groups[0].TrafficDial = nan },
			"groups[g-1].traffic_dial", "percentage"},
		{"health", func(s *Snapshot) { s.Groups[0].HealthCheck.Interval = 0 },
			"groups[g-1].health_check.interval", "1s to 5m0s"},
		{"unknown state", func(s *Snapshot) { s.Nodes[0].State = 9 }, "nodes[n-1].state", "unknown"},
		{"odd key", func(s *Snapshot) { s.Listeners[0].ID = "a\nb" }, `listeners["a\nb"].id`, "not an identifier"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := goodSnapshot()
			c.spoil(s)
			err := s.Consistent()
			for i, f := range fieldsOf(t, err) {
				if f == c.field && strings.Contains(err.(FieldErrors)[i].Message, c.says) {
					return
				}
			}
			t.Errorf("no error at %s that says %q: %v", c.field, c.says, err)
		})
	}
}

func TestConsistentLeavesDisabledAcceleratorsTheirPorts(t *testing.T) {
	s := goodSnapshot()
	s.Listeners[3].PortRanges[0].From = 1
	s.Accelerators[2].Enabled = false
	if err := s.Consistent(); err != nil {
		t.Error(err)
	}
}

func TestConsistentRefusesTooMuch(t *testing.T) {
	cases := map[string]func(*Snapshot){
		"accelerators":            func(s *Snapshot) { s.Accelerators = make([]Accelerator, SnapshotAcceleratorsMax+1) },
		"listeners":               func(s *Snapshot) { s.Listeners = make([]Listener, SnapshotListenersMax+1) },
		"groups":                  func(s *Snapshot) { s.Groups = make([]EndpointGroup, SnapshotGroupsMax+1) },
		"pools":                   func(s *Snapshot) { s.Pools = make([]Pool, SnapshotPoolsMax+1) },
		"regions":                 func(s *Snapshot) { s.Regions = make([]Region, SnapshotRegionsMax+1) },
		"sites":                   func(s *Snapshot) { s.Sites = make([]Site, SnapshotSitesMax+1) },
		"nodes":                   func(s *Snapshot) { s.Nodes = make([]Node, SnapshotNodesMax+1) },
		"gossip_keys":             func(s *Snapshot) { s.GossipKeys = make([][]byte, SnapshotGossipKeysMax+1) },
		"endpoint_allow_networks": func(s *Snapshot) { s.EndpointAllowNetworks = make([]netip.Prefix, SnapshotNetworksMax+1) },
		"groups.endpoints": func(s *Snapshot) {
			s.Groups[0].Endpoints = make([]Endpoint, SnapshotEndpointsMax+1)
		},
	}
	for field, grow := range cases {
		s := goodSnapshot()
		grow(s)
		if got := fieldsOf(t, s.Consistent()); len(got) != 1 || got[0] != field {
			t.Errorf("%s: %v", field, got)
		}
	}
	if err := (*Snapshot)(nil).Consistent(); err == nil {
		t.Error("nil was accepted")
	}
}

func TestConsistentBoundsItsAnswer(t *testing.T) {
	s := goodSnapshot()
	s.Listeners = make([]Listener, SnapshotListenersMax)
	if es := s.Consistent().(FieldErrors); len(es) != fieldErrorsMax {
		t.Errorf("%d errors", len(es))
	}
}

// TestPortsDisjointAgainstOracle compares the sweep with a comparison of all pairs.
func TestPortsDisjointAgainstOracle(t *testing.T) {
	rng := newRand(1)
	conflicts := 0
	for range 3000 {
		s := goodSnapshot()
		s.Listeners, s.Groups = nil, nil
		for i := range 1 + rng.IntN(5) {
			l := listener(ListenerID(fmt.Sprint("l", i)), s.Accelerators[rng.IntN(3)].ID, Protocol(1+rng.IntN(3)))
			at := uint16(1 + rng.IntN(60))
			for range 1 + rng.IntN(3) { // ranges of one listener never overlap here
				r := PortRange{at, at + uint16(rng.IntN(8))}
				l.PortRanges = append(l.PortRanges, r)
				at = r.To + 1 + uint16(rng.IntN(30))
			}
			s.Listeners = append(s.Listeners, l)
		}
		for i := range s.Accelerators {
			s.Accelerators[i].Enabled = rng.IntN(4) > 0
		}
		want := pairsOverlap(s)
		if got := s.Consistent() != nil; got != want {
			t.Fatalf("got %v, want %v: %+v", s.Consistent(), want, s.Listeners)
		}
		if want {
			conflicts++
		}
	}
	if conflicts < 300 || conflicts > 2700 {
		t.Errorf("%d of 3000 cases had conflicts: the test looks at one side only", conflicts)
	}
}

func pairsOverlap(s *Snapshot) bool {
	sharing := func(a, b *Accelerator) bool { // in goodSnapshot the two node pools share a site
		return a.ID == b.ID || s.OnNodePool(a) && s.OnNodePool(b)
	}
	for i := range s.Listeners {
		for j := range i {
			a, b := &s.Listeners[i], &s.Listeners[j]
			aa, ba := s.Accelerator(a.Accelerator), s.Accelerator(b.Accelerator)
			if a.Protocol&b.Protocol == 0 || !aa.Enabled || !ba.Enabled || !sharing(aa, ba) {
				continue
			}
			for _, x := range a.PortRanges {
				for _, y := range b.PortRanges {
					if x.Overlaps(y) {
						return true
					}
				}
			}
		}
	}
	return false
}

func TestPoolsSharingSites(t *testing.T) {
	s := &Snapshot{Pools: []Pool{
		{Name: "all", Kind: PoolNode}, {Name: "any", Kind: PoolAnycast},
		{Name: "x", Kind: PoolNode, Sites: []SiteName{"s1", "s2"}},
		{Name: "y", Kind: PoolNode, Sites: []SiteName{"s2", "s3"}},
		{Name: "z", Kind: PoolNode, Sites: []SiteName{"s1"}},
	}}
	if got, want := fmt.Sprint(poolsSharingSites(s)), "[[all] [all x z] [all x y] [all y]]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestLookups(t *testing.T) {
	s := goodSnapshot()
	for _, sorted := range []bool{false, true} {
		if sorted {
			s.Sort()
		}
		if s.Accelerator("a-node").Name != "game" || s.Listener("l-node").Accelerator != "a-node" ||
			s.Group("g-2").Region != "us-nyc-1" || s.Pool("any-2").Zone != "z2" ||
			s.Region("eu-ams-1").Description != "Amsterdam" || s.Site("nyc").Region != "us-nyc-1" ||
			s.Node("n-2").Name != "nyc-1" {
			t.Errorf("a lookup went wrong (sorted %v)", sorted)
		}
		if s.Accelerator("x") != nil || s.Listener("x") != nil || s.Group("x") != nil || s.Pool("x") != nil ||
			s.Region("x") != nil || s.Site("x") != nil || s.Node("x") != nil {
			t.Errorf("something was found that is not there (sorted %v)", sorted)
		}
	}
	if !s.OnNodePool(s.Accelerator("a-node")) || s.OnNodePool(s.Accelerator("a-any")) {
		t.Error("OnNodePool is wrong")
	}
	if !s.Pool("nodes").Serves("nyc") || s.Pool("nodes-ams").Serves("nyc") || !s.Pool("nodes-ams").Serves("ams") {
		t.Error("Serves is wrong")
	}
}
