package catalog

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/proto/model"
)

// customWorld is world with a custom routing accelerator, a listener of the ports given and a subnet a /28.
func customWorld(t testing.TB, from, to uint16) (*Catalog, model.Accelerator, model.Listener) {
	t.Helper()
	c := world(t)
	ctx := t.Context()
	a := ok(t)(c.CreateAccelerator(ctx, model.Accelerator{Name: "game", Enabled: true, Type: model.CustomRouting},
		Options{})).(model.Accelerator)
	l := ok(t)(c.CreateListener(ctx, customListener(a.ID, from, to), Options{})).(model.Listener)
	for i, region := range []model.RegionName{"eu", "eu", "us"} {
		ok(t)(c.CreateSubnet(ctx, model.Subnet{Name: model.SubnetName(fmt.Sprint("subnet-", i)), Region: region,
			Prefix: netip.MustParsePrefix(fmt.Sprintf("10.9.%d.0/28", i))}, Options{}))
	}
	return c, a, l
}

func customListener(a model.AcceleratorID, from, to uint16) model.Listener {
	return model.Listener{Accelerator: a, PortRanges: []model.PortRange{{From: from, To: to}},
		TCPIdleTimeout: model.DefaultTCPIdleTimeout, UDPIdleTimeout: model.DefaultUDPIdleTimeout}
}

func customGroup(l model.ListenerID, region model.RegionName, subnets ...model.SubnetName) model.CustomRoutingGroup {
	g := model.CustomRoutingGroup{Listener: l, Region: region, Destinations: []model.CustomRoutingDestination{
		{PortRange: model.PortRange{From: 80, To: 81}, Protocol: model.TCPUDP}}}
	for _, s := range subnets {
		g.Endpoints = append(g.Endpoints, model.CustomRoutingEndpoint{Subnet: s})
	}
	return g
}

func TestCustomRouting(t *testing.T) {
	c, a, l := customWorld(t, 1000, 1049)
	ctx := t.Context()
	if l.Protocol != model.TCPUDP {
		t.Errorf("the listener takes %v", l.Protocol)
	}
	g := ok(t)(c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu", "subnet-0"),
		Options{IdempotencyToken: "t"})).(model.CustomRoutingGroup)
	again := ok(t)(c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu", "subnet-0"),
		Options{IdempotencyToken: "t"})).(model.CustomRoutingGroup)
	if again.ID != g.ID {
		t.Error("the same token made another group")
	}
	want := []model.PortRange{{From: 1000, To: 1021}} // 11 machines × 2 ports
	if diff := cmp.Diff(want, g.Endpoints[0].Ports); diff != "" {
		t.Error(diff)
	}
	g = ok(t)(c.AddSubnets(ctx, g.ID, []model.SubnetName{"subnet-1"})).(model.CustomRoutingGroup)
	refuse := func(code Code, reason Reason, err error) { t.Helper(); refused(t, err, code, reason, "") }
	_, err := c.AddSubnets(ctx, g.ID, []model.SubnetName{"subnet-1"})
	refuse(AlreadyExists, ReasonEndpointExists, err)
	_, err = c.AddSubnets(ctx, g.ID, []model.SubnetName{"subnet-2"})
	refuse(InvalidArgument, ReasonNone, err)
	_, err = c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "us", "subnet-2"), Options{})
	refuse(LimitExceeded, ReasonNoPorts, err) // 6 are left
	_, err = c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu"), Options{})
	refuse(AlreadyExists, ReasonGroupExists, err)
	_, err = c.CreateGroup(ctx, model.EndpointGroup{Listener: l.ID, Region: "us", TrafficDial: 100,
		HealthCheck: model.HealthCheck{Path: "/", Interval: 30e9, Timeout: 5e9, HealthyThreshold: 3, UnhealthyThreshold: 3,
			ExpectedCodes: "200"}}, Options{})
	refuse(FailedPrecondition, ReasonWrongType, err)
	refuse(FailedPrecondition, ReasonHasGroups, c.DeleteListener(ctx, l.ID, Options{}))
	refuse(FailedPrecondition, ReasonInUse, c.DeleteSubnet(ctx, "subnet-0", Options{}))

	// Ranges grow, never shrink; then the third subnet finds room in two pieces.
	ranges := func(r ...model.PortRange) error {
		_, err := c.UpdateListener(ctx, l.ID, Options{}, func(l *model.Listener) error { l.PortRanges = r; return nil })
		return err
	}
	refuse(InvalidArgument, ReasonInvalidPortRange, ranges(model.PortRange{From: 1000, To: 1048}))
	refuse(InvalidArgument, ReasonNone, ranges(model.PortRange{From: 1000, To: 1049}, model.PortRange{From: 2000, To: 2014}))
	if err := ranges(model.PortRange{From: 1000, To: 1049}, model.PortRange{From: 2000, To: 2015}); err != nil {
		t.Fatal(err)
	}
	us := ok(t)(c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "us", "subnet-2"), Options{})).(model.CustomRoutingGroup)
	want = []model.PortRange{{From: 1044, To: 1049}, {From: 2000, To: 2015}}
	if diff := cmp.Diff(want, us.Endpoints[0].Ports); diff != "" {
		t.Error(diff)
	}
	// A subnet that leaves gives its ports back; the others stay where they are.
	g = ok(t)(c.RemoveSubnets(ctx, g.ID, []model.SubnetName{"subnet-0"})).(model.CustomRoutingGroup)
	if g.Endpoints[0].Subnet != "subnet-1" || g.Endpoints[0].Ports[0].From != 1022 {
		t.Errorf("left: %+v", g.Endpoints)
	}
	_, err = c.RemoveSubnets(ctx, g.ID, []model.SubnetName{"subnet-0"})
	refuse(NotFound, ReasonEndpointNotFound, err)
	state := ok(t)(c.Load(ctx)).(*State)
	if len(state.Subnets) != 3 || len(state.CustomRoutingGroups) != 2 {
		t.Errorf("state has %d subnets, %d groups", len(state.Subnets), len(state.CustomRoutingGroups))
	}
	if err := c.Tag(ctx, string(g.ID), map[string]string{"k": "v"}); err != nil {
		t.Error(err)
	}
	for _, id := range []model.GroupID{g.ID, us.ID} {
		if err := c.DeleteCustomRoutingGroup(ctx, id, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.DeleteListener(ctx, l.ID, Options{}); err != nil {
		t.Fatal(err)
	}
	for i, from := range []model.PortRange{{From: 5, To: 19}, {From: 20, To: 20}} {
		if _, err := c.CreateListener(ctx, customListener(a.ID, from.From, from.To), Options{}); err == nil {
			t.Errorf("range %d of fewer than 16 ports was taken", i)
		}
	}
}

func TestTrafficAndMappings(t *testing.T) {
	c, a, l := customWorld(t, 1000, 1049)
	ctx := t.Context()
	g := ok(t)(c.CreateCustomRoutingGroup(ctx, customGroup(l.ID, "eu", "subnet-0", "subnet-1"),
		Options{})).(model.CustomRoutingGroup)
	addr := netip.MustParseAddr("10.9.1.5")
	set := func(tr Traffic) error {
		tr.Group, tr.Subnet = g.ID, "subnet-1"
		_, err := c.SetTraffic(ctx, tr)
		return err
	}
	allowed := func() (all []string) {
		token := ""
		for {
			page, next, err := c.ListPortMappings(ctx, a.ID, "", PageOptions{Size: 7, Token: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page {
				if m.Allowed {
					all = append(all, fmt.Sprint(m.Port, " ", m.Destination))
				}
			}
			if token = next; token == "" {
				return all
			}
		}
	}
	steps := []struct {
		Traffic
		want string
	}{
		{Traffic{Allow: true, Addresses: []netip.Addr{addr}, Ports: []uint16{81}}, "[1025 10.9.1.5:81]"},
		{Traffic{Allow: true, Addresses: []netip.Addr{addr}}, "[1024 10.9.1.5:80 1025 10.9.1.5:81]"},
		{Traffic{Addresses: []netip.Addr{addr}, Ports: []uint16{81}}, "[1024 10.9.1.5:80]"},
		{Traffic{All: true}, "[]"},
	}
	for i, s := range steps {
		if err := set(s.Traffic); err != nil || fmt.Sprint(allowed()) != s.want {
			t.Errorf("step %d: %v, %v; want %s", i, err, allowed(), s.want)
		}
	}
	if err := set(Traffic{Allow: true, All: true}); err != nil || len(allowed()) != 22 {
		t.Errorf("all: %v, %d", err, len(allowed()))
	}
	for what, tr := range map[string]Traffic{
		"addresses beside all":   {All: true, Addresses: []netip.Addr{addr}},
		"nothing":                {},
		"a reserved address":     {Addresses: []netip.Addr{netip.MustParseAddr("10.9.1.3")}},
		"another port":           {Addresses: []netip.Addr{addr}, Ports: []uint16{82}},
		"too many ports":         {Addresses: []netip.Addr{addr}, Ports: make([]uint16, 101)},
		"an address of the next": {Addresses: []netip.Addr{netip.MustParseAddr("10.9.2.4")}},
	} {
		if CodeOf(set(tr)) != InvalidArgument {
			t.Errorf("%s was taken", what)
		}
	}
	to, next, err := c.ListPortMappingsOf(ctx, "default", "subnet-1", addr, PageOptions{Size: 1})
	if err != nil || len(to) != 1 || to[0].Port != 1024 || next == "" {
		t.Fatalf("to %v: %+v, %q, %v", addr, to, next, err)
	}
	to, next, err = c.ListPortMappingsOf(ctx, "default", "subnet-1", addr, PageOptions{Size: 1, Token: next})
	if err != nil || len(to) != 1 || to[0].Port != 1025 || next != "" {
		t.Errorf("second page: %+v, %q, %v", to, next, err)
	}
	if to, _, _ = c.ListPortMappingsOf(ctx, "other", "subnet-1", addr, PageOptions{}); len(to) != 0 {
		t.Errorf("another project sees %+v", to)
	}
	_, _, err = c.ListPortMappings(ctx, a.ID, "", PageOptions{Token: "70000"})
	refused(t, err, InvalidArgument, ReasonInvalidPageToken, "")
	_, _, err = c.ListPortMappings(ctx, a.ID, "000000000000", PageOptions{})
	refused(t, err, NotFound, ReasonGroupNotFound, "")
}

func TestSubnetPlaces(t *testing.T) {
	c := world(t)
	for prefix, fine := range map[string]bool{"10.0.0.0/24": true, "127.0.0.0/24": false, "169.254.0.0/16": false,
		"198.51.100.0/24": false, "100.100.100.0/24": false, "172.16.0.0/16": true} {
		_, err := c.CreateSubnet(t.Context(), model.Subnet{Name: model.SubnetName("s-" + prefix[:4]), Region: "eu",
			Prefix: netip.MustParsePrefix(prefix)}, Options{})
		if (err == nil) != fine {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	_, err := c.CreatePool(t.Context(), anycast("p", "c", "10.0.0.128/25"), Options{})
	refused(t, err, InvalidArgument, ReasonInUse, "")
}
