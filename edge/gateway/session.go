package gateway

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/proxyproto"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// session is one UDP flow: a socket of its own, connected to its endpoint.
type session struct {
	key      sessionKey
	idle     time.Duration
	group    model.GroupID
	endpoint model.EndpointID
	port     uint16 // that the client meant
	mode     model.ClientAddressMode
	header   []byte // PROXY protocol in front of every datagram, or nil

	ends atomic.Pointer[ends]
	last atomic.Int64 // when a datagram passed, in nanoseconds of the sessions' clock

	claim claim // of a transparent session; guarded by the Gateway's claims

	mu      sync.Mutex  // held briefly, and while the socket is opened
	conn    *udpio.Conn // nil while the endpoint's name is looked up, and after the end
	pending []datagram  // that came meanwhile
	held    int         // bytes in them
	over    bool
}

// ends are those of a session's socket.
type ends struct{ endpoint, source netip.AddrPort }

// ack tells the edge that the session is known, and where it goes if that is known.
func (s *session) ack() *wire.DatagramAck {
	a := &wire.DatagramAck{FlowID: s.key.flow}
	if e := s.ends.Load(); e != nil {
		a.Endpoint, a.Source = e.endpoint, e.source
	}
	return a
}

type sessionKey struct {
	peer model.NodeID
	flow uint64
}

type datagram struct {
	data []byte
	tos  uint8
}

// sessions is the table: sharded, bounded by the Gateway's MaxSessions.
type sessions struct {
	count  atomic.Int64
	shards [shards]struct {
		mu sync.Mutex
		m  map[sessionKey]*session
	}
}

func (t *sessions) len() int { return int(t.count.Load()) }

// shardOf spreads flows; edges number them one after the other.
func shardOf(flow uint64) uint64 { return flow % shards }

func (t *sessions) get(k sessionKey) *session {
	s := &t.shards[shardOf(k.flow)]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[k]
}

// add returns the session of a key, and whether it is this new one. It returns nil when there are max.
func (t *sessions) add(n *session, max int) (s *session, added bool) {
	shard := &t.shards[shardOf(n.key.flow)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if old := shard.m[n.key]; old != nil {
		return old, false
	}
	if t.count.Add(1) > int64(max) {
		t.count.Add(-1)
		return nil, false
	}
	if shard.m == nil {
		shard.m = map[sessionKey]*session{}
	}
	shard.m[n.key] = n
	return n, true
}

func (t *sessions) remove(s *session) {
	shard := &t.shards[shardOf(s.key.flow)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.m[s.key] == s {
		delete(shard.m, s.key)
		t.count.Add(-1)
	}
}

// which returns the sessions for which f says so. f must not ask the table.
func (t *sessions) which(f func(*session) bool) (those []*session) {
	for i := range t.shards {
		shard := &t.shards[i]
		shard.mu.Lock()
		for _, s := range shard.m {
			if f(s) {
				those = append(those, s)
			}
		}
		shard.mu.Unlock()
	}
	return those
}

// expired returns the sessions that were idle for too long by now.
func (t *sessions) expired(now time.Duration) []*session {
	return t.which(func(s *session) bool { return now-time.Duration(s.last.Load()) > s.idle })
}

// sweep ends idle sessions until ctx ends.
func (g *Gateway) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for _, s := range g.sessions.expired(g.now()) {
				g.end(s)
			}
		}
	}
}

func (g *Gateway) closeSessions() {
	for _, s := range g.sessions.which(func(*session) bool { return true }) {
		g.end(s)
	}
}

// now is the time since the Gateway was made, and never 0.
func (g *Gateway) now() time.Duration { return time.Since(g.begun) + 1 }

// end closes a session. The edge is not told: if it has more to send, it learns that nobody knows the
// flow any more and begins it anew.
func (g *Gateway) end(s *session) {
	g.sessions.remove(s)
	s.mu.Lock()
	conn := s.conn
	s.conn, s.over, s.pending = nil, true, nil
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	g.claims.release(s)
}

// open makes a session for a flow that is new here. It returns the reason to refuse it otherwise.
func (g *Gateway) open(key sessionKey, open *wire.Open, local bool) (*session, wire.ResetReason) {
	p, group, refusal := g.find(open, local)
	if refusal != nil {
		g.metrics.sessionsRefused.WithLabelValues(refusal.Code.String()).Inc()
		return nil, wire.ResetRefused
	}
	k := g.newPick(p, group, open)
	e, _ := k.next()
	if e == nil {
		g.metrics.sessionsRefused.WithLabelValues(wire.OpenNoEndpoint.String()).Inc()
		return nil, wire.ResetRefused
	}
	s := &session{key: key, idle: group.listener.UDPIdleTimeout + sessionSlack,
		group: group.ID, endpoint: e.ID, port: open.Dst.Port(), mode: e.ClientAddress}
	s.last.Store(int64(g.now()))
	if e.ClientAddress == model.ClientAddressProxyV2 {
		s.header = proxyproto.AppendV2(nil, open.Src, open.Dst, true)
	}
	s, added := g.sessions.add(s, g.cfg.MaxSessions)
	if s == nil {
		g.metrics.sessionsRefused.WithLabelValues(wire.OpenOverloaded.String()).Inc()
		return nil, wire.ResetOverload
	}
	if !added {
		return s, 0
	}
	// Either this sees a plan that came meanwhile, or retell sees the session.
	if g.plan.Load().stale(s) {
		g.end(s)
		return nil, wire.ResetUnknown
	}
	o := *open // outlives the call
	if addrs, fresh := g.known(e); fresh {
		if reason := g.connect(s, k, e, &o, addrs); reason != 0 {
			g.end(s)
			return nil, reason
		}
		return s, 0
	}
	resolve := func() {
		addrs, err := g.names.resolve(g.ctx, e.Host)
		reason := wire.ResetRefused
		if err == nil {
			reason = g.connect(s, k, e, &o, addrs)
		}
		if reason != 0 {
			g.end(s)
			g.close(key, reason)
		}
	}
	if !g.start(resolve) {
		g.end(s)
		return nil, wire.ResetShutdown
	}
	return s, 0
}

// known returns an endpoint's addresses if that needs no waiting.
func (g *Gateway) known(e *model.Endpoint) ([]netip.Addr, bool) {
	if addr := e.Addr(); addr.IsValid() {
		return []netip.Addr{addr}, true
	}
	return g.names.cached(e.Host)
}

// connect opens a session's socket and sends what waits for it. It returns 0, or why not.
func (g *Gateway) connect(s *session, k *pick, e *model.Endpoint, open *wire.Open, addrs []netip.Addr) wire.ResetReason {
	options := udpio.Options{Unpolled: true, RecvBuffer: -1, SendBuffer: -1}
	for i := range addrs {
		to := netip.AddrPortFrom(addrs[(uint64(i)+k.hash)%uint64(len(addrs))], k.port)
		if k.p.rules.Check(to) != nil {
			g.metrics.sessionsRefused.WithLabelValues(wire.OpenForbidden.String()).Inc()
			continue
		}
		var from netip.AddrPort
		if e.ClientAddress == model.ClientAddressTransparent {
			if from = open.Src; from.Addr().Is4() != to.Addr().Is4() {
				g.metrics.sessionsRefused.WithLabelValues(codeOf(errFamily).String()).Inc()
				continue
			}
			options.Transparent, options.Shared = true, true
			if old := g.claims.take(claim{from, to}, s); old != nil {
				g.metrics.sessionsReplaced.Inc()
				g.end(old)
			}
		}
		conn, err := udpio.Dial(from, to, options)
		if err != nil {
			g.metrics.sessionsRefused.WithLabelValues(codeOf(err).String()).Inc()
			g.cfg.Log.Debug("session not opened", "endpoint", e.ID, "error", err)
			continue
		}
		s.ends.Store(&ends{to, conn.LocalAddr()})
		if !g.attach(s, conn) {
			conn.Close()
			g.metrics.sessionsRefused.WithLabelValues(wire.OpenOverloaded.String()).Inc()
			return wire.ResetOverload
		}
		g.metrics.sessionsOpened.Inc()
		return 0
	}
	return wire.ResetRefused
}

// attach gives a session its socket, and sends what waits for it.
func (g *Gateway) attach(s *session, conn *udpio.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || g.poller.Add(conn, s) != nil {
		return false
	}
	s.conn = conn
	for _, d := range s.pending {
		g.write(s, conn, []udpio.Packet{{Data: d.data, TOS: d.tos}})
	}
	s.pending, s.held = nil, 0
	return true
}
