package catalog

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// kind is what the catalog must know of one kind of object to keep it.
type kind[K ~string, T any] struct {
	name     string // as in errors: "listener"
	prefix   string // of its keys in the store
	missing  Reason
	key      func(*T) K
	revision func(*T) *uint64
	clone    func(T) T               // shares nothing with its argument
	encode   func(T) ([]byte, error) // without what is computed when it is read
	decode   func([]byte) (T, error)
}

// entry is one stored object. Its value is never changed in place: readers may hold it without a lock.
type entry[T any] struct {
	value             T
	created, modified uint64 // store revisions
}

// table holds the objects of one kind: the catalog's own has base only; a change's view of it has what
// the change staged above a base that it does not touch.
type table[K ~string, T any] struct {
	*kind[K, T]
	base   map[K]*entry[T]
	staged map[K]*entry[T] // nil values: deleted
}

func newTable[K ~string, T any](k *kind[K, T]) table[K, T] {
	return table[K, T]{kind: k, base: map[K]*entry[T]{}}
}

// view returns the table for a change to stage in.
func (t table[K, T]) view() table[K, T] {
	t.staged = map[K]*entry[T]{}
	return t
}

func (t *table[K, T]) entry(k K) *entry[T] {
	if e, staged := t.staged[k]; staged {
		return e
	}
	return t.base[k]
}

// get returns one object, or nil. Nobody may change it.
func (t *table[K, T]) get(k K) *T {
	if e := t.entry(k); e != nil {
		return &e.value
	}
	return nil
}

// need returns one object, or NotFound.
func (t *table[K, T]) need(k K) (*T, error) {
	if v := t.get(k); v != nil {
		return v, nil
	}
	return nil, notFound(t.missing, t.name, string(k))
}

// all yields every object in no order. Nobody may change them.
func (t *table[K, T]) all() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for e := range t.entries() {
			if !yield(&e.value) {
				return
			}
		}
	}
}

func (t *table[K, T]) entries() iter.Seq[*entry[T]] {
	return func(yield func(*entry[T]) bool) {
		for k, e := range t.base {
			if _, staged := t.staged[k]; !staged && !yield(e) {
				return
			}
		}
		for _, e := range t.staged {
			if e != nil && !yield(e) {
				return
			}
		}
	}
}

func (t *table[K, T]) len() int {
	n := len(t.base)
	for k, e := range t.staged {
		_, there := t.base[k]
		switch {
		case e == nil && there:
			n--
		case e != nil && !there:
			n++
		}
	}
	return n
}

// sorted returns copies of all objects in the order of their keys.
func (t *table[K, T]) sorted() []T {
	keys := slices.SortedFunc(maps.Keys(t.base), cmp.Compare[K])
	values := make([]T, len(keys))
	for i, k := range keys {
		values[i] = t.base[k].value
	}
	return values
}

func (t *table[K, T]) storeKey(k K) string { return t.prefix + string(k) }

// load takes what the store has under k.
func (t *table[K, T]) load(k K, b []byte, created, modified uint64) error {
	v, err := t.decode(b)
	if err != nil {
		return fmt.Errorf("stored %s %s: %w", t.name, k, err)
	}
	if got := t.key(&v); got != k {
		return fmt.Errorf("stored %s %s calls itself %s", t.name, k, got)
	}
	*t.revision(&v) = modified
	t.base[k] = &entry[T]{v, created, modified}
	return nil
}

// encoder and decoder are the two directions of one message.
func encoder[T any, P proto.Message](to func(T) P) func(T) ([]byte, error) {
	return func(v T) ([]byte, error) { return proto.MarshalOptions{Deterministic: true}.Marshal(to(v)) }
}

func decoder[T, M any, P interface {
	*M
	proto.Message
}](from func(P) (T, error)) func([]byte) (T, error) {
	return func(b []byte) (T, error) {
		p := P(new(M))
		if err := proto.Unmarshal(b, p); err != nil {
			var none T
			return none, err
		}
		return from(p)
	}
}

var acceleratorKind = &kind[model.AcceleratorID, model.Accelerator]{
	name: "accelerator", prefix: "accelerators/", missing: ReasonAcceleratorNotFound,
	key:      func(a *model.Accelerator) model.AcceleratorID { return a.ID },
	revision: func(a *model.Accelerator) *uint64 { return &a.Revision },
	clone: func(a model.Accelerator) model.Accelerator {
		a.Pools, a.Addresses, a.Tags = slices.Clone(a.Pools), slices.Clone(a.Addresses), maps.Clone(a.Tags)
		return a
	},
	encode: encoder(func(a model.Accelerator) *pb.Accelerator {
		a.Status, a.Revision = 0, 0
		return model.AcceleratorToProto(a)
	}),
	decode: decoder(model.AcceleratorFromProto),
}

var listenerKind = &kind[model.ListenerID, model.Listener]{
	name: "listener", prefix: "listeners/", missing: ReasonListenerNotFound,
	key:      func(l *model.Listener) model.ListenerID { return l.ID },
	revision: func(l *model.Listener) *uint64 { return &l.Revision },
	clone: func(l model.Listener) model.Listener {
		l.PortRanges, l.ProxyProtocolFrom = slices.Clone(l.PortRanges), slices.Clone(l.ProxyProtocolFrom)
		l.Guard = l.Guard.Clone()
		l.Tags = maps.Clone(l.Tags)
		return l
	},
	encode: encoder(func(l model.Listener) *pb.Listener { l.Revision = 0; return model.ListenerToProto(l) }),
	decode: decoder(model.ListenerFromProto),
}

var groupKind = &kind[model.GroupID, model.EndpointGroup]{
	name: "endpoint group", prefix: "groups/", missing: ReasonGroupNotFound,
	key:      func(g *model.EndpointGroup) model.GroupID { return g.ID },
	revision: func(g *model.EndpointGroup) *uint64 { return &g.Revision },
	clone: func(g model.EndpointGroup) model.EndpointGroup {
		g.PortOverrides, g.Endpoints = slices.Clone(g.PortOverrides), slices.Clone(g.Endpoints)
		g.Tags = maps.Clone(g.Tags)
		return g
	},
	encode: encoder(func(g model.EndpointGroup) *pb.EndpointGroup {
		g.Revision, g.Endpoints = 0, slices.Clone(g.Endpoints)
		for i := range g.Endpoints { // what endpoints resolve to and how they do is not configuration
			e := &g.Endpoints[i]
			e.Host, e.Health, e.HealthReason = "", model.HealthInitial, ""
		}
		return model.EndpointGroupToProto(g)
	}),
	decode: decoder(model.EndpointGroupFromProto),
}

var targetKind = &kind[string, model.Target]{
	name: "target", prefix: "targets/", missing: ReasonTargetNotFound,
	key:      func(t *model.Target) string { return t.Name },
	revision: func(t *model.Target) *uint64 { return &t.Revision },
	clone:    func(t model.Target) model.Target { t.Tags = maps.Clone(t.Tags); return t },
	encode:   encoder(func(t model.Target) *pb.Target { t.Revision = 0; return model.TargetToProto(t) }),
	decode:   decoder(model.TargetFromProto),
}

var poolKind = &kind[model.PoolName, model.Pool]{
	name: "pool", prefix: "pools/", missing: ReasonPoolNotFound,
	key:      func(p *model.Pool) model.PoolName { return p.Name },
	revision: func(p *model.Pool) *uint64 { return &p.Revision },
	clone: func(p model.Pool) model.Pool {
		p.Prefixes, p.Sites = slices.Clone(p.Prefixes), slices.Clone(p.Sites)
		return p
	},
	encode: encoder(func(p model.Pool) *pb.Pool { p.Revision = 0; return model.PoolToProto(p) }),
	decode: decoder(model.PoolFromProto),
}

var regionKind = &kind[model.RegionName, model.Region]{
	name: "region", prefix: "regions/", missing: ReasonRegionNotFound,
	key:      func(r *model.Region) model.RegionName { return r.Name },
	revision: func(r *model.Region) *uint64 { return &r.Revision },
	clone:    func(r model.Region) model.Region { return r },
	encode:   encoder(func(r model.Region) *pb.Region { r.Revision = 0; return model.RegionToProto(r) }),
	decode:   decoder(model.RegionFromProto),
}

var siteKind = &kind[model.SiteName, model.Site]{
	name: "site", prefix: "sites/", missing: ReasonSiteNotFound,
	key:      func(s *model.Site) model.SiteName { return s.Name },
	revision: func(s *model.Site) *uint64 { return &s.Revision },
	clone:    func(s model.Site) model.Site { s.BGP = s.BGP.Clone(); return s },
	encode:   encoder(func(s model.Site) *pb.Site { s.Revision = 0; return model.SiteToProto(s) }),
	decode:   decoder(model.SiteFromProto),
}

var nodeKind = &kind[model.NodeID, model.Node]{
	name: "node", prefix: "nodes/", missing: ReasonNodeNotFound,
	key:      func(n *model.Node) model.NodeID { return n.ID },
	revision: func(n *model.Node) *uint64 { return &n.Revision },
	clone: func(n model.Node) model.Node {
		n.BackboneAddresses = slices.Clone(n.BackboneAddresses)
		n.ServiceAddresses = slices.Clone(n.ServiceAddresses)
		return n
	},
	encode: encoder(func(n model.Node) *pb.Node { n.Revision = 0; return model.NodeToProto(n) }),
	decode: decoder(model.NodeFromProto),
}

var peerKind = &kind[model.PeerID, model.BGPPeer]{
	name: "BGP peer", prefix: "bgp-peers/",
	key:      func(p *model.BGPPeer) model.PeerID { return p.ID() },
	revision: func(p *model.BGPPeer) *uint64 { return &p.Revision },
	clone: func(p model.BGPPeer) model.BGPPeer {
		p.Nodes, p.Communities = slices.Clone(p.Nodes), slices.Clone(p.Communities)
		if p.MED != nil {
			med := *p.MED
			p.MED = &med
		}
		return p
	},
	encode: encoder(func(p model.BGPPeer) *pb.BgpPeer { p.Revision = 0; return model.BGPPeerToProto(p) }),
	decode: decoder(model.BGPPeerFromProto),
}

var subnetKind = &kind[model.SubnetName, model.Subnet]{
	name: "subnet", prefix: "subnets/", missing: ReasonEndpointNotFound,
	key:      func(s *model.Subnet) model.SubnetName { return s.Name },
	revision: func(s *model.Subnet) *uint64 { return &s.Revision },
	clone:    func(s model.Subnet) model.Subnet { s.Tags = maps.Clone(s.Tags); return s },
	encode:   encoder(func(s model.Subnet) *pb.Subnet { s.Revision = 0; return model.SubnetToProto(s) }),
	decode:   decoder(model.SubnetFromProto),
}

var customGroupKind = &kind[model.GroupID, model.CustomRoutingGroup]{
	name: "custom routing group", prefix: "custom-groups/", missing: ReasonGroupNotFound,
	key:      func(g *model.CustomRoutingGroup) model.GroupID { return g.ID },
	revision: func(g *model.CustomRoutingGroup) *uint64 { return &g.Revision },
	clone: func(g model.CustomRoutingGroup) model.CustomRoutingGroup {
		g.Destinations, g.Endpoints = slices.Clone(g.Destinations), slices.Clone(g.Endpoints)
		for i := range g.Endpoints {
			e := &g.Endpoints[i]
			e.Ports, e.Allowed = slices.Clone(e.Ports), slices.Clone(e.Allowed)
		}
		g.Tags = maps.Clone(g.Tags)
		return g
	},
	encode: encoder(func(g model.CustomRoutingGroup) *pb.CustomRoutingGroup {
		g.Revision = 0
		return model.CustomRoutingGroupToProto(g)
	}),
	decode: decoder(model.CustomRoutingGroupFromProto),
}

// settingsKey is the only key of its kind.
const settingsKey = "cluster"

var settingsKind = &kind[string, model.Settings]{
	name: "settings", prefix: "settings/",
	key:      func(*model.Settings) string { return settingsKey },
	revision: func(s *model.Settings) *uint64 { return &s.Revision },
	clone: func(s model.Settings) model.Settings {
		s.EndpointAllowNetworks = slices.Clone(s.EndpointAllowNetworks)
		s.AnnounceAggregates = slices.Clone(s.AnnounceAggregates)
		return s
	},
	encode: encoder(func(s model.Settings) *pb.Settings { s.Revision = 0; return model.SettingsToProto(s) }),
	decode: decoder(model.SettingsFromProto),
}
