package catalog

import (
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func peer(t *testing.T, site model.SiteName, name, addr string) model.BGPPeer {
	t.Helper()
	p, err := model.BGPPeerFromProto(nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Site, p.Name, p.Address, p.ASN = site, name, netip.MustParseAddr(addr), 64496
	return p
}

func TestBGPPeers(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.129")))
	create := func(p model.BGPPeer) error { _, err := c.CreateBGPPeer(ctx, p, Options{}); return err }
	refused(t, create(peer(t, "no", "a", "192.0.2.1")), NotFound, ReasonSiteNotFound, "no")
	refused(t, create(peer(t, "ams", "a", "192.0.2.1")), InvalidArgument, ReasonNone, "peer.site", "--asn")
	site := func(edit func(*model.Site)) error {
		_, err := c.UpdateSite(ctx, "ams", Options{}, func(s *model.Site) error { edit(s); return nil })
		return err
	}
	refused(t, site(func(s *model.Site) { s.BGP = &model.SiteBGP{LocalASN: 64500, Pools: []model.PoolName{"nodes"}} }),
		InvalidArgument, ReasonPoolNotFound, "site.bgp.pools[0]")
	if err := site(func(s *model.Site) {
		s.BGP = &model.SiteBGP{LocalASN: 64500, Pools: []model.PoolName{"pool-a"}, Drained: true}
	}); err != nil {
		t.Fatal(err)
	}
	if s := must[model.Site](t)(c.Site(ctx, "ams")); s.BGP == nil || s.BGP.Drained {
		t.Errorf("an update drained the site: %+v", s.BGP)
	}
	p := peer(t, "ams", "a", "192.0.2.1")
	p.Password = "secret"
	if err := create(p); err != nil {
		t.Fatal(err)
	}
	refused(t, create(p), AlreadyExists, ReasonNone, `"a"`)
	refused(t, create(peer(t, "ams", "b", "192.0.2.1")), InvalidArgument, ReasonInUse, "peer.address", "peer a")
	refused(t, create(peer(t, "ams", "b", "198.51.100.1")), InvalidArgument, ReasonInUse, "pool-a")
	p = peer(t, "ams", "b", "192.0.2.2")
	p.LocalPreference = 200
	refused(t, create(p), InvalidArgument, ReasonNone, "peer.local_preference")
	p = peer(t, "ams", "b", "192.0.2.2")
	p.Nodes = []string{"n1", "n2"}
	refused(t, create(p), InvalidArgument, ReasonNone, "peer.nodes[1]")
	got := must[model.BGPPeer](t)(c.UpdateBGPPeer(ctx, "ams/a", Options{},
		func(p *model.BGPPeer) error { p.BFD = true; return nil }))
	if !got.BFD || got.Password != "secret" {
		t.Errorf("after an update: %+v", got)
	}
	refused(t, site(func(s *model.Site) { s.BGP = nil }), FailedPrecondition, ReasonInUse, "ams/a")
	refused(t, c.DeletePool(ctx, "pool-a", Options{}), FailedPrecondition, ReasonInUse, "site ams")
	if err := c.DeleteBGPPeer(ctx, "ams/a", Options{}); err != nil {
		t.Error(err)
	}
}

func TestAggregates(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.129")))
	set := func(text ...string) error {
		_, err := c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error {
			s.AnnounceAggregates = prefixes(text...)
			return nil
		})
		return err
	}
	refused(t, set("198.51.100.0/29"), InvalidArgument, ReasonNone, "announce_aggregates[0]", "pool-a")
	refused(t, set("192.0.2.0/24"), InvalidArgument, ReasonInUse, "node n1")
	refused(t, set("2001:db8::/32"), InvalidArgument, ReasonNone, "2 zones")
	if err := set("198.51.100.0/24", "203.0.113.0/24"); err != nil {
		t.Fatal(err)
	}
	_, err := c.CreatePool(ctx, anycast("late", "z", "198.51.100.64/28"), Options{})
	refused(t, err, FailedPrecondition, ReasonInUse, "2 zones")
	_, err = c.RegisterNode(ctx, node("n2", "ams", "198.51.100.200"))
	refused(t, err, InvalidArgument, ReasonInUse, "aggregate")
}

// TestSetAnnouncing: the last site that is meant to announce a pool is drained only by force.
func TestSetAnnouncing(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	refused(t, c.SetSiteAnnouncing(ctx, "ams", true, Options{}), FailedPrecondition, ReasonNone, "no BGP")
	for _, s := range []model.SiteName{"ams", "nyc"} {
		ok(t)(c.RegisterNode(ctx, node("n-"+string(s), s, map[model.SiteName]string{
			"ams": "192.0.2.129", "nyc": "192.0.2.130"}[s])))
		ok(t)(c.UpdateSite(ctx, s, Options{}, func(s *model.Site) error {
			s.BGP = &model.SiteBGP{LocalASN: 64500}
			return nil
		}))
	}
	if err := c.SetSiteAnnouncing(ctx, "ams", true, Options{}); err != nil {
		t.Fatal(err)
	}
	nyc := must[model.Node](t)(c.Node(ctx, "n-nyc"))
	refused(t, c.SetNodeAnnouncing(ctx, nyc.ID, true, Options{}), FailedPrecondition, ReasonGuard, "pool-a", "nyc")
	refused(t, c.SetSiteAnnouncing(ctx, "nyc", true, Options{}), FailedPrecondition, ReasonGuard, "pool-a", "nyc")
	if err := c.SetSiteAnnouncing(ctx, "ams", false, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetNodeAnnouncing(ctx, nyc.ID, true, Options{}); err != nil {
		t.Error(err)
	}
	if n := must[model.Node](t)(c.Node(ctx, "n-nyc")); !n.AnnounceDrained {
		t.Error("the node is not drained")
	}
}
