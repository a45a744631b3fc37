package model

import (
	"cmp"
	"slices"
)

// Sort brings the lists into the order of their keys, in which equal configurations have equal
// bytes. It is for whoever builds a snapshot, before anybody else holds it.
func (s *Snapshot) Sort() {
	sortBy(s.Accelerators, acceleratorKey)
	sortBy(s.Listeners, listenerKey)
	sortBy(s.Groups, groupKey)
	sortBy(s.Pools, poolKey)
	sortBy(s.Regions, regionKey)
	sortBy(s.Sites, siteKey)
	sortBy(s.Nodes, nodeKey)
	sortBy(s.BGPPeers, peerKey)
	sortBy(s.Subnets, subnetKey)
	sortBy(s.CustomRoutingGroups, customRoutingGroupKey)
	sortBy(s.Zones, zoneKey)
	sortBy(s.CountryLists, countryListKey)
}

// Accelerator returns the accelerator with this id, or nil.
func (s *Snapshot) Accelerator(id AcceleratorID) *Accelerator {
	return find(s.Accelerators, id, acceleratorKey)
}

// Listener returns the listener with this id, or nil.
func (s *Snapshot) Listener(id ListenerID) *Listener {
	return find(s.Listeners, id, listenerKey)
}

// Group returns the endpoint group with this id, or nil.
func (s *Snapshot) Group(id GroupID) *EndpointGroup {
	return find(s.Groups, id, groupKey)
}

// Pool returns the pool with this name, or nil.
func (s *Snapshot) Pool(name PoolName) *Pool {
	return find(s.Pools, name, poolKey)
}

// Region returns the region with this name, or nil.
func (s *Snapshot) Region(name RegionName) *Region {
	return find(s.Regions, name, regionKey)
}

// Site returns the site with this name, or nil.
func (s *Snapshot) Site(name SiteName) *Site {
	return find(s.Sites, name, siteKey)
}

// Node returns the node with this id, or nil.
func (s *Snapshot) Node(id NodeID) *Node {
	return find(s.Nodes, id, nodeKey)
}

// Subnet returns the subnet with this name, or nil.
func (s *Snapshot) Subnet(name SubnetName) *Subnet {
	return find(s.Subnets, name, subnetKey)
}

// CustomRoutingGroup returns the group of custom routing with this id, or nil.
func (s *Snapshot) CustomRoutingGroup(id GroupID) *CustomRoutingGroup {
	return find(s.CustomRoutingGroups, id, customRoutingGroupKey)
}

// OnNodePool reports whether the accelerator is served by each node's own addresses.
func (s *Snapshot) OnNodePool(a *Accelerator) bool {
	if len(a.Pools) != 1 {
		return false
	}
	p := s.Pool(a.Pools[0])
	return p != nil && p.Kind == PoolNode
}

// Serves reports whether a node pool's accelerators are served by the nodes of a site.
func (p *Pool) Serves(site SiteName) bool {
	return p.Kind == PoolAnycast || len(p.Sites) == 0 || slices.Contains(p.Sites, site)
}

func sortBy[T any, K cmp.Ordered](list []T, key func(*T) K) {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(key(&a), key(&b)) })
}

// find looks in a sorted list, and in case it is not sorted once more from the start: a lookup must
// not depend on whether whoever made the snapshot remembered Sort.
func find[T any, K cmp.Ordered](list []T, k K, key func(*T) K) *T {
	i, ok := slices.BinarySearchFunc(list, k, func(e T, k K) int { return cmp.Compare(key(&e), k) })
	if ok {
		return &list[i]
	}
	for i := range list {
		if key(&list[i]) == k {
			return &list[i]
		}
	}
	return nil
}

func acceleratorKey(a *Accelerator) AcceleratorID { return a.ID }
func listenerKey(l *Listener) ListenerID          { return l.ID }
func groupKey(g *EndpointGroup) GroupID           { return g.ID }
func poolKey(p *Pool) PoolName                    { return p.Name }
func regionKey(r *Region) RegionName              { return r.Name }
func siteKey(s *Site) SiteName                    { return s.Name }
func nodeKey(n *Node) NodeID                      { return n.ID }
func subnetKey(s *Subnet) SubnetName              { return s.Name }

func customRoutingGroupKey(g *CustomRoutingGroup) GroupID { return g.ID }
