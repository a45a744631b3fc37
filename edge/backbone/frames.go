package backbone

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

var errUnexpected = errors.New("frame is not for this side")

// frame does what one frame says. p is valid during the call only. An error ends the carrier.
func (c *carrier) frame(t wire.Type, p []byte) error {
	switch t {
	case wire.TypeData, wire.TypeDataFin:
		id, offset, data, err := wire.DecodeData(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s == nil || !s.onData(offset, data, t == wire.TypeDataFin) {
			c.strange(id)
		}
	case wire.TypeAck:
		var a wire.Ack
		if err := a.Decode(p); err != nil {
			return err
		}
		if s := c.stream(a.Stream); s != nil {
			s.onAck(&a)
		}
	case wire.TypeOpen:
		return c.onOpen(p)
	case wire.TypeResult:
		id, r, err := wire.DecodeResult(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s == nil || !s.onResult(r) {
			c.strange(id)
		}
	case wire.TypeReset:
		id, reason, err := wire.DecodeReset(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s != nil {
			s.onReset(reason)
		} else if !c.t.client {
			c.t.bury(id) // its OPEN may still come, by another carrier
		}
	case wire.TypeDatagram:
		c.t.onDatagram(c, p)
	case wire.TypePad:
	default:
		return c.controlFrame(t, p)
	}
	return nil
}

// controlFrame does what a frame says that belongs to no stream.
func (c *carrier) controlFrame(t wire.Type, p []byte) error {
	switch t {
	case wire.TypePing:
		if c.t.client {
			return errUnexpected
		}
		return c.onPing(p)
	case wire.TypePong:
		if !c.t.client {
			return errUnexpected
		}
		return c.onPong(p)
	case wire.TypeGroups:
		if !c.t.client {
			return errUnexpected
		}
		var g wire.Groups
		if err := g.Decode(p); err != nil {
			return err
		}
		c.t.onGroups(&g)
	case wire.TypeGoAway:
		final, reason, err := wire.DecodeGoAway(p)
		if err != nil {
			return err
		}
		c.t.onGoAway(final, reason)
	case wire.TypeLeave:
		c.t.onLeave(c)
	case wire.TypeKey:
		epoch, err := wire.DecodeKey(p)
		if err != nil {
			return err
		}
		c.t.onKey(c, epoch)
	case wire.TypeHello, wire.TypeWelcome, wire.TypeOpen:
		return errUnexpected
	default:
		if t.Critical() {
			return errors.New("unknown critical frame")
		}
	}
	return nil
}

// stream finds a stream; nil if there is none.
func (c *carrier) stream(id uint64) *Stream {
	if s := c.last; s != nil && s.id == id {
		return s
	}
	s := c.t.streams.get(id)
	if s != nil {
		c.last = s
	}
	return s
}

// strange answers a frame for a stream that is over, once for the many that may be on their way.
func (c *carrier) strange(id uint64) {
	now := c.t.env.now()
	if id == c.unknown && now-c.unknownAt < strangeEvery {
		return
	}
	c.unknown, c.unknownAt = id, now
	c.send(func(b []byte) []byte { return wire.AppendReset(b, id, wire.ResetUnknown) })
}

// onOpen begins a stream at the gateway's side.
func (c *carrier) onOpen(p []byte) error {
	if c.t.client {
		return errUnexpected
	}
	o := &c.opening
	id, err := wire.DecodeOpen(p, o)
	if err != nil {
		return err
	}
	c.t.accept(c, id, o)
	return nil
}

// onPing answers an edge's PING.
func (c *carrier) onPing(p []byte) error {
	var g wire.Ping
	if err := g.Decode(p); err != nil {
		return err
	}
	c.confirmed(g.Seen)
	c.t.peerSays(&g)
	pong := c.t.pingFrame(c)
	pong.Seq = g.Seq
	c.mu.Lock()
	c.fence = g.Seq + 1
	c.mu.Unlock()
	c.send(pong.AppendPong)
	return nil
}

// onPong takes the answer to a PING.
func (c *carrier) onPong(p []byte) error {
	var g wire.Ping
	if err := g.Decode(p); err != nil {
		return err
	}
	c.confirmed(g.Seq)
	c.t.peerSays(&g)
	c.health.pong(g.Seq, c.t.env.now())
	return nil
}

// groupParts is a table of groups that is arriving.
type groupParts struct {
	version uint64
	parts   uint16
	got     map[uint16]bool // nil: the table is whole
	table   map[model.GroupID]bool
}

// onGroups takes a part of the gateway's table. The table is used when it is whole.
func (t *tunnel) onGroups(g *wire.Groups) {
	t.mu.Lock()
	p := &t.parts
	if g.Version > p.version {
		*p = groupParts{g.Version, g.Parts, map[uint16]bool{}, map[model.GroupID]bool{}}
	}
	if g.Version < p.version || p.got == nil || g.Parts != p.parts || len(p.table) > groupsMax {
		t.mu.Unlock()
		return
	}
	p.got[g.Part] = true
	g.All(func(id string, servable bool) { p.table[model.GroupID(id)] = servable })
	whole := len(p.got) == int(p.parts)
	if whole {
		table := p.table
		t.groups.Store(&table)
		p.got, p.table = nil, nil
	}
	t.mu.Unlock()
	if whole {
		t.changed()
	}
}

// sendGroups sends the gateway's table to the edge. Whoever carries it is remembered, so that it is
// sent again if that carrier dies.
func (t *tunnel) sendGroups() {
	t.groupsMu.Lock()
	defer t.groupsMu.Unlock()
	version, groups := t.announced()
	if version == 0 {
		return // nothing was announced yet
	}
	frames := wire.AppendGroups(nil, version, func(yield func(string, bool)) {
		for id, servable := range groups {
			yield(string(id), servable)
		}
	})
	for c := t.pick(nil); ; c = t.pick(c) {
		t.mu.Lock()
		t.groupsOn = c
		t.mu.Unlock()
		if c == nil || c.send(func(b []byte) []byte { return append(b, frames...) }) {
			return
		}
	}
}

// keyLabel names what is exported from a carrier's TLS session (RFC 8446, 7.5; RFC 5705).
const keyLabel = "EXPORTER-nearcast-datagrams"

// keyState is the tunnel's datagram channel, and what keys it: the TLS session of one carrier. When
// that carrier ends, or the packet numbers do, a new epoch begins:
//
//	edge                                gateway
//	KEY epoch      ── the carrier ──▶   exports the secret, receives under it
//	exports the secret, sends     ◀──   KEY epoch
//	under it                            sends under it once it has heard the edge do so
type keyState struct {
	channel atomic.Pointer[datagram.Channel]
	due     atomic.Bool // edge: the numbers of the epoch near their end

	mu     sync.Mutex
	on     *carrier // edge: whose session keys, or will when it answers; nil: the next that joins
	epoch  uint32   // the newest that was asked for (edge) or taken (gateway)
	closed bool
}

// askKeys has a carrier key the datagrams if there is none that does. It is called when a carrier
// has joined, and does nothing at a gateway.
func (t *tunnel) askKeys() {
	if !t.client || t.env.Transport == nil {
		return
	}
	t.keys.mu.Lock()
	defer t.keys.mu.Unlock()
	if t.keys.on == nil {
		t.askKey()
	}
}

// lostKeys looks for another carrier to key the datagrams if c did.
func (t *tunnel) lostKeys(c *carrier) {
	t.keys.mu.Lock()
	defer t.keys.mu.Unlock()
	if t.keys.on == c {
		t.askKey()
	}
}

// renewKeys begins a new epoch when the numbers of the present one near their end.
func (t *tunnel) renewKeys() {
	if t.keys.due.Swap(false) {
		t.keys.mu.Lock()
		defer t.keys.mu.Unlock()
		t.askKey()
	}
}

// askKey sends the KEY of a new epoch on a carrier that takes it. The caller holds keys.mu.
func (t *tunnel) askKey() {
	t.keys.on = nil
	if t.keys.closed {
		return
	}
	t.keys.epoch++
	epoch := t.keys.epoch
	for _, c := range t.carriers() {
		if c.rank() < 2 && c.send(func(b []byte) []byte { return wire.AppendKey(b, epoch) }) {
			t.keys.on = c
			return
		}
	}
}

// onKey takes the peer's KEY: at the gateway the edge's wish, at the edge the gateway's answer.
func (t *tunnel) onKey(c *carrier, epoch uint32) {
	if t.env.Transport == nil {
		return // unanswered: the edge keeps to the carriers
	}
	t.keys.mu.Lock()
	defer t.keys.mu.Unlock()
	if t.keys.closed || t.client && (epoch != t.keys.epoch || c != t.keys.on) || !t.client && epoch <= t.keys.epoch {
		return // of an epoch that another one has overtaken
	}
	if err := t.key(c, epoch); err != nil {
		t.env.log.Warn("datagrams stay on the carriers", "peer", t.peer, "error", err)
		return
	}
	t.keys.epoch = epoch
	if !t.client {
		c.send(func(b []byte) []byte { return wire.AppendKey(b, epoch) })
	}
}

// key opens the channel, or gives it another epoch. The caller holds keys.mu.
func (t *tunnel) key(c *carrier, epoch uint32) error {
	cs := c.conn.ConnectionState()
	secret, err := cs.ExportKeyingMaterial(keyLabel, binary.BigEndian.AppendUint32(t.id[:], epoch), 32)
	if err != nil {
		return err
	}
	if ch := t.keys.channel.Load(); ch != nil {
		return ch.Rekey(secret, epoch)
	}
	var remote netip.AddrPort
	if a, ok := c.raw.RemoteAddr().(*net.TCPAddr); ok && t.client {
		remote = a.AddrPort() // datagrams have the same port as carriers
	}
	ch, err := t.env.Transport.Open(string(t.peer), secret, epoch, remote, t.client, t.onMessages)
	if err != nil {
		return err
	}
	ch.OnState(func(bool) { t.changed() })
	if t.client {
		ch.OnRekeyDue(func() { t.keys.due.Store(true) })
	}
	t.keys.channel.Store(ch)
	return nil
}

// closeKeys ends the channel.
func (t *tunnel) closeKeys() {
	t.keys.mu.Lock()
	defer t.keys.mu.Unlock()
	t.keys.closed = true
	if ch := t.keys.channel.Swap(nil); ch != nil {
		ch.Close()
	}
}

// udpUp reports whether datagrams go by UDP.
func (t *tunnel) udpUp() bool {
	ch := t.keys.channel.Load()
	return ch != nil && ch.Up()
}

// onMessages takes messages that came by UDP or together over a carrier.
func (t *tunnel) onMessages(msgs [][]byte) {
	if t.env.HandleDatagrams != nil {
		t.env.HandleDatagrams(t.peer, msgs)
	}
}

// sendDatagrams sends messages by UDP, or over a carrier where UDP does not pass. It never blocks,
// and returns how many were taken; the others are counted as dropped.
func (t *tunnel) sendDatagrams(msgs [][]byte) (n int) {
	if ch := t.keys.channel.Load(); ch != nil && ch.Up() {
		return ch.Send(msgs) // which counts its own drops
	}
	if c := t.pick(nil); c != nil && !c.stalled.Load() {
		n = c.sendDatagrams(msgs)
	}
	t.env.metrics.datagramsCarried.Add(float64(n))
	t.env.metrics.datagramsDropped.Add(float64(len(msgs) - n))
	return n
}

// onDatagram takes a message that came over a carrier. Those of one read are handed on together.
func (t *tunnel) onDatagram(c *carrier, msg []byte) {
	if c.arrived = append(c.arrived, msg); len(c.arrived) >= arrivedMax {
		t.flushDatagrams(c)
	}
}

// flushDatagrams hands on what onDatagram has collected, before the read buffer is used again.
func (t *tunnel) flushDatagrams(c *carrier) {
	if len(c.arrived) == 0 {
		return
	}
	t.onMessages(c.arrived)
	clear(c.arrived)
	c.arrived = c.arrived[:0]
}
