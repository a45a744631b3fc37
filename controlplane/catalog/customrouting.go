package catalog

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateSubnet adds a subnet, and its region if that is new. It must not hold addresses that endpoints may
// not have.
func (c *Catalog) CreateSubnet(ctx context.Context, s model.Subnet, _ Options) (model.Subnet, error) {
	s = subnetKind.clone(s)
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		if ch.subnets.get(s.Name) != nil || ch.targets.get(string(s.Name)) != nil {
			return exists(ReasonNone, "there is a subnet or target %q already", s.Name)
		}
		if resourceID.MatchString(string(s.Name)) {
			return field(ReasonNone, "subnet.name", "%q looks like the id of a resource", s.Name)
		}
		if err := ch.checkSubnetPlace(s.Prefix); err != nil {
			return err
		}
		return ch.putSubnet(s)
	})
	if err != nil {
		return model.Subnet{}, err
	}
	return c.Subnet(ctx, s.Name)
}

func (ch *change) putSubnet(s model.Subnet) error {
	if err := checkTagCount(ch.settings(), s.Tags); err != nil {
		return err
	}
	if err := ch.needRegion(s.Region); err != nil {
		return err
	}
	return put(ch, &ch.subnets, s)
}

// checkSubnetPlace refuses networks that hold what endpoints may not be (see addrAllowed).
func (ch *change) checkSubnetPlace(prefix netip.Prefix) error {
	const path = "subnet.prefix"
	allow := ch.settings().EndpointAllowNetworks
	if err := model.ForbiddenPrefix(prefix, allow); err != nil {
		return field(ReasonForbiddenEndpoint, path, "%v", err)
	}
	for _, p := range inOrder(ch.pools.all(), poolKind.key) {
		for _, q := range p.Prefixes {
			if q.Overlaps(prefix) {
				return field(ReasonForbiddenEndpoint, path, "%v overlaps with %v of pool %s: a loop", prefix, q, p.Name)
			}
		}
	}
	return nil
}

// Subnet returns one.
func (c *Catalog) Subnet(ctx context.Context, name model.SubnetName) (model.Subnet, error) {
	return get(c, ctx, subnetsTable, name, plain(subnetKind))
}

// ListSubnets returns a page.
func (c *Catalog) ListSubnets(ctx context.Context, p PageOptions) ([]model.Subnet, string, error) {
	return list(c, ctx, p, subnetsTable, nil, plain(subnetKind))
}

func subnetsTable(o *objects) *table[model.SubnetName, model.Subnet] { return &o.subnets }

func customGroupsTable(o *objects) *table[model.GroupID, model.CustomRoutingGroup] {
	return &o.customGroups
}

// UpdateSubnet lets edit alter ClientAddress and Tags; see UpdateAccelerator. The accelerators that lead to
// it are changed with it.
func (c *Catalog) UpdateSubnet(ctx context.Context, name model.SubnetName, o Options,
	edit func(*model.Subnet) error) (model.Subnet, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.subnets.need(name)
		if err != nil {
			return err
		}
		s, changed, err := update(&ch.subnets, name, before.Revision, o, edit, subnetFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(s.Validate()); err != nil {
			return err
		}
		for g := range ch.customGroupsWith(name) {
			if err := ch.touch(ch.listeners.get(g.Listener).Accelerator); err != nil {
				return err
			}
		}
		return ch.putSubnet(s)
	})
	if err != nil {
		return model.Subnet{}, err
	}
	return c.Subnet(ctx, name)
}

var subnetFixed = map[string]func(a, b *model.Subnet) bool{
	"subnet.name":    func(a, b *model.Subnet) bool { return a.Name == b.Name },
	"subnet.region":  func(a, b *model.Subnet) bool { return a.Region == b.Region },
	"subnet.project": func(a, b *model.Subnet) bool { return a.Project == b.Project },
	"subnet.prefix":  func(a, b *model.Subnet) bool { return a.Prefix == b.Prefix },
}

// DeleteSubnet removes a subnet that is no endpoint.
func (c *Catalog) DeleteSubnet(ctx context.Context, name model.SubnetName, o Options) error {
	return c.change(ctx, func(ch *change) error {
		s, err := ch.subnets.need(name)
		if err != nil {
			return err
		}
		if err := expect(o, subnetKind.name, string(name), s.Revision); err != nil {
			return err
		}
		for _, g := range inOrder(ch.customGroupsWith(name), customGroupKind.key) {
			return precondition(ReasonInUse, "subnet %q is an endpoint of group %s; remove it there first", name, g.ID)
		}
		if a := ch.sharedBy(string(name)); a != nil {
			return precondition(ReasonInUse, "attachment %s shares subnet %q; remove it there first", a.ID, name)
		}
		remove(ch, &ch.subnets, name)
		return nil
	})
}

func (o *objects) customGroupsOf(l model.ListenerID) iter.Seq[*model.CustomRoutingGroup] {
	return where(o.customGroups.all(), func(g *model.CustomRoutingGroup) bool { return g.Listener == l })
}

func (o *objects) customGroupsWith(s model.SubnetName) iter.Seq[*model.CustomRoutingGroup] {
	return where(o.customGroups.all(), func(g *model.CustomRoutingGroup) bool { return customEndpoint(g, s) >= 0 })
}

// customEndpoint returns the place of a subnet among g's endpoints, or -1.
func customEndpoint(g *model.CustomRoutingGroup, s model.SubnetName) int {
	return slices.IndexFunc(g.Endpoints, func(e model.CustomRoutingEndpoint) bool { return e.Subnet == s })
}

// CreateCustomRoutingGroup adds a group to g.Listener, which is of a custom routing accelerator, with the
// subnets of its endpoints. Their ports are given here, and all their traffic is denied at first.
func (c *Catalog) CreateCustomRoutingGroup(ctx context.Context, g model.CustomRoutingGroup,
	o Options) (model.CustomRoutingGroup, error) {
	g = customGroupKind.clone(g)
	g.ID, g.Revision = "", 0
	for i := range g.Endpoints {
		g.Endpoints[i] = model.CustomRoutingEndpoint{Subnet: g.Endpoints[i].Subnet}
	}
	var id model.GroupID
	err := c.change(ctx, func(ch *change) error {
		g := customGroupKind.clone(g)
		if err := invalid(g.Validate()); err != nil {
			return err
		}
		l, err := ch.listeners.need(g.Listener)
		if err != nil {
			return err
		}
		a, err := ch.accelerators.need(l.Accelerator)
		if err != nil {
			return err
		}
		if a.Type != model.CustomRouting {
			return precondition(ReasonWrongType, "listener %s is of a standard accelerator", l.ID)
		}
		id = ch.newGroupID()
		request, err := customGroupKind.encode(g)
		if err != nil {
			return err
		}
		if made, err := ch.once(o, customGroupKind.name, a.Project, string(id), request); err != nil {
			return err
		} else if made != "" {
			id = model.GroupID(made)
			return nil
		}
		for other := range ch.customGroupsOf(l.ID) {
			if other.Region == g.Region {
				return exists(ReasonGroupExists, "listener %s has group %s in region %s already", l.ID, other.ID, g.Region)
			}
		}
		if err := ch.checkNewGroup(l, g.Region); err != nil {
			return err
		}
		if err := ch.needRegion(g.Region); err != nil {
			return err
		}
		g.ID = id
		subnets := g.Endpoints
		g.Endpoints = nil
		for i, e := range subnets {
			if err := ch.addSubnet(&g, l, e.Subnet, fmt.Sprintf("group.endpoints[%d].subnet", i)); err != nil {
				return err
			}
		}
		return ch.putCustomGroup(g)
	})
	if err != nil {
		return model.CustomRoutingGroup{}, err
	}
	return c.CustomRoutingGroup(ctx, id)
}

// putCustomGroup stages a valid group.
func (ch *change) putCustomGroup(g model.CustomRoutingGroup) error {
	if err := checkTagCount(ch.settings(), g.Tags); err != nil {
		return err
	}
	if err := put(ch, &ch.customGroups, g); err != nil {
		return err
	}
	l, err := ch.listeners.need(g.Listener)
	if err != nil {
		return err
	}
	return ch.touch(l.Accelerator)
}

// addSubnet makes a subnet an endpoint of g, with ports that no other one of its listener has.
func (ch *change) addSubnet(g *model.CustomRoutingGroup, l *model.Listener, name model.SubnetName,
	path string) error {
	s := ch.subnets.get(name)
	switch {
	case s == nil:
		return field(ReasonEndpointNotFound, path, "there is no subnet %q; declare it first", name)
	case s.Region != g.Region:
		return field(ReasonNone, path, "subnet %q is in region %s, the group in %s", name, s.Region, g.Region)
	case customEndpoint(g, name) >= 0:
		return exists(ReasonEndpointExists, "subnet %q is in group %s already", name, g.ID)
	}
	if a := ch.accelerators.get(l.Accelerator); a != nil {
		if why := ch.notShared(a.Project, a.ID, string(name)); why != "" {
			return field(ReasonNotShared, path, "%s", why)
		}
	}
	_, machines := s.Machines()
	ports, err := choosePorts(ch.freePorts(g, l), machines*g.MachinePorts())
	if err != nil {
		err.Fields = model.FieldErrors{{Field: path, Message: err.Message}}
		return err
	}
	g.Endpoints = append(g.Endpoints, model.CustomRoutingEndpoint{Subnet: name, Ports: ports})
	return nil
}

// freePorts returns the ranges of l's ports that lead nowhere yet, in order. g stands for itself as stored.
func (ch *change) freePorts(g *model.CustomRoutingGroup, l *model.Listener) []model.PortRange {
	var taken []model.PortRange
	add := func(g *model.CustomRoutingGroup) {
		for _, e := range g.Endpoints {
			taken = append(taken, e.Ports...)
		}
	}
	add(g)
	for other := range ch.customGroupsOf(l.ID) {
		if other.ID != g.ID {
			add(other)
		}
	}
	slices.SortFunc(taken, func(a, b model.PortRange) int { return cmp.Compare(a.From, b.From) })
	ranges := slices.Clone(l.PortRanges)
	slices.SortFunc(ranges, func(a, b model.PortRange) int { return cmp.Compare(a.From, b.From) })
	var free []model.PortRange
	for _, r := range ranges {
		from := uint32(r.From)
		for _, t := range taken {
			if !r.Overlaps(t) {
				continue
			}
			if from < uint32(t.From) {
				free = append(free, model.PortRange{From: uint16(from), To: t.From - 1})
			}
			from = uint32(t.To) + 1
		}
		if from <= uint32(r.To) {
			free = append(free, model.PortRange{From: uint16(from), To: r.To})
		}
	}
	return free
}

// choosePorts takes need ports: of the smallest free range that holds them all, or else of the largest ones.
func choosePorts(free []model.PortRange, need int) ([]model.PortRange, *Error) {
	total := 0
	var fits *model.PortRange
	for i := range free {
		n := free[i].Len()
		total += n
		if n >= need && (fits == nil || n < fits.Len()) {
			fits = &free[i]
		}
	}
	none := &Error{Code: LimitExceeded, Reason: ReasonNoPorts, Message: fmt.Sprintf(
		"needs %d ports of the listener, and %d are free; give it more port ranges or a smaller subnet", need, total)}
	if total < need {
		return nil, none
	}
	if fits != nil {
		free = []model.PortRange{*fits}
	}
	free = slices.Clone(free)
	slices.SortStableFunc(free, func(a, b model.PortRange) int { return cmp.Compare(b.Len(), a.Len()) })
	var ports []model.PortRange
	for _, r := range free {
		if need == 0 {
			break
		}
		n := min(need, r.Len())
		ports = append(ports, model.PortRange{From: r.From, To: r.From + uint16(n-1)})
		need -= n
	}
	if len(ports) > model.MappingRangesMax {
		none.Message = "needs ports in too many pieces; give the listener another port range"
		return nil, none
	}
	slices.SortFunc(ports, func(a, b model.PortRange) int { return cmp.Compare(a.From, b.From) })
	return ports, nil
}

// checkRangesKept checks that a listener of custom routing loses no port: clients hold them, and mappings
// lie within ranges.
func (o *objects) checkRangesKept(before, after *model.Listener) error {
	if a := o.accelerators.get(before.Accelerator); a == nil || a.Type != model.CustomRouting {
		return nil
	}
	for _, r := range before.PortRanges {
		if !slices.ContainsFunc(after.PortRanges, func(of model.PortRange) bool {
			return of.Contains(r.From) && of.Contains(r.To)
		}) {
			return field(ReasonInvalidPortRange, "listener.port_ranges",
				"%d-%d is not within one of the new ranges; those of custom routing may grow and never shrink", r.From, r.To)
		}
	}
	return nil
}

// CustomRoutingGroup returns one.
func (c *Catalog) CustomRoutingGroup(ctx context.Context, id model.GroupID) (model.CustomRoutingGroup, error) {
	return get(c, ctx, customGroupsTable, id, plain(customGroupKind))
}

// ListCustomRoutingGroups returns a page of the groups of one listener, or of all with an empty id.
func (c *Catalog) ListCustomRoutingGroups(ctx context.Context, of model.ListenerID,
	p PageOptions) ([]model.CustomRoutingGroup, string, error) {
	if of != "" {
		if _, err := c.Listener(ctx, of); err != nil {
			return nil, "", err
		}
	}
	return list(c, ctx, p, customGroupsTable,
		func(g *model.CustomRoutingGroup) bool { return of == "" || g.Listener == of }, plain(customGroupKind))
}

// updateCustomGroup lets edit alter a group's endpoints and tags.
func (c *Catalog) updateCustomGroup(ctx context.Context, id model.GroupID,
	edit func(*change, *model.CustomRoutingGroup) error) (model.CustomRoutingGroup, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.customGroups.need(id)
		if err != nil {
			return err
		}
		g, changed, err := update(&ch.customGroups, id, before.Revision, Options{},
			func(g *model.CustomRoutingGroup) error { return edit(ch, g) }, nil)
		if err != nil || !changed {
			return err
		}
		if err := invalid(g.Validate()); err != nil {
			return err
		}
		return ch.putCustomGroup(g)
	})
	if err != nil {
		return model.CustomRoutingGroup{}, err
	}
	return c.CustomRoutingGroup(ctx, id)
}

// DeleteCustomRoutingGroup removes a group and its endpoints.
func (c *Catalog) DeleteCustomRoutingGroup(ctx context.Context, id model.GroupID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		g, err := ch.customGroups.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, customGroupKind.name, string(id), g.Revision); err != nil {
			return err
		}
		l, err := ch.listeners.need(g.Listener)
		if err != nil {
			return err
		}
		remove(ch, &ch.customGroups, id)
		return ch.touch(l.Accelerator)
	})
}

// AddSubnets makes subnets endpoints of a group. Those that are there keep their ports.
func (c *Catalog) AddSubnets(ctx context.Context, id model.GroupID,
	subnets []model.SubnetName) (model.CustomRoutingGroup, error) {
	if len(subnets) == 0 {
		return model.CustomRoutingGroup{}, field(ReasonNone, "subnets", "is empty; name at least one")
	}
	return c.updateCustomGroup(ctx, id, func(ch *change, g *model.CustomRoutingGroup) error {
		l, err := ch.listeners.need(g.Listener)
		if err != nil {
			return err
		}
		for i, name := range subnets {
			if err := ch.addSubnet(g, l, name, fmt.Sprintf("subnets[%d]", i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveSubnets takes subnets out of a group; their ports are free then.
func (c *Catalog) RemoveSubnets(ctx context.Context, id model.GroupID,
	subnets []model.SubnetName) (model.CustomRoutingGroup, error) {
	if len(subnets) == 0 {
		return model.CustomRoutingGroup{}, field(ReasonNone, "subnets", "is empty; name at least one")
	}
	return c.updateCustomGroup(ctx, id, func(_ *change, g *model.CustomRoutingGroup) error {
		for _, name := range subnets {
			at := customEndpoint(g, name)
			if at < 0 {
				return endpointNotFound(model.EndpointID(name), id)
			}
			g.Endpoints = slices.Delete(g.Endpoints, at, at+1)
		}
		return nil
	})
}
