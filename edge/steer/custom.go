package steer

import (
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// This file is custom routing: a listener whose ports lead each to one machine of a subnet. There is no
// choice of region, endpoint or health in it; the port says the group, and the group's region has the
// gateways. They compute where the port leads once more: see package gateway.

// mapped is what a listener of custom routing has beside its groups.
type mapped struct {
	table *model.PortTable
	at    map[model.GroupID]int32 // where in the listener's groups
}

// Mapped reports whether the listener's ports lead each to a destination of its own: custom routing.
func (l *Listener) Mapped() bool { return l.mapped != nil }

// Takes reports whether flows to a port of the listener lead anywhere. Of custom routing, those to ports
// that are not mapped or denied do not.
func (l *Listener) Takes(port uint16, p flow.Proto) bool {
	if l.mapped == nil {
		return true
	}
	_, _, ok := l.mapped.table.Lookup(port, protocolOf(p))
	return ok
}

// OpenPorts returns the ports that lead somewhere: all of the listener's, or of custom routing those that
// are mapped and allowed. It takes a few nanoseconds for each port.
func (l *Listener) OpenPorts(p flow.Proto) []model.PortRange {
	if l.mapped == nil {
		return l.PortRanges
	}
	return l.mapped.table.Open(protocolOf(p))
}

// GatewaysOf returns the gateways that flows to a group of custom routing may go to, best first.
func (l *Listener) GatewaysOf(g model.GroupID) []model.NodeID {
	if l.mapped == nil {
		return nil
	}
	at, ok := l.mapped.at[g]
	if !ok {
		return nil
	}
	return l.groups[at].gates.ids
}

// find returns the group that has a port; the number of groups if none has.
func (l *Listener) find(tuple flow.Tuple) int32 {
	if m, _, ok := l.mapped.table.Lookup(tuple.Dst.Port(), protocolOf(tuple.Proto)); ok {
		if at, known := l.mapped.at[m.Group]; known {
			return at
		}
	}
	return int32(len(l.groups))
}

// mapPorts compiles a listener of custom routing. The table of ports, which is the expensive part, is taken
// over from the Table before if the snapshot is the same.
func (c *compiler) mapPorts(l *Listener) {
	l.mapped = &mapped{at: map[model.GroupID]int32{}}
	if was := c.view.Previous; was != nil {
		if old := was.byID[l.ID]; old != nil && old.Listener == l.Listener && old.mapped != nil {
			l.mapped.table = old.mapped.table
		}
	}
	if l.mapped.table == nil {
		l.mapped.table = model.NewPortTable(c.s, l.ID)
	}
	for i := range c.s.CustomRoutingGroups {
		g := &c.s.CustomRoutingGroups[i]
		if g.Listener != l.ID {
			continue
		}
		r := c.region(g.Region)
		l.mapped.at[g.ID] = int32(len(l.groups))
		// Never direct: the addresses of a subnet mean something only beside its gateways.
		l.groups = append(l.groups, plan{
			group: &model.EndpointGroup{ID: g.ID, Listener: g.Listener, Region: g.Region},
			hash:  flow.HashString(string(g.ID)), distance: r.distance,
			gates: r.gates, servable: len(r.gates.ids) > 0,
		})
	}
}
