package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// udpSession is one flow of datagrams.
type udpSession struct {
	// Constant.
	tuple    flow.Tuple
	id       uint64
	listener *steer.Listener
	pass     pass
	conn     *udpio.Conn // where its first datagram came in, and answers go out
	idle     time.Duration

	in, out tally
	account meter.Account

	way      atomic.Pointer[way]
	active   atomic.Int64 // when a datagram passed, in nanoseconds of UDP.now
	answered atomic.Bool

	amplified amplified

	mu    sync.Mutex // guards what follows, and changes of way
	route steer.Route
	group steer.Candidate
	at    int // the gateway of group that is next
	asked int
	over  bool
}

// way is where a session's datagrams go at present.
type way struct {
	gateway model.NodeID
	open    wire.Open
	known   atomic.Bool // the gateway knows the flow: no Open is needed
}

// tally counts datagrams and the bytes in them.
type tally struct {
	packets atomic.Uint32
	bytes   atomic.Uint64
}

func (t *tally) add(bytes int) {
	t.packets.Add(1)
	t.bytes.Add(uint64(bytes))
}

func (s *udpSession) sample() meter.Sample {
	return meter.Sample{
		PacketsIn: s.in.packets.Load(), BytesIn: s.in.bytes.Load(),
		PacketsOut: s.out.packets.Load(), BytesOut: s.out.bytes.Load(),
	}
}

// serve counts the session where it is now. The caller holds mu, or is alone.
func (s *udpSession) serve() {
	s.account.Fold(s.sample())
	s.account.Serve(s.group.Group)
}

// restart chooses the way anew by a ruling. The caller holds mu, or is alone.
func (s *udpSession) restart(u *UDP, r *ruling) {
	s.route = r.RouteVia(s.listener, s.tuple)
	s.group, s.at, s.asked = steer.Candidate{}, 0, 0
	s.way.Store(nil)
	s.advance(u)
}

// advance goes to the next gateway that can be reached, and reports whether there is one. The caller
// holds mu, or is alone.
func (s *udpSession) advance(u *UDP) bool {
	for s.asked < attemptsMax {
		gw, ok := s.nextGateway(u)
		if !ok {
			return false
		}
		if peer, _ := u.cfg.Pool.Peer(gw); gw != u.cfg.Self && !peer.Up {
			continue
		}
		s.asked++
		r := u.ruling.Load()
		w := &way{gateway: gw, open: openFor(r.Table, s.tuple, &s.group)}
		s.way.Store(w)
		return true
	}
	return false
}

// nextGateway goes on through the gateways of the candidates.
func (s *udpSession) nextGateway(u *UDP) (model.NodeID, bool) {
	for {
		if s.group.Group != nil {
			if s.group.Direct && s.at == 0 {
				s.at++
				return u.cfg.Self, true
			}
			if gw, ok := s.group.Gateway(s.at); ok && !s.group.Direct {
				s.at++
				return gw, true
			}
		}
		var ok bool
		if s.group, ok = s.route.Next(); !ok {
			return "", false
		}
		s.at = 0
	}
}

// tupleShard and idShard are the tables of sessions. A session is in both, or in neither.
type tupleShard struct {
	mu sync.Mutex
	m  map[flow.Tuple]*udpSession
}

type idShard struct {
	mu sync.Mutex
	m  map[uint64]*udpSession
}

// enter puts a session into the tables, unless its flow has one: it is returned then.
func (u *UDP) enter(s *udpSession) (other *udpSession) {
	byTuple := &u.byTuple[s.tuple.Hash(u.seed)%udpShards]
	byTuple.mu.Lock()
	defer byTuple.mu.Unlock()
	if other = byTuple.m[s.tuple]; other != nil {
		return other
	}
	if byTuple.m == nil {
		byTuple.m = map[flow.Tuple]*udpSession{}
	}
	byTuple.m[s.tuple] = s
	byID := &u.byID[s.id%udpShards]
	byID.mu.Lock()
	defer byID.mu.Unlock()
	if byID.m == nil {
		byID.m = map[uint64]*udpSession{}
	}
	byID.m[s.id] = s
	return nil
}

func (u *UDP) byNumber(id uint64) *udpSession {
	shard := &u.byID[id%udpShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	return shard.m[id]
}

// which returns the sessions for which f holds. f is called under a shard's lock.
func (u *UDP) which(f func(*udpSession) bool) (chosen []*udpSession) {
	for i := range u.byID {
		shard := &u.byID[i]
		shard.mu.Lock()
		for _, s := range shard.m {
			if f(s) {
				chosen = append(chosen, s)
			}
		}
		shard.mu.Unlock()
	}
	return chosen
}

// end takes a session out of the tables and tells its gateway, which has a socket to close.
func (u *UDP) end(s *udpSession, reason wire.ResetReason) {
	s.mu.Lock()
	over := s.over
	s.over = true
	s.mu.Unlock()
	if over {
		return
	}
	byTuple := &u.byTuple[s.tuple.Hash(u.seed)%udpShards]
	byTuple.mu.Lock()
	byID := &u.byID[s.id%udpShards]
	byID.mu.Lock()
	if byTuple.m[s.tuple] == s {
		delete(byTuple.m, s.tuple)
		delete(byID.m, s.id)
	}
	byID.mu.Unlock()
	byTuple.mu.Unlock()
	s.conn.Unuse()
	u.admit.leave(s.pass)
	s.account.Close(s.sample(), meter.Ended)
	u.metrics.ended.WithLabelValues(reason.String()).Inc()
	if w := s.way.Load(); w != nil {
		u.send(w.gateway, [][]byte{(&wire.DatagramClose{FlowID: s.id, Reason: reason}).Append(nil)})
	}
}

// outBatch collects messages for one gateway.
type outBatch struct {
	gateway model.NodeID
	buf     []byte // messages alias it
	msgs    [][]byte
}

var outs = sync.Pool{New: func() any { return &outBatch{buf: make([]byte, 0, udpBufferBytes)} }}

// messageRoom is how much longer than its payload a message can be: an Open has at most 182 bytes with
// the longest ids.
const messageRoom = wire.DatagramHeaderBytes + 256

// add puts a client's datagram behind those that wait.
func (b *outBatch) add(u *UDP, s *udpSession, p *udpio.Packet) {
	w := s.way.Load()
	if w == nil {
		u.drop("no way", 1)
		return
	}
	need := len(p.Data) + messageRoom
	if w.gateway != b.gateway || len(b.buf)+need > cap(b.buf) {
		u.flush(b)
		b.gateway = w.gateway
		if need > cap(b.buf) {
			b.buf = make([]byte, 0, udpBufferMax)
		}
	}
	at := len(b.buf)
	if w.known.Load() {
		d := wire.Datagram{FlowID: s.id, TOS: p.TOS, Payload: p.Data}
		b.buf = d.Append(b.buf)
	} else {
		d := wire.DatagramOpen{FlowID: s.id, Open: w.open, TOS: p.TOS, Payload: p.Data}
		b.buf = d.Append(b.buf)
	}
	b.msgs = append(b.msgs, b.buf[at:])
}

// flush sends the messages of a batch.
func (u *UDP) flush(b *outBatch) {
	if n := len(b.msgs); n > 0 {
		u.metrics.in.Add(float64(n))
		if sent := u.send(b.gateway, b.msgs); sent < n {
			u.drop("backbone full", n-sent)
		}
	}
	clear(b.msgs)
	b.gateway, b.buf, b.msgs = "", b.buf[:0], b.msgs[:0]
}

// send hands messages to a gateway, which may be this node's own.
func (u *UDP) send(gw model.NodeID, msgs [][]byte) int {
	if gw == u.cfg.Self {
		u.cfg.Gateway.HandleDatagrams(gw, msgs)
		return len(msgs)
	}
	return u.cfg.Pool.SendDatagrams(gw, msgs)
}

// inBatch collects answers by the socket that they leave by. The flows of one listener are spread over
// as many sockets as there are CPUs, so what comes together often leaves by several.
type inBatch struct {
	session *udpSession // the last one
	used    int
	leaving [inSockets]struct {
		conn *udpio.Conn
		pkts []udpio.Packet
	}
}

var ins = sync.Pool{New: func() any { return &inBatch{} }}

// add puts an answer behind those that wait.
func (b *inBatch) add(u *UDP, s *udpSession, data []byte, tos uint8) {
	b.session = s
	at := 0
	for at < b.used && b.leaving[at].conn != s.conn {
		at++
	}
	if at == b.used {
		if at == inSockets {
			b.send(u)
			at = 0
		}
		b.leaving[at].conn = s.conn
		b.used = at + 1
	}
	l := &b.leaving[at]
	l.pkts = append(l.pkts, udpio.Packet{Data: data, Remote: s.tuple.Src, Local: s.tuple.Dst.Addr(), TOS: tos})
}

// flush sends the packets of a batch and forgets them.
func (b *inBatch) flush(u *UDP) {
	b.send(u)
	b.session = nil
}

// send sends the packets. What the kernel does not take at once is dropped.
func (b *inBatch) send(u *UDP) {
	for i := range b.leaving[:b.used] {
		l := &b.leaving[i]
		u.write(l.conn, l.pkts)
		clear(l.pkts)
		l.conn, l.pkts = nil, l.pkts[:0]
	}
	b.used = 0
}

func (u *UDP) write(conn *udpio.Conn, pkts []udpio.Packet) {
	for len(pkts) > 0 {
		n, err := conn.WriteBatch(pkts)
		u.metrics.out.Add(float64(n))
		if pkts = pkts[n:]; err == nil || len(pkts) == 0 {
			return
		}
		if udpio.Full(err) {
			u.drop("socket full", 1)
		} else {
			u.drop("socket failed", 1)
		}
		pkts = pkts[1:]
	}
}
