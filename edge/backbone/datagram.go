package backbone

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/proto/wire"
)

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
