package edge

import (
	"maps"
	"time"

	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// view is what this node sees of the others now: the tunnels' own evidence, and nothing else.
func (n *Node) view() steer.View {
	v := steer.View{
		RTT:      map[model.NodeID]time.Duration{},
		Groups:   map[model.NodeID]map[model.GroupID]bool{},
		Draining: map[model.NodeID]bool{},
		Previous: n.table.Load(),
	}
	if n.pool != nil {
		for id, peer := range n.pool.Peers() {
			if !peer.Up {
				continue
			}
			v.RTT[id] = peer.RTT
			if peer.Draining {
				v.Draining[id] = true
			}
			if groups := n.pool.GroupState(id); groups != nil {
				v.Groups[id] = groups
			}
		}
	}
	if groups := n.traffic.groups(); groups != nil {
		v.RTT[n.self] = 0
		v.Groups[n.self] = groups
	}
	return v
}

// isNews reports whether a table compiled with one view could differ from one compiled with the
// other. Round trips that moved by less than matters are no news: the table has its own hysteresis,
// which is coarser.
func isNews(before, now steer.View) bool {
	if len(before.RTT) != len(now.RTT) {
		return true
	}
	for id, rtt := range now.RTT {
		was, ok := before.RTT[id]
		moved := (rtt - was).Abs()
		if !ok || moved >= newsTime && float64(moved) >= newsShare*float64(was) {
			return true
		}
	}
	return !maps.Equal(before.Draining, now.Draining) ||
		!maps.EqualFunc(before.Groups, now.Groups, maps.Equal[map[model.GroupID]bool])
}
