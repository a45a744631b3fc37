package controlplane

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

func mask(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }

func certsOf(ca *identity.CA) []*x509.Certificate { return []*x509.Certificate{ca.Certificate()} }

// accelerate makes an accelerator with a listener and a group in a region.
func (o *operator) accelerate(
	t testing.TB, name, region string, endpoints ...string) (*v1.Accelerator, *v1.EndpointGroup) {
	t.Helper()
	a := must[*v1.Accelerator](t)(o.CreateAccelerator(t.Context(), &v1.CreateAcceleratorRequest{
		Accelerator: &v1.Accelerator{Name: name, Enabled: true}}))
	l := must[*v1.Listener](t)(o.CreateListener(t.Context(), &v1.CreateListenerRequest{Listener: &v1.Listener{
		AcceleratorId: a.GetId(), Protocol: v1.Protocol_PROTOCOL_TCP,
		PortRanges: []*v1.PortRange{{From: 443, To: 443}}}}))
	g := &v1.EndpointGroup{ListenerId: l.GetId(), Region: region, HealthCheck: &v1.HealthCheck{
		Interval: durationpb.New(time.Second), UnhealthyThreshold: 1, HealthyThreshold: 1}}
	for _, e := range endpoints {
		g.Endpoints = append(g.Endpoints, &v1.Endpoint{Id: e})
	}
	g = must[*v1.EndpointGroup](t)(o.CreateEndpointGroup(t.Context(), &v1.CreateEndpointGroupRequest{Group: g}))
	a = must[*v1.Accelerator](t)(o.GetAccelerator(t.Context(), &v1.GetRequest{Id: a.GetId()}))
	return a, g
}

func (o *operator) status(t testing.TB, id string) v1.AcceleratorStatus {
	t.Helper()
	return must[*v1.Accelerator](t)(o.GetAccelerator(t.Context(), &v1.GetRequest{Id: id})).GetStatus()
}

func (o *operator) problems(t testing.TB) string {
	t.Helper()
	st := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
	return strings.Join(st.GetProblems(), "\n")
}

// connected waits until the nodes show as connected.
func (o *operator) connected(t testing.TB, nodes ...*testNode) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, "node "+n.node.GetName()+" is connected", func() error {
			if !o.node(t, n.id).GetConnected() {
				return errors.New("it is away")
			}
			return nil
		})
	}
}

func (o *operator) node(t testing.TB, id string) *v1.Node {
	t.Helper()
	return must[*v1.Node](t)(o.GetNode(t.Context(), &v1.GetRequest{Id: id}))
}

func TestSnapshotsReachNodesAndAreAcknowledged(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	slow, node := o.join(t, c.addr, "slow", "nyc"), o.join(t, c.addr, "n1", "ams")
	s := node.sync(t, c.addr, nil) // answers when the test wants
	var welcome *v1.Welcome
	var first *model.Snapshot // the next one may come at any time
	s.wait(t, "a snapshot", func() bool {
		welcome, first = s.welcome, s.snapshot
		return welcome != nil && first != nil
	})
	if got := welcome.GetControllers(); len(got) != 1 || got[0] != c.addr {
		t.Errorf("welcome names controllers %v, want %s", got, c.addr)
	}
	if len(first.GossipKeys) != 1 || first.Cluster != "test" {
		t.Errorf("snapshot of %q with %d gossip keys", first.Cluster, len(first.GossipKeys))
	}
	// A node that never reads what it is sent holds up nobody.
	blocked := must[v1.NodeService_SyncClient](t)(slow.client(t, c.addr).Sync(t.Context()))
	if err := blocked.Send(hello()); err != nil {
		t.Fatal(err)
	}
	o.connected(t, slow, node) // only they count

	a, _ := o.accelerate(t, "web", "eu", "198.18.0.1")
	if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_IN_PROGRESS {
		t.Errorf("before anybody has it: %v", got)
	}
	s.wait(t, "the accelerator", func() bool { return len(s.snapshot.Groups) == 1 })
	current := func() *v1.SnapshotUpdate {
		snap := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
		return &v1.SnapshotUpdate{Revision: snap.GetRevision(), Hash: snap.GetHash()}
	}
	say := func(ack *v1.SnapshotAck) { s.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Ack{Ack: ack}}) }

	say(refuse(current()))
	eventually(t, "the rejection is seen", func() error {
		if r := o.node(t, node.id).GetRejections(); len(r) == 1 && r[0].GetMessage() == "is odd" &&
			strings.Contains(o.problems(t), "n1 refuses the snapshot") {
			return nil
		}
		return errors.New(o.problems(t))
	})
	if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_IN_PROGRESS {
		t.Errorf("while a node refuses it: %v", got)
	}

	say(apply(current()))
	slowHas := &v1.NodeMessage{Body: &v1.NodeMessage_Ack{Ack: apply(current())}}
	eventually(t, "n1 has applied it", func() error {
		n := o.node(t, node.id)
		if n.GetAppliedRevision() != current().GetRevision() || len(n.GetRejections()) != 0 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_IN_PROGRESS {
		t.Errorf("while the other node does not have it: %v", got)
	}
	if err := blocked.Send(slowHas); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is deployed", func() error {
		if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	n := o.node(t, node.id)
	if !n.GetConnected() || n.GetVersion() != "1.2.3" || n.GetCertificateExpires() == nil {
		t.Errorf("node: %v", n)
	}
	snap := must[*v1.Snapshot](t)(o.GetSnapshot(t.Context(), &emptypb.Empty{}))
	if len(snap.GetGossipKeys()) != 0 || len(snap.GetNodes()) != 2 {
		t.Errorf("GetSnapshot: %d gossip keys, %d nodes", len(snap.GetGossipKeys()), len(snap.GetNodes()))
	}
}

func TestRevokedAndDeletedNodesAreCut(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	revoked, deleted := o.join(t, c.addr, "n1", "ams"), o.join(t, c.addr, "n2", "ams")
	sr, sd := revoked.sync(t, c.addr, apply), deleted.sync(t, c.addr, apply)
	for _, s := range []*conversation{sr, sd} {
		s.wait(t, "a snapshot", func() bool { return s.snapshot != nil })
	}
	// The address of a node may change without more ado; a revoked one stays revoked.
	must[*v1.Node](t)(o.UpdateNode(t.Context(), &v1.UpdateNodeRequest{Node: &v1.Node{Id: revoked.id,
		State: v1.NodeState_NODE_STATE_REVOKED}, UpdateMask: mask("state")}))
	if _, err := o.DeleteNode(t.Context(), &v1.DeleteRequest{Id: deleted.id}); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*conversation{"revoked": sr, "deleted": sd} {
		if got := s.end(t); got != codes.PermissionDenied {
			t.Errorf("the %s node's stream ended with %v", name, got)
		}
	}
	for name, n := range map[string]*testNode{"revoked": revoked, "deleted": deleted} {
		s := n.sync(t, c.addr, apply)
		if got := s.end(t); got != codes.PermissionDenied {
			t.Errorf("the %s node's next stream ended with %v", name, got)
		}
	}
}

func TestHelloIsChecked(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	n := o.join(t, c.addr, "n1", "ams")
	hello := func(change func(*v1.Hello)) *v1.NodeMessage {
		h := &v1.Hello{Protocol: 1, Node: nodeAt("n1", "ams")}
		change(h)
		return &v1.NodeMessage{Body: &v1.NodeMessage_Hello{Hello: h}}
	}
	for name, tc := range map[string]struct {
		first *v1.NodeMessage
		want  codes.Code
	}{
		"not hello":        {&v1.NodeMessage{Body: &v1.NodeMessage_Notes{}}, codes.InvalidArgument},
		"nothing":          {&v1.NodeMessage{}, codes.InvalidArgument},
		"another protocol": {hello(func(h *v1.Hello) { h.Protocol = 2 }), codes.FailedPrecondition},
		"another name":     {hello(func(h *v1.Hello) { h.Node.Name = "n2" }), codes.FailedPrecondition},
		"another site":     {hello(func(h *v1.Hello) { h.Node.Site = "nyc" }), codes.FailedPrecondition},
		"another role":     {hello(func(h *v1.Hello) { h.Node.Gateway = false }), codes.FailedPrecondition},
	} {
		s := must[v1.NodeService_SyncClient](t)(n.client(t, c.addr).Sync(t.Context()))
		if err := s.Send(tc.first); err != nil {
			t.Fatal(err)
		}
		_, err := s.Recv()
		wantCode(t, name, err, tc.want)
	}
	// A new address is taken over.
	n.node.BackboneAddresses = []string{"192.0.2.250:9999"}
	s := n.sync(t, c.addr, apply)
	s.wait(t, "the address is in the snapshot", func() bool {
		return s.snapshot != nil && len(s.snapshot.Nodes) == 1 &&
			s.snapshot.Nodes[0].BackboneAddresses[0].String() == "192.0.2.250:9999"
	})
	// A second stream of the same node ends the first one.
	second := n.sync(t, c.addr, apply)
	second.wait(t, "a snapshot", func() bool { return second.snapshot != nil })
	if got := s.end(t); got != codes.Aborted {
		t.Errorf("the first stream ended with %v", got)
	}
	o.connected(t, n)
}

func TestHealthBecomesVerdicts(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	n := o.join(t, c.addr, "n1", "ams")
	_, g := o.accelerate(t, "web", "eu", "198.18.0.1", "198.18.0.2")
	s := n.sync(t, c.addr, apply)
	s.wait(t, "the group", func() bool { return s.snapshot != nil && len(s.snapshot.Groups) == 1 })
	if p := o.problems(t); !strings.Contains(p, "has no healthy endpoint: 2 not judged yet") {
		t.Errorf("problems: %s", p)
	}
	report := func(second v1.HealthState, reason string) {
		s.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Health{Health: &v1.HealthReport{Complete: true,
			Endpoints: []*v1.EndpointHealth{
				{GroupId: g.GetId(), EndpointId: "198.18.0.1", State: v1.HealthState_HEALTH_STATE_HEALTHY,
					Since: timestamppb.Now(), Latency: durationpb.New(time.Millisecond)},
				{GroupId: g.GetId(), EndpointId: "198.18.0.2", State: second, Reason: reason, Since: timestamppb.Now()},
				{GroupId: "nosuchgroup0", EndpointId: "198.18.0.2", State: second},
			}}}})
	}
	verdicts := func(want ...v1.HealthState) func() error {
		return func() error {
			list := must[*v1.ListHealthResponse](t)(o.ListHealth(t.Context(), &v1.ListRequest{Parent: g.GetId()}))
			for i, e := range list.GetEndpoints() {
				if e.GetVerdict() != want[i] || len(e.GetReports()) != 1 || e.GetReports()[0].GetProber() != n.id {
					return fmt.Errorf("%v", list)
				}
			}
			if len(list.GetEndpoints()) != len(want) {
				return fmt.Errorf("%v", list)
			}
			return nil
		}
	}
	const healthy, unhealthy = v1.HealthState_HEALTH_STATE_HEALTHY, v1.HealthState_HEALTH_STATE_UNHEALTHY
	report(unhealthy, "connect: connection refused")
	eventually(t, "verdicts", verdicts(healthy, unhealthy))
	s.wait(t, "the snapshot says so", func() bool {
		e := s.snapshot.Groups[0].Endpoints
		return e[0].Health == 1 && e[1].Health == 2
	})
	group := must[*v1.EndpointGroup](t)(o.GetEndpointGroup(t.Context(), &v1.GetRequest{Id: g.GetId()}))
	e := group.GetEndpoints()[1]
	if e.GetHealth() != unhealthy || e.GetHealthReason() != "connect: connection refused" {
		t.Errorf("GetEndpointGroup: %v", e)
	}
	report(healthy, "")
	eventually(t, "it is believed to be well again", verdicts(healthy, healthy))
	eventually(t, "the status shows no problem", func() error {
		st := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
		if st.GetEndpointsHealthy() != 2 || len(st.GetProblems()) != 0 || len(st.GetControllers()) != 1 ||
			!st.GetControllers()[0].GetLeader() {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
}

func TestPathsAndNotes(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	a, b := o.join(t, c.addr, "a", "ams"), o.join(t, c.addr, "b", "nyc")
	sa, sb := a.sync(t, c.addr, apply), b.sync(t, c.addr, apply)
	sa.wait(t, "a snapshot", func() bool { return sa.snapshot != nil })
	sb.wait(t, "a snapshot", func() bool { return sb.snapshot != nil })
	sa.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Paths{Paths: &v1.PathReport{Paths: []*v1.Path{
		{Peer: b.id, Rtt: durationpb.New(80 * time.Millisecond), Carriers: 2, Up: true}}}}})
	sb.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Notes{Notes: &v1.NodeNotes{Notes: []string{"no XDP here"}}}})
	eventually(t, "paths and notes are seen", func() error {
		paths := must[*v1.ListPathsResponse](t)(o.ListPaths(t.Context(), &v1.ListRequest{}))
		notes := o.node(t, b.id).GetNotes()
		if len(paths.GetNodes()) != 1 || paths.GetNodes()[0].GetNode() != a.id || len(notes) != 1 {
			return fmt.Errorf("%v, %v", paths, notes)
		}
		if !strings.Contains(o.problems(t), "UDP does not pass between nodes a and b") {
			return errors.New(o.problems(t))
		}
		return nil
	})
}

// Two controllers on one store are equal, and each sees what nodes say to the other.
func TestTwoControllers(t *testing.T) {
	etcd := netns.FreeAddr(t)
	one := start(t, func(c *Config) { c.Store.ClientListen = etcd })
	two := start(t, func(c *Config) { c.Store = StoreConfig{Endpoints: []string{etcd}} })
	o1 := adminOf(t, one.cfg.DataDir, one.addr)
	o2 := adminOf(t, one.cfg.DataDir, two.addr) // the same operator, the same authority
	o1.furnish(t)
	n := o1.join(t, two.addr, "n1", "ams") // a token made at one, used at two
	s := n.sync(t, one.addr, apply)
	s.wait(t, "both controllers", func() bool {
		return s.snapshot != nil && len(s.welcome.GetControllers()) == 2
	})
	a, _ := o2.accelerate(t, "web", "eu", "198.18.0.1")
	s.wait(t, "what was made at the other one", func() bool { return len(s.snapshot.Groups) == 1 })
	for _, o := range []*operator{o1, o2} {
		eventually(t, "it is deployed", func() error {
			if got := o.status(t, a.GetId()); got != v1.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
		eventually(t, "it knows both controllers and the node", func() error {
			st := must[*v1.StatusResponse](t)(o.GetStatus(t.Context(), &emptypb.Empty{}))
			if len(st.GetControllers()) != 2 || !st.GetNodes()[0].GetConnected() {
				return fmt.Errorf("%v", st)
			}
			return nil
		})
	}
	// Equal snapshots, to the byte.
	eventually(t, "they say the same", func() error {
		st1 := must[*v1.StatusResponse](t)(o1.GetStatus(t.Context(), &emptypb.Empty{}))
		st2 := must[*v1.StatusResponse](t)(o2.GetStatus(t.Context(), &emptypb.Empty{}))
		if st1.GetRevision() != st2.GetRevision() || string(st1.GetHash()) != string(st2.GetHash()) {
			return fmt.Errorf("%d %x, %d %x", st1.GetRevision(), st1.GetHash(), st2.GetRevision(), st2.GetHash())
		}
		return nil
	})
	// It renews its certificate at the other one: both know, and its stream goes on.
	before := o1.node(t, n.id).GetCertificateExpires().AsTime()
	must[*v1.RenewResponse](t)(n.client(t, two.addr).Renew(t.Context(),
		&v1.RenewRequest{CertificateRequest: newCSR(t)}))
	s.say(t, &v1.NodeMessage{Body: &v1.NodeMessage_Notes{Notes: &v1.NodeNotes{Notes: []string{"renewed"}}}})
	eventually(t, "the new certificate is known, and what the node says after it", func() error {
		got := o1.node(t, n.id)
		if !got.GetCertificateExpires().AsTime().After(before) || len(got.GetNotes()) != 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	// The node moves; the one that is left takes over the verdicts.
	s2 := n.sync(t, two.addr, apply)
	s2.wait(t, "a snapshot", func() bool { return s2.snapshot != nil })
	s.cancel()
	o1.connected(t, n)
	two.stop()
	if got := s2.end(t); got != codes.Unavailable {
		t.Errorf("the stream of a controller that stops ended with %v", got)
	}
	eventually(t, "the node is away and one is alone", func() error {
		st := must[*v1.StatusResponse](t)(o1.GetStatus(t.Context(), &emptypb.Empty{}))
		if st.GetNodes()[0].GetConnected() || len(st.GetControllers()) != 1 || !st.GetControllers()[0].GetLeader() {
			return fmt.Errorf("%v", st)
		}
		return nil
	})
}
