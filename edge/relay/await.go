package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// paths tells flows that found no way to any gateway when there may be one: just after a start, a thaw or
// an outage of this node's own network, tunnels are back within a moment, and a client waits for that
// rather than be refused. In a long outage only the first wait: until a tunnel has taken a flow again,
// later ones are refused at once, so that clients can turn to another address.
type paths struct {
	mu       sync.Mutex
	changed  chan struct{} // closed at the next change; nil: nobody waits
	hopeless atomic.Bool   // somebody waited in vain, and no tunnel has taken a flow since
}

// next returns a channel that is closed at the next change.
func (p *paths) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

// change has everybody try again.
func (p *paths) change() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// found says that a tunnel has taken a flow.
func (p *paths) found() {
	if p.hopeless.Load() {
		p.hopeless.Store(false)
	}
}

// awaitPath waits until something has changed; false: the flow has waited long enough, or is over.
func (f *tcpFlow) awaitPath(changed <-chan struct{}) bool {
	p := &f.t.paths
	if p.hopeless.Load() {
		return false
	}
	f.t.metrics.awaited.Inc()
	timer := time.NewTimer(pathWait - time.Since(f.entered))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
		p.hopeless.Store(true)
		return false
	case <-f.t.ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.over
}
