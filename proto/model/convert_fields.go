package model

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// enumTable pairs protobuf values with native ones. Where several protobuf values mean the same
// (UNSPECIFIED and the default), the first of them is the one that ToProto writes.
type enumTable[P ~int32, M comparable] []enumPair[P, M]

type enumPair[P ~int32, M comparable] struct {
	wire   P
	native M
}

func (t enumTable[P, M]) from(c check, field string, p P) (m M) {
	for _, e := range t {
		if e.wire == p {
			return e.native
		}
	}
	c.wrong(field, "has the unknown value %d; this version does not know it, upgrade or choose another", p)
	return m
}

func (t enumTable[P, M]) to(m M) P {
	for _, e := range t {
		if e.native == m {
			return e.wire
		}
	}
	return 0
}

var (
	ipAddressTypes = enumTable[pb.IPAddressType, IPAddressType]{
		{pb.IPAddressType_IP_ADDRESS_TYPE_IPV4, IPv4},
		{pb.IPAddressType_IP_ADDRESS_TYPE_DUAL_STACK, DualStack},
		{pb.IPAddressType_IP_ADDRESS_TYPE_UNSPECIFIED, IPv4},
	}
	acceleratorTypes = enumTable[pb.AcceleratorType, AcceleratorType]{
		{pb.AcceleratorType_ACCELERATOR_TYPE_UNSPECIFIED, Standard}, // first, so that stored bytes stay as they were
		{pb.AcceleratorType_ACCELERATOR_TYPE_STANDARD, Standard},
		{pb.AcceleratorType_ACCELERATOR_TYPE_CUSTOM_ROUTING, CustomRouting},
	}
	acceleratorStatuses = enumTable[pb.AcceleratorStatus, AcceleratorStatus]{
		{pb.AcceleratorStatus_ACCELERATOR_STATUS_IN_PROGRESS, InProgress},
		{pb.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED, Deployed},
		{pb.AcceleratorStatus_ACCELERATOR_STATUS_UNSPECIFIED, InProgress},
	}
	protocols = enumTable[pb.Protocol, Protocol]{
		{pb.Protocol_PROTOCOL_UNSPECIFIED, 0}, // Validate says that it is missing
		{pb.Protocol_PROTOCOL_TCP, TCP},
		{pb.Protocol_PROTOCOL_UDP, UDP},
		{pb.Protocol_PROTOCOL_TCP_UDP, TCPUDP},
	}
	affinities = enumTable[pb.Affinity, Affinity]{
		{pb.Affinity_AFFINITY_NONE, AffinityNone},
		{pb.Affinity_AFFINITY_SOURCE_IP, AffinitySourceIP},
		{pb.Affinity_AFFINITY_UNSPECIFIED, AffinityNone},
	}
	healthProtocols = enumTable[pb.HealthProtocol, HealthProtocol]{
		{pb.HealthProtocol_HEALTH_PROTOCOL_TCP, HealthTCP},
		{pb.HealthProtocol_HEALTH_PROTOCOL_HTTP, HealthHTTP},
		{pb.HealthProtocol_HEALTH_PROTOCOL_HTTPS, HealthHTTPS},
		{pb.HealthProtocol_HEALTH_PROTOCOL_UNSPECIFIED, HealthTCP},
	}
	clientAddressModes = enumTable[pb.ClientAddressMode, ClientAddressMode]{
		{pb.ClientAddressMode_CLIENT_ADDRESS_MODE_NONE, ClientAddressNone},
		{pb.ClientAddressMode_CLIENT_ADDRESS_MODE_PROXY_V1, ClientAddressProxyV1},
		{pb.ClientAddressMode_CLIENT_ADDRESS_MODE_PROXY_V2, ClientAddressProxyV2},
		{pb.ClientAddressMode_CLIENT_ADDRESS_MODE_TRANSPARENT, ClientAddressTransparent},
		{pb.ClientAddressMode_CLIENT_ADDRESS_MODE_UNSPECIFIED, ClientAddressNone},
	}
	healthStates = enumTable[pb.HealthState, HealthState]{
		{pb.HealthState_HEALTH_STATE_INITIAL, HealthInitial},
		{pb.HealthState_HEALTH_STATE_HEALTHY, HealthHealthy},
		{pb.HealthState_HEALTH_STATE_UNHEALTHY, HealthUnhealthy},
		{pb.HealthState_HEALTH_STATE_UNSPECIFIED, HealthInitial},
	}
	poolKinds = enumTable[pb.PoolKind, PoolKind]{
		{pb.PoolKind_POOL_KIND_UNSPECIFIED, 0}, // Validate says that it is missing
		{pb.PoolKind_POOL_KIND_ANYCAST, PoolAnycast},
		{pb.PoolKind_POOL_KIND_NODE, PoolNode},
	}
	nodeStates = enumTable[pb.NodeState, NodeState]{
		{pb.NodeState_NODE_STATE_ACTIVE, NodeActive},
		{pb.NodeState_NODE_STATE_DRAINING, NodeDraining},
		{pb.NodeState_NODE_STATE_REVOKED, NodeRevoked},
		{pb.NodeState_NODE_STATE_UNSPECIFIED, NodeActive},
	}
)

// HealthStateFromProto converts a verdict; a value that this version does not know is an error.
func HealthStateFromProto(p pb.HealthState) (HealthState, error) {
	c := newCheck("health")
	m := healthStates.from(c, "", p)
	return m, c.err()
}

// HealthStateToProto converts a verdict.
func HealthStateToProto(s HealthState) pb.HealthState { return healthStates.to(s) }

// NodeStateToProto converts what the operators want of a node.
func NodeStateToProto(s NodeState) pb.NodeState { return nodeStates.to(s) }

// portFrom converts a port; 0 stays 0, which some fields give a meaning.
func portFrom(c check, field string, n uint32) uint16 {
	if n > 65535 {
		c.wrong(field, "is %d; ports are 1 to 65535", n)
		return 0
	}
	return uint16(n)
}

// durationFrom converts a duration, where 0 or nothing means the default.
func durationFrom(c check, field string, p *durationpb.Duration, def time.Duration) time.Duration {
	if p == nil {
		return def
	}
	if err := p.CheckValid(); err != nil {
		c.wrong(field, "is not a duration: %v", err)
		return def
	}
	if d := p.AsDuration(); d != 0 {
		return d
	}
	return def
}

func timeFrom(c check, field string, p *timestamppb.Timestamp) time.Time {
	if p == nil {
		return time.Time{}
	}
	if err := p.CheckValid(); err != nil {
		c.wrong(field, "is not a time: %v", err)
		return time.Time{}
	}
	return p.AsTime()
}

func timeTo(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// addrFrom converts an address; one that is an IPv4 address inside an IPv6 one becomes the former.
func addrFrom(c check, field, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		c.wrong(field, "%s is not an IP address; write it like 192.0.2.10 or 2001:db8::10", show(s))
		return netip.Addr{}
	}
	return a.Unmap()
}

func addrPortFrom(c check, field, s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		c.wrong(field, "%s is not an address with a port; write it like 192.0.2.10:7444 or [2001:db8::10]:7444",
			show(s))
		return netip.AddrPort{}
	}
	return unmap(a)
}

func addrPortTo(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// prefixFrom converts a network. Bits below its length are refused, not dropped: they are a sign
// that somebody meant another network.
func prefixFrom(c check, field, s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		fix := "write it like 192.0.2.0/24 or 2001:db8::/48"
		if a, err := netip.ParseAddr(s); err == nil {
			fix = "write " + netip.PrefixFrom(a.WithZone(""), a.BitLen()).String() + " for this one address"
		}
		c.wrong(field, "%s is not a network; %s", show(s), fix)
		return netip.Prefix{}
	}
	if p != p.Masked() {
		c.wrong(field, "%s has bits below its length; write %v", show(s), p.Masked())
		return netip.Prefix{}
	}
	if p.Addr().Is4In6() {
		c.wrong(field, "%s is an IPv4 network written as IPv6; write it as IPv4", show(s))
		return netip.Prefix{}
	}
	return p
}

func addrsFrom(c check, field string, in []string, limit int) []netip.Addr {
	return listFrom(c, field, in, limit, addrFrom)
}

func prefixesFrom(c check, field string, in []string, limit int) []netip.Prefix {
	return listFrom(c, field, in, limit, prefixFrom)
}

// listFrom converts a list of at most limit entries; an empty one becomes nil.
func listFrom[P, M any](c check, field string, in []P, limit int, from func(check, string, P) M) []M {
	if len(in) == 0 || !c.count(field, len(in), limit) {
		return nil
	}
	out := make([]M, len(in))
	for i := range in {
		out[i] = from(c, index(field, i), in[i])
	}
	return out
}

// stringsTo converts a list of anything that prints itself; an empty one becomes nil.
func stringsTo[S interface{ String() string }](in []S) []string {
	if len(in) == 0 {
		return nil
	}
	out := make([]string, len(in))
	for i := range in {
		out[i] = in[i].String()
	}
	return out
}

// names converts between a list of names and a list of strings; an empty one becomes nil.
func names[To, From ~string](in []From) []To {
	if len(in) == 0 {
		return nil
	}
	out := make([]To, len(in))
	for i := range in {
		out[i] = To(in[i])
	}
	return out
}

func tagsFrom(in map[string]string) map[string]string {
	if len(in) == 0 {
		return nil
	}
	return maps.Clone(in)
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
