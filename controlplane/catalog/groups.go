package catalog

import (
	"context"
	"fmt"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateGroup adds an endpoint group to g.Listener, with the endpoints it has, and makes its region
// exist.
func (c *Catalog) CreateGroup(ctx context.Context, g model.EndpointGroup,
	o Options) (model.EndpointGroup, error) {
	g = groupKind.clone(g)
	g.ID, g.Revision = "", 0
	clearOutputs(&g)
	var id model.GroupID
	err := c.change(ctx, func(ch *change) error {
		g := groupKind.clone(g)
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
		if a.Type == model.CustomRouting {
			return precondition(ReasonWrongType, "listener %s is of a custom routing accelerator", l.ID)
		}
		id = ch.newGroupID()
		request, err := groupKind.encode(g)
		if err != nil {
			return err
		}
		if made, err := ch.once(o, groupKind.name, a.Project, string(id), request); err != nil {
			return err
		} else if made != "" {
			id = model.GroupID(made)
			return nil
		}
		if err := ch.checkNewGroup(l, g.Region); err != nil {
			return err
		}
		if err := ch.needRegion(g.Region); err != nil {
			return err
		}
		g.ID = id
		return ch.putGroup(g)
	})
	if err != nil {
		return model.EndpointGroup{}, err
	}
	return c.Group(ctx, id)
}

// checkNewGroup checks that l may have one more group, in region.
func (ch *change) checkNewGroup(l *model.Listener, region model.RegionName) error {
	for other := range ch.groupsOf(l.ID) {
		if other.Region == region {
			return exists(ReasonGroupExists, "listener %s has group %s in region %s already", l.ID, other.ID, region)
		}
	}
	n := 0
	for l := range ch.listenersOf(l.Accelerator) {
		for range ch.groupsOf(l.ID) {
			n++
		}
		for range ch.customGroupsOf(l.ID) {
			n++
		}
	}
	if s := ch.settings(); n >= s.GroupsPerAcceleratorMax {
		return limit("groups_per_accelerator_max", s.GroupsPerAcceleratorMax, "endpoint groups of an accelerator")
	}
	return nil
}

func (o *objects) newGroupID() model.GroupID {
	return model.GroupID(newID(12, func(id string) bool {
		return o.groups.get(model.GroupID(id)) != nil || o.customGroups.get(model.GroupID(id)) != nil
	}))
}

// Group returns one. Its endpoints' Health is HealthInitial: verdicts are not configuration.
func (c *Catalog) Group(ctx context.Context, id model.GroupID) (model.EndpointGroup, error) {
	return get(c, ctx, groupsTable, id, (*objects).groupOut)
}

// ListGroups returns a page of the groups of one listener, or of all with an empty id.
func (c *Catalog) ListGroups(ctx context.Context, of model.ListenerID,
	p PageOptions) ([]model.EndpointGroup, string, error) {
	if of != "" {
		if _, err := c.Listener(ctx, of); err != nil {
			return nil, "", err
		}
	}
	return list(c, ctx, p, groupsTable,
		func(g *model.EndpointGroup) bool { return of == "" || g.Listener == of }, (*objects).groupOut)
}

func groupsTable(o *objects) *table[model.GroupID, model.EndpointGroup] { return &o.groups }

// UpdateGroup lets edit alter everything but ID, Listener and Region; see UpdateAccelerator. edit sees
// HealthCheck.Port as it was given: 0 while it follows the listener's first port. Endpoints keep the
// order that edit gives them.
func (c *Catalog) UpdateGroup(ctx context.Context, id model.GroupID, o Options,
	edit func(*model.EndpointGroup) error) (model.EndpointGroup, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.groups.need(id)
		if err != nil {
			return err
		}
		g, changed, err := update(&ch.groups, id, before.Revision, o, edit, groupFixed)
		if err != nil || !changed {
			return err
		}
		clearOutputs(&g)
		if err := invalid(g.Validate()); err != nil {
			return err
		}
		if was, is := len(before.Endpoints), len(g.Endpoints); !o.Force && was >= 2 && 2*is < was {
			return guarded("this would leave %d of %d endpoints in group %s", is, was, id)
		}
		return ch.putGroup(g)
	})
	if err != nil {
		return model.EndpointGroup{}, err
	}
	return c.Group(ctx, id)
}

var groupFixed = map[string]func(a, b *model.EndpointGroup) bool{
	"group.id":          func(a, b *model.EndpointGroup) bool { return a.ID == b.ID },
	"group.listener_id": func(a, b *model.EndpointGroup) bool { return a.Listener == b.Listener },
	"group.region":      func(a, b *model.EndpointGroup) bool { return a.Region == b.Region },
}

// clearOutputs forgets what endpoints resolve to and how they do: callers may hand back what they got.
func clearOutputs(g *model.EndpointGroup) {
	g.Endpoints = slices.Clone(g.Endpoints)
	for i := range g.Endpoints {
		e := &g.Endpoints[i]
		e.Host, e.Health, e.HealthReason = "", model.HealthInitial, ""
	}
}

// putGroup stages a valid group and checks it against everything else.
func (ch *change) putGroup(g model.EndpointGroup) error {
	s := ch.settings()
	if len(g.Endpoints) > s.EndpointsPerGroupMax {
		return limit("endpoints_per_group_max", s.EndpointsPerGroupMax, "endpoints of a group")
	}
	if len(g.PortOverrides) > s.PortOverridesPerGroupMax {
		return limit("port_overrides_per_group_max", s.PortOverridesPerGroupMax, "port overrides of a group")
	}
	if err := checkTagCount(s, g.Tags); err != nil {
		return err
	}
	if err := put(ch, &ch.groups, g); err != nil {
		return err
	}
	l, err := ch.listeners.need(g.Listener)
	if err != nil {
		return err
	}
	if err := ch.touch(l.Accelerator); err != nil {
		return err
	}
	if err := ch.checkOverrides(l.Accelerator, g.ID, ""); err != nil {
		return err
	}
	return ch.checkGroupEndpoints(ch.groups.get(g.ID), g.ID)
}

// DeleteGroup removes a group and its endpoints.
func (c *Catalog) DeleteGroup(ctx context.Context, id model.GroupID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		g, err := ch.groups.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, groupKind.name, string(id), g.Revision); err != nil {
			return err
		}
		l, err := ch.listeners.need(g.Listener)
		if err != nil {
			return err
		}
		remove(ch, &ch.groups, id)
		return ch.touch(l.Accelerator)
	})
}

// AddEndpoints adds new endpoints to a group. One that is there already is AlreadyExists.
func (c *Catalog) AddEndpoints(ctx context.Context, id model.GroupID, endpoints []model.Endpoint,
	o Options) (model.EndpointGroup, error) {
	if len(endpoints) == 0 {
		return model.EndpointGroup{}, field(ReasonNone, "endpoints", "is empty; name at least one")
	}
	return c.UpdateGroup(ctx, id, o, func(g *model.EndpointGroup) error {
		for _, e := range endpoints {
			if findEndpoint(g, e.ID) != nil {
				return exists(ReasonEndpointExists, "endpoint %s is in group %s already; update it instead", e.ID, id)
			}
		}
		g.Endpoints = append(g.Endpoints, endpoints...)
		return nil
	})
}

// EndpointChange alters one endpoint; nil fields stay as they are.
type EndpointChange struct {
	ID            model.EndpointID
	Weight        *uint8
	ClientAddress *model.ClientAddressMode
}

// UpdateEndpoints alters endpoints that are there.
func (c *Catalog) UpdateEndpoints(ctx context.Context, id model.GroupID, changes []EndpointChange,
	o Options) (model.EndpointGroup, error) {
	if len(changes) == 0 {
		return model.EndpointGroup{}, field(ReasonNone, "endpoints", "is empty; name at least one")
	}
	return c.UpdateGroup(ctx, id, o, func(g *model.EndpointGroup) error {
		for _, x := range changes {
			e := findEndpoint(g, x.ID)
			if e == nil {
				return endpointNotFound(x.ID, id)
			}
			if x.Weight != nil {
				e.Weight = *x.Weight
			}
			if x.ClientAddress != nil {
				e.ClientAddress = *x.ClientAddress
			}
		}
		return nil
	})
}

// RemoveEndpoints removes the endpoints named. Naming none is InvalidArgument: an empty selection must
// never come to mean everything. One that is not there is NotFound.
func (c *Catalog) RemoveEndpoints(ctx context.Context, id model.GroupID, endpoints []model.EndpointID,
	o Options) (model.EndpointGroup, error) {
	if len(endpoints) == 0 {
		return model.EndpointGroup{}, field(ReasonNone, "endpoint_ids", "is empty; name at least one")
	}
	return c.UpdateGroup(ctx, id, o, func(g *model.EndpointGroup) error {
		for _, e := range endpoints {
			if findEndpoint(g, e) == nil {
				return endpointNotFound(e, id)
			}
		}
		g.Endpoints = slices.DeleteFunc(g.Endpoints, func(e model.Endpoint) bool {
			return slices.ContainsFunc(endpoints, func(id model.EndpointID) bool { return sameEndpoint(id, e.ID) })
		})
		return nil
	})
}

func endpointNotFound(e model.EndpointID, g model.GroupID) error {
	err := notFound(ReasonEndpointNotFound, "endpoint", string(e))
	err.Message += fmt.Sprintf(" in group %s", g)
	return err
}

func findEndpoint(g *model.EndpointGroup, id model.EndpointID) *model.Endpoint {
	for i := range g.Endpoints {
		if sameEndpoint(g.Endpoints[i].ID, id) {
			return &g.Endpoints[i]
		}
	}
	return nil
}
