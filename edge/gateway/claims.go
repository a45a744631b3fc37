package gateway

import (
	"net/netip"
	"sync"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// claim is a way between a client's own address and an endpoint, as both of them see it.
type claim struct{ client, endpoint netip.AddrPort }

// claims are the ways that transparent sessions have. The kernel brings what comes on a way to one socket
// only, so the newest session has it: an edge that the client does not reach any more (its routes have
// changed, or the edge was begun anew) says nothing of it, and its session would hold the way until it
// is idle. There are at most as many as sessions.
type claims struct {
	mu sync.Mutex
	m  map[claim]*session
}

// take gives a way to a session, and returns the one that had it.
func (c *claims) take(way claim, s *session) (old *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[claim]*session{}
	}
	if c.m[s.claim] == s { // one that led nowhere: a name has several addresses
		delete(c.m, s.claim)
	}
	old = c.m[way]
	c.m[way] = s
	s.claim = way
	return old
}

// release takes back what a session had.
func (c *claims) release(s *session) {
	if s.mode != model.ClientAddressTransparent {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[s.claim] == s {
		delete(c.m, s.claim)
	}
}

// mode returns how the endpoint of a session is told of clients. ok is false when it is not in the plan.
func (p *plan) mode(s *session) (mode model.ClientAddressMode, ok bool) {
	group := p.groups[s.group]
	if group == nil {
		return 0, false
	}
	if group.ports != nil {
		m, _, ok := group.ports.Lookup(s.port, model.UDP)
		if !ok || m.Group != group.ID {
			return 0, false
		}
		return m.ClientAddress, true
	}
	for i := range group.Endpoints {
		if group.Endpoints[i].ID == s.endpoint {
			return group.Endpoints[i].ClientAddress, true
		}
	}
	return 0, false
}

// retells reports whether an endpoint may be told of clients in another way than by an old plan. Of custom
// routing it does not know, and says yes.
func (p *plan) retells(old *plan) bool {
	for id, group := range p.groups {
		if group.ports != nil {
			return true
		}
		before := old.groups[id]
		if before == nil {
			continue
		}
		for i := range group.Endpoints {
			e := &group.Endpoints[i]
			for j := range before.Endpoints {
				if b := &before.Endpoints[j]; b.ID == e.ID && b.ClientAddress != e.ClientAddress {
					return true
				}
			}
		}
	}
	return false
}

// retell ends the sessions whose endpoints are to be told of clients in another way by now, or a flow that
// is never silent would go on in the old way for ever. Their edges begin them anew with the next datagram.
func (g *Gateway) retell(old *plan) {
	p := g.plan.Load()
	if !p.retells(old) {
		return
	}
	for _, s := range g.sessions.which(func(s *session) bool { return p.stale(s) }) {
		g.metrics.sessionsRetold.Inc()
		g.end(s)
		g.close(s.key, wire.ResetUnknown)
	}
}

// stale reports whether a session tells its endpoint of the client in another way than it should.
func (p *plan) stale(s *session) bool {
	mode, ok := p.mode(s)
	return ok && mode != s.mode
}
