package mesh

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/nearcast/nearcast/proto/model"
)

// delegate is what memberlist calls. It is called with memberlist's locks held, so every method only
// takes note and returns. After Run has ended it does nothing: a timer of memberlist may still fire.
type delegate struct{ m *Mesh }

// NotifyAlive refuses nodes that the snapshot does not know: whoever has the key but is not
// authorised (like a revoked node before the keys rotate) is no member.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	id := model.NodeID(n.Name)
	d.m.mu.Lock()
	_, known := d.m.peers[id]
	d.m.mu.Unlock()
	if !known && id != d.m.cfg.Node {
		return fmt.Errorf("node %q is not in the snapshot", n.Name)
	}
	_, err := parseMeta(n.Meta)
	return err
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.note(n, true) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.note(n, false) }

func (d *delegate) note(n *memberlist.Node, arrived bool) {
	id := model.NodeID(n.Name)
	meta, err := parseMeta(n.Meta)
	if err != nil || id == d.m.cfg.Node {
		return // NotifyAlive has refused it
	}
	addr, _ := netip.AddrFromSlice(n.Addr)
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.left.Load() {
		return
	}
	member := Member{ID: id, Address: netip.AddrPortFrom(addr.Unmap(), n.Port), Meta: meta, Since: time.Now()}
	if before, ok := d.m.members[id]; ok {
		member.Since = before.Since
	}
	d.m.members[id] = member
	if arrived {
		d.m.cfg.Log.Info("node is alive", "node", id, "site", meta.Site)
		d.m.arrivals = append(d.m.arrivals, id)
		d.m.poke()
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	id := model.NodeID(n.Name)
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.left.Load() || id == d.m.cfg.Node {
		return
	}
	if n.State == memberlist.StateLeft {
		d.m.cfg.Log.Info("node has left", "node", id)
	} else {
		d.m.cfg.Log.Info("node is not alive, says gossip", "node", id)
	}
	delete(d.m.members, id)
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.m.cfg.Log.Warn("two machines use one node's identity",
		"node", existing.Name, "address", existing.Address(), "other", other.Address())
}

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	return appendMeta(nil, d.m.meta)
}

// NotifyMsg implements memberlist.Delegate; the mesh has no messages of its own.
func (d *delegate) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState([]byte, bool) {}
