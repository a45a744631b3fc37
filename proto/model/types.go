// Package model answers: what is a Nearcast configuration, as native values?
//
// The three forms of an object are three types: the protobuf message that crosses a wire or lies in
// the store, the AWS dialect's JSON, and the value here, which all other code works with. Only this
// package converts between messages and values (FromProto…, …ToProto), and it alone knows what a
// valid object is: Validate looks at one object by itself, Snapshot.Consistent at how they refer to
// each other.
package model

import (
	"net/netip"
	"time"
)

// Identifiers. Each kind is a type of its own, so that one cannot be passed for another.
type (
	AcceleratorID string // UUID
	ListenerID    string // 8 hexadecimal digits
	GroupID       string // 12 hexadecimal digits
	EndpointID    string // as the operator gave it: IP address, DNS name or target name
	NodeID        string // given at enrolment
	RegionName    string
	SiteName      string
	PoolName      string
)

// Defaults of fields that may be left out. Sources: AWS Global Accelerator's API reference and
// developer guide, except where noted.
const (
	DefaultTCPIdleTimeout         = 340 * time.Second
	DefaultUDPIdleTimeout         = 30 * time.Second
	DefaultWeight                 = 128
	DefaultTrafficDial            = 100
	DefaultHealthInterval         = 30 * time.Second
	DefaultHealthTimeout          = 5 * time.Second // ours; AWS does not say
	DefaultHealthThreshold        = 3
	DefaultHealthPath             = "/"
	DefaultExpectedCodes          = "200-399" // Route 53's rule: 2xx and 3xx
	DefaultProject                = "default"
	DefaultDNSSuffix              = "nearcast.internal"
	SnapshotFormat         uint32 = 1
)

// Protocol is a set of transport protocols: TCP, UDP, or both.
type Protocol uint8

const (
	TCP    Protocol = 1
	UDP    Protocol = 2
	TCPUDP          = TCP | UDP
)

// Has reports whether p includes all of q.
func (p Protocol) Has(q Protocol) bool { return p&q == q && q != 0 }

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case TCPUDP:
		return "TCP_UDP"
	}
	return "unspecified"
}

// IPAddressType says which address families an accelerator has.
type IPAddressType uint8

const (
	IPv4 IPAddressType = iota
	DualStack
)

// Affinity says which parts of a flow choose its endpoint.
type Affinity uint8

const (
	AffinityNone     Affinity = iota // 5-tuple
	AffinitySourceIP                 // source address and accelerated address
)

// AcceleratorStatus says whether every live node has applied the accelerator's latest change.
type AcceleratorStatus uint8

const (
	InProgress AcceleratorStatus = iota
	Deployed
)

// Accelerator is two static addresses (four when dual-stack) and a DNS name.
type Accelerator struct {
	ID            AcceleratorID
	Name          string
	Enabled       bool
	IPAddressType IPAddressType
	Pools         []PoolName
	Addresses     []netip.Addr // empty on a node pool
	DNSName       string
	Status        AcceleratorStatus // meaningful in the admin API only, not in snapshots
	Created       time.Time
	Modified      time.Time
	Tags          map[string]string
	Project       string
	FlowLogs      FlowLogs
	Type          AcceleratorType
	Revision      uint64
}

// FlowLogs says where the records of an accelerator's flows are kept. Bucket and Prefix may be there
// while it is not enabled.
type FlowLogs struct {
	Enabled        bool
	Bucket, Prefix string
}

// PortRange is From ≤ To, both included.
type PortRange struct{ From, To uint16 }

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.From <= port && port <= r.To }

// Overlaps reports whether the ranges share a port.
func (r PortRange) Overlaps(o PortRange) bool { return r.From <= o.To && o.From <= r.To }

// Listener takes traffic on port ranges of an accelerator's addresses.
type Listener struct {
	ID                ListenerID
	Accelerator       AcceleratorID
	Protocol          Protocol
	PortRanges        []PortRange
	Affinity          Affinity
	TCPIdleTimeout    time.Duration // never 0 after FromProto
	UDPIdleTimeout    time.Duration // never 0 after FromProto
	ProxyProtocolFrom []netip.Prefix
	MaxFlows          uint32 // 0: the node's limit
	MaxFlowsPerSource uint32 // 0: a quarter of MaxFlows
	Guard             Guard
	Tags              map[string]string
	Revision          uint64
}

// HealthProtocol is how a health check asks.
type HealthProtocol uint8

const (
	HealthTCP HealthProtocol = iota
	HealthHTTP
	HealthHTTPS
)

// HealthCheck says how the endpoints of a group are judged. FromProto fills every default except
// Port, whose default is the listener's first port and is filled by the catalog.
type HealthCheck struct {
	Protocol           HealthProtocol
	Port               uint16
	Path               string
	Interval           time.Duration
	Timeout            time.Duration
	HealthyThreshold   int
	UnhealthyThreshold int
	Host               string
	ExpectedCodes      string
}

// PortOverride sends a listener port to another port of the endpoints.
type PortOverride struct{ ListenerPort, EndpointPort uint16 }

// ClientAddressMode says how an endpoint learns the client's address.
type ClientAddressMode uint8

const (
	ClientAddressNone ClientAddressMode = iota
	ClientAddressProxyV1
	ClientAddressProxyV2
	ClientAddressTransparent
)

// HealthState is a verdict on an endpoint.
type HealthState uint8

const (
	HealthInitial HealthState = iota
	HealthHealthy
	HealthUnhealthy
)

// Endpoint is an address with a weight inside a group.
type Endpoint struct {
	ID            EndpointID
	Weight        uint8
	ClientAddress ClientAddressMode
	Host          string // what ID resolves to: an IP address or a DNS name (the gateway resolves it)
	Health        HealthState
	HealthReason  string
}

// Addr returns the endpoint's address if Host is one, and the zero Addr if Host is a DNS name.
func (e *Endpoint) Addr() netip.Addr {
	a, _ := netip.ParseAddr(e.Host)
	return a.Unmap()
}

// EndpointGroup is one region of a listener.
type EndpointGroup struct {
	ID            GroupID
	Listener      ListenerID
	Region        RegionName
	TrafficDial   float32 // percent, 0..100
	HealthCheck   HealthCheck
	PortOverrides []PortOverride
	Endpoints     []Endpoint
	Tags          map[string]string
	Revision      uint64
}

// EndpointPort returns the port that flows to listenerPort go to at the endpoints.
func (g *EndpointGroup) EndpointPort(listenerPort uint16) uint16 {
	for _, o := range g.PortOverrides {
		if o.ListenerPort == listenerPort {
			return o.EndpointPort
		}
	}
	return listenerPort
}

// Target gives an address a name that endpoints can use.
type Target struct {
	Name     string
	Region   RegionName // "": anywhere
	Host     string
	Project  string // whose accelerators may use it without an attachment; "": everybody's
	Tags     map[string]string
	Revision uint64
}

// PoolKind says who answers on a pool's addresses.
type PoolKind uint8

const (
	PoolAnycast PoolKind = iota + 1
	PoolNode
)

// Pool is where accelerated addresses come from.
type Pool struct {
	Name     PoolName
	Kind     PoolKind
	Zone     string
	Prefixes []netip.Prefix
	Sites    []SiteName
	Project  string // "": everybody's; else that brought it (BYOIP): its accelerators get addresses if they ask
	Withheld bool   // of a range that was brought: not advertised now, must not be announced
	Revision uint64
}

// Region is where endpoints live.
type Region struct {
	Name        RegionName
	Description string
	Revision    uint64
}

// Site is nodes in one place.
type Site struct {
	Name      SiteName
	Region    RegionName
	Latitude  float64
	Longitude float64
	BGP       *SiteBGP // nil: its nodes announce nothing
	Revision  uint64
}

// NodeState is what the operators want of a node.
type NodeState uint8

const (
	NodeActive NodeState = iota
	NodeDraining
	NodeRevoked
)

// Node is a machine that runs the edge daemon: its identity and addresses. What is known about its
// present condition (last seen, applied revision …) is not configuration and lives with the fleet.
type Node struct {
	ID                NodeID
	Name              string
	Site              SiteName
	Edge              bool
	Gateway           bool
	State             NodeState
	BackboneAddresses []netip.AddrPort
	GossipAddress     netip.AddrPort
	ServiceAddresses  []netip.Addr
	BalanceAddress    netip.AddrPort // where the site's other nodes send on its flows' packets; zero: nowhere
	BalanceWeight     int            // its share of the site's flows; 0: BalanceWeightDefault
	AnnounceDrained   bool           // its BGP announcements are withdrawn by an operator
	Revision          uint64
}

// Settings are the cluster's limits; every default is filled by FromProto.
type Settings struct {
	AcceleratorsMax            int
	ListenersPerAcceleratorMax int
	GroupsPerAcceleratorMax    int
	PortRangesPerListenerMax   int
	PortOverridesPerGroupMax   int
	EndpointsPerGroupMax       int
	TagsPerResourceMax         int
	MaxEjectionPercent         int
	EndpointAllowNetworks      []netip.Prefix
	DNSSuffix                  string
	AnnounceAggregates         []netip.Prefix // announced in place of the pools' prefixes in them
	AnnounceFloor              int            // sites that go on announcing a prefix in any case
	Revision                   uint64

	CustomRoutingAcceleratorsMax int
	AttachmentsMax               int // of a project
	PrincipalsPerAttachmentMax   int
	BYOIPRangesMax               int // of a project
}

// Snapshot is the compiled configuration of the whole fleet. It is immutable once made: everybody
// who holds a *Snapshot may read it without a lock, and nobody may change it. The lists are sorted
// by their keys.
type Snapshot struct {
	Revision              uint64
	Cluster               string
	Accelerators          []Accelerator
	Listeners             []Listener
	Groups                []EndpointGroup
	Pools                 []Pool
	Regions               []Region
	Sites                 []Site
	Nodes                 []Node
	GossipKeys            [][]byte
	EndpointAllowNetworks []netip.Prefix
	BGPPeers              []BGPPeer // with passwords
	AnnounceAggregates    []netip.Prefix
	AnnounceFloor         int // 0: 1
	Subnets               []Subnet
	CustomRoutingGroups   []CustomRoutingGroup
	Zones                 []Zone
	Steering              Steering // the zero value: see OrDefault
	DNSSuffix             string   // "": no accelerator is answered for
	CookieSecrets         [][]byte
	CountryLists          []CountryList // of countries that guards name; one may be missing
}

// FieldError says what is wrong with one field and how to mend it. Field is a path in the words of
// the API, like "listener.port_ranges[1].to".
type FieldError struct {
	Field   string
	Message string
}

func (e FieldError) Error() string { return e.Field + ": " + e.Message }

// FieldErrors is every FieldError found in one object, never empty when returned as an error.
type FieldErrors []FieldError

func (es FieldErrors) Error() string {
	s := ""
	for i, e := range es {
		if i > 0 {
			s += "; "
		}
		s += e.Error()
	}
	return s
}
