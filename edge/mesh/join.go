package mesh

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"
)

// join keeps trying the snapshot's nodes that are not alive here, also long after the first success:
// two halves of a mesh that was parted for longer than gossip remembers the dead would otherwise
// never find each other.
func (m *Mesh) join(ctx context.Context, list *memberlist.Memberlist) {
	retry := joinRetryMin
	for {
		wait := joinCheck
		if absent := m.absent(); len(absent) > 0 {
			n, err := list.Join(absent)
			switch {
			case n > 0:
				retry = joinRetryMin
			case ctx.Err() == nil:
				m.metrics.joinsFailed.Inc()
				m.cfg.Log.Debug("join the mesh", "tried", len(absent), "error", err)
			}
			wait = time.Duration(rand.Float64() * float64(retry))
			retry = min(2*retry, joinRetryMax)
		} else if m.known() == 0 {
			wait = retry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// absent returns the gossip addresses of a few of the snapshot's nodes that are not alive here.
func (m *Mesh) absent() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var absent []string
	for id, addr := range m.peers { // in random order
		if _, alive := m.members[id]; !alive && addr.IsValid() {
			if absent = append(absent, addr.String()); len(absent) == joinTargets {
				break
			}
		}
	}
	return absent
}

func (m *Mesh) known() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.peers)
}
