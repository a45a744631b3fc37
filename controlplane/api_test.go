package controlplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

// Every method of the admin API is implemented, and an empty request makes none of them fail in a way
// that is the server's fault.
func TestEveryMethodAnswers(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	methods := v1.File_nearcast_v1_admin_proto.Services().ByName("AdminService").Methods()
	if methods.Len() < 50 {
		t.Fatalf("the schema has %d methods", methods.Len())
	}
	for i := range methods.Len() {
		m := methods.Get(i)
		in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
		err := o.conn.Invoke(t.Context(), "/nearcast.v1.AdminService/"+string(m.Name()), in, out)
		switch code := status.Code(err); code {
		case codes.Unimplemented, codes.Internal, codes.Unknown, codes.Unavailable:
			t.Errorf("%s: %v", m.Name(), err)
		case codes.OK:
			if changes := !strings.HasPrefix(string(m.Name()), "Get") && !strings.HasPrefix(string(m.Name()),
				"List") && m.Name() != "WhoAmI"; changes {
				t.Errorf("%s: an empty request has changed something", m.Name())
			}
		}
	}
}

// fields returns the fields that an error says are wrong.
func fields(err error) []string {
	var list []string
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				list = append(list, v.GetField())
			}
		}
	}
	return list
}

func TestConfigurationThroughTheAPI(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	a, g := o.accelerate(t, "web", "eu", "198.18.0.1")
	if len(a.GetAddresses()) != 2 || a.GetDnsName() == "" {
		t.Errorf("accelerator: %v", a)
	}
	_, err := o.CreateListener(ctx, &v1.CreateListenerRequest{Listener: &v1.Listener{AcceleratorId: a.GetId(),
		Protocol: v1.Protocol_PROTOCOL_TCP, PortRanges: []*v1.PortRange{{From: 9, To: 8}, {From: 0, To: 70000}}}})
	wantCode(t, "bad ports", err, codes.InvalidArgument)
	if got := fields(err); len(got) == 0 || !strings.HasPrefix(got[0], "listener.port_ranges[1].to") {
		t.Errorf("fields %v, want listener.port_ranges[1].to", got)
	}
	updated := must[*v1.Accelerator](t)(o.UpdateAccelerator(ctx, &v1.UpdateAcceleratorRequest{
		Accelerator: &v1.Accelerator{Id: a.GetId(), Name: "renamed"}, UpdateMask: mask("name"),
		ExpectedRevision: a.GetRevision()}))
	if updated.GetName() != "renamed" || !updated.GetEnabled() {
		t.Errorf("update: %v", updated)
	}
	_, err = o.UpdateAccelerator(ctx, &v1.UpdateAcceleratorRequest{
		Accelerator: &v1.Accelerator{Id: a.GetId()}, UpdateMask: mask("enabled"),
		ExpectedRevision: a.GetRevision()})
	wantCode(t, "an old revision", err, codes.Aborted)
	_, err = o.UpdateAccelerator(ctx, &v1.UpdateAcceleratorRequest{Accelerator: &v1.Accelerator{Id: a.GetId()}})
	wantCode(t, "no mask", err, codes.InvalidArgument)
	_, err = o.DeleteAccelerator(ctx, &v1.DeleteRequest{Id: a.GetId()})
	wantCode(t, "delete an enabled accelerator", err, codes.FailedPrecondition)

	weight := uint32(0)
	g = must[*v1.EndpointGroup](t)(o.AddEndpoints(ctx, &v1.AddEndpointsRequest{GroupId: g.GetId(),
		Endpoints: []*v1.Endpoint{{Id: "198.18.0.2", Weight: &weight,
			ClientAddress: v1.ClientAddressMode_CLIENT_ADDRESS_MODE_PROXY_V2}}}))
	weight = 9
	g = must[*v1.EndpointGroup](t)(o.UpdateEndpoints(ctx, &v1.UpdateEndpointsRequest{GroupId: g.GetId(),
		Endpoints: []*v1.Endpoint{{Id: "198.18.0.2", Weight: &weight}}}))
	if e := g.GetEndpoints()[1]; e.GetWeight() != 9 ||
		e.GetClientAddress() != v1.ClientAddressMode_CLIENT_ADDRESS_MODE_PROXY_V2 {
		t.Errorf("an endpoint's weight was changed, and it is now %v", e)
	}
	_, err = o.AddEndpoints(ctx, &v1.AddEndpointsRequest{GroupId: g.GetId(), Endpoints: []*v1.Endpoint{
		{Id: "198.18.0.3"}, {Id: "127.0.0.1"}}})
	wantCode(t, "an endpoint on loopback", err, codes.InvalidArgument)
	g = must[*v1.EndpointGroup](t)(o.RemoveEndpoints(ctx, &v1.RemoveEndpointsRequest{GroupId: g.GetId(),
		EndpointIds: []string{"198.18.0.1"}}))
	if len(g.GetEndpoints()) != 1 {
		t.Errorf("endpoints after removal: %v", g.GetEndpoints())
	}
	_, err = o.ListHealth(ctx, &v1.ListRequest{Parent: "0123456789ab"})
	wantCode(t, "health of no group", err, codes.NotFound)
	_, err = o.ListPools(ctx, &v1.ListRequest{Parent: "x"})
	wantCode(t, "a parent where there is none", err, codes.InvalidArgument)
}

// What a guard refuses is done when it is forced, and the audit log says that it was (R-CF3).
func TestForce(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	_, g := o.accelerate(t, "web", "eu", "198.18.0.1")
	more := []*v1.Endpoint{{Id: "198.18.0.2"}, {Id: "198.18.0.3"}}
	onNodes := must[*v1.Pool](t)(o.CreatePool(ctx, &v1.CreatePoolRequest{Pool: &v1.Pool{
		Name: "ams-only", Kind: v1.PoolKind_POOL_KIND_NODE, Sites: []string{"ams"}}}))
	must[*v1.Accelerator](t)(o.CreateAccelerator(ctx, &v1.CreateAcceleratorRequest{Accelerator: &v1.Accelerator{
		Name: "direct", Enabled: true, Pools: []string{onNodes.GetName()}}}))
	ams := o.join(t, c.addr, "n1", "ams")
	restore := func() {
		must[*v1.Node](t)(o.UpdateNode(ctx, &v1.UpdateNodeRequest{
			Node:       &v1.Node{Id: ams.id, State: v1.NodeState_NODE_STATE_ACTIVE},
			UpdateMask: mask("state")}))
		must[*v1.Pool](t)(o.UpdatePool(ctx, &v1.UpdatePoolRequest{Pool: onNodes, UpdateMask: mask("sites")}))
	}
	refill := func() {
		must[*v1.EndpointGroup](t)(o.AddEndpoints(ctx, &v1.AddEndpointsRequest{GroupId: g.GetId(), Endpoints: more}))
	}
	for _, change := range []struct {
		name   string
		before func()
		call   func(force bool) error
	}{
		{"RemoveEndpoints", refill, func(force bool) error {
			_, err := o.RemoveEndpoints(ctx, &v1.RemoveEndpointsRequest{GroupId: g.GetId(),
				EndpointIds: []string{"198.18.0.2", "198.18.0.3"}, Force: force})
			return err
		}},
		{"UpdateEndpointGroup", refill, func(force bool) error {
			_, err := o.UpdateEndpointGroup(ctx, &v1.UpdateEndpointGroupRequest{
				Group: &v1.EndpointGroup{Id: g.GetId()}, UpdateMask: mask("endpoints"), Force: force})
			return err
		}},
		{"UpdatePool", restore, func(force bool) error {
			_, err := o.UpdatePool(ctx, &v1.UpdatePoolRequest{
				Pool:       &v1.Pool{Name: onNodes.GetName(), Sites: []string{"nyc"}},
				UpdateMask: mask("sites"), Force: force})
			return err
		}},
		{"UpdateNode", restore, func(force bool) error {
			_, err := o.UpdateNode(ctx, &v1.UpdateNodeRequest{
				Node:       &v1.Node{Id: ams.id, State: v1.NodeState_NODE_STATE_DRAINING},
				UpdateMask: mask("state"), Force: force})
			return err
		}},
		{"DeleteNode", restore, func(force bool) error {
			_, err := o.DeleteNode(ctx, &v1.DeleteRequest{Id: ams.id, Force: force})
			return err
		}},
	} {
		change.before()
		err := change.call(false)
		wantCode(t, change.name, err, codes.FailedPrecondition)
		if got := reasonOf(err); got != "Guard" || !strings.Contains(err.Error(), "force") {
			t.Errorf("%s: reason %q, %v", change.name, got, err)
		}
		wantCode(t, change.name+" by force", change.call(true), codes.OK)
		entry := must[*v1.ListAuditResponse](t)(o.ListAudit(ctx, &v1.ListRequest{PageSize: 1})).GetEntries()[0]
		if entry.GetMethod() != change.name || !strings.Contains(entry.GetRequest(), `"force":`) {
			t.Errorf("%s by force is in the audit log as %v", change.name, entry)
		}
	}
	// It overrides no other rule.
	_, err := o.RemoveEndpoints(ctx, &v1.RemoveEndpointsRequest{GroupId: g.GetId(), Force: true})
	wantCode(t, "no endpoints by force", err, codes.InvalidArgument)
}

// reasonOf returns the reason in an error's details.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func TestRolesAndAudit(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	n := o.join(t, c.addr, "n1", "ams")
	as := func(name string, role v1.Role) *operator {
		resp := must[*v1.CreateOperatorResponse](t)(o.CreateOperator(ctx, &v1.CreateOperatorRequest{
			Operator: &v1.Operator{Name: name, Role: role}}))
		return withToken(t, c.addr, o.roots, resp.GetSecret())
	}
	vera, oscar := as("vera", v1.Role_ROLE_VIEWER), as("oscar", v1.Role_ROLE_OPERATOR)
	set := func(o *operator, s v1.NodeState) error {
		_, err := o.UpdateNode(ctx, &v1.UpdateNodeRequest{
			Node: &v1.Node{Id: n.id, State: s}, UpdateMask: mask("state")})
		return err
	}
	wantCode(t, "a viewer drains", set(vera, v1.NodeState_NODE_STATE_DRAINING), codes.PermissionDenied)
	wantCode(t, "an operator drains", set(oscar, v1.NodeState_NODE_STATE_DRAINING), codes.OK)
	wantCode(t, "an operator restores", set(oscar, v1.NodeState_NODE_STATE_ACTIVE), codes.OK)
	wantCode(t, "an operator revokes", set(oscar, v1.NodeState_NODE_STATE_REVOKED), codes.PermissionDenied)
	wantCode(t, "an administrator revokes", set(o, v1.NodeState_NODE_STATE_REVOKED), codes.OK)

	var entries []*v1.AuditEntry
	token := ""
	for {
		page := must[*v1.ListAuditResponse](t)(vera.ListAudit(ctx, &v1.ListRequest{PageSize: 3, PageToken: token}))
		entries = append(entries, page.GetEntries()...)
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	var got []string
	if len(entries) < 7 {
		t.Fatalf("the audit log has %v", entries)
	}
	entries[6].Operator, _, _ = strings.Cut(entries[6].GetOperator(), " token ") // its id is random
	for i, e := range entries {
		got = append(got, fmt.Sprintf("%s %s %s %s", e.GetOperator(), e.GetMethod(), e.GetObject(),
			strings.SplitN(e.GetOutcome(), ":", 2)[0]))
		if i > 0 && e.GetTime().AsTime().After(entries[i-1].GetTime().AsTime()) {
			t.Errorf("entry %d is newer than the one before", i)
		}
	}
	want := []string{"admin UpdateNode node/" + n.id + " ok",
		"oscar UpdateNode node/" + n.id + " PermissionDenied",
		"oscar UpdateNode node/" + n.id + " ok", "oscar UpdateNode node/" + n.id + " ok",
		"admin CreateOperator operator/oscar ok", "admin CreateOperator operator/vera ok",
		"join Enroll enroll/" + n.id + " ok"}
	if len(got) < len(want) || strings.Join(got[:len(want)], "\n") != strings.Join(want, "\n") {
		t.Errorf("the audit log begins\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	text := fmt.Sprint(entries)
	if strings.Contains(text, "NC1") || strings.Contains(text, "NCO1") {
		t.Errorf("the audit log has a secret: %s", text)
	}
	if _, err := o.DeleteOperator(ctx, &v1.DeleteRequest{Id: "vera"}); err != nil {
		t.Fatal(err)
	}
	_, err := vera.WhoAmI(ctx, &emptypb.Empty{})
	wantCode(t, "a deleted operator", err, codes.Unauthenticated)
	_, err = o.DeleteOperator(ctx, &v1.DeleteRequest{Id: "admin"})
	wantCode(t, "delete the last administrator", err, codes.FailedPrecondition)
}

// Endpoints of a region without a gateway are probed by the controller.
func TestControllerProbes(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	must[*v1.Settings](t)(o.UpdateSettings(ctx, &v1.UpdateSettingsRequest{Settings: &v1.Settings{
		EndpointAllowNetworks: []string{"127.0.0.0/8"}}, UpdateMask: mask("endpoint_allow_networks")}))
	at := netip.MustParseAddrPort(netns.FreeAddr(t)) // where nobody else will listen afterwards
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	_, g := o.accelerate(t, "web", "us", at.Addr().String())
	must[*v1.EndpointGroup](t)(o.UpdateEndpointGroup(ctx, &v1.UpdateEndpointGroupRequest{
		Group: &v1.EndpointGroup{Id: g.GetId(), HealthCheck: &v1.HealthCheck{
			Port: uint32(at.Port())}}, UpdateMask: mask("health_check.port")}))
	verdict := func(want v1.HealthState) func() error {
		return func() error {
			list := must[*v1.ListHealthResponse](t)(o.ListHealth(ctx, &v1.ListRequest{})).GetEndpoints()
			if len(list) != 1 || list[0].GetVerdict() != want || len(list[0].GetReports()) != 1 ||
				list[0].GetReports()[0].GetProber() != "controller" {
				return fmt.Errorf("%v", list)
			}
			return nil
		}
	}
	eventually(t, "it is healthy", verdict(v1.HealthState_HEALTH_STATE_HEALTHY))
	l.Close()
	<-accepting
	eventually(t, "it is unhealthy", verdict(v1.HealthState_HEALTH_STATE_UNHEALTHY))
	// A gateway comes to the region: its word counts, and the controller's probes end.
	o.join(t, c.addr, "n1", "nyc")
	eventually(t, "the controller's report goes", func() error {
		list := must[*v1.ListHealthResponse](t)(o.ListHealth(ctx, &v1.ListRequest{})).GetEndpoints()
		if len(list[0].GetReports()) != 0 {
			return fmt.Errorf("%v", list)
		}
		return nil
	})
}

// A node that does not read its stream holds up neither the others nor its own revocation.
func TestBlockedStream(t *testing.T) {
	c := start(t)
	ctx := t.Context()
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	deaf, other := o.join(t, c.addr, "deaf", "ams"), o.join(t, c.addr, "other", "ams")
	cc := dial(t, c.addr, deaf.creds.ClientTLS(identity.Subject{Kind: identity.KindController}),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	blocked := must[v1.NodeService_SyncClient](t)(v1.NewNodeServiceClient(cc).Sync(ctx))
	if err := blocked.Send(hello()); err != nil {
		t.Fatal(err)
	}
	s := other.sync(t, c.addr, apply)
	s.wait(t, "a snapshot", func() bool { return s.snapshot != nil })
	tags := map[string]string{}
	for i := range 50 {
		tags[fmt.Sprintf("%02d%s", i, strings.Repeat("k", 100))] = strings.Repeat("v", 250)
	}
	const accelerators = 10 // of 18 KB each: several times what a stream may have under way
	for i := range accelerators {
		must[*v1.Accelerator](t)(o.CreateAccelerator(ctx, &v1.CreateAcceleratorRequest{
			Accelerator: &v1.Accelerator{Name: fmt.Sprintf("a%d", i), Enabled: true, Tags: tags}}))
	}
	s.wait(t, "all of it", func() bool { return len(s.snapshot.Accelerators) == accelerators })
	must[*v1.Node](t)(o.UpdateNode(ctx, &v1.UpdateNodeRequest{Node: &v1.Node{Id: deaf.id,
		State: v1.NodeState_NODE_STATE_REVOKED}, UpdateMask: mask("state")}))
	eventually(t, "the deaf node is cut", func() error {
		if o.node(t, deaf.id).GetConnected() {
			return errors.New("still connected")
		}
		return nil
	})
}
