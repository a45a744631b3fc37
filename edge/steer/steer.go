// Package steer answers: where should this flow go?
//
//	Compile(snapshot, self, what this node sees) ─▶ Table ─▶ Route(tuple) ─▶ candidates, best first
//
// A Table is immutable; who finds out more compiles another one and swaps it. Nothing here does I/O
// or takes a lock, and neither Listener nor Route allocates.
//
// The rules, in the order in which they apply (AWS Global Accelerator's, where it documents them):
//
//  1. The groups of a listener are walked nearest first. A group keeps the flow with the probability
//     of its traffic dial, else the flow goes on to the next. The last group with a dial above zero
//     keeps all that reaches it; with every dial at zero there is no such choice.
//  2. If the chosen group cannot be served (it has no healthy endpoint of weight above zero, or none
//     of its gateways can be reached), or refuses, the nearest group that can is next: dials are
//     ignored now, so a group dialled to zero is a candidate, too. AWS gives up after three groups;
//     here all of them are tried, since a far endpoint that works beats a near one that does not.
//  3. When nothing can be served anywhere, the nearest group whose gateways can be reached is served
//     whatever the verdicts on its endpoints are (fail open).
//
// All of it is decided by the hash of the flow, or of source and accelerated address for affinity
// SOURCE_IP, so that a flow's way depends on nothing that happened before.
//
// Of a custom routing accelerator none of this holds: see custom.go.
//
// A group's distance is the round trip to its nearest gateway; gateways stand next to the endpoints
// of their region. A region in which no node is a gateway is dialled straight from here. A region
// whose gateways exist but cannot be reached never is: its endpoints' addresses may be private, and
// then belong to somebody else around here.
package steer

import (
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// View is what a node sees of the fleet at one moment.
type View struct {
	// RTT is the round trip to each gateway that can be reached now. This node itself may be left
	// out: it is reachable, at distance 0, if the snapshot says that it is a gateway.
	RTT map[model.NodeID]time.Duration

	// Groups is each gateway's own word about the groups it serves: true, it has a healthy endpoint;
	// false, it has none. It overrides the snapshot's verdicts, which are older. About a group that a
	// gateway said nothing of, the snapshot speaks.
	Groups map[model.NodeID]map[model.GroupID]bool

	// Draining are gateways that want no new flows. They get some only if there is no other in their
	// region. Nodes that the snapshot drains are added.
	Draining map[model.NodeID]bool

	// Direct is the distance to regions without a gateway, where it is known. Such a region is
	// farther than all others otherwise, unless it is this node's own (distance 0).
	Direct map[model.RegionName]time.Duration

	// Previous is the Table that this one replaces, or nil. It lends hysteresis: regions change places
	// only if the difference is more than noise.
	Previous *Table
}

// Table is the compiled answer to every question. It is immutable.
type Table struct {
	revision  uint64
	seed      uint64 // of flow hashes: the same on every node of a cluster
	order     []model.RegionName
	distance  map[model.RegionName]time.Duration
	listeners []*Listener
	ports     map[netip.Addr]*portTable
	byID      map[model.ListenerID]*Listener
}

// Listener is a listener of an enabled accelerator that this node serves.
type Listener struct {
	*model.Listener // immutable like the snapshot that it is from

	// Addresses are those on which this node serves it.
	Addresses []netip.Addr

	groups []plan  // nearest first
	mapped *mapped // of custom routing; nil: of a standard accelerator
}

// plan is what is known beforehand about one group of a listener.
type plan struct {
	group    *model.EndpointGroup
	hash     uint64 // of the group's id
	dial     uint64 // a flow is kept if the upper 53 bits of its hash are below
	servable bool
	gates    gates // that may serve it
	open     gates // that may serve it when failing open
	direct   bool
	distance time.Duration
}

// gates are gateways, best first. The first near of them are equally good.
type gates struct {
	ids  []model.NodeID
	near int
}

// Revision is the snapshot's.
func (t *Table) Revision() uint64 { return t.revision }

// Seed is the seed of the flow hashes; see Hash.
func (t *Table) Seed() uint64 { return t.seed }

// Seed returns the seed of flow hashes for a cluster. Edges and gateways must agree on it, and do so
// across restarts.
func Seed(cluster string) uint64 { return flow.HashString(cluster) }

// Hash returns the hash by which a flow of a listener is steered.
func Hash(affinity model.Affinity, seed uint64, tuple flow.Tuple) uint64 {
	if affinity == model.AffinitySourceIP {
		return tuple.HashSource(seed)
	}
	return tuple.Hash(seed)
}

// Listeners returns all listeners, sorted by id. The slice is the Table's.
func (t *Table) Listeners() []*Listener { return t.listeners }

// ListenerByID returns a listener that this node serves, or nil.
func (t *Table) ListenerByID(id model.ListenerID) *Listener { return t.byID[id] }

// Regions returns the regions that hold groups or gateways, nearest first. The slice is the Table's.
func (t *Table) Regions() []model.RegionName { return t.order }

// Distance returns the distance to a region, and whether it is known.
func (t *Table) Distance(r model.RegionName) (time.Duration, bool) {
	d, ok := t.distance[r]
	return d, ok
}

// Listener returns the listener that takes flows to dst, or nil.
func (t *Table) Listener(dst netip.AddrPort, p flow.Proto) *Listener {
	ports := t.ports[dst.Addr().Unmap()]
	if ports == nil {
		return nil
	}
	return ports.find(dst.Port(), p)
}

// Route returns the way of a flow, or false if no listener takes it.
func (t *Table) Route(tuple flow.Tuple) (Route, bool) {
	l := t.Listener(tuple.Dst, tuple.Proto)
	if l == nil {
		return Route{}, false
	}
	return t.RouteVia(l, tuple), true
}

// RouteVia is Route for a flow whose listener is known.
func (t *Table) RouteVia(l *Listener, tuple flow.Tuple) Route {
	r := Route{Listener: l, Hash: Hash(l.Affinity, t.seed, tuple)}
	if l.mapped != nil {
		r.first = l.find(tuple)
	} else {
		r.first = l.choose(r.Hash)
	}
	return r
}

// choose walks the groups by their dials and returns the index of the one that keeps the flow, or
// the number of groups if none does.
func (l *Listener) choose(hash uint64) int32 {
	for i := range l.groups {
		g := &l.groups[i]
		if flow.Mix(hash, g.hash)>>11 < g.dial {
			return int32(i)
		}
	}
	return int32(len(l.groups))
}

// Route is a flow's way: Next returns one candidate after the other. It is a value; a copy of it
// before the first Next starts from the beginning.
type Route struct {
	Listener *Listener
	Hash     uint64 // decides every choice for the flow

	first int32 // the group that the dials chose, or the port
	next  int32 // the next group to look at
	stage stage
}

type stage uint8

const (
	stageChosen stage = iota
	stageFailover
	stageOpen
	stageEnd
)

// Candidate is a group that may serve a flow, and how to get there.
type Candidate struct {
	Group *model.EndpointGroup

	// Direct says that the group's region has no gateway: its endpoints are dialled from here.
	Direct bool

	// FailOpen says that no group can be served: any endpoint will do.
	FailOpen bool

	// Distance is the round trip to the group's region.
	Distance time.Duration

	gates gates
	spin  uint32
}

// Gateway returns the i-th gateway to try, 0 first, or false if there are no more. Flows are spread
// over gateways that are equally good.
func (c *Candidate) Gateway(i int) (model.NodeID, bool) {
	switch {
	case i >= len(c.gates.ids):
		return "", false
	case i < c.gates.near:
		return c.gates.ids[(int(c.spin)+i)%c.gates.near], true
	}
	return c.gates.ids[i], true
}

// Next returns the next best candidate. It returns false after the last, which is the one that fails
// open. Of custom routing there is one candidate at most.
func (r *Route) Next() (Candidate, bool) {
	groups := r.Listener.groups
	if r.stage == stageChosen {
		r.stage = stageFailover
		if r.Listener.mapped != nil {
			r.stage = stageEnd
		}
		if int(r.first) < len(groups) && groups[r.first].servable {
			return groups[r.first].candidate(r.Hash), true
		}
	}
	if r.stage == stageFailover {
		for int(r.next) < len(groups) {
			i := r.next
			r.next++
			if i != r.first && groups[i].servable {
				return groups[i].candidate(r.Hash), true
			}
		}
		r.stage = stageOpen
	}
	if r.stage == stageOpen {
		r.stage = stageEnd
		if i := openGroup(groups); i >= 0 {
			c := groups[i].candidate(r.Hash)
			c.FailOpen, c.gates = true, groups[i].open
			c.spin = spin(r.Hash, c.gates.near)
			return c, true
		}
	}
	return Candidate{}, false
}

// CutOff reports whether endpoints that a flow of the listener may have lie where no gateway is reached: what
// could not be served by others might be, once a tunnel is up.
func (l *Listener) CutOff(tuple flow.Tuple) bool {
	if l.mapped != nil {
		at := int(l.find(tuple))
		return at < len(l.groups) && !l.groups[at].servable
	}
	return slices.ContainsFunc(l.groups, func(g plan) bool {
		return !g.direct && len(g.open.ids) == 0 && len(g.group.Endpoints) > 0
	})
}

// openGroup returns the nearest group that can be reached: one with an endpoint of weight above
// zero, before one that has only others. -1: there is none.
func openGroup(groups []plan) int {
	weightless := -1
	for i := range groups {
		g := &groups[i]
		if !g.direct && len(g.open.ids) == 0 {
			continue
		}
		for j := range g.group.Endpoints {
			if g.group.Endpoints[j].Weight > 0 {
				return i
			}
		}
		if weightless < 0 && len(g.group.Endpoints) > 0 {
			weightless = i
		}
	}
	return weightless
}

func (g *plan) candidate(hash uint64) Candidate {
	return Candidate{
		Group: g.group, Direct: g.direct, Distance: g.distance,
		gates: g.gates, spin: spin(hash, g.gates.near),
	}
}

// spin chooses among n gateways. It must not depend on the bits that chose the group.
func spin(hash uint64, n int) uint32 {
	if n < 2 {
		return 0
	}
	return uint32(flow.Mix(hash, spinSalt) >> 32 % uint64(n))
}
