package edge

import (
	"time"
)

// drain takes this node out of use without harm: in the reverse of the order in which a snapshot
// takes effect, it closes the doors for clients, tells the edges to open nothing more here, and then
// waits for the flows that there are.
func (n *Node) drain(failed <-chan error) {
	n.draining.Store(true)
	began := time.Now()
	n.mesh.SetDraining(true)
	n.names.poke() // answers name others from now on
	n.withdraw(failed)
	n.mu.Lock()
	if t := n.table.Load(); t != nil {
		n.traffic.open(n.traffic.bindings(t), true)
	}
	n.setShut(true)
	n.mu.Unlock()
	if n.server != nil {
		n.server.Drain()
	}
	timeout := time.NewTimer(n.cfg.DrainTimeout)
	defer timeout.Stop()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	n.log.Info("draining", "flows", n.traffic.flows(), "at_most", n.cfg.DrainTimeout)
	for n.traffic.busy() > 0 {
		select {
		case <-poll.C:
			continue
		case <-timeout.C:
			n.log.Warn("flows did not end in time and are reset", "flows", n.traffic.flows())
		case <-n.aborted:
			n.log.Warn("not waiting for flows", "flows", n.traffic.flows())
		case err := <-failed:
			n.log.Error("a part of the node failed while draining", "error", err)
		}
		return
	}
	n.log.Info("drained", "took", time.Since(began).Round(time.Millisecond), "silent_flows_ended", n.traffic.flows())
}
