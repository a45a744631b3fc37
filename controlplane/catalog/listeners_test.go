package catalog

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// onNodes makes an accelerator on a node pool.
func onNodes(t testing.TB, c *Catalog, pool model.PoolName) model.AcceleratorID {
	t.Helper()
	a := accelerator("on-nodes")
	a.Pools = []model.PoolName{pool}
	return must[model.Accelerator](t)(c.CreateAccelerator(t.Context(), a, Options{})).ID
}

// overrides makes port overrides of pairs of listener and endpoint port.
func overrides(pairs ...uint16) (all []model.PortOverride) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, model.PortOverride{ListenerPort: pairs[i], EndpointPort: pairs[i+1]})
	}
	return all
}

// TestPortOverlap: listeners of the same addresses have disjoint ports for each protocol.
func TestPortOverlap(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{})).ID
	b := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("b"), Options{})).ID
	ok(t)(c.CreateListener(ctx, listener(a, model.TCP, 100, 200, 443, 443), Options{}))
	for _, x := range []struct {
		of    model.AcceleratorID
		proto model.Protocol
		ports []uint16
		ok    bool
	}{
		{a, model.TCP, []uint16{443, 443}, false},
		{a, model.TCP, []uint16{1, 100}, false},
		{a, model.TCP, []uint16{200, 300}, false},
		{a, model.TCP, []uint16{150, 160}, false},
		{a, model.TCP, []uint16{1, 65535}, false},
		{a, model.TCP, []uint16{500, 500, 444, 444, 443, 443}, false},
		{a, model.TCPUDP, []uint16{443, 443}, false},
		{a, model.TCP, []uint16{99, 99, 201, 442, 444, 444}, true},
		{a, model.UDP, []uint16{443, 443}, true}, // TCP and UDP ports are two things
		{a, model.TCPUDP, []uint16{443, 443}, false},
		{b, model.TCPUDP, []uint16{443, 443}, true}, // another accelerator has its own addresses
		{a, model.TCP, []uint16{0, 5}, false},
		{a, model.TCP, []uint16{6, 5}, false},
		{a, model.TCP, nil, false},
		{a, 0, []uint16{6000, 6000}, false},
		{a, model.TCP, []uint16{5000, 5010, 5010, 5020}, false}, // overlaps within itself
	} {
		_, err := c.CreateListener(ctx, listener(x.of, x.proto, x.ports...), Options{})
		if (err == nil) != x.ok {
			t.Errorf("%v %v %v: %v", x.of, x.proto, x.ports, err)
		}
		if err != nil && CodeOf(err) != InvalidArgument {
			t.Errorf("%v %v: %v", x.proto, x.ports, CodeOf(err))
		}
	}
	_, err := c.CreateListener(ctx, listener(a, model.TCP, 443, 443), Options{})
	refused(t, err, InvalidArgument, ReasonInvalidPortRange, "listener.port_ranges[0]", "443-443")
	_, err = c.CreateListener(ctx, listener("none", model.TCP, 443, 443), Options{})
	refused(t, err, NotFound, ReasonAcceleratorNotFound)
}

// TestSharedAddresses: accelerators on node pools that serve one site share its nodes' addresses.
func TestSharedAddresses(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	for name, sites := range map[model.PoolName][]model.SiteName{"ams-only": {"ams"}, "nyc-only": {"nyc"}} {
		ok(t)(c.CreatePool(ctx, model.Pool{Name: name, Kind: model.PoolNode, Sites: sites}, Options{}))
	}
	all, all2 := onNodes(t, c, "nodes"), onNodes(t, c, "nodes")
	ams, nyc := onNodes(t, c, "ams-only"), onNodes(t, c, "nyc-only")
	ok(t)(c.CreateListener(ctx, listener(all, model.TCP, 80, 80), Options{}))
	ok(t)(c.CreateListener(ctx, listener(ams, model.TCP, 443, 443), Options{}))
	for _, x := range []struct {
		of   model.AcceleratorID
		port uint16
		ok   bool
	}{
		{all2, 80, false}, {ams, 80, false}, {nyc, 80, false},
		{all, 443, false}, {all2, 443, false},
		{nyc, 443, true}, // no site in common with ams-only
		{all2, 8080, true},
	} {
		l, err := c.CreateListener(ctx, listener(x.of, model.TCP, x.port, x.port), Options{})
		if (err == nil) != x.ok {
			t.Errorf("%v port %d: %v %v", x.of, x.port, l, err)
		}
		if err != nil {
			refused(t, err, InvalidArgument, ReasonInvalidPortRange, "which has the same addresses")
		}
	}
	// Both have 443: a pool that comes to serve both sites would bring them together.
	_, err := c.UpdatePool(ctx, "nyc-only", Options{}, func(p *model.Pool) error { p.Sites = append(p.Sites, "ams"); return nil })
	refused(t, err, FailedPrecondition, ReasonInvalidPortRange, "443")
	_, err = c.UpdatePool(ctx, "nyc-only", Options{}, func(p *model.Pool) error { p.Sites = nil; return nil })
	refused(t, err, FailedPrecondition, ReasonInvalidPortRange, "443")
}

// TestOverrides: aws-ga 2.5, on the side of groups and on that of listeners.
func TestOverrides(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{})).ID
	web := must[model.Listener](t)(c.CreateListener(ctx, listener(a, model.TCP, 80, 80, 443, 443), Options{}))
	game := must[model.Listener](t)(c.CreateListener(ctx, listener(a, model.UDP, 7000, 7010, 443, 443), Options{}))
	first := group(web.ID, "eu")
	first.PortOverrides = []model.PortOverride{{ListenerPort: 443, EndpointPort: 8443}}
	eu := must[model.EndpointGroup](t)(c.CreateGroup(ctx, first, Options{}))
	for _, x := range []struct {
		name  string
		of    model.ListenerID
		pairs []model.PortOverride
		ok    bool
		text  string
	}{
		{"the same pair in another region", web.ID, overrides(443, 8443), true, ""},
		{"the same port number of another listener", game.ID, overrides(443, 8443), true, ""},
		{"another listener port to the same endpoint port", web.ID, overrides(80, 8443), false, "8443"},
		{"a port that the listener has not", web.ID, overrides(81, 8081), false, "not a port of"},
		{"a port of the other listener", web.ID, overrides(7000, 8081), false, "not a port of"},
		{"to a port of the same listener", web.ID, overrides(80, 443), false, "overrides must lead elsewhere"},
		{"to a port of the other listener", web.ID, overrides(80, 7005), false, string(game.ID)},
		{"one port twice", web.ID, overrides(80, 8080, 80, 8081), false, "overridden twice"},
		{"two ports to one", web.ID, overrides(80, 8080, 443, 8080), false, "8080"},
		{"several", web.ID, overrides(80, 8080, 443, 8443), true, ""},
		{"port 0", web.ID, overrides(80, 0), false, "endpoint_port"},
	} {
		g := group(x.of, "us")
		g.PortOverrides = x.pairs
		made, err := c.CreateGroup(ctx, g, Options{})
		switch {
		case !x.ok:
			refused(t, err, InvalidArgument, ReasonOf(err), "group.port_overrides", x.text)
		case err != nil:
			t.Errorf("%s: %v", x.name, err)
		default:
			if err := c.DeleteGroup(ctx, made.ID, Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	setPorts := func(id model.ListenerID, ports ...uint16) error {
		_, err := c.UpdateListener(ctx, id, Options{}, func(l *model.Listener) error {
			l.PortRanges = listener(a, model.TCP, ports...).PortRanges
			return nil
		})
		return err
	}
	refused(t, setPorts(web.ID, 80, 80), FailedPrecondition, ReasonInvalidPortRange, string(eu.ID), "8443")
	refused(t, setPorts(game.ID, 8443, 8443), FailedPrecondition, ReasonInvalidPortRange, string(eu.ID))
	_, err := c.CreateListener(ctx, listener(a, model.UDP, 8000, 9000), Options{})
	refused(t, err, FailedPrecondition, ReasonInvalidPortRange, "8443")
	if err := setPorts(web.ID, 443, 443); err != nil {
		t.Error(err)
	}
}

func TestUpdateListener(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{})).ID
	l := must[model.Listener](t)(c.CreateListener(ctx, listener(a, model.TCP, 80, 80), Options{}))
	g := must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(l.ID, "eu", "192.0.2.1"), Options{}))
	_, err := c.UpdateListener(ctx, l.ID, Options{}, func(l *model.Listener) error { l.Accelerator = "other"; return nil })
	refused(t, err, InvalidArgument, "", "listener.accelerator_id")
	_, err = c.UpdateListener(ctx, l.ID, Options{}, func(l *model.Listener) error { l.TCPIdleTimeout = 1; return nil })
	refused(t, err, InvalidArgument, "", "tcp_idle_timeout")
	l = must[model.Listener](t)(c.UpdateListener(ctx, l.ID, Options{ExpectedRevision: l.Revision},
		func(l *model.Listener) error { l.PortRanges[0] = model.PortRange{From: 8080, To: 8081}; return nil }))
	if acc := must[model.Accelerator](t)(c.Accelerator(ctx, a)); acc.Revision != l.Revision {
		t.Errorf("the accelerator is at %d, the listener at %d", acc.Revision, l.Revision)
	}
	// A health check without a port of its own follows the listener's first one.
	if got := must[model.EndpointGroup](t)(c.Group(ctx, g.ID)); got.HealthCheck.Port != 8080 {
		t.Errorf("the health check asks port %d", got.HealthCheck.Port)
	}
	ok(t)(c.UpdateGroup(ctx, g.ID, Options{}, func(g *model.EndpointGroup) error {
		if g.HealthCheck.Port != 0 {
			t.Errorf("edit sees port %d", g.HealthCheck.Port)
		}
		g.HealthCheck.Port, g.Endpoints[0].ClientAddress = 9000, model.ClientAddressProxyV1
		return nil
	}))
	for _, p := range []model.Protocol{model.UDP, model.TCPUDP} {
		_, err = c.UpdateListener(ctx, l.ID, Options{}, func(l *model.Listener) error { l.Protocol = p; return nil })
		refused(t, err, FailedPrecondition, "", "PROXY_V1")
	}
	refused(t, c.DeleteListener(ctx, l.ID, Options{ExpectedRevision: 1}), Aborted, ReasonRevision)
	refused(t, c.DeleteListener(ctx, "none", Options{}), NotFound, ReasonListenerNotFound)
}

// TestQuotas: each limit is held to exactly, and lowering one takes nothing away.
func TestQuotas(t *testing.T) {
	ctx := t.Context()
	c := world(t)
	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error {
		s.AcceleratorsMax, s.ListenersPerAcceleratorMax, s.GroupsPerAcceleratorMax = 2, 3, 4
		s.PortRangesPerListenerMax, s.PortOverridesPerGroupMax, s.EndpointsPerGroupMax, s.TagsPerResourceMax = 2, 1, 2, 1
		return nil
	}))
	over := func(err error, setting string) {
		t.Helper()
		refused(t, err, LimitExceeded, ReasonLimit, setting)
	}
	tags := map[string]string{"a": "1", "b": "2"}
	a := must[model.Accelerator](t)(c.CreateAccelerator(ctx, accelerator("a"), Options{}))
	tagged := accelerator("b")
	tagged.Tags = tags
	_, err := c.CreateAccelerator(ctx, tagged, Options{})
	over(err, "tags_per_resource_max")
	over(c.Tag(ctx, string(a.ID), tags), "tags_per_resource_max")
	ok(t)(c.CreateAccelerator(ctx, accelerator("b"), Options{}))
	_, err = c.CreateAccelerator(ctx, accelerator("c"), Options{})
	over(err, "accelerators_max")

	_, err = c.CreateListener(ctx, listener(a.ID, model.TCP, 1, 1, 3, 3, 5, 5), Options{})
	over(err, "port_ranges_per_listener_max")
	var listeners []model.Listener
	for i := range uint16(3) {
		listeners = append(listeners, must[model.Listener](t)(c.CreateListener(ctx, listener(a.ID, model.TCP, 10+i, 10+i, 20+i, 20+i), Options{})))
	}
	_, err = c.CreateListener(ctx, listener(a.ID, model.TCP, 30, 30), Options{})
	over(err, "listeners_per_accelerator_max")

	big := group(listeners[0].ID, "eu", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	_, err = c.CreateGroup(ctx, big, Options{})
	over(err, "endpoints_per_group_max")
	big = group(listeners[0].ID, "eu")
	big.PortOverrides = overrides(10, 110, 20, 120)
	_, err = c.CreateGroup(ctx, big, Options{})
	over(err, "port_overrides_per_group_max")
	var g model.EndpointGroup
	for i := range 4 {
		g = must[model.EndpointGroup](t)(c.CreateGroup(ctx, group(listeners[i%3].ID, model.RegionName(fmt.Sprint("r", i))), Options{}))
	}
	_, err = c.CreateGroup(ctx, group(listeners[2].ID, "eu"), Options{})
	over(err, "groups_per_accelerator_max")
	two := group("", "", "192.0.2.1", "192.0.2.2").Endpoints
	ok(t)(c.AddEndpoints(ctx, g.ID, two, Options{}))
	_, err = c.AddEndpoints(ctx, g.ID, group("", "", "192.0.2.3").Endpoints, Options{})
	over(err, "endpoints_per_group_max")

	ok(t)(c.UpdateSettings(ctx, Options{}, func(s *model.Settings) error { s.AcceleratorsMax = 1; return nil }))
	if list, _, err := c.ListAccelerators(ctx, PageOptions{}); err != nil || len(list) != 2 {
		t.Errorf("after lowering the quota: %v %v", list, err)
	}
}

func TestDisjointFromItself(t *testing.T) {
	for _, x := range []struct {
		in        model.PortRange
		overrides []uint16
		want      []model.PortRange
	}{
		{model.PortRange{From: 1, To: 10}, nil, []model.PortRange{{From: 1, To: 10}}},
		{model.PortRange{From: 1, To: 10}, []uint16{5}, []model.PortRange{{From: 1, To: 4}, {From: 6, To: 10}}},
		{model.PortRange{From: 1, To: 10}, []uint16{10, 1}, []model.PortRange{{From: 2, To: 9}}},
		{model.PortRange{From: 1, To: 10}, []uint16{11, 3, 4}, []model.PortRange{{From: 1, To: 2}, {From: 5, To: 10}}},
		{model.PortRange{From: 7, To: 7}, []uint16{7}, nil},
		{model.PortRange{From: 1, To: 65535}, []uint16{65535}, []model.PortRange{{From: 1, To: 65534}}},
		{model.PortRange{From: 65535, To: 65535}, nil, []model.PortRange{{From: 65535, To: 65535}}},
	} {
		var all []model.PortOverride
		for _, p := range x.overrides {
			all = append(all, overrides(p, 1)...)
		}
		if got := without(x.in, all); !slices.Equal(got, x.want) {
			t.Errorf("%v without %v is %v, want %v", x.in, x.overrides, got, x.want)
		}
	}
}
