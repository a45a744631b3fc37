package catalog

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// oneGroup makes an accelerator with a TCP listener at 443 and an empty group in region eu.
func oneGroup(t testing.TB, c *Catalog) (model.AcceleratorID, model.ListenerID, model.GroupID) {
	t.Helper()
	ctx := t.Context()
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{}))
	l := must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 443, 443), Options{}))
	g := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu"), Options{}))
	return a.ID, l.ID, g.ID
}

func node(name string, site model.SiteName, ip string) model.Node {
	addr := netip.MustParseAddr(ip)
	return model.Node{Name: name, Site: site, Edge: true, Gateway: true,
		BackboneAddresses: []netip.AddrPort{netip.AddrPortFrom(addr, 7444)},
		GossipAddress:     netip.AddrPortFrom(addr, 7445),
		ServiceAddresses:  []netip.Addr{addr},
	}
}

// TestEndpointForms: what an endpoint may be, and where it must not lie (R-SE4).
func TestEndpointForms(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, _, g := oneGroup(t, c)
	// An address of the pool that the accelerator did not draw: its own are refused for another reason.
	free := netip.MustParseAddr("198.51.100.14")
	if slices.Contains(must[model.Accelerator](t)(c.Accelerator(ctx, a)).Addresses, free) {
		free = free.Prev()
	}
	f := free.As4()
	n := onNodes(t, c, "nodes")
	ok(t)(c.CreateListener(ctx, listener(n, model.TCP, 443, 450), Options{}))
	ok(t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.100")))
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "i-0abc", Host: "10.0.0.5", Region: "eu"}, Options{}))
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "arn:aws:x::1:y/z", Host: "app.example.com"}, Options{}))
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "far", Host: "10.0.0.6", Region: "us"}, Options{}))
	for _, x := range []struct{ id, why string }{
		{"10.1.2.3", ""}, {"192.0.2.50", ""}, {"2001:db8::1", ""}, {"::ffff:10.1.2.4", ""}, {"fd00::1", ""},
		{"app.example.com", ""}, {"App.Example.COM.", ""}, {"a-b.example.com", ""}, {"_svc.example.com", ""},
		{"i-0abc", ""}, {"arn:aws:x::1:y/z", ""},

		{"", "endpoint"}, {"single", "neither"}, {"i-0abd", "neither"}, {"arn:aws:x::1:y/q", "neither"},
		{"1.2.3", "neither"}, {"10.0.0.256", "neither"}, {"-x.example.com", "neither"}, {"a..example.com", "neither"},
		{"has space.example.com", "space"}, {"http://app.example.com/", "neither"}, {"10.0.0.1:80", "neither"},
		{strings.Repeat("a.", 130) + "example.com", "id"}, {"fe80::1%eth0", "neither"},
		{"far", "region us"},

		{"127.0.0.1", "loopback"}, {"127.8.8.8", "loopback"}, {"::1", "loopback"}, {"0.0.0.0", "neither"},
		{"169.254.169.254", "link-local"}, {"fe80::1", "link-local"}, {"224.0.0.1", "neither"}, {"ff02::1", "neither"},
		{"255.255.255.255", "reserved"}, {"100.100.100.200", "metadata"}, {"fd00:ec2::254", "metadata"},
		{"::ffff:127.0.0.1", "loopback"}, {"64:ff9b::7f00:1", "loopback"}, {"2002:7f00:1::", "loopback"},
		{"::ffff:169.254.169.254", "link-local"}, {"64:ff9b::a9fe:a9fe", "link-local"},
		{"localhost", "neither"}, {"x.localhost", "own machine"}, {"metadata.google.internal", "metadata"},
		{"METADATA.google.internal.", "metadata"},
		{"a0123456789abcdef.nearcast.internal", "a loop"}, {"nearcast.internal", "a loop"},

		{free.String(), "is in pool pool-a"}, {"::ffff:" + free.String(), "is in pool pool-a"},
		{fmt.Sprintf("64:ff9b::c633:64%02x", f[3]), "is in pool pool-a"},
		{fmt.Sprintf("2002:c633:64%02x::1", f[3]), "is in pool pool-a"},
		{"2001:db8:b::5", "is in pool pool-b"},
		{"192.0.2.100", "served by listener"}, {"::ffff:192.0.2.100", "served by listener"},
	} {
		_, err := c.AddEndpoints(ctx, g, group("", "", x.id).Endpoints, Options{})
		if x.why != "" {
			refused(t, err, InvalidArgument, ReasonOf(err), x.why)
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", x.id, err)
			continue
		}
		got := must[model.EndpointGroup](t)(c.Group(ctx, g))
		if e := got.Endpoints[0]; string(e.ID) != x.id {
			t.Errorf("%q is echoed as %q", x.id, e.ID)
		}
		ok(t)(c.RemoveEndpoints(ctx, g, []model.EndpointID{model.EndpointID(x.id)}, Options{}))
	}
}

// TestNodeAddresses: an endpoint may share a node's machine, but not its ports.
func TestNodeAddresses(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, l, g := oneGroup(t, c)
	ok(t)(c.RegisterNode(ctx, node("n1", "ams", "192.0.2.100")))
	at := group("", "", "192.0.2.100").Endpoints
	ok(t)(c.AddEndpoints(ctx, g, at, Options{}))
	setCheck := func(port uint16) error {
		_, err := c.UpdateGroup(ctx, g, Options{}, func(g *model.EndpointGroup) error { g.HealthCheck.Port = port; return nil })
		return err
	}
	refused(t, setCheck(7444), InvalidArgument, ReasonForbiddenEndpoint, "backbone address of node n1")
	refused(t, setCheck(7445), InvalidArgument, ReasonForbiddenEndpoint, "gossip address of node n1")
	if err := setCheck(7446); err != nil {
		t.Error(err)
	}
	_, err := c.UpdateListener(ctx, l, Options{}, func(l *model.Listener) error {
		l.PortRanges = append(l.PortRanges, model.PortRange{From: 7000, To: 8000})
		return nil
	})
	refused(t, err, FailedPrecondition, ReasonForbiddenEndpoint, "backbone")
	// A listener on the node's own addresses, at the endpoint's port, would be a loop.
	n := onNodes(t, c, "nodes")
	_, err = c.CreateListener(ctx, listener(n, model.TCP, 400, 500), Options{})
	refused(t, err, FailedPrecondition, ReasonForbiddenEndpoint, "a loop", string(g))
	ok(t)(c.CreateListener(ctx, listener(n, model.TCP, 80, 80), Options{}))
	// So would be a node that comes to where an endpoint is.
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "192.0.2.101").Endpoints, Options{}))
	moved := node("n2", "ams", "192.0.2.101")
	moved.GossipAddress = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.101"), 443)
	_, err = c.RegisterNode(ctx, moved)
	refused(t, err, FailedPrecondition, ReasonForbiddenEndpoint, "gossip")
	ok(t)(c.RegisterNode(ctx, node("n2", "ams", "192.0.2.101")))
	// What is allowed is allowed, except a loop.
	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error {
		s.EndpointAllowNetworks = prefixes("192.0.2.0/24", "127.0.0.0/8", "198.51.100.0/24")
		return nil
	}))
	if err := setCheck(7444); err != nil {
		t.Error(err)
	}
	refused(t, setCheck(80), InvalidArgument, ReasonForbiddenEndpoint, "a loop")
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "127.0.0.1").Endpoints, Options{}))
	own := must[model.Accelerator](t)(c.Accelerator(ctx, a)).Addresses[0].String()
	_, err = c.AddEndpoints(ctx, g, group("", "", own).Endpoints, Options{})
	refused(t, err, InvalidArgument, ReasonForbiddenEndpoint, "a loop")
	// And it cannot be forbidden while something lies there.
	_, err = c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error {
		s.EndpointAllowNetworks = prefixes("192.0.2.0/24")
		return nil
	})
	refused(t, err, FailedPrecondition, ReasonForbiddenEndpoint, "127.0.0.1")
}

func TestEndpointsOfAGroup(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	_, l, g := oneGroup(t, c)
	us := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l, "us", "10.0.0.9"), Options{})).ID
	got := must[model.EndpointGroup](t)(c.AddEndpoints(ctx, g, group("", "", "10.0.0.1", "app.example.com").Endpoints, Options{}))
	if len(got.Endpoints) != 2 || got.Endpoints[1].Host != "app.example.com" {
		t.Fatalf("endpoints %+v", got.Endpoints)
	}
	for _, again := range []string{"10.0.0.1", "::ffff:10.0.0.1", "APP.example.com."} {
		_, err := c.AddEndpoints(ctx, g, group("", "", again).Endpoints, Options{})
		refused(t, err, AlreadyExists, ReasonEndpointExists)
		_, err = c.AddEndpoints(ctx, us, group("", "", again).Endpoints, Options{})
		refused(t, err, InvalidArgument, ReasonEndpointExists, "of the same listener")
	}
	_, err := c.AddEndpoints(ctx, g, group("", "", "10.0.0.2", "10.0.0.2").Endpoints, Options{})
	refused(t, err, InvalidArgument, "", "twice")
	_, err = c.AddEndpoints(ctx, g, group("", "", "2001:db8::2", "2001:DB8:0::2").Endpoints, Options{})
	refused(t, err, InvalidArgument, ReasonEndpointExists, "the same endpoint")
	v1 := group("", "", "10.0.0.3").Endpoints
	v1[0].ClientAddress = model.ClientAddressProxyV1
	ok(t)(c.AddEndpoints(ctx, g, v1, Options{}))

	weight, mode := uint8(0), model.ClientAddressProxyV2
	got = must[model.EndpointGroup](t)(c.UpdateEndpoints(ctx, g, []EndpointChange{
		{ID: "10.0.0.1", Weight: &weight}, {ID: "app.example.com", ClientAddress: &mode}}, Options{}))
	if got.Endpoints[0].Weight != 0 || got.Endpoints[1].Weight != model.DefaultWeight ||
		got.Endpoints[1].ClientAddress != mode {
		t.Fatalf("endpoints %+v", got.Endpoints)
	}
	_, err = c.UpdateEndpoints(ctx, g, []EndpointChange{{ID: "10.0.0.77"}}, Options{})
	refused(t, err, NotFound, ReasonEndpointNotFound, "10.0.0.77", string(g))
	_, err = c.RemoveEndpoints(ctx, g, []model.EndpointID{"10.0.0.1", "10.0.0.77"}, Options{})
	refused(t, err, NotFound, ReasonEndpointNotFound)
	// An empty selection never means everything (R-CF3).
	_, err = c.AddEndpoints(ctx, g, nil, Options{})
	refused(t, err, InvalidArgument, "", "endpoints")
	_, err = c.UpdateEndpoints(ctx, g, nil, Options{})
	refused(t, err, InvalidArgument, "", "endpoints")
	_, err = c.RemoveEndpoints(ctx, g, nil, Options{})
	refused(t, err, InvalidArgument, "", "endpoint_ids")

	// The shrink guard: more than half at once only by force.
	_, err = c.RemoveEndpoints(ctx, g, []model.EndpointID{"10.0.0.1", "10.0.0.3"}, Options{})
	refused(t, err, FailedPrecondition, ReasonGuard, "1 of 3", "force")
	_, err = c.UpdateGroup(ctx, g, Options{}, func(g *model.EndpointGroup) error { g.Endpoints = nil; return nil })
	refused(t, err, FailedPrecondition, ReasonGuard, "0 of 3")
	ok(t)(c.RemoveEndpoints(ctx, g, []model.EndpointID{"10.0.0.1"}, Options{}))
	ok(t)(c.RemoveEndpoints(ctx, g, []model.EndpointID{"10.0.0.3"}, Options{}))
	got = must[model.EndpointGroup](t)(c.RemoveEndpoints(ctx, g, []model.EndpointID{"APP.example.com"}, Options{}))
	if len(got.Endpoints) != 0 {
		t.Fatalf("endpoints %+v", got.Endpoints)
	}
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "10.0.0.1", "10.0.0.2", "10.0.0.3").Endpoints, Options{}))
	ok(t)(c.UpdateGroup(ctx, g, Options{Force: true}, func(g *model.EndpointGroup) error { g.Endpoints = nil; return nil }))
}

func TestGroups(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, l, g := oneGroup(t, c)
	_, err := c.CreateGroup(ctx, group(l, "eu"), Options{})
	refused(t, err, AlreadyExists, ReasonGroupExists, "region eu")
	_, err = c.CreateGroup(ctx, group("none", "eu"), Options{})
	refused(t, err, NotFound, ReasonListenerNotFound)
	ok(t)(c.CreateGroup(ctx, group(l, "ap"), Options{}))
	if _, err := c.Region(ctx, "ap"); err != nil {
		t.Errorf("a group's region: %v", err)
	}
	l2 := must[model.Listener](t)(c.CreateListener(ctx, listener(a, model.UDP, 443, 443), Options{}))
	ok(t)(c.CreateGroup(ctx, group(l2.ID, "eu", "10.0.0.1"), Options{})) // one a region and listener
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "10.0.0.1").Endpoints, Options{}))
	for path, edit := range map[string]func(*model.EndpointGroup){
		"group.id": func(g *model.EndpointGroup) { g.ID = "x" }, "group.region": func(g *model.EndpointGroup) { g.Region = "us" },
		"group.listener_id": func(g *model.EndpointGroup) { g.Listener = l2.ID },
	} {
		_, err := c.UpdateGroup(ctx, g, Options{}, func(g *model.EndpointGroup) error { edit(g); return nil })
		refused(t, err, InvalidArgument, "", path, "cannot be changed")
	}
	for path, edit := range map[string]func(*model.EndpointGroup){
		"group.traffic_dial":          func(g *model.EndpointGroup) { g.TrafficDial = 100.5 },
		"group.health_check.path":     func(g *model.EndpointGroup) { g.HealthCheck.Path = "noslash" },
		"group.health_check.interval": func(g *model.EndpointGroup) { g.HealthCheck.Interval = 1 },
	} {
		_, err := c.UpdateGroup(ctx, g, Options{}, func(g *model.EndpointGroup) error { edit(g); return nil })
		refused(t, err, InvalidArgument, "", path)
	}
	before := must[model.EndpointGroup](t)(c.Group(ctx, g))
	// Handing back what one got, verdicts and all, changes nothing.
	same := must[model.EndpointGroup](t)(c.UpdateGroup(ctx, g, Options{}, func(g *model.EndpointGroup) error {
		g.Endpoints = slices.Clone(before.Endpoints)
		g.Endpoints[0].Health, g.Endpoints[0].HealthReason = model.HealthUnhealthy, "x"
		return nil
	}))
	if same.Revision != before.Revision || same.Endpoints[0].Health != model.HealthInitial {
		t.Errorf("handing back what one got made %+v of %+v", same, before)
	}
	byListener, _, err := c.ListGroups(ctx, l2.ID, PageOptions{})
	all, _, err2 := c.ListGroups(ctx, "", PageOptions{})
	if err != nil || err2 != nil || len(byListener) != 1 || len(all) != 3 {
		t.Errorf("lists: %v %v, %v %v", byListener, err, all, err2)
	}
	refused(t, c.DeleteGroup(ctx, g, Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
}

func TestTargets(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a, l, g := oneGroup(t, c)
	for _, x := range []struct {
		target model.Target
		text   string
	}{
		{model.Target{Name: "", Host: "10.0.0.1"}, "target.name"},
		{model.Target{Name: "a b", Host: "10.0.0.1"}, "target.name"},
		{model.Target{Name: "10.0.0.1", Host: "10.0.0.1"}, "is an IP address"},
		{model.Target{Name: "2001:db8::1", Host: "10.0.0.1"}, "is an IP address"},
		{model.Target{Name: "0123abcd", Host: "10.0.0.1"}, "looks like the id"},
		{model.Target{Name: "0123456789AB", Host: "10.0.0.1"}, "looks like the id"},
		{model.Target{Name: string(a), Host: "10.0.0.1"}, "looks like the id"},
		{model.Target{Name: "t", Host: ""}, "target.host"},
		{model.Target{Name: "t", Host: "single"}, "target.host"},
		{model.Target{Name: "t", Host: "127.0.0.1"}, "loopback"},
		{model.Target{Name: "t", Host: "198.51.100.4"}, "pool-a"},
		{model.Target{Name: "t", Host: "169.254.169.254"}, "link-local"},
	} {
		_, err := c.CreateTarget(ctx, x.target, Options{})
		refused(t, err, InvalidArgument, ReasonOf(err), x.text)
	}
	vm := must[model.Target](t)(c.CreateTarget(ctx, model.Target{Name: "vm", Host: "10.0.0.1", Region: "eu"}, Options{}))
	_, err := c.CreateTarget(ctx, vm, Options{})
	refused(t, err, AlreadyExists, "", "vm")
	ok(t)(c.AddEndpoints(ctx, g, group("", "", "vm", "app.example.com").Endpoints, Options{}))
	_, err = c.CreateTarget(ctx, model.Target{Name: "App.example.com", Host: "10.0.0.1"}, Options{})
	refused(t, err, FailedPrecondition, ReasonInUse, string(g))

	before := must[model.Accelerator](t)(c.Accelerator(ctx, a))
	vm = must[model.Target](t)(c.UpdateTarget(ctx, "vm", Options{ExpectedRevision: vm.Revision}, func(t *model.Target) error {
		t.Host = "10.0.0.2"
		return nil
	}))
	after := must[model.Accelerator](t)(c.Accelerator(ctx, a))
	if after.Revision != vm.Revision || after.Revision <= before.Revision {
		t.Errorf("the accelerator was at %d and is at %d, its target at %d", before.Revision, after.Revision, vm.Revision)
	}
	s := must[*State](t)(c.Load(ctx))
	if s.Accelerators[0].Revision != vm.Revision || s.Groups[0].Endpoints[0].Host != "10.0.0.2" {
		t.Errorf("the state is %+v", s)
	}
	for _, x := range []struct {
		edit func(*model.Target)
		code Code
		text string
	}{
		{func(t *model.Target) { t.Name = "other" }, InvalidArgument, "target.name"},
		{func(t *model.Target) { t.Region = "us" }, FailedPrecondition, "region us"},
		{func(t *model.Target) { t.Host = "127.0.0.1" }, InvalidArgument, "loopback"},
	} {
		_, err := c.UpdateTarget(ctx, "vm", Options{}, func(t *model.Target) error { x.edit(t); return nil })
		refused(t, err, x.code, ReasonOf(err), x.text)
	}
	refused(t, c.DeleteTarget(ctx, "vm", Options{}), FailedPrecondition, ReasonInUse, string(g))
	ok(t)(c.RemoveEndpoints(ctx, g, []model.EndpointID{"vm"}, Options{}))
	refused(t, c.DeleteTarget(ctx, "vm", Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
	if err := c.DeleteTarget(ctx, "vm", Options{}); err != nil {
		t.Error(err)
	}
	refused(t, c.DeleteTarget(ctx, "vm", Options{}), NotFound, ReasonTargetNotFound)
	_ = l
}

// TestTargetOfMany: a target that more accelerators use than one transaction could touch.
func TestTargetOfMany(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error { s.AcceleratorsMax = 1000; return nil }))
	ok(t)(c.CreatePool(ctx, anycast("big-a", "c", "10.8.0.0/16"), Options{}))
	ok(t)(c.CreatePool(ctx, anycast("big-b", "d", "10.9.0.0/16"), Options{}))
	ok(t)(c.CreateTarget(ctx, model.Target{Name: "shared", Host: "192.0.2.7"}, Options{}))
	for i := range 130 {
		a := accelerator(fmt.Sprint("a", i))
		a.Pools = []model.PoolName{"big-a", "big-b"}
		a = must[model.Accelerator](t)(c.CreateAccelerator(ctx, a, Options{}))
		l := must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 443, 443), Options{}))
		ok(t)(c.CreateGroup(ctx, group(l.ID, "eu", "shared"), Options{}))
	}
	moved := must[model.Target](t)(c.UpdateTarget(ctx, "shared", Options{}, func(t *model.Target) error {
		t.Host = "192.0.2.8"
		return nil
	}))
	s := must[*State](t)(c.Load(ctx))
	for _, a := range s.Accelerators {
		if a.Revision != moved.Revision {
			t.Fatalf("%s is at %d, the target at %d", a.Name, a.Revision, moved.Revision)
		}
	}
}
