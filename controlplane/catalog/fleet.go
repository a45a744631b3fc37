package catalog

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateSite adds a site, and its region if that is new.
func (c *Catalog) CreateSite(ctx context.Context, s model.Site, _ Options) (model.Site, error) {
	s = siteKind.clone(s)
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		if ch.sites.get(s.Name) != nil {
			return exists(ReasonNone, "there is a site %q already", s.Name)
		}
		if err := ch.needRegion(s.Region); err != nil {
			return err
		}
		if s.BGP != nil {
			s.BGP.Drained = false
		}
		if err := ch.checkSiteBGP(nil, &s); err != nil {
			return err
		}
		return put(ch, &ch.sites, s)
	})
	if err != nil {
		return model.Site{}, err
	}
	return c.Site(ctx, s.Name)
}

// Site returns one.
func (c *Catalog) Site(ctx context.Context, name model.SiteName) (model.Site, error) {
	return get(c, ctx, sitesTable, name, plain(siteKind))
}

// ListSites returns a page.
func (c *Catalog) ListSites(ctx context.Context, p PageOptions) ([]model.Site, string, error) {
	return list(c, ctx, p, sitesTable, nil, plain(siteKind))
}

func sitesTable(o *objects) *table[model.SiteName, model.Site] { return &o.sites }

// UpdateSite lets edit alter everything but Name; see UpdateAccelerator.
func (c *Catalog) UpdateSite(ctx context.Context, name model.SiteName, o Options,
	edit func(*model.Site) error) (model.Site, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.sites.need(name)
		if err != nil {
			return err
		}
		drained := before.BGP != nil && before.BGP.Drained
		keep := func(s *model.Site) error { // whether it is drained is SetSiteAnnouncing's
			err := edit(s)
			if s.BGP != nil {
				s.BGP.Drained = drained
			}
			return err
		}
		s, changed, err := update(&ch.sites, name, before.Revision, o, keep, siteFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		if err := ch.needRegion(s.Region); err != nil {
			return err
		}
		if err := ch.checkSiteBGP(before, &s); err != nil {
			return err
		}
		announced := ch.announced()
		if err := put(ch, &ch.sites, s); err != nil {
			return err
		}
		return ch.guardAnnounced(announced, o)
	})
	if err != nil {
		return model.Site{}, err
	}
	return c.Site(ctx, name)
}

var siteFixed = map[string]func(a, b *model.Site) bool{
	"site.name": func(a, b *model.Site) bool { return a.Name == b.Name },
}

// DeleteSite removes a site that no node and no pool names.
func (c *Catalog) DeleteSite(ctx context.Context, name model.SiteName, o Options) error {
	return c.change(ctx, func(ch *change) error {
		s, err := ch.sites.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, siteKind.name, string(name), s.Revision); err != nil {
			return err
		}
		for _, n := range inOrder(ch.nodes.all(), nodeKind.key) {
			if n.Site == name {
				return precondition(ReasonInUse, "node %s is at site %s", n.Name, name)
			}
		}
		for _, p := range inOrder(ch.pools.all(), poolKind.key) {
			if slices.Contains(p.Sites, name) {
				return precondition(ReasonInUse, "pool %s is served by site %s", p.Name, name)
			}
		}
		for _, p := range inOrder(ch.peers.all(), peerKind.key) {
			if p.Site == name {
				return precondition(ReasonInUse, "BGP peer %s is of site %s", p.ID(), name)
			}
		}
		if err := ch.siteSteered(name); err != nil {
			return err
		}
		remove(ch, &ch.sites, name)
		return nil
	})
}

// CreateRegion adds a region by itself.
func (c *Catalog) CreateRegion(ctx context.Context, r model.Region, _ Options) (model.Region, error) {
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(r.Validate()); err != nil {
			return err
		}
		if ch.regions.get(r.Name) != nil {
			return exists(ReasonNone, "there is a region %q already", r.Name)
		}
		return put(ch, &ch.regions, r)
	})
	if err != nil {
		return model.Region{}, err
	}
	return c.Region(ctx, r.Name)
}

// Region returns one.
func (c *Catalog) Region(ctx context.Context, name model.RegionName) (model.Region, error) {
	return get(c, ctx, regionsTable, name, plain(regionKind))
}

// ListRegions returns a page.
func (c *Catalog) ListRegions(ctx context.Context, p PageOptions) ([]model.Region, string, error) {
	return list(c, ctx, p, regionsTable, nil, plain(regionKind))
}

func regionsTable(o *objects) *table[model.RegionName, model.Region] { return &o.regions }

// DeleteRegion removes a region that no site, group or target names.
func (c *Catalog) DeleteRegion(ctx context.Context, name model.RegionName, o Options) error {
	return c.change(ctx, func(ch *change) error {
		r, err := ch.regions.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, regionKind.name, string(name), r.Revision); err != nil {
			return err
		}
		for _, s := range inOrder(ch.sites.all(), siteKind.key) {
			if s.Region == name {
				return precondition(ReasonInUse, "site %s is in region %s", s.Name, name)
			}
		}
		for _, g := range inOrder(ch.groups.all(), groupKind.key) {
			if g.Region == name {
				return precondition(ReasonInUse, "endpoint group %s is in region %s", g.ID, name)
			}
		}
		for _, t := range inOrder(ch.targets.all(), targetKind.key) {
			if t.Region == name {
				return precondition(ReasonInUse, "target %s is in region %s", t.Name, name)
			}
		}
		remove(ch, &ch.regions, name)
		return nil
	})
}

// RegisterNode adds a node at enrolment and gives it its ID. A name that another node has is
// AlreadyExists; a site that does not exist is NotFound.
func (c *Catalog) RegisterNode(ctx context.Context, n model.Node) (model.Node, error) {
	n = nodeKind.clone(n)
	n.ID, n.Revision = "", 0
	var id model.NodeID
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(n.Validate()); err != nil {
			return err
		}
		for other := range ch.nodes.all() {
			if other.Name == n.Name {
				return exists(ReasonNone, "node %s has the name %q already", other.ID, n.Name)
			}
		}
		if ch.sites.get(n.Site) == nil {
			e := notFound(ReasonSiteNotFound, siteKind.name, string(n.Site))
			e.Fields = model.FieldErrors{{Field: "node.site", Message: "there is no such site; create it first"}}
			return e
		}
		id = "n-" + model.NodeID(newID(12, func(id string) bool {
			return ch.nodes.get("n-"+model.NodeID(id)) != nil
		}))
		registered := nodeKind.clone(n)
		registered.ID = id
		return ch.putNode(registered)
	})
	if err != nil {
		return model.Node{}, err
	}
	return c.Node(ctx, string(id))
}

// putNode stages a valid node and checks its addresses against everything else.
func (ch *change) putNode(n model.Node) error {
	for _, addr := range nodeAddresses(&n) {
		if p := ch.poolHolding(addr); p != nil {
			return field(ReasonInUse, "node", "%v is in pool %s: announcing the pool would cut the node off",
				addr, p.Name)
		}
		if a := ch.announceHolding(addr); a != "" {
			return field(ReasonInUse, "node", "%v is in the %s: announcing it would cut the node off", addr, a)
		}
	}
	if err := ch.checkBalance(&n); err != nil {
		return err
	}
	if err := put(ch, &ch.nodes, n); err != nil {
		return err
	}
	return ch.checkEndpointsAt(nodeAddresses(&n))
}

// Node returns one, by id or by name.
func (c *Catalog) Node(ctx context.Context, idOrName string) (n model.Node, err error) {
	err = c.read(ctx, func(o *objects) error {
		found := o.nodes.get(model.NodeID(idOrName))
		for other := range o.nodes.all() {
			if found == nil && other.Name == idOrName {
				found = other
			}
		}
		if found == nil {
			return notFound(ReasonNodeNotFound, nodeKind.name, idOrName)
		}
		n = nodeKind.clone(*found)
		return nil
	})
	return n, err
}

// ListNodes returns a page.
func (c *Catalog) ListNodes(ctx context.Context, p PageOptions) ([]model.Node, string, error) {
	nodes := func(o *objects) *table[model.NodeID, model.Node] { return &o.nodes }
	return list(c, ctx, p, nodes, nil, plain(nodeKind))
}

// UpdateNode lets edit alter State and the addresses (State by operators, addresses when a node says
// Hello); see UpdateAccelerator. A revoked node stays revoked. Taking the last edge away from an enabled
// accelerator needs Options.Force.
func (c *Catalog) UpdateNode(ctx context.Context, id model.NodeID, o Options,
	edit func(*model.Node) error) (model.Node, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.nodes.need(id)
		if err != nil {
			return err
		}
		served := ch.served()
		n, changed, err := update(&ch.nodes, id, before.Revision, o, edit, nodeFixed)
		if err != nil || !changed {
			return err
		}
		if before.State == model.NodeRevoked && n.State != model.NodeRevoked {
			return precondition(ReasonInUse, "node %s is revoked, and its identity cannot be trusted again; "+
				"delete it and enrol the machine anew", id)
		}
		if err := invalid(n.Validate()); err != nil {
			return err
		}
		if slices.Equal(nodeAddresses(before), nodeAddresses(&n)) && slices.Equal(ports(before), ports(&n)) {
			err = put(ch, &ch.nodes, n) // draining must not fail on what the addresses met meanwhile
		} else {
			err = ch.putNode(n)
		}
		if err != nil {
			return err
		}
		return ch.guardServed(served, o)
	})
	if err != nil {
		return model.Node{}, err
	}
	return c.Node(ctx, string(id))
}

var nodeFixed = map[string]func(a, b *model.Node) bool{
	"node.id":      func(a, b *model.Node) bool { return a.ID == b.ID },
	"node.name":    func(a, b *model.Node) bool { return a.Name == b.Name },
	"node.site":    func(a, b *model.Node) bool { return a.Site == b.Site },
	"node.edge":    func(a, b *model.Node) bool { return a.Edge == b.Edge },
	"node.gateway": func(a, b *model.Node) bool { return a.Gateway == b.Gateway },
}

// ports returns the addresses of a node that have a port.
func ports(n *model.Node) []netip.AddrPort {
	return append(slices.Clone(n.BackboneAddresses), n.GossipAddress, n.BalanceAddress)
}

// DeleteNode removes a node; its certificate is refused from then on. See UpdateNode for Options.Force.
func (c *Catalog) DeleteNode(ctx context.Context, id model.NodeID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		n, err := ch.nodes.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, nodeKind.name, string(id), n.Revision); err != nil {
			return err
		}
		served := ch.served()
		remove(ch, &ch.nodes, id)
		return ch.guardServed(served, o)
	})
}

// checkTagCount applies the quota of tags.
func checkTagCount(s model.Settings, tags map[string]string) error {
	if len(tags) > s.TagsPerResourceMax {
		return limit("tags_per_resource_max", s.TagsPerResourceMax, fmt.Sprintf("%d tags", len(tags)))
	}
	return nil
}
