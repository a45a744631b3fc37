package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Consistent returns nil if the snapshot can be believed: each object is valid by itself, each
// reference leads somewhere, nothing is there twice, no two enabled listeners claim one port of one
// address, and no limit is passed. Otherwise it returns FieldErrors whose paths name the object by
// its key, like "listeners[4fd0ab12].port_ranges[0].to". It never panics, whatever the snapshot holds.
//
// It refuses only what a node could not serve as it stands. Rules whose breach does no harm on a
// node (quotas, an override of a port that the listener no longer has) are the catalog's alone, so
// that a slip there cannot stop the whole fleet from taking new configuration.
func (s *Snapshot) Consistent() error {
	c := newCheck("")
	if s == nil {
		c.wrong("snapshot", "is missing")
		return c.err()
	}
	if !s.withinLimits(c) {
		return c.err()
	}
	c.name("cluster", s.Cluster)
	for i, k := range s.GossipKeys {
		if len(k) != 16 && len(k) != 24 && len(k) != 32 {
			c.wrong(index("gossip_keys", i), "has %d bytes; keys have 16, 24 or 32", len(k))
		}
	}
	for i, p := range s.EndpointAllowNetworks {
		if !p.IsValid() {
			c.wrong(index("endpoint_allow_networks", i), "is missing; write it like 192.0.2.0/24")
		}
	}
	s.dns(c)
	s.countries(c)
	k := newSnapshotKeys(c, s)
	k.fleet(c, s)
	k.announcements(c, s)
	k.accelerators(c, s)
	k.listeners(c, s)
	k.groups(c, s)
	k.customRouting(c, s)
	if c.err() == nil { // what follows takes the references for granted
		k.ports(c, s)
	}
	return c.err()
}

func (s *Snapshot) withinLimits(c check) bool {
	before := len(*c.errs)
	c.count("accelerators", len(s.Accelerators), SnapshotAcceleratorsMax)
	c.count("listeners", len(s.Listeners), SnapshotListenersMax)
	c.count("groups", len(s.Groups), SnapshotGroupsMax)
	c.count("pools", len(s.Pools), SnapshotPoolsMax)
	c.count("regions", len(s.Regions), SnapshotRegionsMax)
	c.count("sites", len(s.Sites), SnapshotSitesMax)
	c.count("nodes", len(s.Nodes), SnapshotNodesMax)
	c.count("gossip_keys", len(s.GossipKeys), SnapshotGossipKeysMax)
	c.count("endpoint_allow_networks", len(s.EndpointAllowNetworks), SnapshotNetworksMax)
	c.count("bgp_peers", len(s.BGPPeers), SnapshotPeersMax)
	c.count("subnets", len(s.Subnets), SnapshotSubnetsMax)
	c.count("custom_routing_groups", len(s.CustomRoutingGroups), SnapshotGroupsMax)
	c.count("zones", len(s.Zones), SnapshotZonesMax)
	c.count("cookie_secrets", len(s.CookieSecrets), SnapshotCookiesMax)
	c.count("country_lists", len(s.CountryLists), CountriesMax)
	endpoints := 0
	for i := range s.Groups {
		endpoints += len(s.Groups[i].Endpoints)
	}
	c.count("groups.endpoints", endpoints, SnapshotEndpointsMax)
	return len(*c.errs) == before
}

// snapshotKeys finds the objects of a snapshot by their keys while it is being judged.
type snapshotKeys struct {
	acceleratorByID map[AcceleratorID]*Accelerator
	listenerByID    map[ListenerID]*Listener
	poolByName      map[PoolName]*Pool
	regionByName    map[RegionName]*Region
	siteByName      map[SiteName]*Site
}

func newSnapshotKeys(c check, s *Snapshot) snapshotKeys {
	return snapshotKeys{
		acceleratorByID: byKey(c, "accelerators", s.Accelerators, acceleratorKey),
		listenerByID:    byKey(c, "listeners", s.Listeners, listenerKey),
		poolByName:      byKey(c, "pools", s.Pools, poolKey),
		regionByName:    byKey(c, "regions", s.Regions, regionKey),
		siteByName:      byKey(c, "sites", s.Sites, siteKey),
	}
}

// byKey maps a list by its key, recording keys that are missing or there twice.
func byKey[K ~string, T any](c check, list string, in []T, key func(*T) K) map[K]*T {
	m := make(map[K]*T, len(in))
	for i := range in {
		k := key(&in[i])
		if k == "" {
			c.wrong(index(list, i), "has no key; the snapshot was built wrongly")
		} else if m[k] != nil {
			c.atKey(list, string(k)).wrong("", "is there twice; the snapshot was built wrongly")
		}
		m[k] = &in[i]
	}
	return m
}

func (k snapshotKeys) fleet(c check, s *Snapshot) {
	for i := range s.Regions {
		s.Regions[i].check(c.atKey("regions", string(s.Regions[i].Name)))
	}
	for i := range s.Sites {
		site := &s.Sites[i]
		sc := c.atKey("sites", string(site.Name))
		site.check(sc)
		k.needRegion(sc, site.Region)
	}
	for i := range s.Pools {
		p := &s.Pools[i]
		pc := c.atKey("pools", string(p.Name))
		p.check(pc)
		for j, site := range p.Sites {
			if k.siteByName[site] == nil {
				pc.wrong(index("sites", j), "names the site %s, which is not there", show(string(site)))
			}
		}
	}
	poolPrefixesDisjoint(c, s.Pools)
	byKey(c, "nodes", s.Nodes, nodeKey)
	byName := make(map[string]bool, len(s.Nodes))
	for i := range s.Nodes {
		n := &s.Nodes[i]
		nc := c.atKey("nodes", string(n.ID))
		n.check(nc)
		if k.siteByName[n.Site] == nil {
			nc.wrong("site", "names the site %s, which is not there", show(string(n.Site)))
		}
		if byName[n.Name] {
			nc.wrong("name", "%s is the name of another node, too", show(n.Name))
		}
		byName[n.Name] = true
	}
}

func (k snapshotKeys) needRegion(c check, r RegionName) {
	if k.regionByName[r] == nil {
		c.wrong("region", "names the region %s, which is not there", show(string(r)))
	}
}

// poolPrefixesDisjoint compares each prefix with its neighbours in address order: a prefix that
// overlaps any earlier one overlaps the earlier one that reaches furthest.
func poolPrefixesDisjoint(c check, pools []Pool) {
	type owned struct {
		net  netip.Prefix
		pool PoolName
	}
	var all []owned
	for i := range pools {
		for _, p := range pools[i].Prefixes {
			if p.IsValid() {
				all = append(all, owned{p.Masked(), pools[i].Name})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int {
		return cmp.Or(a.net.Addr().Compare(b.net.Addr()), cmp.Compare(a.net.Bits(), b.net.Bits()))
	})
	widest := 0
	for i := 1; i < len(all); i++ {
		switch {
		case !all[widest].net.Overlaps(all[i].net):
			widest = i
		case all[widest].pool != all[i].pool:
			c.atKey("pools", string(all[i].pool)).wrong("prefixes", "%v overlaps with %v of pool %s",
				all[i].net, all[widest].net, all[widest].pool)
		}
	}
}

func (k snapshotKeys) accelerators(c check, s *Snapshot) {
	owner := map[netip.Addr]AcceleratorID{}
	for i := range s.Accelerators {
		a := &s.Accelerators[i]
		ac := c.atKey("accelerators", string(a.ID))
		a.check(ac)
		k.acceleratorPools(ac, a)
		for j, addr := range a.Addresses {
			addr = addr.Unmap()
			if other, taken := owner[addr]; taken && other != a.ID {
				ac.wrong(index("addresses", j), "%v belongs to accelerator %s, too", addr, show(string(other)))
			}
			owner[addr] = a.ID
		}
	}
}

// acceleratorPools checks that an accelerator lies on one node pool and has no addresses, or on
// anycast pools of different zones that hold its addresses, one a family and pool.
func (k snapshotKeys) acceleratorPools(c check, a *Accelerator) {
	if len(a.Pools) == 0 {
		c.wrong("pools", "is empty; name the pools that its addresses come from")
	}
	zones, node := map[string]bool{}, false
	for i, name := range a.Pools {
		p := k.poolByName[name]
		switch {
		case p == nil:
			c.wrong(index("pools", i), "names the pool %s, which is not there", show(string(name)))
			return
		case p.Kind == PoolNode:
			node = true
		case zones[p.Zone]:
			c.wrong(index("pools", i), "%s lies in zone %s like the other pool; choose one of another zone",
				show(string(name)), show(p.Zone))
		}
		zones[p.Zone] = true
	}
	if node {
		if len(a.Pools) > 1 {
			c.wrong("pools", "mixes a node pool with another pool; use one node pool or two anycast pools")
		}
		if len(a.Addresses) > 0 {
			c.wrong("addresses", "must be empty on a node pool, where each node's own addresses serve")
		}
		return
	}
	if len(a.Addresses) == 0 && len(a.Pools) > 0 {
		c.wrong("addresses", "is empty; on anycast pools an accelerator has an address of each pool")
	}
	type place struct {
		pool PoolName
		v6   bool
	}
	used := map[place]bool{}
	for i, addr := range a.Addresses {
		name, ok := k.poolOf(a, addr)
		if !ok {
			c.wrong(index("addresses", i), "%v is in none of the accelerator's pools", addr)
			continue
		}
		if at := (place{name, addr.Unmap().Is6()}); used[at] {
			c.wrong(index("addresses", i), "%v is the second address of its family from pool %s",
				addr, show(string(name)))
		} else {
			used[at] = true
		}
	}
}

func (k snapshotKeys) poolOf(a *Accelerator, addr netip.Addr) (PoolName, bool) {
	for _, name := range a.Pools {
		for _, p := range k.poolByName[name].Prefixes {
			if p.Contains(addr.Unmap()) {
				return name, true
			}
		}
	}
	return "", false
}

func (k snapshotKeys) listeners(c check, s *Snapshot) {
	for i := range s.Listeners {
		l := &s.Listeners[i]
		lc := c.atKey("listeners", string(l.ID))
		l.check(lc)
		if k.acceleratorByID[l.Accelerator] == nil {
			lc.wrong("accelerator_id", "names the accelerator %s, which is not there", show(string(l.Accelerator)))
		}
	}
}

func (k snapshotKeys) groups(c check, s *Snapshot) {
	type place struct {
		listener ListenerID
		region   RegionName
	}
	byKey(c, "groups", s.Groups, groupKey)
	seen := make(map[place]bool, len(s.Groups))
	for i := range s.Groups {
		g := &s.Groups[i]
		gc := c.atKey("groups", string(g.ID))
		g.check(gc)
		k.needRegion(gc, g.Region)
		if k.listenerByID[g.Listener] == nil {
			gc.wrong("listener_id", "names the listener %s, which is not there", show(string(g.Listener)))
		}
		if at := (place{g.Listener, g.Region}); seen[at] {
			gc.wrong("region", "%s has another group of the same listener; a listener has one group a region",
				show(string(g.Region)))
		} else {
			seen[at] = true
		}
		for j := range g.Endpoints {
			if g.Endpoints[j].Host == "" {
				gc.wrong(index("endpoints", j)+".host", "is empty; %s was not resolved",
					show(string(g.Endpoints[j].ID)))
			}
		}
	}
}

// claim is one port range that an enabled listener wants of the addresses that it shares.
type claim struct {
	PortRange
	listener *Listener
}

// ports checks that no two enabled listeners claim one port of one address for one protocol. On
// anycast pools only listeners of one accelerator share addresses; on node pools all listeners
// whose pools serve one site do.
func (k snapshotKeys) ports(c check, s *Snapshot) {
	byAccelerator := map[AcceleratorID][]*Listener{}
	byNodePool := map[PoolName][]*Listener{}
	for i := range s.Listeners {
		l := &s.Listeners[i]
		a := k.acceleratorByID[l.Accelerator]
		if !a.Enabled {
			continue
		}
		if p := a.Pools[0]; k.poolByName[p].Kind == PoolNode {
			byNodePool[p] = append(byNodePool[p], l)
		} else {
			byAccelerator[a.ID] = append(byAccelerator[a.ID], l)
		}
	}
	for i := range s.Accelerators { // in the snapshot's order, so that the answer is always the same
		portsDisjoint(c, byAccelerator[s.Accelerators[i].ID])
	}
	for _, pools := range poolsSharingSites(s) {
		var shared []*Listener
		for _, p := range pools {
			shared = append(shared, byNodePool[p]...)
		}
		portsDisjoint(c, shared)
	}
}

// poolsSharingSites returns the distinct sets of node pools that serve a site, each once, also those
// of a site that nobody has named yet: pools of all sites share with each other.
func poolsSharingSites(s *Snapshot) [][]PoolName {
	var everywhere []PoolName
	at := map[SiteName][]PoolName{}
	for i := range s.Pools {
		p := &s.Pools[i]
		switch {
		case p.Kind != PoolNode:
		case len(p.Sites) == 0:
			everywhere = append(everywhere, p.Name)
		default:
			for _, site := range p.Sites {
				at[site] = append(at[site], p.Name)
			}
		}
	}
	sets := [][]PoolName{everywhere}
	seen := map[string]bool{"": true}
	for _, site := range sortedKeys(at) {
		key := strings.Join(names[string](at[site]), "\x00") // names cannot hold a zero byte
		if !seen[key] {
			seen[key] = true
			sets = append(sets, slices.Concat(everywhere, at[site]))
		}
	}
	return sets
}

// portsDisjoint records the first overlap of each listener with one before it in port order.
func portsDisjoint(c check, listeners []*Listener) {
	for _, proto := range []Protocol{TCP, UDP} {
		var claims []claim
		for _, l := range listeners {
			if l.Protocol.Has(proto) {
				for _, r := range l.PortRanges {
					claims = append(claims, claim{r, l})
				}
			}
		}
		slices.SortStableFunc(claims, func(a, b claim) int {
			return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To),
				cmp.Compare(a.listener.ID, b.listener.ID))
		})
		reaching := 0 // of the claims so far, the one that reaches furthest
		for i := 1; i < len(claims); i++ {
			if claims[reaching].Overlaps(claims[i].PortRange) {
				a, b := claims[reaching], claims[i]
				c.atKey("listeners", string(b.listener.ID)).wrong("port_ranges",
					"%v %d-%d overlaps with %d-%d of listener %s on the same addresses; choose other ports",
					proto, b.From, b.To, a.From, a.To, a.listener.ID)
			}
			if claims[i].To > claims[reaching].To {
				reaching = i
			}
		}
	}
}
