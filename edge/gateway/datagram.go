package gateway

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// batch is what one call of HandleDatagrams needs. It holds nothing between
// calls, but for the ids of the last Open, which the next one likely has as well.
type batch struct {
	open    wire.DatagramOpen
	session *session       // whose packets these are
	pkts    []udpio.Packet // for its endpoint, not sent yet
	buf     []byte         // where packets are made
}

var batches = sync.Pool{New: func() any { return &batch{} }}

// HandleDatagrams takes messages of an edge; it is backbone.Common's, and the way of this node's own
// relay, too (peer is Self then). It does not block and keeps nothing of msgs.
func (g *Gateway) HandleDatagrams(peer model.NodeID, msgs [][]byte) {
	b := batches.Get().(*batch)
	for _, m := range msgs {
		t, flow, ok := wire.DatagramHead(m)
		if !ok {
			g.drop("malformed", 1)
			continue
		}
		key := sessionKey{peer, flow}
		switch t {
		case wire.DatagramTypeOpen:
			g.handleOpen(b, key, m)
		case wire.DatagramTypeData:
			g.handleData(b, key, m)
		case wire.DatagramTypeClose:
			if s := g.sessions.get(key); s != nil {
				g.flush(b)
				g.end(s)
			}
		default:
			g.drop("malformed", 1)
		}
	}
	g.flush(b)
	batches.Put(b)
}

// handleOpen begins a flow, unless it was begun, and tells the edge that the flow is known.
func (g *Gateway) handleOpen(b *batch, key sessionKey, m []byte) {
	if b.open.Decode(m) != nil {
		g.drop("malformed", 1)
		return
	}
	s := g.sessions.get(key)
	if s == nil {
		var reason wire.ResetReason
		if s, reason = g.open(key, &b.open.Open, key.peer == g.cfg.Self); s == nil {
			g.drop("refused", 1)
			g.close(key, reason)
			return
		}
	}
	g.send(key.peer, [][]byte{s.ack().Append(nil)})
	g.add(b, s, b.open.Payload, b.open.TOS)
}

// handleData passes a datagram of a known flow on.
func (g *Gateway) handleData(b *batch, key sessionKey, m []byte) {
	var d wire.Datagram
	if d.Decode(m) != nil {
		g.drop("malformed", 1)
		return
	}
	s := b.session
	if s == nil || s.key != key {
		s = g.sessions.get(key)
	}
	if s == nil {
		g.drop("unknown flow", 1)
		g.close(key, wire.ResetUnknown)
		return
	}
	g.add(b, s, d.Payload, d.TOS)
}

// add puts a datagram to those of its session that leave together.
func (g *Gateway) add(b *batch, s *session, data []byte, tos uint8) {
	if b.session != s {
		g.flush(b)
		b.session = s
	}
	if s.header != nil {
		if len(s.header)+len(data) > udpio.PayloadMax {
			g.drop("no room for the PROXY header", 1)
			return
		}
		// Earlier packets stay in the old array if this append moves to a larger one.
		at := len(b.buf)
		b.buf = append(append(b.buf, s.header...), data...)
		data = b.buf[at:len(b.buf):len(b.buf)]
	}
	b.pkts = append(b.pkts, udpio.Packet{Data: data, TOS: tos})
}

// flush sends the packets of a batch to their endpoint.
func (g *Gateway) flush(b *batch) {
	if s := b.session; s != nil && len(b.pkts) > 0 {
		s.last.Store(int64(g.now()))
		s.mu.Lock()
		switch conn := s.conn; {
		case s.over:
			s.mu.Unlock()
			g.drop("session ended", len(b.pkts))
		case conn == nil:
			g.hold(s, b.pkts)
			s.mu.Unlock()
		default:
			s.mu.Unlock()
			g.write(s, conn, b.pkts)
		}
	}
	clear(b.pkts)
	b.open.Payload = nil
	b.session, b.pkts, b.buf = nil, b.pkts[:0], b.buf[:0]
}

// hold keeps copies of packets until the session has its socket. The caller holds s.mu.
func (g *Gateway) hold(s *session, pkts []udpio.Packet) {
	for i := range pkts {
		if len(s.pending) >= pendingMax || s.held+len(pkts[i].Data) > pendingBytes {
			g.drop("name not resolved yet", len(pkts)-i)
			return
		}
		s.pending = append(s.pending, datagram{append([]byte(nil), pkts[i].Data...), pkts[i].TOS})
		s.held += len(pkts[i].Data)
	}
}

// write sends packets to an endpoint. What the kernel does not take at once is dropped.
func (g *Gateway) write(s *session, conn *udpio.Conn, pkts []udpio.Packet) {
	refused := false
	for len(pkts) > 0 {
		n, err := conn.WriteBatch(pkts)
		g.metrics.toEndpoint.Add(float64(n))
		if pkts = pkts[n:]; err == nil || len(pkts) == 0 {
			return
		}
		switch {
		case udpio.Refused(err) && !refused:
			refused = true // that was about an earlier datagram: this one was not sent yet
			continue
		case udpio.Refused(err):
			g.drop("endpoint refuses", 1)
		case udpio.Full(err):
			g.drop("socket full", 1)
		case errors.Is(err, unix.EMSGSIZE):
			g.drop("too large", 1)
		default:
			g.drop("socket failed", len(pkts))
			return
		}
		refused = false
		pkts = pkts[1:]
	}
}

// replies collects what endpoints sent during one round of a poller's loop: many sessions say little
// each, and what goes to one edge together shares packets and system calls.
type replies struct {
	g    *Gateway
	now  time.Duration // of the round; 0: not asked yet
	peer model.NodeID  // whom the messages are for
	buf  []byte        // messages alias it, so it never moves
	msgs [][]byte
}

// newReplies is udpio.PollerConfig's PerLoop.
func (g *Gateway) newReplies() (handle func(*session, []udpio.Packet, error), round func()) {
	r := &replies{g: g, buf: make([]byte, 0, replyBytesMax)}
	return r.take, r.end
}

// take takes what an endpoint sent.
func (r *replies) take(s *session, pkts []udpio.Packet, err error) {
	if err != nil {
		r.g.drop("endpoint refuses", 1)
		return
	}
	if r.now == 0 {
		r.now = r.g.now()
	}
	s.last.Store(int64(r.now))
	if s.key.peer != r.peer {
		r.flush()
		r.peer = s.key.peer
	}
	for i := range pkts {
		at := len(r.buf)
		if at+wire.DatagramHeaderBytes+len(pkts[i].Data) > cap(r.buf) {
			r.flush()
			at = 0
		}
		d := wire.Datagram{FlowID: s.key.flow, TOS: pkts[i].TOS, Payload: pkts[i].Data}
		r.buf = d.Append(r.buf)
		r.msgs = append(r.msgs, r.buf[at:])
	}
}

// end is the end of a round.
func (r *replies) end() {
	r.flush()
	r.now = 0
}

// flush sends the messages to their edge.
func (r *replies) flush() {
	n := len(r.msgs)
	if n == 0 {
		return
	}
	r.g.metrics.toEdge.Add(float64(n))
	if sent := r.g.send(r.peer, r.msgs); sent < n {
		r.g.drop("backbone full", n-sent)
	}
	clear(r.msgs)
	r.msgs, r.buf = r.msgs[:0], r.buf[:0]
}

// close tells the edge that a flow is over.
func (g *Gateway) close(key sessionKey, reason wire.ResetReason) {
	g.send(key.peer, [][]byte{(&wire.DatagramClose{FlowID: key.flow, Reason: reason}).Append(nil)})
}

// send hands messages to the edge, or to this node's own relay.
func (g *Gateway) send(peer model.NodeID, msgs [][]byte) int {
	switch {
	case peer == g.cfg.Self && g.cfg.LocalDatagrams != nil:
		g.cfg.LocalDatagrams(peer, msgs)
		return len(msgs)
	case peer != g.cfg.Self && g.cfg.SendDatagrams != nil:
		return g.cfg.SendDatagrams(peer, msgs)
	}
	return 0
}

func (g *Gateway) drop(reason string, n int) {
	g.metrics.dropped.WithLabelValues(reason).Add(float64(n))
}
