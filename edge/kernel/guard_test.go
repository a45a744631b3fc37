package kernel

import (
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/proto/model"
)

func guarded() *model.Snapshot {
	s := &model.Snapshot{
		Pools: []model.Pool{
			{Name: "any", Kind: model.PoolAnycast}, {Name: "own", Kind: model.PoolNode, Sites: []model.SiteName{"here"}},
		},
		Nodes: []model.Node{
			{ID: "self", Site: "here", ServiceAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.1")}},
			{ID: "other", Site: "there", ServiceAddresses: []netip.Addr{netip.MustParseAddr("203.0.113.2")}},
		},
		Accelerators: []model.Accelerator{
			{ID: "a", Enabled: true, Pools: []model.PoolName{"any"}, Addresses: []netip.Addr{
				netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}},
			{ID: "n", Enabled: true, Pools: []model.PoolName{"own"}},
			{ID: "off", Pools: []model.PoolName{"any"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}},
		},
		Listeners: []model.Listener{
			{ID: "l1", Accelerator: "a", Protocol: model.TCPUDP, PortRanges: []model.PortRange{{From: 53, To: 53}},
				Guard: model.Guard{DropFragments: true, SYNRate: model.GuardRate{PerSecond: 5, Burst: 6},
					DenyNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
			{ID: "l2", Accelerator: "a", Protocol: model.TCP, PortRanges: []model.PortRange{{From: 80, To: 81}}},
			{ID: "l3", Accelerator: "n", Protocol: model.TCP, PortRanges: []model.PortRange{{From: 80, To: 80}},
				Guard: model.Guard{DropFragments: true,
					AllowNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
			{ID: "l4", Accelerator: "off", Protocol: model.TCP, PortRanges: []model.PortRange{{From: 1, To: 9}}},
		},
	}
	s.Sort()
	return s
}

func TestGuardRules(t *testing.T) {
	r := GuardRules(guarded(), "self")
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	want := map[string]guard.Address{
		"192.0.2.1/32": {Exclusive: true}, "2001:db8::1/128": {Exclusive: true}, "203.0.113.1/32": {NoFragments: true},
	}
	for _, a := range r.Addresses {
		w, ok := want[a.Prefix.String()]
		if w.Prefix = a.Prefix; !ok || a != w {
			t.Errorf("address %+v, not %+v", a, w)
		}
	}
	byName := map[string]guard.Listener{}
	for _, l := range r.Listeners {
		byName[l.Name] = l
	}
	tcp, udp := byName["l1/tcp"], byName["l1/udp"]
	if len(r.Addresses) != len(want) || len(byName) != 4 || len(r.Listeners) != 4 || len(r.Lists) != 1 {
		t.Fatalf("rules %+v", r)
	}
	if tcp.Flood != (guard.Rate{PerSecond: 5, Burst: 6}) || udp.Flood != (guard.Rate{}) || !udp.NoFragments ||
		tcp.Deny == "" || tcp.Deny != byName["l3/tcp"].Allow || len(tcp.Prefixes) != 2 || udp.Proto != guard.UDP {
		t.Errorf("listeners %+v", byName)
	}
	elsewhere := GuardRules(guarded(), "other")
	if len(elsewhere.Addresses) != 2 || len(elsewhere.Listeners) != 3 {
		t.Errorf("a node that serves no node pool: %+v", elsewhere)
	}
	if !wantsGuard(guarded(), "self") || wantsGuard(&model.Snapshot{}, "self") {
		t.Error("whether a guard is wanted")
	}
}

func TestSamplesAreBounded(t *testing.T) {
	var s dropLog
	for i := range dropsKept + 10 {
		s.add(guard.Event{Reason: guard.DropNobody, Length: i})
	}
	all := s.all()
	if len(all) != dropsKept || all[0].Bytes != 10 || all[len(all)-1].Bytes != dropsKept+9 {
		t.Errorf("%d samples, %d to %d", len(all), all[0].Bytes, all[len(all)-1].Bytes)
	}
}
