package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

var native = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

func TestDefaults(t *testing.T) {
	a, err := AcceleratorFromProto(nil)
	if err != nil || a.Project != "default" || a.IPAddressType != IPv4 || a.Status != InProgress {
		t.Errorf("accelerator %+v, %v", a, err)
	}
	l, err := ListenerFromProto(&pb.Listener{})
	if err != nil || l.TCPIdleTimeout != 340*time.Second || l.UDPIdleTimeout != 30*time.Second ||
		l.Affinity != AffinityNone || l.Protocol != 0 {
		t.Errorf("listener %+v, %v", l, err)
	}
	g, err := EndpointGroupFromProto(&pb.EndpointGroup{Endpoints: []*pb.Endpoint{{}, {Weight: proto.Uint32(0)}}})
	want := HealthCheck{Path: "/", Interval: 30 * time.Second, Timeout: 5 * time.Second,
		HealthyThreshold: 3, UnhealthyThreshold: 3, ExpectedCodes: "200-399"}
	if err != nil || g.TrafficDial != 100 || g.HealthCheck != want {
		t.Errorf("group %+v, %v", g, err)
	}
	if g.Endpoints[0].Weight != 128 || g.Endpoints[1].Weight != 0 {
		t.Errorf("an absent weight is %d, and 0 is %d", g.Endpoints[0].Weight, g.Endpoints[1].Weight)
	}
	g, _ = EndpointGroupFromProto(&pb.EndpointGroup{TrafficDial: proto.Float32(0)})
	if g.TrafficDial != 0 {
		t.Errorf("a dial of 0 became %v", g.TrafficDial)
	}
	h, _ := HealthCheckFromProto(&pb.HealthCheck{Interval: durationpb.New(2 * time.Second)})
	if h.Timeout != 2*time.Second {
		t.Errorf("the timeout of a 2 s interval is %v", h.Timeout)
	}
	s, err := SettingsFromProto(nil)
	if err != nil || s.Validate() != nil || s.AcceleratorsMax != 20 || s.ListenersPerAcceleratorMax != 10 ||
		s.GroupsPerAcceleratorMax != 42 || s.PortRangesPerListenerMax != 10 || s.PortOverridesPerGroupMax != 10 ||
		s.EndpointsPerGroupMax != 10 || s.TagsPerResourceMax != 50 || s.MaxEjectionPercent != 100 ||
		s.DNSSuffix != "nearcast.internal" {
		t.Errorf("settings %+v, %v", s, err)
	}
	for _, f := range []func() error{
		func() error { _, err := TargetFromProto(nil); return err },
		func() error { _, err := PoolFromProto(nil); return err },
		func() error { _, err := RegionFromProto(nil); return err },
		func() error { _, err := SiteFromProto(nil); return err },
		func() error { _, err := NodeFromProto(nil); return err },
		func() error { _, err := HealthCheckFromProto(nil); return err },
		func() error { _, err := EndpointFromProto(nil); return err },
	} {
		if err := f(); err != nil {
			t.Errorf("an empty message: %v", err)
		}
	}
}

func TestFromProtoRefuses(t *testing.T) {
	listenerErr := func(l *pb.Listener) error { _, err := ListenerFromProto(l); return err }
	groupErr := func(g *pb.EndpointGroup) error { _, err := EndpointGroupFromProto(g); return err }
	acceleratorErr := func(a *pb.Accelerator) error { _, err := AcceleratorFromProto(a); return err }
	poolErr := func(p *pb.Pool) error { _, err := PoolFromProto(p); return err }
	nodeErr := func(n *pb.Node) error { _, err := NodeFromProto(n); return err }
	snapshotErr := func(s *pb.Snapshot) error { _, err := SnapshotFromProto(s); return err }
	for _, c := range []struct {
		err   error
		field string
		says  string
	}{
		{listenerErr(&pb.Listener{Protocol: 9}), "listener.protocol", "unknown value 9"},
		{listenerErr(&pb.Listener{Affinity: -1}), "listener.affinity", "unknown value -1"},
		{listenerErr(&pb.Listener{PortRanges: []*pb.PortRange{{From: 1, To: 1}, {From: 1, To: 65536}}}),
			"listener.port_ranges[1].to", "65536"},
		{listenerErr(&pb.Listener{PortRanges: make([]*pb.PortRange, 101)}), "listener.port_ranges", "at most 100"},
		{listenerErr(&pb.Listener{TcpIdleTimeout: &durationpb.Duration{Seconds: math.MaxInt64}}),
			"listener.tcp_idle_timeout", "not a duration"},
		{listenerErr(&pb.Listener{ProxyProtocolFrom: []string{"10.0.0.1/8"}}),
			"listener.proxy_protocol_from[0]", "write 10.0.0.0/8"},
		{listenerErr(&pb.Listener{ProxyProtocolFrom: []string{"10.0.0.1"}}),
			"listener.proxy_protocol_from[0]", "write 10.0.0.1/32"},
		{listenerErr(&pb.Listener{ProxyProtocolFrom: []string{"::ffff:10.0.0.0/104"}}),
			"listener.proxy_protocol_from[0]", "as IPv4"},
		{listenerErr(&pb.Listener{ProxyProtocolFrom: []string{"fe80::1%eth0"}}),
			"listener.proxy_protocol_from[0]", "write fe80::1/128"},
		{groupErr(&pb.EndpointGroup{Endpoints: []*pb.Endpoint{{Weight: proto.Uint32(256)}}}),
			"group.endpoints[0].weight", "256"},
		{groupErr(&pb.EndpointGroup{Endpoints: []*pb.Endpoint{{ClientAddress: 7}}}),
			"group.endpoints[0].client_address", "7"},
		{groupErr(&pb.EndpointGroup{PortOverrides: []*pb.PortOverride{{ListenerPort: 70000}}}),
			"group.port_overrides[0].listener_port", "70000"},
		{groupErr(&pb.EndpointGroup{HealthCheck: &pb.HealthCheck{Port: 70000}}), "group.health_check.port", "70000"},
		{acceleratorErr(&pb.Accelerator{IpAddressType: 3}), "accelerator.ip_address_type", "3"},
		{acceleratorErr(&pb.Accelerator{Addresses: []string{"192.0.2.1", "x\x00" + strings.Repeat("y", 500)}}),
			"accelerator.addresses[1]", "not an IP address"},
		{acceleratorErr(&pb.Accelerator{Pools: []string{"a", "b", "c"}}), "accelerator.pools", "at most 2"},
		{acceleratorErr(&pb.Accelerator{CreatedTime: &timestamppb.Timestamp{Nanos: -1}}),
			"accelerator.created_time", "not a time"},
		{poolErr(&pb.Pool{Kind: 5}), "pool.kind", "5"},
		{poolErr(&pb.Pool{Prefixes: []string{"10.0.0.0/33"}}), "pool.prefixes[0]", "not a network"},
		{nodeErr(&pb.Node{BackboneAddresses: []string{"host:7444"}}), "node.backbone_addresses[0]", "with a port"},
		{nodeErr(&pb.Node{GossipAddress: "192.0.2.1"}), "node.gossip_address", "with a port"},
		{nodeErr(&pb.Node{State: 8}), "node.state", "8"},
		{snapshotErr(nil), "format", "is 0"},
		{snapshotErr(&pb.Snapshot{Format: 2}), "format", "upgrade"},
		{snapshotErr(&pb.Snapshot{Format: 1, Nodes: make([]*pb.Node, SnapshotNodesMax+1)}), "nodes", "at most 2000"},
		{snapshotErr(&pb.Snapshot{Format: 1, Listeners: []*pb.Listener{{Id: "4fd0ab12", Protocol: 8}}}),
			"listeners[4fd0ab12].protocol", "8"},
	} {
		fields := fieldsOf(t, c.err)
		if len(fields) != 1 || fields[0] != c.field || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("got %v, want %s … %s", c.err, c.field, c.says)
		}
		if c.err != nil && len(c.err.Error()) > 400 {
			t.Errorf("a message of %d bytes: %.100s…", len(c.err.Error()), c.err)
		}
	}
}

// TestEveryEnumValueIsKnown walks the descriptors, so that a value added to the schema and not to
// the tables here is noticed.
func TestEveryEnumValueIsKnown(t *testing.T) {
	seen := 0
	check := func(e protoreflect.EnumDescriptor, known func(int32) (back int32, ok bool)) {
		for i := range e.Values().Len() {
			n := int32(e.Values().Get(i).Number())
			back, ok := known(n)
			if !ok || (n != 0 && back != n) {
				t.Errorf("%s comes back as %d, %v", e.Values().Get(i).FullName(), back, ok)
			}
			seen++
		}
		if _, ok := known(99); ok {
			t.Errorf("%s takes 99", e.FullName())
		}
	}
	check(pb.Protocol(0).Descriptor(), roundEnum(protocols))
	check(pb.Affinity(0).Descriptor(), roundEnum(affinities))
	check(pb.IPAddressType(0).Descriptor(), roundEnum(ipAddressTypes))
	check(pb.AcceleratorStatus(0).Descriptor(), roundEnum(acceleratorStatuses))
	check(pb.HealthProtocol(0).Descriptor(), roundEnum(healthProtocols))
	check(pb.HealthState(0).Descriptor(), roundEnum(healthStates))
	check(pb.ClientAddressMode(0).Descriptor(), roundEnum(clientAddressModes))
	check(pb.PoolKind(0).Descriptor(), roundEnum(poolKinds))
	check(pb.NodeState(0).Descriptor(), roundEnum(nodeStates))
	if seen < 30 {
		t.Errorf("only %d values were looked at", seen)
	}
}

func roundEnum[P ~int32, M comparable](t enumTable[P, M]) func(int32) (int32, bool) {
	return func(n int32) (int32, bool) {
		c := newCheck("x")
		m := t.from(c, "f", P(n))
		return int32(t.to(m)), c.err() == nil
	}
}

// TestEveryFieldIsConverted sets each field of each message in turn and demands that it survives
// the way to the native value and back, except for those that have no place in the native value.
func TestEveryFieldIsConverted(t *testing.T) {
	notOurs := []string{ // present condition, not configuration
		"nearcast.v1.Node.version", "nearcast.v1.Node.last_seen", "nearcast.v1.Node.applied_revision",
		"nearcast.v1.Node.rejections", "nearcast.v1.Node.certificate_expires", "nearcast.v1.Node.connected",
		"nearcast.v1.Node.notes",
		"nearcast.v1.BgpPeer.id", "nearcast.v1.BgpPeer.password_set", // made of others
		"nearcast.v1.Listener.guard",  // an empty one is none; TestGuard fills it
		"nearcast.v1.Snapshot.format", // always the one that is known
	}
	special := map[string]string{ // strings that must parse
		"addresses": "192.0.2.1", "service_addresses": "192.0.2.1", "backbone_addresses": "192.0.2.1:7444",
		"gossip_address": "192.0.2.1:7445", "balance_address": "192.0.2.1:6080",
		"prefixes": "192.0.2.0/24", "proxy_protocol_from": "192.0.2.0/24",
		"endpoint_allow_networks": "192.0.2.0/24", "announce_aggregates": "192.0.2.0/24",
		"address": "192.0.2.1", "local_address": "192.0.2.1",
	}
	fields := 0
	for _, round := range []func(proto.Message) (proto.Message, error){
		rounder(AcceleratorFromProto, AcceleratorToProto), rounder(ListenerFromProto, ListenerToProto),
		rounder(EndpointGroupFromProto, EndpointGroupToProto), rounder(EndpointFromProto, EndpointToProto),
		rounder(HealthCheckFromProto, HealthCheckToProto), rounder(TargetFromProto, TargetToProto),
		rounder(PoolFromProto, PoolToProto), rounder(RegionFromProto, RegionToProto),
		rounder(SiteFromProto, SiteToProto), rounder(NodeFromProto, NodeToProto),
		rounder(SettingsFromProto, SettingsToProto), rounder(BGPPeerFromProto, BGPPeerToProto), rounder(SnapshotFromProto, SnapshotToProto),
	} {
		empty, _ := round(nil)
		desc := empty.ProtoReflect().Descriptor()
		for i := range desc.Fields().Len() {
			fd := desc.Fields().Get(i)
			if slices.Contains(notOurs, string(fd.FullName())) {
				continue
			}
			m := empty.ProtoReflect().New()
			if s, ok := m.Interface().(*pb.Snapshot); ok {
				s.Format = SnapshotFormat
			}
			setField(m, fd, special[string(fd.Name())])
			back, err := round(m.Interface())
			if err != nil {
				t.Errorf("%s: %v", fd.FullName(), err)
			} else if diff := cmp.Diff(fieldText(m, fd), fieldText(back.ProtoReflect(), fd)); diff != "" {
				t.Errorf("%s is lost on the way:\n%s", fd.FullName(), diff)
			}
			fields++
		}
	}
	if fields < 90 {
		t.Errorf("only %d fields were looked at", fields)
	}
}

// rounder returns the way of a message to the native value and back; nil stands for an empty one.
func rounder[P proto.Message, M any](from func(P) (M, error), to func(M) P) func(proto.Message) (proto.Message, error) {
	return func(m proto.Message) (proto.Message, error) {
		if m == nil {
			var zero P
			return zero, nil
		}
		v, err := from(m.(P))
		if err != nil {
			return nil, err
		}
		return to(v), nil
	}
}

func setField(m protoreflect.Message, fd protoreflect.FieldDescriptor, text string) {
	switch {
	case fd.IsMap():
		m.Mutable(fd).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
	case fd.IsList():
		m.Mutable(fd).List().Append(scalar(fd, m.NewField(fd).List().NewElement(), text))
	default:
		m.Set(fd, scalar(fd, m.NewField(fd), text))
	}
}

func scalar(fd protoreflect.FieldDescriptor, zero protoreflect.Value, text string) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if text == "" {
			text = "x"
		}
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("0123456789abcdef"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(7)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(7)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(2)
	}
	switch d := zero.Message().Interface().(type) {
	case *durationpb.Duration:
		d.Seconds = 7
	case *timestamppb.Timestamp:
		d.Seconds = 7
	case *pb.FlowLogs: // left out while it is empty
		d.Enabled, d.Bucket, d.Prefix = true, "b", "p"
	}
	return zero
}

// fieldText renders one field without the defaults that were filled inside it.
func fieldText(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return fmt.Sprint("map ", m.Get(fd).Map().Len())
	case fd.IsList() && m.Get(fd).List().Len() == 1 && fd.Message() == nil:
		return fmt.Sprint("list of ", m.Get(fd).List().Get(0))
	case fd.IsList():
		return fmt.Sprint("list ", m.Get(fd).List().Len())
	case fd.Message() != nil && strings.HasPrefix(string(fd.Message().FullName()), "nearcast."):
		return fmt.Sprint("message ", m.Has(fd))
	}
	return fmt.Sprint(m.Has(fd), m.Get(fd))
}

func TestRoundTrip(t *testing.T) {
	s := goodSnapshot()
	s.Sort()
	b, hash, err := EncodeSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeSnapshot(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, back, native); diff != "" {
		t.Errorf("changed on the way:\n%s", diff)
	}
	again, hash2, _ := EncodeSnapshot(back)
	if string(again) != string(b) || hash != hash2 {
		t.Error("equal snapshots have different bytes")
	}
}

// TestRoundTripRandom makes snapshots with random content in every field of their objects.
func TestRoundTripRandom(t *testing.T) {
	rng := newRand(2)
	for range 300 {
		s := goodSnapshot()
		randomize(rng, s)
		if err := s.Consistent(); err != nil {
			t.Fatalf("the generator makes bad snapshots: %v", err)
		}
		b, _, err := EncodeSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeSnapshot(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, back, native); diff != "" {
			t.Fatalf("changed on the way:\n%s", diff)
		}
	}
}

func randomize(rng *rand.Rand, s *Snapshot) {
	seconds := func(lo, hi int) time.Duration { return time.Duration(lo+rng.IntN(hi-lo+1)) * time.Second }
	s.Revision = rng.Uint64()
	s.CountryLists = []CountryList{{"AT", PackNetworks(prefixes("10.0.0.0/8", "2001:db8::/32"))}, {"KP", nil}}
	for i := range s.Listeners {
		l := &s.Listeners[i]
		l.Affinity, l.TCPIdleTimeout, l.UDPIdleTimeout = Affinity(rng.IntN(2)), seconds(1, 86400), seconds(1, 3600)
		l.MaxFlows, l.MaxFlowsPerSource, l.Revision = 1<<31+rng.Uint32()>>1, rng.Uint32()>>1, rng.Uint64()
		if l.Protocol.Has(TCP) && rng.IntN(2) == 0 {
			l.ProxyProtocolFrom = prefixes("10.0.0.0/8", "::/0")
		}
		if rng.IntN(2) == 0 {
			l.Guard = Guard{AllowNetworks: prefixes("10.0.0.0/8"), DenyNetworks: prefixes("10.1.0.0/16", "2001:db8::/32"),
				SourceRate: GuardRate{1 + rng.Uint32N(1000), 1 + rng.Uint32N(1000)}, TotalRate: GuardRate{7, 7},
				DropFragments: rng.IntN(2) == 0, AllowCountries: []CountryCode{"AT", "CH"}, DenyCountries: []CountryCode{"KP"}}
		}
		if rng.IntN(2) == 0 {
			l.Tags = map[string]string{"k1": "v", "k2": "", "ключ": "значение"}
		}
	}
	for i := range s.Groups {
		g := &s.Groups[i]
		g.TrafficDial = rng.Float32() * 100
		h := &g.HealthCheck
		h.Protocol, h.Port, h.Interval = HealthProtocol(rng.IntN(3)), uint16(rng.Uint32()), seconds(1, 300)
		h.Timeout = HealthTimeoutMin + time.Duration(rng.Int64N(int64(h.Interval-HealthTimeoutMin)+1))
		h.HealthyThreshold, h.UnhealthyThreshold = 1+rng.IntN(10), 1+rng.IntN(10)
		h.Path, h.Host, h.ExpectedCodes = "/a?b=%20", "app.example.com:8443", "200,301-302"
		for p := range uint16(rng.IntN(5)) {
			g.PortOverrides = append(g.PortOverrides, PortOverride{443 + p, 10443 + p})
		}
		for j := range g.Endpoints {
			e := &g.Endpoints[j]
			e.Weight, e.ClientAddress = uint8(rng.Uint32()), ClientAddressMode(rng.IntN(4))
			e.Health, e.HealthReason = HealthState(rng.IntN(3)), "status 503"
		}
	}
	for i := range s.Sites {
		s.Sites[i].Latitude, s.Sites[i].Longitude = rng.Float64()*180-90, rng.Float64()*360-180
	}
	for i := range s.Nodes {
		s.Nodes[i].State, s.Nodes[i].Revision = NodeState(rng.IntN(3)), rng.Uint64()
	}
}

func TestToProtoSharesNothing(t *testing.T) {
	s := goodSnapshot()
	p := SnapshotToProto(s)
	p.Accelerators[0].Tags["env"] = "changed"
	p.GossipKeys[0][0] = 'X'
	p.Pools[0].Prefixes[0] = "changed"
	p.Pools[3].Sites[0] = "changed"
	if diff := cmp.Diff(goodSnapshot(), s, native); diff != "" {
		t.Errorf("the native value changed with the message:\n%s", diff)
	}
	p = SnapshotToProto(s)
	back, err := SnapshotFromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	p.Accelerators[0].Tags["env"] = "changed"
	p.GossipKeys[0][0] = 'X'
	if diff := cmp.Diff(goodSnapshot(), back, native); diff != "" {
		t.Errorf("the native value changed with the message:\n%s", diff)
	}
}
