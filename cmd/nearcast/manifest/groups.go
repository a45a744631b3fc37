package manifest

import (
	"fmt"
	"slices"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// groupsOf returns the groups that a listener has; a new one has none.
func (p *planner) groupsOf(l *pb.Listener) (groups []*pb.EndpointGroup) {
	for _, g := range p.state.Groups {
		if l != nil && g.GetListenerId() == l.GetId() {
			groups = append(groups, g)
		}
	}
	return groups
}

// names reports whether the file has the group.
func (w *wanted) names(g *pb.EndpointGroup) bool {
	return slices.ContainsFunc(w.file.Groups, func(f Group) bool { return f.Region == g.GetRegion() })
}

// loosen does what must be done to groups before the listeners can have their new ports: groups that go
// are deleted, and port overrides that stand in the way are taken out, since a controller refuses ports
// that an override contradicts. What the file wants instead may need the new ports, and comes later.
func (p *planner) loosen(accelerator string, all []*wanted, extra []*pb.Listener, root *Ref) {
	var final []*pb.PortRange
	for _, w := range all {
		final = append(final, w.want.GetPortRanges()...)
	}
	for _, l := range extra {
		if !p.prune {
			final = append(final, l.GetPortRanges()...)
		}
	}
	for _, w := range all {
		p.possible(w, final)
		for _, g := range p.groupsOf(w.have) {
			name := ListenerLabel(accelerator, w.have) + "@" + g.GetRegion()
			if w.file.Groups != nil && !w.names(g) {
				if p.prune {
					p.delete(KindGroup, name, g.GetId(), root)
					continue
				}
				p.plan.Left = append(p.plan.Left, "group "+name)
			}
			left := slices.DeleteFunc(slices.Clone(g.GetPortOverrides()), func(o *pb.PortOverride) bool {
				return !holds(w.want.GetPortRanges(), o.GetListenerPort()) || holds(final, o.GetEndpointPort()) ||
					claimed(all, w, g, o)
			})
			if len(left) == len(g.GetPortOverrides()) {
				continue
			}
			p.loose[g.GetId()] = left
			object := &pb.EndpointGroup{PortOverrides: left}
			p.step(&Step{Verb: Update, Kind: KindGroup, Name: name, Object: object, Mask: []string{"port_overrides"},
				Revision: g.GetRevision(), Self: &Ref{g.GetId()}, Root: root, Changes: diff(g, object, "port_overrides")})
		}
	}
}

// possible notes overrides of the file that its own listeners contradict.
func (p *planner) possible(w *wanted, final []*pb.PortRange) {
	for _, g := range w.file.Groups {
		for i, o := range g.PortOverrides {
			path := fmt.Sprintf("%s.groups[%s].port_overrides[%d]", w.path, g.Region, i)
			if !holds(w.want.GetPortRanges(), o.ListenerPort) {
				p.add(path+".listener_port",
					"%d is not a port of the listener; add it to ports, or leave the override out",
					o.ListenerPort)
			}
			if holds(final, o.EndpointPort) {
				p.add(path+".endpoint_port", "%d is a port of a listener of this accelerator; choose another one",
					o.EndpointPort)
			}
		}
	}
}

// claimed reports whether the file gives the endpoint port of a group's override to another listener
// port in another group.
func claimed(all []*wanted, of *wanted, g *pb.EndpointGroup, o *pb.PortOverride) bool {
	for _, w := range all {
		for _, f := range w.file.Groups {
			if w == of && f.Region == g.GetRegion() {
				continue // that is one change, together with what it replaces
			}
			for _, other := range f.PortOverrides {
				if other.EndpointPort == o.GetEndpointPort() && other.ListenerPort != o.GetListenerPort() {
					return true
				}
			}
		}
	}
	return false
}

func holds(ranges []*pb.PortRange, port uint32) bool {
	return slices.ContainsFunc(ranges, func(r *pb.PortRange) bool {
		return r.GetFrom() <= port &&
			port <= r.GetTo()
	})
}

func (p *planner) groups(accelerator string, w *wanted, root *Ref) {
	if w.file.Groups == nil {
		return
	}
	name := ListenerLabel(accelerator, w.want)
	byName(p, w.path+".groups", w.file.Groups, p.groupsOf(w.have), func(g Group) string { return g.Region },
		(*pb.EndpointGroup).GetRegion, func(path string, g Group, have *pb.EndpointGroup, found bool) {
			want := wantGroup(&p.problems, path, g)
			label := name + "@" + g.Region
			if !found {
				p.create(KindGroup, label, want, w.self, root)
				return
			}
			p.group(label, g, w, want, have, root)
		})
}

// group plans the change of a group that is there.
func (p *planner) group(label string, g Group, w *wanted, want, have *pb.EndpointGroup, root *Ref) {
	current := stored(p, label, have, model.EndpointGroupFromProto, model.EndpointGroupToProto)
	// A port that is the listener's first one may be "the listener's first" or said; while that port
	// stays what it is there is no difference.
	follows := current.GetHealthCheck().GetPort() == firstPort(w.have) && firstPort(w.have) == firstPort(w.want)
	if want.GetHealthCheck().GetPort() == 0 && follows {
		current.HealthCheck.Port = 0
	}
	revision := have.GetRevision()
	if left, loosened := p.loose[have.GetId()]; loosened {
		current.PortOverrides, revision = left, 0 // it has moved on by our own hand
	}
	adoptOrder(current.GetPortOverrides(), &want.PortOverrides, overrideText)
	changes := diff(current, want, withTags(g.Tags, "traffic_dial", "health_check", "port_overrides")...)
	if g.Endpoints != nil {
		var more []Change
		want.Endpoints, more = p.endpoints(label, current.GetEndpoints(), want.GetEndpoints())
		changes = append(changes, more...)
	}
	p.settle(&Step{Kind: KindGroup, Name: label, Object: want, Revision: revision,
		Self: &Ref{have.GetId()}, Root: root, Changes: changes})
}

// endpoints returns the list that a group is to have: what it has, in its order and changed as the
// file says, and then what is new.
func (p *planner) endpoints(group string, have, want []*pb.Endpoint) (list []*pb.Endpoint, changes []Change) {
	wantByID := map[string]*pb.Endpoint{}
	for _, e := range want {
		wantByID[e.GetId()] = e
	}
	add := func(e *pb.Endpoint, from, to string) {
		if from != to {
			changes = append(changes, Change{"endpoints[" + e.GetId() + "]", from, to})
		}
	}
	for _, e := range have {
		w := wantByID[e.GetId()]
		switch {
		case w != nil:
			add(e, endpointText(e), endpointText(w))
			list = append(list, w)
			delete(wantByID, e.GetId())
		case p.prune:
			add(e, endpointText(e), "")
		default:
			p.plan.Left = append(p.plan.Left, "endpoint "+e.GetId()+" of "+group)
			list = append(list, &pb.Endpoint{Id: e.GetId(), Weight: e.Weight, ClientAddress: e.GetClientAddress()})
		}
	}
	for _, e := range want {
		if wantByID[e.GetId()] != nil {
			add(e, "", endpointText(e))
			list = append(list, e)
			delete(wantByID, e.GetId())
		}
	}
	return list, changes
}
