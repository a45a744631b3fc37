package model

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func goodPeer() BGPPeer {
	return BGPPeer{
		Site: "ams", Name: "transit", Address: addrs("203.0.113.200")[0], Port: 179, ASN: 64496,
		HoldTime: DefaultHoldTime, ConnectRetry: DefaultConnectRetry, MaxPrefixes: 10,
		BFDInterval: DefaultBFDInterval, BFDMultiplier: DefaultBFDMultiplier,
	}
}

func TestValidateBGPPeer(t *testing.T) {
	judge(t, goodPeer, []rule[BGPPeer]{
		{"everything", func(p *BGPPeer) {
			p.Communities = []Community{"64500:1", "4200000000:1:2", "no-export"}
			p.Password, p.BFD, p.TTLSecurity, p.RestartTime = "secret", true, true, time.Minute
		}, ""},
		{"IPv6", func(p *BGPPeer) { p.Address = addrs("2001:db8::1")[0] }, ""},
		{"no name", func(p *BGPPeer) { p.Name = "" }, "peer.name"},
		{"slash", func(p *BGPPeer) { p.Name = "a/b" }, "peer.name"},
		{"no address", func(p *BGPPeer) { p.Address = BGPPeer{}.Address }, "peer.address"},
		{"link-local", func(p *BGPPeer) { p.Address = addrs("fe80::1")[0] }, "peer.address"},
		{"no ASN", func(p *BGPPeer) { p.ASN = 0 }, "peer.asn"},
		{"AS_TRANS", func(p *BGPPeer) { p.ASN = 23456 }, "peer.asn"},
		{"last ASN", func(p *BGPPeer) { p.ASN = 1<<32 - 1 }, "peer.asn"},
		{"node twice", func(p *BGPPeer) { p.Nodes = []string{"a", "a"} }, "peer.nodes[1]"},
		{"long password", func(p *BGPPeer) { p.Password = string(make([]byte, 81)) }, "peer.password"},
		{"one hop", func(p *BGPPeer) { p.MultihopTTL = 1 }, "peer.multihop_ttl"},
		{"GTSM over hops", func(p *BGPPeer) { p.MultihopTTL, p.TTLSecurity = 3, true }, "peer.ttl_security"},
		{"BFD over hops", func(p *BGPPeer) { p.MultihopTTL, p.BFD = 3, true }, "peer.bfd"},
		{"other family", func(p *BGPPeer) { p.LocalAddress = addrs("2001:db8::2")[0] }, "peer.local_address"},
		{"short hold", func(p *BGPPeer) { p.HoldTime = time.Second }, "peer.hold_time"},
		{"split second", func(p *BGPPeer) { p.HoldTime = 3500 * time.Millisecond }, "peer.hold_time"},
		{"restart", func(p *BGPPeer) { p.RestartTime = 2 * time.Hour }, "peer.restart_time"},
		{"community", func(p *BGPPeer) { p.Communities = []Community{"70000:1"} }, "peer.communities[0]"},
		{"drain's own", func(p *BGPPeer) { p.Communities = []Community{"65535:0"} }, "peer.communities[0]"},
		{"prepends", func(p *BGPPeer) { p.Prepends = 11 }, "peer.prepends"},
		{"prefixes", func(p *BGPPeer) { p.MaxPrefixes = 0 }, "peer.max_prefixes"},
		{"BFD interval", func(p *BGPPeer) { p.BFDInterval = time.Millisecond }, "peer.bfd_interval"},
		{"BFD multiplier", func(p *BGPPeer) { p.BFDMultiplier = 51 }, "peer.bfd_multiplier"},
	})
}

func TestValidateSiteBGP(t *testing.T) {
	good := func() Site {
		s := goodSnapshot().Sites[0]
		s.BGP = &SiteBGP{LocalASN: 64500, DrainTime: DefaultDrainTime}
		return s
	}
	judge(t, good, []rule[Site]{
		{"none", func(s *Site) { s.BGP = nil }, ""},
		{"no wait", func(s *Site) { s.BGP.DrainTime = 0 }, ""},
		{"no ASN", func(s *Site) { s.BGP.LocalASN = 0 }, "site.bgp.local_asn"},
		{"router id", func(s *Site) { s.BGP.RouterID = addrs("2001:db8::1")[0] }, "site.bgp.router_id"},
		{"pool twice", func(s *Site) { s.BGP.Pools = []PoolName{"a", "a"} }, "site.bgp.pools[1]"},
		{"long drain", func(s *Site) { s.BGP.DrainTime = 2 * time.Hour }, "site.bgp.drain_time"},
		{"prepends", func(s *Site) { s.BGP.DrainPrepends = -1 }, "site.bgp.drain_prepends"},
		{"community", func(s *Site) { s.BGP.Communities = []Community{"x"} }, "site.bgp.communities[0]"},
	})
}

// TestSnapshotCarriesAnnouncements goes the way to a node and back, and refuses what refers to nothing.
func TestSnapshotCarriesAnnouncements(t *testing.T) {
	make := func() *Snapshot {
		s := goodSnapshot()
		s.Sites[0].BGP = &SiteBGP{LocalASN: 64500, Pools: []PoolName{"any-1"}, DrainTime: time.Second, Drained: true}
		med := uint32(0)
		p := goodPeer()
		p.Password, p.MED = "secret", &med
		s.BGPPeers = []BGPPeer{p}
		s.AnnounceAggregates, s.AnnounceFloor = prefixes("192.0.2.0/23"), 2
		s.Nodes[0].AnnounceDrained = true
		return s
	}
	s := make()
	b, _, err := EncodeSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeSnapshot(b)
	if err != nil {
		t.Fatal(err)
	}
	opt := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(s.BGPPeers, back.BGPPeers, opt...); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(s.Sites, back.Sites, opt...); diff != "" {
		t.Error(diff)
	}
	if back.AnnounceFloor != 2 || len(back.AnnounceAggregates) != 1 || !back.Nodes[0].AnnounceDrained {
		t.Errorf("lost: floor %d, aggregates %v", back.AnnounceFloor, back.AnnounceAggregates)
	}
	if n := back.Peers(&back.Nodes[0]); len(n) != 1 {
		t.Errorf("node ams-1 has %d sessions, want 1", len(n))
	}
	for name, c := range map[string]struct {
		spoil func(*Snapshot)
		field string
	}{
		"pool":      {func(s *Snapshot) { s.Sites[0].BGP.Pools[0] = "nodes" }, "sites[ams].bgp.pools[0]"},
		"site":      {func(s *Snapshot) { s.BGPPeers[0].Site = "nyc" }, "bgp_peers[nyc/transit].site"},
		"twice":     {func(s *Snapshot) { s.BGPPeers = append(s.BGPPeers, s.BGPPeers[0]) }, "bgp_peers[ams/transit]"},
		"aggregate": {func(s *Snapshot) { s.AnnounceAggregates = prefixes("0.0.0.0/0") }, "announce_aggregates[0]"},
		"floor":     {func(s *Snapshot) { s.AnnounceFloor = -1 }, "announce_floor"},
	} {
		s := make()
		c.spoil(s)
		if fields := fieldsOf(t, s.Consistent()); !slices.Contains(fields, c.field) {
			t.Errorf("%s: want %s, got %v", name, c.field, fields)
		}
	}
}

func TestAggregate(t *testing.T) {
	all := prefixes("198.51.100.0/24", "2001:db8::/32")
	for _, c := range [][2]string{
		{"198.51.100.16/28", "198.51.100.0/24"}, {"198.51.100.0/24", "198.51.100.0/24"},
		{"198.51.0.0/16", "198.51.0.0/16"}, {"203.0.113.0/24", "203.0.113.0/24"}, {"2001:db8:a::/48", "2001:db8::/32"},
	} {
		if got := Aggregate(all, prefixes(c[0])[0]); got.String() != c[1] {
			t.Errorf("%s is announced as %v, want %s", c[0], got, c[1])
		}
	}
}
