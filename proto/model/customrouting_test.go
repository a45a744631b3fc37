package model

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// routed adds a custom routing accelerator with one listener to a snapshot: two subnets in one group, the
// first with its ports in two pieces.
func routed(s *Snapshot) *Snapshot {
	s.Accelerators = append(s.Accelerators, Accelerator{ID: "a-custom", Name: "game", Enabled: true,
		Type: CustomRouting, Project: "default", Pools: []PoolName{"any-1", "any-2"},
		Addresses: addrs("192.0.2.9", "198.51.100.9")})
	s.Listeners = append(s.Listeners, listener("l-custom", "a-custom", TCPUDP, PortRange{1000, 1999}))
	s.Subnets = []Subnet{
		{Name: "subnet-1", Region: "eu-ams-1", Prefix: netip.MustParsePrefix("10.9.0.0/28"),
			ClientAddress: ClientAddressTransparent},
		{Name: "subnet-2", Region: "eu-ams-1", Prefix: netip.MustParsePrefix("10.9.1.0/30")},
	}
	s.CustomRoutingGroups = []CustomRoutingGroup{{ID: "cg-1", Listener: "l-custom", Region: "eu-ams-1",
		Destinations: []CustomRoutingDestination{{PortRange{80, 81}, TCPUDP}, {PortRange{443, 443}, TCP}},
		Endpoints: []CustomRoutingEndpoint{
			{Subnet: "subnet-1", Ports: []PortRange{{1000, 1009}, {1500, 1522}}, Allowed: []byte{0xff, 0x0f}},
			{Subnet: "subnet-2", Ports: []PortRange{{1010, 1021}}},
		}}}
	return s
}

func TestCustomRoutingIsConsistent(t *testing.T) {
	s := routed(goodSnapshot())
	if err := s.Consistent(); err != nil {
		t.Fatal(err)
	}
	s.Sort()
	b, _, err := EncodeSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSnapshot(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.CustomRoutingGroups, got.CustomRoutingGroups); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(s.Subnets, got.Subnets, native); diff != "" {
		t.Error(diff)
	}
	for what, spoil := range map[string]func(*Snapshot){
		"custom_routing_groups[cg-1].listener_id": func(s *Snapshot) { s.CustomRoutingGroups[0].Listener = "l-any" },
		"custom_routing_groups[cg-1].endpoints[0].subnet": func(s *Snapshot) {
			s.CustomRoutingGroups[0].Endpoints[0].Subnet = "subnet-9"
		},
		"custom_routing_groups[cg-1].endpoints[1].ports": func(s *Snapshot) {
			s.CustomRoutingGroups[0].Endpoints[1].Ports = []PortRange{{1010, 1020}}
		},
		"custom_routing_groups[cg-1].endpoints[1].ports[0]": func(s *Snapshot) {
			s.CustomRoutingGroups[0].Endpoints[1].Ports = []PortRange{{1995, 2006}}
		},
		"listeners[l-custom]": func(s *Snapshot) {
			s.CustomRoutingGroups[0].Endpoints[1].Ports = []PortRange{{1005, 1016}}
		},
		"custom_routing_groups[cg-1].destinations[1]": func(s *Snapshot) {
			s.CustomRoutingGroups[0].Destinations[1] = CustomRoutingDestination{PortRange{81, 81}, UDP}
		},
		"subnets[subnet-1].prefix": func(s *Snapshot) {
			s.Subnets[0].Prefix = netip.MustParsePrefix("10.0.0.0/8")
		},
		"subnets[subnet-1].region": func(s *Snapshot) { s.Subnets[0].Region = "xx-1" },
	} {
		s := routed(goodSnapshot())
		spoil(s)
		if err := s.Consistent(); !strings.Contains(fmt.Sprint(err), what+":") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMachines(t *testing.T) {
	for prefix, want := range map[string]string{"10.0.0.0/24": "10.0.0.4 251", "10.0.0.16/28": "10.0.0.20 11",
		"10.0.0.8/29": "10.0.0.8 8", "10.0.0.7/32": "10.0.0.7 1", "10.0.0.0/16": "10.0.0.4 65531",
		"10.0.0.0/8": "10.0.0.0 0", "2001:db8::/64": "2001:db8:: 0"} {
		s := Subnet{Prefix: netip.MustParsePrefix(prefix)}
		if first, n := s.Machines(); fmt.Sprint(first, n) != want {
			t.Errorf("%s: %v %d, want %s", prefix, first, n, want)
		}
	}
}

// naive enumerates a mapping as it is described: machine by machine, port by port.
func naive(g *CustomRoutingGroup, e *CustomRoutingEndpoint, s *Subnet) (all []PortMapping) {
	var ports []uint16
	for _, r := range e.Ports {
		for p := int(r.From); p <= int(r.To); p++ {
			ports = append(ports, uint16(p))
		}
	}
	addr, machines := s.Machines()
	for range machines {
		for _, d := range g.Destinations {
			for p := int(d.From); p <= int(d.To) && len(all) < len(ports); p++ {
				i := len(all)
				allowed := i/8 < len(e.Allowed) && e.Allowed[i/8]>>(i%8)&1 == 1
				all = append(all, PortMapping{ports[i], netip.AddrPortFrom(addr, uint16(p)), d.Protocol, allowed})
			}
		}
		addr = addr.Next()
	}
	return all
}

func TestMappingAgainstEnumeration(t *testing.T) {
	r := newRand(5)
	s := &Snapshot{}
	at := 1
	for i := range 40 {
		subnet := Subnet{Name: SubnetName(fmt.Sprint("s", i)), Region: "r",
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24+r.IntN(9))}
		g := CustomRoutingGroup{ID: GroupID(fmt.Sprint("g", i)), Listener: "l"}
		for port := 1 + r.IntN(50); len(g.Destinations) < 1+i%3; port += 10 {
			g.Destinations = append(g.Destinations, CustomRoutingDestination{
				PortRange{uint16(port), uint16(port + r.IntN(3))}, Protocol(1 + r.IntN(3))})
		}
		_, machines := subnet.Machines()
		e := CustomRoutingEndpoint{Subnet: subnet.Name, Allowed: make([]byte, r.IntN(60))}
		for k := range e.Allowed {
			e.Allowed[k] = byte(r.Uint32())
		}
		for need := machines * g.MachinePorts(); need > 0; {
			n := min(need, 1+r.IntN(200))
			e.Ports = append(e.Ports, PortRange{uint16(at), uint16(at + n - 1)})
			at, need = at+n+r.IntN(3), need-n
		}
		if at > 65000 {
			break
		}
		g.Endpoints = []CustomRoutingEndpoint{e}
		s.Subnets, s.CustomRoutingGroups = append(s.Subnets, subnet), append(s.CustomRoutingGroups, g)
	}
	if len(s.Subnets) < 5 {
		t.Fatalf("only %d subnets", len(s.Subnets))
	}
	table := NewPortTable(s, "l")
	leads := map[uint16]PortMapping{}
	for i := range s.Subnets {
		g := &s.CustomRoutingGroups[i]
		m := NewMapping(g, &g.Endpoints[0], &s.Subnets[i])
		want := naive(g, &g.Endpoints[0], &s.Subnets[i])
		if m.Len() != len(want) {
			t.Fatalf("subnet %d: %d mappings, want %d", i, m.Len(), len(want))
		}
		for k, w := range want {
			leads[w.Port] = w
			at, ok := m.Index(w.Port)
			first, n, there := m.Machine(w.Destination.Addr())
			if got := m.At(k); got != w || at != k || !ok || !there || k < first || k >= first+n {
				t.Fatalf("subnet %d index %d: %+v at %d, machine %d+%d; want %+v", i, k, got, at, first, n, w)
			}
		}
	}
	open := map[Protocol][]PortRange{TCP: table.Open(TCP), UDP: table.Open(UDP)}
	for p, ranges := range open {
		for i, r := range ranges {
			if r.From > r.To || i > 0 && int(r.From) <= int(ranges[i-1].To)+1 {
				t.Fatalf("open ports of %v: %v after %v", p, r, ranges[max(0, i-1)])
			}
		}
	}
	isOpen := func(p Protocol, port uint16) bool {
		return slices.ContainsFunc(open[p], func(r PortRange) bool { return r.Contains(port) })
	}
	if len(open[TCP]) < 2 || len(open[UDP]) < 2 {
		t.Fatalf("%d and %d open ranges", len(open[TCP]), len(open[UDP]))
	}
	for port := range 65536 {
		w, mapped := leads[uint16(port)]
		for _, p := range []Protocol{TCP, UDP} {
			_, to, ok := table.Lookup(uint16(port), p)
			if ok != (mapped && w.Allowed && w.Protocol.Has(p)) || ok && to != w.Destination {
				t.Fatalf("port %d %v: %v %v, want %+v", port, p, to, ok, w)
			}
			if isOpen(p, uint16(port)) != ok {
				t.Fatalf("port %d %v: open %v, found %v", port, p, !ok, ok)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { table.Lookup(5000, TCP) }); n != 0 {
		t.Errorf("a lookup allocates %v times", n)
	}
}

// BenchmarkMapping prints what computing one mapping costs, both ways, in a subnet of 8,187 machines.
func BenchmarkMapping(b *testing.B) {
	s := large(1)
	g := &s.CustomRoutingGroups[0]
	m := NewMapping(g, &g.Endpoints[0], &s.Subnets[0])
	b.Run("At", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			m.At(i % m.Len())
		}
	})
	table := NewPortTable(s, "l0")
	b.Run("Lookup", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			table.Lookup(uint16(i), TCP)
		}
	})
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			table.Open(TCP)
		}
	})
}

// large is n listeners of 65,496 ports each, every second of which is allowed.
func large(n int) *Snapshot {
	allowed := make([]byte, 65496/8)
	for i := range allowed {
		allowed[i] = 0x55
	}
	s := &Snapshot{Subnets: []Subnet{{Name: "s", Prefix: netip.MustParsePrefix("10.0.0.0/19")}}}
	for i := range n {
		s.CustomRoutingGroups = append(s.CustomRoutingGroups, CustomRoutingGroup{
			ID: GroupID(fmt.Sprintf("g%d", i)), Listener: ListenerID(fmt.Sprintf("l%d", i)),
			Destinations: []CustomRoutingDestination{{PortRange{80, 87}, TCPUDP}},
			Endpoints: []CustomRoutingEndpoint{
				{Subnet: "s", Ports: []PortRange{{40, 65535}}, Allowed: slices.Clone(allowed)}}})
	}
	return s
}

// TestMillionsOfMappings prints what the tables of millions of mappings hold, and that they are computed:
// a table may have no more than a few hundred bytes for each of its endpoints.
func TestMillionsOfMappings(t *testing.T) {
	const listeners = 64
	s := large(listeners)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tables, mappings := make([]*PortTable, listeners), 0
	for i := range tables {
		tables[i] = NewPortTable(s, s.CustomRoutingGroups[i].Listener)
	}
	runtime.ReadMemStats(&after)
	for _, table := range tables {
		for range table.After(0) {
			mappings++
		}
	}
	held := after.TotalAlloc - before.TotalAlloc // all that was allocated, whether or not it is still there
	t.Logf("%d mappings in %d tables: at most %d bytes beside the snapshot, which has one bit for each (%d bytes)",
		mappings, listeners, held, mappings/8)
	if mappings != listeners*8187*8 {
		t.Errorf("%d mappings", mappings)
	}
	if held > listeners*1024 {
		t.Errorf("the tables hold %d bytes", held)
	}
	runtime.KeepAlive(tables)
}
