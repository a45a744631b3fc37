package catalog

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateListener adds a listener to l.Accelerator.
func (c *Catalog) CreateListener(ctx context.Context, l model.Listener, o Options) (model.Listener, error) {
	l = listenerKind.clone(l)
	l.ID, l.Revision = "", 0
	var id model.ListenerID
	err := c.change(ctx, func(ch *change) error {
		l := listenerKind.clone(l)
		a := ch.accelerators.get(l.Accelerator)
		if a != nil && a.Type == model.CustomRouting && l.Protocol == 0 {
			l.Protocol = model.TCPUDP
		}
		if err := invalid(validateListener(l, a)); err != nil {
			return err
		}
		if _, err := ch.accelerators.need(l.Accelerator); err != nil {
			return err
		}
		id = model.ListenerID(newID(8, func(id string) bool {
			return ch.listeners.get(model.ListenerID(id)) != nil
		}))
		request, err := listenerKind.encode(l)
		if err != nil {
			return err
		}
		if made, err := ch.once(o, listenerKind.name, a.Project, string(id), request); err != nil {
			return err
		} else if made != "" {
			id = model.ListenerID(made)
			return nil
		}
		n := 0
		for range ch.listenersOf(a.ID) {
			n++
		}
		s := ch.settings()
		if n >= s.ListenersPerAcceleratorMax {
			return limit("listeners_per_accelerator_max", s.ListenersPerAcceleratorMax, "listeners of an accelerator")
		}
		l.ID = id
		if err := ch.putListener(l); err != nil {
			return err
		}
		return c.checkCountries(ch, nil, &l)
	})
	if err != nil {
		return model.Listener{}, err
	}
	return c.Listener(ctx, id)
}

// Listener returns one.
func (c *Catalog) Listener(ctx context.Context, id model.ListenerID) (model.Listener, error) {
	return get(c, ctx, listenersTable, id, plain(listenerKind))
}

// ListListeners returns a page of the listeners of one accelerator, or of all with an empty id.
func (c *Catalog) ListListeners(ctx context.Context, of model.AcceleratorID,
	p PageOptions) ([]model.Listener, string, error) {
	if of != "" {
		if _, err := c.Accelerator(ctx, of); err != nil {
			return nil, "", err
		}
	}
	return list(c, ctx, p, listenersTable,
		func(l *model.Listener) bool { return of == "" || l.Accelerator == of }, plain(listenerKind))
}

func listenersTable(o *objects) *table[model.ListenerID, model.Listener] { return &o.listeners }

// UpdateListener lets edit alter everything but ID and Accelerator; see UpdateAccelerator.
func (c *Catalog) UpdateListener(ctx context.Context, id model.ListenerID, o Options,
	edit func(*model.Listener) error) (model.Listener, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.listeners.need(id)
		if err != nil {
			return err
		}
		l, changed, err := update(&ch.listeners, id, before.Revision, o, edit, listenerFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(validateListener(l, ch.accelerators.get(l.Accelerator))); err != nil {
			return err
		}
		if err := ch.checkRangesKept(before, &l); err != nil {
			return err
		}
		if err := ch.putListener(l); err != nil {
			return err
		}
		return c.checkCountries(ch, before, &l)
	})
	if err != nil {
		return model.Listener{}, err
	}
	return c.Listener(ctx, id)
}

// validateListener judges a listener by itself and by its accelerator's type.
func validateListener(l model.Listener, a *model.Accelerator) error {
	if a != nil && a.Type == model.CustomRouting {
		return l.ValidateCustomRouting()
	}
	return l.Validate()
}

var listenerFixed = map[string]func(a, b *model.Listener) bool{
	"listener.id":             func(a, b *model.Listener) bool { return a.ID == b.ID },
	"listener.accelerator_id": func(a, b *model.Listener) bool { return a.Accelerator == b.Accelerator },
}

// putListener stages a valid listener and checks all that its ports may disturb.
func (ch *change) putListener(l model.Listener) error {
	s := ch.settings()
	if len(l.PortRanges) > s.PortRangesPerListenerMax {
		return limit("port_ranges_per_listener_max", s.PortRangesPerListenerMax, "port ranges of a listener")
	}
	if err := checkTagCount(s, l.Tags); err != nil {
		return err
	}
	if err := put(ch, &ch.listeners, l); err != nil {
		return err
	}
	if err := ch.touch(l.Accelerator); err != nil {
		return err
	}
	if err := ch.checkPorts(l.ID); err != nil {
		return err
	}
	if err := ch.checkOverrides(l.Accelerator, "", l.ID); err != nil {
		return err
	}
	for g := range ch.groupsOf(l.ID) {
		if err := ch.checkGroupEndpoints(g, ""); err != nil {
			return err
		}
	}
	return ch.checkEndpointsAt(ch.listensAt(l.Accelerator))
}

// DeleteListener removes a listener without groups.
func (c *Catalog) DeleteListener(ctx context.Context, id model.ListenerID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		l, err := ch.listeners.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, listenerKind.name, string(id), l.Revision); err != nil {
			return err
		}
		n := 0
		for range ch.groupsOf(id) {
			n++
		}
		for range ch.customGroupsOf(id) {
			n++
		}
		if n > 0 {
			return precondition(ReasonHasGroups, "listener %s has %d endpoint groups; delete them first", id, n)
		}
		remove(ch, &ch.listeners, id)
		return ch.touch(l.Accelerator)
	})
}

// checkPorts checks that no other listener of the same addresses has a port of listener id for the
// same protocol. Enabled or not: enabling an accelerator must not be able to fail on that.
func (o *objects) checkPorts(id model.ListenerID) error {
	l := o.listeners.get(id)
	for _, other := range inOrder(o.listeners.all(), listenerKind.key) {
		if other.ID == id || other.Protocol&l.Protocol == 0 || !o.shareAddresses(l.Accelerator, other.Accelerator) {
			continue
		}
		for i, r := range l.PortRanges {
			for _, r2 := range other.PortRanges {
				if r.Overlaps(r2) {
					whose := "of the same accelerator"
					if other.Accelerator != l.Accelerator {
						whose = fmt.Sprintf("of accelerator %s, which has the same addresses", other.Accelerator)
					}
					e := field(ReasonInvalidPortRange, fmt.Sprintf("listener.port_ranges[%d]", i),
						"%v %d-%d overlaps with %d-%d of listener %s %s; choose other ports",
						other.Protocol&l.Protocol, r.From, r.To, r2.From, r2.To, other.ID, whose)
					e.Ports = &PortConflict{r, r2, other.ID, other.Accelerator}
					return e
				}
			}
		}
	}
	return nil
}

// shareAddresses reports whether two accelerators are reached at one address: on anycast pools each has
// its own, on node pools those whose pools serve one site share its nodes'.
func (o *objects) shareAddresses(x, y model.AcceleratorID) bool {
	if x == y {
		return true
	}
	p, q := o.nodePoolOf(x), o.nodePoolOf(y)
	if p == nil || q == nil {
		return false
	}
	return poolsMeet(p, q)
}

// poolsMeet reports whether two node pools serve a site in common, or will with one to come.
func poolsMeet(p, q *model.Pool) bool {
	if len(p.Sites) == 0 || len(q.Sites) == 0 {
		return true
	}
	return slices.ContainsFunc(p.Sites, func(s model.SiteName) bool { return slices.Contains(q.Sites, s) })
}

// nodePoolOf returns the node pool of an accelerator, or nil if it is on anycast pools.
func (o *objects) nodePoolOf(id model.AcceleratorID) *model.Pool {
	a := o.accelerators.get(id)
	if a == nil || len(a.Pools) != 1 {
		return nil
	}
	if p := o.pools.get(a.Pools[0]); p != nil && p.Kind == model.PoolNode {
		return p
	}
	return nil
}

// checkOverrides checks the port overrides of all groups of an accelerator: each leaves from a port
// that its listener has, none leads to a port that any listener of the accelerator has, and no endpoint
// port is where two different listener ports lead. (AWS asks for this when overrides are changed only; a
// listener could then take a port that is overridden elsewhere, so listeners are held to it, too.)
//
// What is wrong in group self is an error of the request, anything else one of the state it meets.
func (o *objects) checkOverrides(a model.AcceleratorID, self model.GroupID, changed model.ListenerID) error {
	var listeners []*model.Listener
	for l := range o.listenersOf(a) {
		listeners = append(listeners, l)
	}
	leadsTo := map[uint16]uint16{} // endpoint port → listener port
	var own, others []*model.EndpointGroup
	for _, l := range listeners {
		for g := range o.groupsOf(l.ID) {
			if g.ID == self {
				own = append(own, g)
			} else {
				others = append(others, g)
			}
		}
	}
	slices.SortFunc(others, func(a, b *model.EndpointGroup) int { return cmp.Compare(a.ID, b.ID) })
	for _, g := range append(others, own...) {
		for i, ov := range g.PortOverrides {
			why := overrideProblem(ov, o.listeners.get(g.Listener), listeners, leadsTo)
			leadsTo[ov.EndpointPort] = ov.ListenerPort
			switch {
			case why == "":
			case g.ID == self:
				return field(ReasonInvalidPortRange, fmt.Sprintf("group.port_overrides[%d]", i), "%s", why)
			default:
				e := precondition(ReasonInvalidPortRange, "endpoint group %s overrides port %d to %d: %s",
					g.ID, ov.ListenerPort, ov.EndpointPort, why)
				if changed != "" {
					e.Fields = model.FieldErrors{{Field: "listener.port_ranges", Message: e.Message}}
				}
				return e
			}
		}
	}
	return nil
}

func overrideProblem(ov model.PortOverride, of *model.Listener, all []*model.Listener,
	leadsTo map[uint16]uint16) string {
	contains := func(l *model.Listener, port uint16) bool {
		return slices.ContainsFunc(l.PortRanges, func(r model.PortRange) bool { return r.Contains(port) })
	}
	if !contains(of, ov.ListenerPort) {
		return fmt.Sprintf("listener port %d is not a port of listener %s", ov.ListenerPort, of.ID)
	}
	for _, l := range all {
		if contains(l, ov.EndpointPort) {
			return fmt.Sprintf("endpoint port %d is a port of listener %s; overrides must lead elsewhere",
				ov.EndpointPort, l.ID)
		}
	}
	if from, taken := leadsTo[ov.EndpointPort]; taken && from != ov.ListenerPort {
		return fmt.Sprintf("endpoint port %d is where listener port %d leads already", ov.EndpointPort, from)
	}
	return ""
}
