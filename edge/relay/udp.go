package relay

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// UDP relays datagrams. One a process; safe for concurrent use. No goroutine belongs to a flow, and no
// lock is wider than a shard of a table.
type UDP struct {
	cfg     Config
	metrics *udpMetrics
	ruling  atomic.Pointer[ruling]
	admit   admission
	seed    uint64 // of the shards, so that nobody can choose where his flows go
	begun   time.Time
	drained atomic.Bool
	last    atomic.Uint64 // the number of the last flow
	byTuple [udpShards]tupleShard
	byID    [udpShards]idShard
}

// NewUDP returns a UDP that drops everything until SetTable.
func NewUDP(cfg Config) (*UDP, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	u := &UDP{cfg: cfg, seed: rand.Uint64(), begun: time.Now()}
	// Gateways keep sessions of an edge that was restarted for a while: numbers must not repeat soon.
	u.last.Store(uint64(time.Now().UnixNano()))
	u.metrics = newUDPMetrics(u)
	u.admit.max, u.admit.memory = int64(cfg.MaxFlows), cfg.Memory
	u.admit.refused = func(reason string) { u.metrics.dropped.WithLabelValues("full: " + reason).Inc() }
	return u, u.metrics.register(cfg.Metrics)
}

// SetTable has new flows go by a table. Flows whose listener is not in it end.
func (u *UDP) SetTable(table *steer.Table) {
	old := u.ruling.Load()
	r := newRuling(table, old, &u.cfg)
	u.ruling.Store(r)
	if old == nil || !lost(old, r) {
		return
	}
	for _, s := range u.which(func(s *udpSession) bool { return table.ListenerByID(s.listener.ID) == nil }) {
		u.end(s, wire.ResetRemoved)
	}
}

// SetDraining has flows that are new dropped. Those that are there go on.
func (u *UDP) SetDraining(on bool) { u.drained.Store(on) }

// Flows returns the number of flows.
func (u *UDP) Flows() int { return int(u.admit.flows.Load()) }

// Busy returns the number of flows in which a datagram passed a moment ago.
func (u *UDP) Busy(within time.Duration) int {
	since := int64(u.now() - within)
	return len(u.which(func(s *udpSession) bool { return s.active.Load() >= since }))
}

// Tuples returns the flows that there are.
func (u *UDP) Tuples() []flow.Tuple {
	var all []flow.Tuple
	u.which(func(s *udpSession) bool {
		all = append(all, s.tuple)
		return false
	})
	return all
}

// now is the time since the UDP was made.
func (u *UDP) now() time.Duration { return time.Since(u.begun) }

// Run ends idle flows until ctx ends, and then all that are left.
func (u *UDP) Run(ctx context.Context) error {
	tick := time.NewTicker(udpSweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			for _, s := range u.which(func(*udpSession) bool { return true }) {
				u.end(s, wire.ResetShutdown)
			}
			return nil
		case <-tick.C:
			u.sweep()
		}
	}
}

// sweep ends idle flows. While the table is nearly full, those that nobody ever answered need not be
// silent for long.
func (u *UDP) sweep() {
	now := u.now()
	pressed := u.admit.flows.Load()*100 >= u.admit.max*udpPressure
	idle := u.which(func(s *udpSession) bool {
		limit := s.idle
		if pressed && !s.answered.Load() {
			limit = min(limit, udpPressureIdle)
		}
		return now-time.Duration(s.active.Load()) >= limit
	})
	for _, s := range idle {
		u.end(s, wire.ResetIdle)
	}
}

// Fold has the flows that are open counted up to now.
func (u *UDP) Fold() {
	for _, s := range u.which(func(*udpSession) bool { return true }) {
		s.account.Fold(s.sample())
	}
}

// HandleUDP takes datagrams of clients; it is listen.Config's.
func (u *UDP) HandleUDP(conn *udpio.Conn, pkts []udpio.Packet) {
	r := u.ruling.Load()
	if r == nil {
		u.drop("no listener", len(pkts))
		return
	}
	b := outs.Get().(*outBatch)
	port := conn.LocalAddr().Port()
	now := u.now()
	var s *udpSession
	for i := range pkts {
		p := &pkts[i]
		tuple := flow.Tuple{Src: p.Remote, Dst: netip.AddrPortFrom(p.Local, port), Proto: flow.UDP}
		if s == nil || s.tuple != tuple {
			if s = u.find(tuple); s == nil {
				if s = u.begin(r, tuple, conn); s == nil {
					continue
				}
			}
			s.active.Store(int64(now))
			u.leaveDead(r, s)
		}
		s.in.add(len(p.Data))
		s.amplified.question(s.listener.Guard.MaxAmplification, len(p.Data))
		b.add(u, s, p)
	}
	u.flush(b)
	outs.Put(b)
}

// find returns the session of a tuple, or nil.
func (u *UDP) find(tuple flow.Tuple) *udpSession {
	shard := &u.byTuple[tuple.Hash(u.seed)%udpShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return shard.m[tuple]
}

// begin makes the session of a flow that is new, or counts why not.
func (u *UDP) begin(r *ruling, tuple flow.Tuple, conn *udpio.Conn) *udpSession {
	l := r.Listener(tuple.Dst, flow.UDP)
	switch {
	case l == nil:
		u.drop("no listener", 1)
		return nil
	case u.drained.Load():
		u.drop("draining", 1)
		return nil
	case !answerable(tuple.Src):
		u.drop("source cannot be answered", 1)
		return nil
	case r.Listener(tuple.Src, flow.UDP) != nil:
		u.drop("loop", 1) // two of our own addresses would talk to each other for ever
		return nil
	}
	counts := r.counts[l.ID]
	if !l.Takes(tuple.Dst.Port(), flow.UDP) {
		u.drop(notMapped, 1)
		counts.meter.Refuse(model.UDP, tuple.Src, tuple.Dst, meter.ResetByNearcast, "denied")
		return nil
	}
	if u.cfg.Behind() {
		u.drop("overload", 1)
		counts.meter.Refuse(model.UDP, tuple.Src, tuple.Dst, meter.ResetByNearcast, "overload")
		return nil
	}
	p, ok := u.admit.enter(counts)
	if !ok {
		counts.meter.Refuse(model.UDP, tuple.Src, tuple.Dst, meter.ResetByNearcast, "limit")
		return nil
	}
	if !u.admit.enterSource(&p, sourceOf(l.ID, tuple.Src.Addr())) {
		u.admit.leave(p)
		counts.meter.Refuse(model.UDP, tuple.Src, tuple.Dst, meter.ResetByNearcast, "limit")
		return nil
	}
	s := &udpSession{tuple: tuple, id: u.last.Add(1), listener: l, pass: p, conn: conn, idle: l.UDPIdleTimeout}
	s.account.Begin(counts.meter, model.UDP, tuple.Src, tuple.Dst)
	if s.idle <= 0 {
		s.idle = model.DefaultUDPIdleTimeout
	}
	s.restart(u, r)
	if s.way.Load() == nil {
		u.admit.leave(p)
		u.drop("no way", 1)
		counts.meter.Refuse(model.UDP, tuple.Src, tuple.Dst, meter.Unserved, "no_endpoint")
		return nil
	}
	s.active.Store(int64(u.now()))
	conn.Use()
	if other := u.enter(s); other != nil { // two sockets had the same flow at once
		conn.Unuse()
		u.admit.leave(p)
		return other
	}
	s.mu.Lock()
	s.serve()
	s.mu.Unlock()
	u.metrics.opened.Inc()
	return s
}

// answerable reports whether an answer to a source would go to one machine that asked.
func answerable(src netip.AddrPort) bool {
	a := src.Addr()
	return src.Port() != 0 && a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// leaveDead has a session go elsewhere when its gateway cannot be reached any more and another one can.
// A datagram flow loses nothing by it that it would not have lost.
func (u *UDP) leaveDead(r *ruling, s *udpSession) {
	w := s.way.Load()
	if w == nil || w.gateway == u.cfg.Self {
		return
	}
	if peer, _ := u.cfg.Pool.Peer(w.gateway); peer.Up {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.way.Load() != w {
		return
	}
	s.restart(u, r)
	if s.way.Load() == nil {
		s.way.Store(w) // nowhere to go: it may come back
		return
	}
	s.serve()
	u.metrics.moved.WithLabelValues("gateway down").Inc()
}

// HandleDatagrams takes messages of gateways; it is backbone.Common's, and gateway.Config's
// LocalDatagrams. It keeps nothing of msgs.
func (u *UDP) HandleDatagrams(peer model.NodeID, msgs [][]byte) {
	b := ins.Get().(*inBatch)
	now := u.now()
	var d wire.Datagram
	for _, m := range msgs {
		t, id, ok := wire.DatagramHead(m)
		s := b.session
		if s == nil || s.id != id {
			s = u.byNumber(id)
		}
		if !ok || s == nil {
			u.drop("unknown flow", 1)
			continue
		}
		w := s.way.Load()
		if w == nil || w.gateway != peer {
			u.drop("unknown flow", 1) // a gateway that it was moved away from
			continue
		}
		switch t {
		case wire.DatagramTypeData:
			if d.Decode(m) != nil {
				u.drop("malformed", 1)
				continue
			}
			s.active.Store(int64(now))
			s.answered.Store(true)
			if !s.amplified.answer(s.listener.Guard.MaxAmplification, len(d.Payload)) {
				u.drop("amplification", 1)
				continue
			}
			s.out.add(len(d.Payload))
			b.add(u, s, d.Payload, d.TOS)
		case wire.DatagramTypeAck:
			w.known.Store(true)
			var ack wire.DatagramAck
			if ack.Decode(m) == nil && ack.Endpoint.IsValid() {
				s.account.Via(meter.Path{Endpoint: ack.Endpoint, Source: ack.Source})
			}
		case wire.DatagramTypeClose:
			var c wire.DatagramClose
			if c.Decode(m) == nil {
				u.closed(s, w, c.Reason)
			}
		default:
			u.drop("malformed", 1)
		}
	}
	b.flush(u)
	ins.Put(b)
}

// closed takes a gateway's word that a flow is over there. One that has forgotten it gets it again; one
// that refuses it makes it go elsewhere.
func (u *UDP) closed(s *udpSession, w *way, reason wire.ResetReason) {
	if reason == wire.ResetUnknown {
		w.known.Store(false)
		return
	}
	s.mu.Lock()
	moved := s.way.Load() == w && s.advance(u)
	if moved {
		s.serve()
	}
	s.mu.Unlock()
	if !moved {
		u.end(s, reason)
		return
	}
	u.metrics.moved.WithLabelValues(reason.String()).Inc()
}

func (u *UDP) drop(reason string, n int) {
	u.metrics.dropped.WithLabelValues(reason).Add(float64(n))
}
