package edge

import (
	"fmt"
	"runtime/debug"

	"github.com/nearcast/nearcast/edge/agent"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/probe"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/edge/zone"
	"github.com/nearcast/nearcast/proto/model"
)

// plan is a snapshot worked out for this node, before any of it takes effect.
type plan struct {
	snapshot *model.Snapshot
	rules    *model.EndpointRules
	targets  []probe.Target
	table    *steer.Table
	view     steer.View
	bindings []listen.Binding // doors for clients
	zones    *zone.Set        // nil: this node answers no DNS
	drained  bool             // no new flows
}

// apply makes a snapshot take effect, in the order probe → backbone → gateway → steer →
// kernel → listen → dns: flows
// are steered only to what knows the snapshot already, and an address is opened only when what comes in
// there can be served. Everything that can be refused is worked out first (the steering table, too), so
// that a refusal leaves no trace. If taking effect panics, the snapshot before
// takes effect again.
func (n *Node) apply(s *model.Snapshot) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	next, err := n.plan(s)
	if err != nil {
		return err
	}
	before := n.snapshot.Load()
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		n.log.Error("panic while a snapshot took effect", "panic", p, "stack", string(debug.Stack()))
		err = fmt.Errorf("panic while taking effect: %v", p)
		if before == nil {
			return
		}
		if old, planErr := n.plan(before); planErr == nil {
			n.take(old)
		}
	}()
	n.take(next)
	return nil
}

// plan works a snapshot out. n.mu is held.
func (n *Node) plan(s *model.Snapshot) (plan, error) {
	p := plan{snapshot: s, rules: model.NewEndpointRules(s), view: n.view()}
	if self := s.Node(n.self); self != nil && n.prober != nil {
		if site := s.Site(self.Site); site != nil {
			p.targets = probe.Targets(s, site.Region)
		}
	}
	p.table = steer.Compile(s, n.self, p.view)
	p.drained = n.drained(s)
	var err error
	if n.names != nil {
		if p.zones, err = zone.Compile(s); err != nil {
			return p, err
		}
	}
	p.bindings, err = n.traffic.plan(p.table)
	return p, err
}

// take makes a plan take effect. n.mu is held.
func (n *Node) take(p plan) {
	if n.prober != nil {
		n.prober.SetTargets(p.targets, p.rules)
	}
	n.mesh.SetSnapshot(p.snapshot)
	n.mesh.SetDraining(p.drained)
	if n.pool != nil {
		n.pool.SetPeers(p.snapshot.Nodes)
	}
	if n.server != nil {
		n.server.SetPeers(p.snapshot.Nodes)
	}
	n.snapshot.Store(p.snapshot)
	shut := n.shut(p.drained)
	n.setShut(shut)
	n.traffic.gateway.Apply(p.snapshot)
	n.traffic.logFlows(p.snapshot)
	n.setTable(p.table, p.view)
	if n.kernel != nil {
		if err := n.kernel.Apply(p.snapshot); err != nil {
			n.log.Error("a kernel program did not take the snapshot", "error", err)
		}
	}
	if n.site != nil {
		n.site.SetSnapshot(p.snapshot)
	}
	n.traffic.open(p.bindings, shut)
	n.names.setSnapshot(p.snapshot, p.zones)
	if n.announce != nil {
		n.announce.SetSnapshot(p.snapshot) // last: an address is announced when it can be served
	}
	n.changed() // the gateway's own word may have changed with it
}

// drained reports whether this node takes no new flows: it is stopping, or operators drain it.
func (n *Node) drained(s *model.Snapshot) bool {
	if n.draining.Load() {
		return true
	}
	self := s.Node(n.self)
	return self != nil && self.State == model.NodeDraining
}

// health returns every verdict of the prober, for a complete report.
func (n *Node) health() []agent.Health {
	if n.prober == nil {
		return nil
	}
	verdicts := n.prober.Verdicts()
	all := make([]agent.Health, len(verdicts))
	for i, v := range verdicts {
		all[i] = agent.Health(v)
	}
	return all
}

// paths returns what the tunnels measure.
func (n *Node) paths() []agent.Path {
	if n.pool == nil {
		return nil
	}
	var all []agent.Path
	for id, p := range n.pool.Peers() {
		all = append(all, agent.Path{
			Peer: id, RTT: p.RTT, Loss: p.Loss, Carriers: p.Carriers, UDP: p.UDP, Up: p.Up,
		})
	}
	return all
}
