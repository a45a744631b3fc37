package edge

import (
	"net/netip"
	"time"

	"github.com/nearcast/nearcast/edge/announce"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// buildAnnounce makes the part that announces addresses. Gateways have none to announce.
func (n *Node) buildAnnounce() (err error) {
	if !n.cfg.Edge {
		return nil
	}
	n.announce, err = announce.New(announce.Config{
		Log: n.log.With("room", "announce"), Metrics: n.registry, Self: n.self, DataDir: n.cfg.DataDir,
		Doors: n.traffic.announceDoors, Fleet: n.announceFleet, OnChange: n.announceChanged,
	})
	return err
}

// announceDoors is the state of the listening sockets, as far as announcements rest on it.
func (t *traffic) announceDoors() map[netip.Addr]announce.Doors {
	all := map[netip.Addr]announce.Doors{}
	for addr, d := range t.doors.Doors() {
		all[addr] = announce.Doors(d)
	}
	return all
}

// announceFleet is what gossip says about the announcements of others.
func (n *Node) announceFleet() map[model.NodeID]announce.Member {
	all := map[model.NodeID]announce.Member{}
	for _, m := range n.mesh.Members() {
		all[m.ID] = announce.Member{Announcing: m.Meta.Announcing, WantsOut: m.Meta.WantsOut}
	}
	return all
}

// announceChanged tells whoever needs to know. The doors of a drained node shut once nothing leads to them.
func (n *Node) announceChanged() {
	m := n.announce.Gossip()
	n.mesh.SetAnnouncing(m.Announcing, m.WantsOut)
	n.mu.Lock()
	if s, t := n.snapshot.Load(), n.table.Load(); s != nil && t != nil {
		if shut := n.shut(n.drained(s)); shut != n.doorsShut {
			n.setShut(shut)
			n.traffic.open(n.traffic.bindings(t), shut)
		}
	}
	n.mu.Unlock()
	n.agent.AnnounceChanged()
}

// shut reports whether a node that is to take no new flows may already refuse them: not while anything
// announces it, or clients would be led to a closed door.
func (n *Node) shut(drained bool) bool {
	return drained && (n.announce == nil || n.announce.Gone())
}

// setShut has the gateway refuse new flows, or take them again. n.mu is held.
func (n *Node) setShut(shut bool) {
	n.doorsShut = shut
	n.traffic.gateway.SetDraining(shut)
}

// report returns what this node announces.
func (n *Node) report() *pb.AnnounceReport {
	if n.announce == nil {
		return &pb.AnnounceReport{Reason: "this node is no edge"}
	}
	return n.announce.Report()
}

// withdraw takes back all announcements before this node stops, and returns when that is done, or the
// wait is over.
func (n *Node) withdraw(failed <-chan error) {
	if n.announce == nil || n.announce.Gone() {
		return
	}
	n.announce.Leave()
	n.log.Info("withdrawing announcements")
	began := time.Now()
	timeout := time.NewTimer(n.withdrawTimeout())
	defer timeout.Stop()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for !n.announce.Gone() {
		select {
		case <-poll.C:
			continue
		case <-timeout.C:
			n.log.Warn("announcements are not withdrawn in time")
		case <-n.aborted:
		case err := <-failed:
			n.log.Error("a part of the node failed while withdrawing", "error", err)
		}
		return
	}
	n.log.Info("withdrawn", "took", time.Since(began).Round(time.Millisecond))
}

// withdrawTimeout is how long the site's drain may take, and a moment.
func (n *Node) withdrawTimeout() time.Duration {
	wait := withdrawSpare
	if s := n.snapshot.Load(); s != nil {
		if site := s.Site(model.SiteName(n.cfg.Site)); site != nil && site.BGP != nil {
			wait += site.BGP.DrainTime
		}
	}
	return wait
}
