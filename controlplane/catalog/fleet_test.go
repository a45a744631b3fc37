package catalog

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

func TestPools(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, _, g := oneGroup(t, c)
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "192.0.2.1").Endpoints, Options{}))
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "t", Host: "192.0.2.65"}, Options{}))
	ok(t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.129")))
	for _, x := range []struct {
		pool model.Pool
		code Code
		text string
	}{
		{anycast("pool-a", "c", "10.0.0.0/24"), AlreadyExists, "pool-a"},
		{anycast("p", "", "10.0.0.0/24"), InvalidArgument, "pool.zone"},
		{anycast("p", "c"), InvalidArgument, "pool.prefixes"},
		{anycast("p", "c", "10.0.0.0/24", "10.0.0.0/25"), InvalidArgument, "pool.prefixes[1]"},
		{anycast("p", "c", "198.51.100.0/24"), InvalidArgument, "of pool pool-a"},
		{anycast("p", "c", "198.51.100.8/29"), InvalidArgument, "of pool pool-a"},
		{anycast("p", "c", "192.0.2.0/26"), InvalidArgument, "an endpoint of group"},
		{anycast("p", "c", "192.0.2.64/26"), InvalidArgument, "target t"},
		{anycast("p", "c", "192.0.2.128/26"), InvalidArgument, "node n1"},
		{model.Pool{Name: "p", Kind: model.PoolNode, Zone: "z"}, InvalidArgument, "pool.zone"},
		{model.Pool{Name: "p", Kind: model.PoolNode, Sites: []model.SiteName{"ams", "no"}}, NotFound, "pool.sites[1]"},
		{model.Pool{Name: "p"}, InvalidArgument, "pool.kind"},
	} {
		_, err := c.CreatePool(ctx, x.pool, Options{})
		refused(t, err, x.code, ReasonOf(err), x.text)
	}
	edit := func(name model.PoolName, f func(*model.Pool)) error {
		_, err := c.UpdatePool(ctx, name, Options{}, func(p *model.Pool) error { f(p); return nil })
		return err
	}
	refused(t, edit("pool-a", func(p *model.Pool) { p.Zone = "z" }), InvalidArgument, "", "pool.zone")
	refused(t, edit("pool-a", func(p *model.Pool) { p.Kind = model.PoolNode }), InvalidArgument, "", "pool.kind")
	refused(t, edit("pool-a", func(p *model.Pool) { p.Prefixes = prefixes("10.0.0.0/24") }),
		FailedPrecondition, ReasonInUse, string(a))
	// Growing, and shrinking to what is used.
	used := must[model.Accelerator](t)(c.Accelerator(ctx, a)).Addresses[0]
	if err := edit("pool-a", func(p *model.Pool) {
		p.Prefixes = []netip.Prefix{netip.PrefixFrom(used, 32), netip.MustParsePrefix("10.0.0.0/24")}
	}); err != nil {
		t.Error(err)
	}
	refused(t, c.DeletePool(ctx, "pool-a", Options{}), FailedPrecondition, ReasonInUse, string(a))
	refused(t, c.DeletePool(ctx, "no", Options{}), NotFound, ReasonPoolNotFound)
	refused(t, c.DeletePool(ctx, "nodes", Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
	if err := c.DeletePool(ctx, "nodes", Options{}); err != nil {
		t.Error(err)
	}
	if list, _, err := c.ListPools(ctx, PageOptions{}); err != nil || len(list) != 2 {
		t.Errorf("pools %v, %v", list, err)
	}
}

func TestSitesAndRegions(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	_, err := c.CreateSite(ctx, model.Site{Name: "ams", Region: "eu"}, Options{})
	refused(t, err, AlreadyExists, "", "ams")
	_, err = c.CreateSite(ctx, model.Site{Name: "x", Region: "eu", Latitude: 91}, Options{})
	refused(t, err, InvalidArgument, "", "site.latitude")
	_, err = c.CreateRegion(ctx, model.Region{Name: "eu"}, Options{})
	refused(t, err, AlreadyExists, "", "eu") // it came with its site
	_, err = c.CreateRegion(ctx, model.Region{Name: "a b"}, Options{})
	refused(t, err, InvalidArgument, "", "region.name")

	ok(t)(c.UpdateSite(ctx, "nyc", Options{}, func(s *model.Site) error { s.Region, s.Latitude = "us-2", 40; return nil }))
	_, err = c.UpdateSite(ctx, "nyc", Options{}, func(s *model.Site) error { s.Name = "x"; return nil })
	refused(t, err, InvalidArgument, "", "site.name")
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "t", Host: "10.0.0.1", Region: "ap"}, Options{}))
	_, l, g := oneGroup(t, c)
	ok(t)(c.CreateGroup(ctx, group(l, "af"), Options{}))
	for region, text := range map[model.RegionName]string{"us-2": "site nyc", "ap": "target t", "af": "endpoint group", "eu": "ams"} {
		refused(t, c.DeleteRegion(ctx, region, Options{}), FailedPrecondition, ReasonInUse, text)
	}
	if err := c.DeleteRegion(ctx, "us", Options{}); err != nil { // nobody names it any more
		t.Error(err)
	}
	refused(t, c.DeleteRegion(ctx, "us", Options{}), NotFound, ReasonRegionNotFound)

	n := must[model.Node](t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.1")))
	ok(t)(c.CreatePool(ctx, model.Pool{Name: "p", Kind: model.PoolNode, Sites: []model.SiteName{"nyc"}}, Options{}))
	refused(t, c.DeleteSite(ctx, "ams", Options{}), FailedPrecondition, ReasonInUse, "node n1")
	refused(t, c.DeleteSite(ctx, "nyc", Options{}), FailedPrecondition, ReasonInUse, "pool p")
	if err := c.DeleteNode(ctx, n.ID, Options{Force: true}); err != nil {
		t.Error(err)
	}
	if err := c.DeleteSite(ctx, "ams", Options{}); err != nil {
		t.Error(err)
	}
	refused(t, c.DeleteSite(ctx, "ams", Options{}), NotFound, ReasonSiteNotFound)
	_ = g
}

func TestNodes(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	in := node("n1", "ams", "192.0.2.1")
	in.ID = "mine"
	n := must[model.Node](t)(c.RegisterNode(ctx, in))
	if !strings.HasPrefix(string(n.ID), "n-") || n.Revision == 0 || n.State != model.NodeActive {
		t.Fatalf("registered %+v", n)
	}
	for _, name := range []string{"n1", string(n.ID)} {
		if got := must[model.Node](t)(c.Node(ctx, name)); got.ID != n.ID {
			t.Errorf("by %q: %+v", name, got)
		}
	}
	_, err := c.Node(ctx, "n2")
	refused(t, err, NotFound, ReasonNodeNotFound)
	for _, x := range []struct {
		edit   func(*model.Node)
		code   Code
		reason Reason
		text   string
	}{
		{func(n *model.Node) {}, AlreadyExists, "", "n1"},
		{func(n *model.Node) { n.Name, n.Site = "n2", "no" }, NotFound, ReasonSiteNotFound, "node.site"},
		{func(n *model.Node) { n.Name, n.Edge, n.Gateway = "n2", false, false }, InvalidArgument, "", "role"},
		{func(n *model.Node) { n.Name, n.ServiceAddresses = "n2", addrs("198.51.100.3") },
			InvalidArgument, ReasonInUse, "pool-a"},
		{func(n *model.Node) {
			n.Name, n.BackboneAddresses = "n2", []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:7444")}
		}, InvalidArgument, ReasonInUse, "pool-b"},
	} {
		bad := in
		x.edit(&bad)
		_, err := c.RegisterNode(ctx, bad)
		refused(t, err, x.code, x.reason, x.text)
	}
	edit := func(o Options, f func(*model.Node)) error {
		_, err := c.UpdateNode(ctx, n.ID, o, func(n *model.Node) error { f(n); return nil })
		return err
	}
	for path, f := range map[string]func(*model.Node){
		"node.name": func(n *model.Node) { n.Name = "x" }, "node.site": func(n *model.Node) { n.Site = "nyc" },
		"node.edge": func(n *model.Node) { n.Edge = false }, "node.gateway": func(n *model.Node) { n.Gateway = false },
	} {
		refused(t, edit(Options{}, f), InvalidArgument, "", path)
	}
	if err := edit(Options{}, func(n *model.Node) { n.ServiceAddresses = addrs("192.0.2.9") }); err != nil {
		t.Error(err)
	}
	refused(t, edit(Options{}, func(n *model.Node) { n.ServiceAddresses = addrs("198.51.100.3") }),
		InvalidArgument, ReasonInUse, "pool-a")
	refused(t, edit(Options{ExpectedRevision: 1}, func(n *model.Node) { n.State = model.NodeDraining }), Aborted, ReasonRevision)
	revoke := func(n *model.Node) { n.State = model.NodeRevoked }
	if err := edit(Options{}, revoke); err != nil {
		t.Error(err)
	}
	refused(t, edit(Options{}, func(n *model.Node) { n.State = model.NodeActive }), FailedPrecondition, ReasonInUse, "revoked")
	if s := must[*State](t)(c.Load(ctx)); len(s.Nodes) != 1 {
		t.Errorf("the state has nodes %v", s.Nodes)
	}
	refused(t, c.DeleteNode(ctx, n.ID, Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
	if err := c.DeleteNode(ctx, n.ID, Options{}); err != nil {
		t.Error(err)
	}
	refused(t, c.DeleteNode(ctx, n.ID, Options{}), NotFound, ReasonNodeNotFound)
	ok(t)(c.RegisterNode(ctx, in)) // the name is free again
}

// TestBalanceAddresses: each node of a site has its own, and there are no more of them than can share flows. What
// was there before these rules can still be drained.
func TestBalanceAddresses(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.CreateSite(ctx, model.Site{Name: "nyc2", Region: "us-east-1"}, Options{}))
	balanced := func(name string, site model.SiteName, at string) model.Node {
		n := node(name, site, "192.0.2.1")
		n.BalanceAddress = netip.MustParseAddrPort(at)
		return n
	}
	register := func(n model.Node) (model.Node, error) { return c.RegisterNode(ctx, n) }
	first := must[model.Node](t)(register(balanced("n1", "ams", "10.0.0.1:6080")))
	for _, at := range []string{"10.0.0.1:6081", "10.0.0.2:6080", "[fd00::1]:6080"} { // on the way to another port, say
		ok(t)(register(balanced("n-"+strings.Trim(strings.NewReplacer(":", "-", ".", "-", "[", "", "]", "").Replace(at), "-"),
			"ams", at)))
	}
	ok(t)(register(balanced("far", "nyc2", "10.0.0.1:6080"))) // another site has a network of its own
	bad := balanced("n2", "ams", "10.0.0.1:6080")
	_, err := register(bad)
	refused(t, err, InvalidArgument, ReasonInUse, "node.balance_address", "node n1 of site ams has 10.0.0.1:6080")
	gateway := bad
	gateway.Name, gateway.Edge = "gateway", false
	ok(t)(register(gateway)) // takes no part

	second := must[model.Node](t)(register(balanced("n2", "ams", "10.0.0.9:6080")))
	move := func(at string) error {
		_, err := c.UpdateNode(ctx, second.ID, Options{}, func(n *model.Node) error {
			n.BalanceAddress = netip.MustParseAddrPort(at)
			return nil
		})
		return err
	}
	refused(t, move("10.0.0.1:6080"), InvalidArgument, ReasonInUse, "node n1 of site ams")
	refused(t, move("10.0.0.1:6081"), InvalidArgument, ReasonInUse, "node.balance_address") // only the port changes
	if err := move("10.0.0.9:6090"); err != nil {
		t.Error(err)
	}
	ok(t)(c.UpdateNode(ctx, first.ID, Options{}, func(n *model.Node) error { n.State = model.NodeRevoked; return nil }))
	if err := move("10.0.0.1:6080"); err != nil {
		t.Errorf("the address of a node that is revoked: %v", err)
	}
	for i := 4; i < model.BalanceNodesMax; i++ { // four are there, without the revoked one
		ok(t)(register(balanced(fmt.Sprint("more-", i), "ams", fmt.Sprintf("10.0.1.%d:6080", i))))
	}
	_, err = register(balanced("one-more", "ams", "10.0.2.1:6080"))
	refused(t, err, LimitExceeded, ReasonLimit, "31 nodes of site ams")
	ok(t)(c.UpdateNode(ctx, second.ID, Options{}, func(n *model.Node) error { n.State = model.NodeDraining; return nil }))
}

// TestLastEdge: what would leave an enabled accelerator to nobody needs force (R-CF3).
func TestLastEdge(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.CreatePool(ctx, model.Pool{Name: "ams-only", Kind: model.PoolNode, Sites: []model.SiteName{"ams"}}, Options{}))
	a := onNodes(t, c, "ams-only")
	ams := must[model.Node](t)(c.RegisterNode(ctx, node("ams-1", "ams", "192.0.2.1"))).ID
	gw := node("ams-2", "ams", "192.0.2.2")
	gw.Edge = false
	ok(t)(c.RegisterNode(ctx, gw)) // a gateway serves nobody's address
	nyc := must[model.Node](t)(c.RegisterNode(ctx, node("nyc-1", "nyc", "192.0.2.3"))).ID
	set := func(id model.NodeID, s model.NodeState, o Options) error {
		_, err := c.UpdateNode(ctx, id, o, func(n *model.Node) error { n.State = s; return nil })
		return err
	}
	if err := set(nyc, model.NodeDraining, Options{}); err != nil { // nobody needs it
		t.Error(err)
	}
	refused(t, set(ams, model.NodeDraining, Options{}), FailedPrecondition, ReasonGuard, string(a), "force")
	refused(t, set(ams, model.NodeRevoked, Options{}), FailedPrecondition, ReasonGuard)
	refused(t, c.DeleteNode(ctx, ams, Options{}), FailedPrecondition, ReasonGuard)
	_, err := c.UpdatePool(ctx, "ams-only", Options{}, func(p *model.Pool) error { p.Sites = []model.SiteName{"nyc"}; return nil })
	refused(t, err, FailedPrecondition, ReasonGuard)
	if err := set(ams, model.NodeRevoked, Options{Force: true}); err != nil {
		t.Error(err)
	}
	if err := set(nyc, model.NodeActive, Options{}); err != nil {
		t.Error(err)
	}
	any := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("anycast"), Options{})).ID
	refused(t, set(nyc, model.NodeRevoked, Options{}), FailedPrecondition, ReasonGuard, string(any))
	ok(t)(c.UpdateAccelerator(ctx, any, Options{}, func(a *model.Accelerator) error { a.Enabled = false; return nil }))
	if err := set(nyc, model.NodeRevoked, Options{}); err != nil {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	s := must[model.Settings](t)(c.Settings(ctx))
	if s.AcceleratorsMax != model.DefaultAcceleratorsMax || s.DNSSuffix != model.DefaultDNSSuffix || s.Revision != 0 {
		t.Errorf("without any: %+v", s)
	}
	set := func(o Options, f func(*model.Settings)) error {
		_, err := c.UpdateSettings(ctx, o, func(s *model.Settings) error { f(s); return nil })
		return err
	}
	if err := set(Options{}, func(s *model.Settings) {
		s.DNSSuffix, s.MaxEjectionPercent, s.TagsPerResourceMax = "n.example.com.", 50, 0
	}); err != nil {
		t.Error(err)
	}
	s = must[model.Settings](t)(c.Settings(ctx))
	if s.MaxEjectionPercent != 50 || s.TagsPerResourceMax != model.DefaultTagsPerResourceMax || s.Revision == 0 {
		t.Errorf("after setting: %+v", s)
	}
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{}))
	if !strings.HasSuffix(a.DNSName, ".n.example.com") {
		t.Errorf("its name is %s", a.DNSName)
	}
	refused(t, set(Options{}, func(s *model.Settings) { s.DNSSuffix = "other.example.com" }), FailedPrecondition, ReasonInUse, "1 accelerators")
	refused(t, set(Options{}, func(s *model.Settings) { s.DNSSuffix = "10.0.0.1" }), InvalidArgument, "", "dns_suffix")
	refused(t, set(Options{}, func(s *model.Settings) { s.AcceleratorsMax = 1 << 29 }), InvalidArgument, "", "accelerators_max")
	refused(t, set(Options{ExpectedRevision: s.Revision + 1}, func(s *model.Settings) {}), Aborted, ReasonRevision)
	if err := set(Options{ExpectedRevision: s.Revision}, func(s *model.Settings) { s.AcceleratorsMax = 7 }); err != nil {
		t.Error(err)
	}
	if st := must[*State](t)(c.Load(ctx)); st.Settings.AcceleratorsMax != 7 {
		t.Errorf("the state has %+v", st.Settings)
	}
}

func TestTags(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, l, g := oneGroup(t, c)
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "vm", Host: "10.0.0.1"}, Options{}))
	for _, id := range []string{string(a), string(l), string(g), "vm"} {
		for _, tags := range []map[string]string{{"a": "1", "b": "2"}, {"b": "3", "c": ""}} {
			if err := c.Tag(ctx, id, tags); err != nil {
				t.Error(err)
			}
		}
		if err := c.Untag(ctx, id, []string{"a", "never"}); err != nil {
			t.Error(err)
		}
		got := must[map[string]string](t)(c.Tags(ctx, id))
		if len(got) != 2 || got["b"] != "3" {
			t.Errorf("%s has %v", id, got)
		}
		refused(t, c.Untag(ctx, id, nil), InvalidArgument, "", "keys")
		refused(t, c.Tag(ctx, id, map[string]string{"": "x"}), InvalidArgument, "", "tags")
	}
	refused(t, c.Tag(ctx, "none", map[string]string{"a": "b"}), NotFound, ReasonAcceleratorNotFound)
	_, err := c.Tags(ctx, "none")
	refused(t, err, NotFound, ReasonAcceleratorNotFound)
}

func TestGossipKeys(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	for range 2 {
		if err := c.EnsureGossipKey(ctx); err != nil {
			t.Fatal(err)
		}
	}
	first := must[*State](t)(c.Load(ctx)).GossipKeys
	if len(first) != 1 || len(first[0]) != 32 {
		t.Fatalf("keys %x", first)
	}
	next := bytes.Repeat([]byte{7}, 16)
	if err := c.SetGossipKeys(ctx, [][]byte{next, first[0]}); err != nil {
		t.Fatal(err)
	}
	s := must[*State](t)(c.Load(ctx))
	if len(s.GossipKeys) != 2 || !bytes.Equal(s.GossipKeys[0], next) || !bytes.Equal(s.GossipKeys[1], first[0]) {
		t.Fatalf("keys %x", s.GossipKeys)
	}
	for _, bad := range [][][]byte{nil, {make([]byte, 15)}, {next, next, next, next}} {
		refused(t, c.SetGossipKeys(ctx, bad), InvalidArgument, "", "gossip_keys")
	}
}
