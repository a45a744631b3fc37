package catalog

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// CreatePool adds a pool.
func (c *Catalog) CreatePool(ctx context.Context, p model.Pool, _ Options) (model.Pool, error) {
	p = poolKind.clone(p)
	p.Project, p.Withheld = "", false // of ranges that projects bring
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(p.Validate()); err != nil {
			return err
		}
		if ch.pools.get(p.Name) != nil {
			return exists(ReasonNone, "there is a pool %q already", p.Name)
		}
		return ch.putPool(p)
	})
	if err != nil {
		return model.Pool{}, err
	}
	return c.Pool(ctx, p.Name)
}

// Pool returns one.
func (c *Catalog) Pool(ctx context.Context, name model.PoolName) (model.Pool, error) {
	return get(c, ctx, poolsTable, name, plain(poolKind))
}

// ListPools returns a page.
func (c *Catalog) ListPools(ctx context.Context, p PageOptions) ([]model.Pool, string, error) {
	return list(c, ctx, p, poolsTable, nil, plain(poolKind))
}

func poolsTable(o *objects) *table[model.PoolName, model.Pool] { return &o.pools }

// UpdatePool lets edit alter Prefixes and Sites; see UpdateAccelerator. Addresses that accelerators have
// must stay inside, and accelerators that come to share addresses must have distinct ports.
func (c *Catalog) UpdatePool(ctx context.Context, name model.PoolName, o Options,
	edit func(*model.Pool) error) (model.Pool, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.pools.need(name)
		if err != nil {
			return err
		}
		if err := notBrought(before); err != nil {
			return err
		}
		served := ch.served()
		p, changed, err := update(&ch.pools, name, before.Revision, o, edit, poolFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(p.Validate()); err != nil {
			return err
		}
		if err := ch.putPool(p); err != nil {
			return err
		}
		return ch.guardServed(served, o)
	})
	if err != nil {
		return model.Pool{}, err
	}
	return c.Pool(ctx, name)
}

var poolFixed = map[string]func(a, b *model.Pool) bool{
	"pool.name":     func(a, b *model.Pool) bool { return a.Name == b.Name },
	"pool.kind":     func(a, b *model.Pool) bool { return a.Kind == b.Kind },
	"pool.zone":     func(a, b *model.Pool) bool { return a.Zone == b.Zone },
	"pool.project":  func(a, b *model.Pool) bool { return a.Project == b.Project },
	"pool.withheld": func(a, b *model.Pool) bool { return a.Withheld == b.Withheld },
}

// notBrought refuses what is not to be done to a pool that a project brought.
func notBrought(p *model.Pool) error {
	if p.Project == "" {
		return nil
	}
	return precondition(ReasonInUse, "pool %s is a range that project %s brought; see nearcast byoip", p.Name, p.Project)
}

// putPool stages a valid pool and checks it against everything else.
func (ch *change) putPool(p model.Pool) error {
	for i, name := range p.Sites {
		if ch.sites.get(name) == nil {
			e := notFound(ReasonSiteNotFound, siteKind.name, string(name))
			e.Fields = model.FieldErrors{{Field: fmt.Sprintf("pool.sites[%d]", i), Message: "there is no such site"}}
			return e
		}
	}
	for i, prefix := range p.Prefixes {
		if err := ch.checkPrefix(p.Name, prefix, fmt.Sprintf("pool.prefixes[%d]", i)); err != nil {
			return err
		}
	}
	for _, peer := range inOrder(ch.peers.all(), peerKind.key) {
		for i, prefix := range p.Prefixes {
			if prefix.Contains(peer.Address) {
				return field(ReasonInUse, fmt.Sprintf("pool.prefixes[%d]", i), "%v holds %v, the address of BGP peer %s",
					prefix, peer.Address, peer.ID())
			}
		}
	}
	if err := put(ch, &ch.pools, p); err != nil {
		return err
	}
	if err := ch.checkAggregates(ch.settings().AnnounceAggregates); err != nil {
		return precondition(ReasonInUse, "an announced aggregate stands against that: %v", err)
	}
	for _, a := range inOrder(ch.accelerators.all(), acceleratorKind.key) {
		if !slices.Contains(a.Pools, p.Name) {
			continue
		}
		for _, addr := range a.Addresses {
			if ch.poolHolding(addr) == nil {
				return precondition(ReasonInUse, "pool %s would lose %v, which accelerator %s has", p.Name, addr, a.ID)
			}
		}
		for l := range ch.listenersOf(a.ID) {
			if err := ch.checkPorts(l.ID); err != nil && p.Kind == model.PoolNode {
				return precondition(ReasonInvalidPortRange, "listener %s of accelerator %s stands against that: %v",
					l.ID, a.ID, err)
			}
		}
	}
	return nil
}

// checkPrefix checks what may not lie in a prefix of a pool.
func (ch *change) checkPrefix(pool model.PoolName, prefix netip.Prefix, path string) error {
	for _, other := range inOrder(ch.pools.all(), poolKind.key) {
		for _, q := range other.Prefixes {
			if other.Name != pool && prefix.Overlaps(q) {
				return field(ReasonInUse, path, "%v overlaps with %v of pool %s", prefix, q, other.Name)
			}
		}
	}
	for _, n := range inOrder(ch.nodes.all(), nodeKind.key) {
		for _, addr := range nodeAddresses(n) {
			if prefix.Contains(addr) {
				return field(ReasonInUse, path,
					"%v holds %v, an address of node %s: announcing it would cut the node off",
					prefix, addr, n.Name)
			}
		}
	}
	for _, s := range inOrder(ch.subnets.all(), subnetKind.key) {
		if prefix.Overlaps(s.Prefix) {
			return field(ReasonInUse, path, "%v overlaps with %v, subnet %s", prefix, s.Prefix, s.Name)
		}
	}
	allow := ch.settings().EndpointAllowNetworks
	allowed := func(a netip.Addr) bool {
		return slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	holds := func(host string) bool {
		addr, err := netip.ParseAddr(host)
		addr = addr.Unmap()
		if err != nil || allowed(addr) {
			return false
		}
		return prefix.Contains(addr) || slices.ContainsFunc(model.EmbeddedIPv4(addr),
			func(a netip.Addr) bool { return prefix.Contains(a) && !allowed(a) })
	}
	for _, t := range inOrder(ch.targets.all(), targetKind.key) {
		if holds(t.Host) {
			return field(ReasonInUse, path, "%v holds %s, which is target %s", prefix, t.Host, t.Name)
		}
	}
	for _, g := range inOrder(ch.groups.all(), groupKind.key) {
		for i := range g.Endpoints {
			if host, _ := ch.resolve(g.Endpoints[i].ID); holds(host) {
				return field(ReasonInUse, path, "%v holds %s, an endpoint of group %s", prefix, host, g.ID)
			}
		}
	}
	return nil
}

// nodeAddresses returns every address that a node calls its own.
func nodeAddresses(n *model.Node) []netip.Addr {
	all := slices.Clone(n.ServiceAddresses)
	for _, a := range n.BackboneAddresses {
		all = append(all, a.Addr())
	}
	if n.GossipAddress.IsValid() {
		all = append(all, n.GossipAddress.Addr())
	}
	if n.BalanceAddress.IsValid() {
		all = append(all, n.BalanceAddress.Addr())
	}
	return all
}

// DeletePool removes a pool that no accelerator uses.
func (c *Catalog) DeletePool(ctx context.Context, name model.PoolName, o Options) error {
	return c.change(ctx, func(ch *change) error {
		p, err := ch.pools.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, poolKind.name, string(name), p.Revision); err != nil {
			return err
		}
		if err := notBrought(p); err != nil {
			return err
		}
		for _, a := range inOrder(ch.accelerators.all(), acceleratorKind.key) {
			if slices.Contains(a.Pools, name) {
				return precondition(ReasonInUse, "accelerator %s has addresses of pool %s", a.ID, name)
			}
		}
		for _, s := range inOrder(ch.sites.all(), siteKind.key) {
			if s.BGP != nil && slices.Contains(s.BGP.Pools, name) {
				return precondition(ReasonInUse, "site %s announces pool %s", s.Name, name)
			}
		}
		remove(ch, &ch.pools, name)
		return nil
	})
}

// served returns the enabled accelerators that some active edge serves.
func (o *objects) served() map[model.AcceleratorID]bool {
	sites, anywhere := map[model.SiteName]bool{}, false
	for n := range o.nodes.all() {
		if n.Edge && n.State == model.NodeActive {
			sites[n.Site], anywhere = true, true
		}
	}
	served := map[model.AcceleratorID]bool{}
	for a := range o.accelerators.all() {
		p := o.nodePoolOf(a.ID)
		switch {
		case !a.Enabled:
		case p == nil || len(p.Sites) == 0:
			served[a.ID] = anywhere
		default:
			served[a.ID] = slices.ContainsFunc(p.Sites, func(s model.SiteName) bool { return sites[s] })
		}
	}
	return served
}

// guardServed refuses a change after which nobody would serve an accelerator that somebody served
// before: its DNS name would have no address, or its addresses no announcement (R-CF3).
func (ch *change) guardServed(before map[model.AcceleratorID]bool, o Options) error {
	if o.Force {
		return nil
	}
	after := ch.served()
	for _, a := range inOrder(ch.accelerators.all(), acceleratorKind.key) {
		if before[a.ID] && !after[a.ID] {
			return guarded("no edge would serve accelerator %s (%s) any more; disable it first", a.ID, a.Name)
		}
	}
	return nil
}
