package geo

import (
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

const (
	// tunnelWord is how long a broken tunnel alone keeps a node out of answers: as long as gossip may
	// need to know whether the node died, or only the path to it from here did.
	tunnelWord = 30 * time.Second
	// startGrace is how long after the start a node counts that was not seen yet.
	startGrace = 10 * time.Second
	// A node that came back counts once it was there for holdMin without a break, twice as long after
	// each time that it went within flapMemory, up to holdMax.
	holdMin    = 2 * time.Second
	holdMax    = 5 * time.Minute
	flapMemory = 5 * time.Minute
)

// Evidence is what this node sees of another one.
type Evidence struct {
	Tunnel   bool // there is a tunnel to it, or should be
	TunnelUp bool
	Gossip   bool // others or this node hear from it
}

// Liveness decides which nodes are alive enough for answers, without flapping. It is a machine without
// clock: whoever owns it says what is seen, and when. The zero value is not ready; see NewLiveness.
type Liveness struct {
	began time.Time
	nodes map[model.NodeID]*life
}

type life struct {
	up       bool
	since    time.Time // up or down
	everUp   bool      // its tunnel
	seen     bool      // by tunnel or gossip
	wantUp   time.Time // since when it would be up; zero: it would not
	flaps    int
	lastFlap time.Time
}

// NewLiveness returns a machine that knows nobody.
func NewLiveness(now time.Time) *Liveness {
	return &Liveness{began: now, nodes: map[model.NodeID]*life{}}
}

// Observe takes what is seen of a node and says whether it counts as alive; if that may change by time
// alone, again says when to look anew.
func (l *Liveness) Observe(now time.Time, id model.NodeID, e Evidence) (alive bool, again time.Duration) {
	n := l.nodes[id]
	if n == nil {
		n = &life{up: true, since: now}
		l.nodes[id] = n
	}
	n.everUp = n.everUp || e.TunnelUp
	n.seen = n.seen || e.TunnelUp || e.Gossip
	want, again := n.want(now, l.began, e)
	switch {
	case n.up && !want:
		if now.Sub(n.lastFlap) > flapMemory {
			n.flaps = 0
		}
		n.up, n.since, n.wantUp, n.lastFlap = false, now, time.Time{}, now
		n.flaps++
	case !n.up && !want:
		n.wantUp = time.Time{}
	case !n.up:
		if n.wantUp.IsZero() {
			n.wantUp = now
		}
		hold := min(holdMin<<min(n.flaps-1, 10), holdMax)
		if left := hold - now.Sub(n.wantUp); left > 0 {
			return false, left
		}
		n.up, n.since = true, now
	}
	return n.up, again
}

// want is what the evidence says by itself.
func (n *life) want(now, began time.Time, e Evidence) (bool, time.Duration) {
	switch {
	case e.TunnelUp:
		return true, 0
	case !n.seen:
		left := startGrace - now.Sub(began)
		return left > 0, max(left, 0)
	case e.Tunnel && n.everUp:
		if n.up { // it has just broken
			return false, tunnelWord
		}
		if left := tunnelWord - now.Sub(n.since); left > 0 {
			return false, left
		}
	}
	return e.Gossip, 0
}

// Forget drops what is known of nodes that are gone.
func (l *Liveness) Forget(keep func(model.NodeID) bool) {
	for id := range l.nodes {
		if !keep(id) {
			delete(l.nodes, id)
		}
	}
}
