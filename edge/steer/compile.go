package steer

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// Compile makes the Table of a node. It is pure, and total: a snapshot that is not Consistent makes
// a table that steers less, never a panic. Where two listeners claim one port of one address and
// protocol, the one with the lower id has it.
func Compile(s *model.Snapshot, self model.NodeID, v View) *Table {
	c := compiler{s: s, self: self, view: v, regions: map[model.RegionName]*region{}}
	c.gateways()
	t := &Table{
		revision: s.Revision,
		seed:     Seed(s.Cluster),
		distance: map[model.RegionName]time.Duration{},
		ports:    map[netip.Addr]*portTable{},
		byID:     map[model.ListenerID]*Listener{},
	}
	c.order(t)
	c.listeners(t)
	return t
}

// compiler holds what is looked up while compiling.
type compiler struct {
	s       *model.Snapshot
	self    model.NodeID
	view    View
	home    model.RegionName // this node's own
	site    model.SiteName
	own     []netip.Addr // this node's service addresses
	regions map[model.RegionName]*region
	rank    map[model.RegionName]int
}

// region is what is known about a region.
type region struct {
	name     model.RegionName
	gated    bool // it has gateways, whether or not they can be reached
	reached  []gateway
	gates    gates // of all reached
	distance time.Duration
	known    bool // distance is
}

type gateway struct {
	id       model.NodeID
	rtt      time.Duration
	draining bool
}

func (c *compiler) region(name model.RegionName) *region {
	r := c.regions[name]
	if r == nil {
		r = &region{name: name}
		c.regions[name] = r
	}
	return r
}

// gateways finds the gateways of each region and how far they are.
func (c *compiler) gateways() {
	siteRegion := make(map[model.SiteName]model.RegionName, len(c.s.Sites))
	for i := range c.s.Sites {
		siteRegion[c.s.Sites[i].Name] = c.s.Sites[i].Region
	}
	for i := range c.s.Nodes {
		n := &c.s.Nodes[i]
		if n.ID == c.self {
			c.home, c.site, c.own = siteRegion[n.Site], n.Site, n.ServiceAddresses
		}
		name := siteRegion[n.Site]
		if !n.Gateway || n.State == model.NodeRevoked || name == "" {
			continue
		}
		r := c.region(name)
		r.gated = true
		rtt, reachable := c.view.RTT[n.ID]
		if n.ID == c.self {
			rtt, reachable = 0, true
		}
		if reachable {
			draining := n.State == model.NodeDraining || c.view.Draining[n.ID]
			r.reached = append(r.reached, gateway{n.ID, max(rtt, 0), draining})
		}
	}
	for i := range c.s.Groups {
		c.region(c.s.Groups[i].Region)
	}
	for i := range c.s.CustomRoutingGroups {
		c.region(c.s.CustomRoutingGroups[i].Region)
	}
	for _, r := range c.regions {
		c.measure(r)
	}
}

// measure sorts a region's gateways and says how far it is.
func (c *compiler) measure(r *region) {
	slices.SortFunc(r.reached, func(a, b gateway) int {
		return cmp.Or(cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.id, b.id))
	})
	r.gates = c.rankGates(r.reached, nil)
	switch direct, ok := c.view.Direct[r.name]; {
	case len(r.reached) > 0:
		r.distance, r.known = r.reached[0].rtt, true
	case r.gated:
	case r.name == c.home && r.name != "":
		r.known = true
	case ok:
		r.distance, r.known = max(direct, 0), true
	}
}

// rankGates returns those of the sorted gateways that may be used, best first; may nil is all of
// them. Draining ones are there only if no others are.
func (c *compiler) rankGates(sorted []gateway, may func(model.NodeID) bool) gates {
	var g gates
	for _, draining := range []bool{false, true} {
		for _, gw := range sorted {
			if gw.draining != draining || may != nil && !may(gw.id) {
				continue
			}
			g.ids = append(g.ids, gw.id)
			best := sorted[slices.IndexFunc(sorted, func(o gateway) bool { return o.id == g.ids[0] })]
			// This node itself is better than any other: no tunnel at all.
			if len(g.ids) == 1 || best.id != c.self && gw.rtt-best.rtt < margin(best.rtt) {
				g.near++
			}
		}
		if len(g.ids) > 0 {
			return g
		}
	}
	return g
}

// order puts the regions in the order of their distance. Compared with the previous order a region
// moves forward only past one that is farther by more than noise: to before the first such.
func (c *compiler) order(t *Table) {
	var was []model.RegionName
	if c.view.Previous != nil {
		was = c.view.Previous.order
	}
	place := make(map[model.RegionName]int, len(was))
	for i, name := range was {
		place[name] = i
	}
	all := slices.SortedFunc(maps.Values(c.regions), func(a, b *region) int {
		return cmp.Or(compareDistance(a, b), cmp.Compare(a.name, b.name))
	})
	// Those that were there keep their order for now; new ones follow by distance.
	slices.SortStableFunc(all, func(a, b *region) int {
		pa, oka := place[a.name]
		pb, okb := place[b.name]
		switch {
		case oka && okb:
			return cmp.Compare(pa, pb)
		case oka:
			return -1
		case okb:
			return 1
		}
		return 0
	})
	sorted := make([]*region, 0, len(all))
	for _, r := range all {
		_, old := place[r.name]
		at := slices.IndexFunc(sorted, func(o *region) bool {
			_, both := place[o.name]
			return nearer(r, o, old && both)
		})
		if at < 0 {
			at = len(sorted)
		}
		sorted = slices.Insert(sorted, at, r)
	}
	c.rank = make(map[model.RegionName]int, len(sorted))
	for i, r := range sorted {
		t.order = append(t.order, r.name)
		c.rank[r.name] = i
		if r.known {
			t.distance[r.name] = r.distance
		}
	}
}

// compareDistance puts regions whose distance is unknown last.
func compareDistance(a, b *region) int {
	switch {
	case a.known && b.known:
		return cmp.Compare(a.distance, b.distance)
	case a.known:
		return -1
	case b.known:
		return 1
	}
	return 0
}

// nearer reports whether a belongs before b; if both had their places before, noise is no reason.
func nearer(a, b *region, placed bool) bool {
	if placed && a.known && b.known {
		return a.distance+margin(a.distance) <= b.distance
	}
	return compareDistance(a, b) < 0
}

// listeners compiles every listener that this node serves.
func (c *compiler) listeners(t *Table) {
	groups := make(map[model.ListenerID][]*model.EndpointGroup, len(c.s.Listeners))
	for i := range c.s.Groups {
		g := &c.s.Groups[i]
		groups[g.Listener] = append(groups[g.Listener], g)
	}
	addresses := make(map[model.AcceleratorID][]netip.Addr, len(c.s.Accelerators))
	custom := map[model.AcceleratorID]bool{}
	for i := range c.s.Accelerators {
		a := &c.s.Accelerators[i]
		if a.Enabled {
			addresses[a.ID] = c.addresses(a)
		}
		if a.Type == model.CustomRouting {
			custom[a.ID] = true
		}
	}
	for i := range c.s.Listeners {
		m := &c.s.Listeners[i]
		if len(addresses[m.Accelerator]) == 0 {
			continue
		}
		l := &Listener{Listener: m, Addresses: addresses[m.Accelerator]}
		if custom[m.Accelerator] {
			c.mapPorts(l)
		} else {
			l.groups = c.plans(groups[m.ID])
		}
		t.listeners = append(t.listeners, l)
		t.byID[l.ID] = l
	}
	slices.SortFunc(t.listeners, func(a, b *Listener) int { return cmp.Compare(a.ID, b.ID) })
	assignPorts(t)
}

// addresses returns those on which this node serves an accelerator.
func (c *compiler) addresses(a *model.Accelerator) []netip.Addr {
	from := a.Addresses
	if c.s.OnNodePool(a) {
		if !c.s.Pool(a.Pools[0]).Serves(c.site) {
			return nil
		}
		from = c.own
	}
	unmapped := make([]netip.Addr, 0, len(from))
	for _, addr := range from {
		unmapped = append(unmapped, addr.Unmap())
	}
	return unmapped
}

// plans compiles the groups of one listener, nearest first.
func (c *compiler) plans(groups []*model.EndpointGroup) []plan {
	plans := make([]plan, 0, len(groups))
	last := -1
	slices.SortFunc(groups, func(a, b *model.EndpointGroup) int {
		return cmp.Or(cmp.Compare(c.rank[a.Region], c.rank[b.Region]), cmp.Compare(a.ID, b.ID))
	})
	for i, g := range groups {
		plans = append(plans, c.plan(g))
		if g.TrafficDial > 0 {
			last = i
		}
	}
	if last >= 0 {
		plans[last].dial = math.MaxUint64 // there is nowhere else to go
	}
	return plans
}

func (c *compiler) plan(g *model.EndpointGroup) plan {
	r := c.regions[g.Region]
	p := plan{
		group: g, hash: flow.HashString(string(g.ID)), dial: dialBelow(g.TrafficDial),
		direct: !r.gated, distance: r.distance, open: r.gates,
	}
	weighty, healthy := false, false
	for i := range g.Endpoints {
		if g.Endpoints[i].Weight > 0 {
			weighty = true
			healthy = healthy || g.Endpoints[i].Health == model.HealthHealthy
		}
	}
	if !weighty {
		return p
	}
	if p.direct {
		word, spoken := c.view.Groups[c.self][g.ID]
		p.servable = healthy && !spoken || word
		return p
	}
	may := func(id model.NodeID) bool {
		word, spoken := c.view.Groups[id][g.ID]
		return word || healthy && !spoken
	}
	p.gates = r.gates
	if slices.ContainsFunc(r.reached, func(gw gateway) bool { return !may(gw.id) }) {
		p.gates = c.rankGates(r.reached, may)
	}
	p.servable = len(p.gates.ids) > 0
	return p
}

// dialBelow returns the bound that a percentage of all 53-bit numbers is below.
func dialBelow(percent float32) uint64 {
	switch p := float64(percent); {
	case p >= 100:
		return math.MaxUint64
	case p > 0: // false for NaN
		return uint64(p / 100 * (1 << 53))
	}
	return 0
}
