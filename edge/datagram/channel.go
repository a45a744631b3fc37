package datagram

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// Channel is the sealed association with one peer.
type Channel struct {
	// Constant after Open.
	t         *Transport
	peer      string
	initiator bool
	recv      func(msgs [][]byte)
	lanes     []*lane

	out     atomic.Pointer[outbound]
	upMask  atomic.Uint32 // a bit for each lane that is up
	payload atomic.Int32  // UDP payload that every lane that is up carries
	closed  atomic.Bool
	traffic traffic

	mu      sync.Mutex
	epochs  []*inbound // the newest last
	pending *outbound  // a responder's newest epoch, until the peer uses it
	rekeyed func()     // OnRekeyDue's
	warned  uint32     // the epoch that rekeyed was called for, plus one

	stateMu sync.Mutex // serialises onState
	onState func(up bool)
}

// traffic counts messages and packets of a channel.
type traffic struct {
	sentMessages, sentPackets, sentBytes             atomic.Uint64
	receivedMessages, receivedPackets, receivedBytes atomic.Uint64
	dropped                                          atomic.Uint64
}

// lane is one 4-tuple.
type lane struct {
	index   uint8
	dest    atomic.Pointer[dest] // nil: a responder that has not heard from the peer yet
	message atomic.Uint32        // the next id of a message in pieces

	mu       sync.Mutex
	prober   prober
	assembly assembly
}

// dest is where a lane sends from and to. Immutable.
type dest struct {
	socket socket
	remote netip.AddrPort
	local  netip.Addr // to send from; not valid: the kernel's choice
}

// Stats describe a channel.
type Stats struct {
	Up         bool
	RTT        time.Duration // smoothed round trip of the fastest lane that is up; 0: none yet
	Jitter     time.Duration // mean difference of neighbouring round trips, of that lane
	Loss       float32       // 0..1, of what is sent, mean of the lanes that are up
	PayloadMax int           // UDP payload in use, bytes
	Lanes      int           // that have been heard (responder) or are tried (initiator)
	LanesUp    int
	Remote     netip.AddrPort // where the first lane sends to
	Epoch      uint32         // sent under
	RekeyDue   bool           // the epoch's packet numbers will run out

	SentMessages, SentPackets, SentBytes             uint64
	ReceivedMessages, ReceivedPackets, ReceivedBytes uint64 // authentic ones
	DroppedMessages                                  uint64 // not sent, for any reason
}

// Open makes a channel with peer, keyed by secret for epoch (at least 16 bytes that both ends know,
// and nobody else). The initiator names where the responder listens and begins to ask it at once; the
// responder gives no remote, and learns the peer's addresses from its first authentic packets, also
// when they change.
//
// recv takes what arrives: messages each at most once, in the order sent within a flow as far as the
// network keeps it. It is called from several goroutines at once (lanes), must not block, and may
// use the messages until it returns only.
func (t *Transport) Open(
	peer string, secret []byte, epoch uint32, remote netip.AddrPort, initiator bool, recv func(msgs [][]byte),
) (*Channel, error) {
	if initiator && !remote.IsValid() {
		return nil, fmt.Errorf("open datagram channel to %s: no remote address", peer)
	}
	out, in, err := deriveBoth(secret, epoch, initiator)
	if err != nil {
		return nil, fmt.Errorf("open datagram channel to %s: %w", peer, err)
	}
	c := &Channel{t: t, peer: peer, initiator: initiator, recv: recv}
	c.payload.Store(payloadBase)
	n := wire.LanesMax
	if initiator {
		n = len(t.clients)
	}
	now := t.now()
	for i := range n {
		l := &lane{index: uint8(i), prober: newProber(t.cfg.KeepAlive, initiator, t.cfg.PayloadMax, now)}
		if initiator {
			remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
			l.dest.Store(&dest{socket: t.clients[i], remote: remote})
		}
		c.lanes = append(c.lanes, l)
	}
	in.channel = c
	c.epochs = []*inbound{in}
	c.out.Store(out)
	if err := t.enter(c, in, true); err != nil {
		return nil, fmt.Errorf("open datagram channel to %s: %w", peer, err)
	}
	c.tick(now)
	return c, nil
}

// Rekey adds a newer epoch. From then on packets under it are taken; the initiator sends under it at
// once (so the responder's Rekey must come first), the responder as soon as it hears the initiator
// do so. Packets of the old epoch are taken for another 10 seconds.
func (c *Channel) Rekey(secret []byte, epoch uint32) error {
	out, in, err := deriveBoth(secret, epoch, c.initiator)
	if err != nil {
		return fmt.Errorf("rekey datagram channel to %s: %w", c.peer, err)
	}
	in.channel = c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return fmt.Errorf("rekey datagram channel to %s: %w", c.peer, errClosed)
	}
	if newest := c.epochs[len(c.epochs)-1].epoch; epoch <= newest {
		return fmt.Errorf("rekey datagram channel to %s: epoch %d is not newer than %d", c.peer, epoch, newest)
	}
	if err := c.t.enter(c, in, false); err != nil {
		return fmt.Errorf("rekey datagram channel to %s: %w", c.peer, err)
	}
	c.epochs = append(c.epochs, in)
	if len(c.epochs) > epochsMax {
		c.t.leave(nil, c.epochs[0])
		c.epochs = append([]*inbound(nil), c.epochs[1:]...)
	}
	if c.initiator {
		c.out.Store(out)
	} else {
		c.pending = out
	}
	return nil
}

// Close ends the channel: nothing is sent or received any more, but a recv may still be under way.
// OnState's function is not called.
func (c *Channel) Close() {
	c.mu.Lock()
	done := c.closed.Swap(true)
	epochs := c.epochs
	c.mu.Unlock()
	if done {
		return
	}
	c.upMask.Store(0)
	c.t.leave(c, epochs...)
	for _, l := range c.lanes {
		l.mu.Lock()
		l.assembly.clear(c.t.blocks)
		l.mu.Unlock()
	}
}

// Peer is the name given to Open.
func (c *Channel) Peer() string { return c.peer }

// Up reports whether messages can be sent.
func (c *Channel) Up() bool { return c.upMask.Load() != 0 }

// OnState has f called when the channel goes up or down, one call at a time; and at once if it is up
// already. f must not block, and must not call OnState. A second OnState replaces the first.
func (c *Channel) OnState(f func(up bool)) {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	c.onState = f
	if f != nil && c.Up() {
		f(true)
	}
}

// OnRekeyDue has f called once an epoch, when its packet numbers near their end and Rekey is due.
// f must not block, and must not call methods of the channel but Stats and Send.
func (c *Channel) OnRekeyDue(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rekeyed = f
}

// Stats describes the channel as of now.
func (c *Channel) Stats() Stats {
	out := c.out.Load()
	s := Stats{
		Up: c.Up(), PayloadMax: int(c.payload.Load()), Epoch: out.epoch,
		RekeyDue:         out.sealed() >= rekeyDuePackets,
		SentMessages:     c.traffic.sentMessages.Load(),
		SentPackets:      c.traffic.sentPackets.Load(),
		SentBytes:        c.traffic.sentBytes.Load(),
		ReceivedMessages: c.traffic.receivedMessages.Load(),
		ReceivedPackets:  c.traffic.receivedPackets.Load(),
		ReceivedBytes:    c.traffic.receivedBytes.Load(),
		DroppedMessages:  c.traffic.dropped.Load(),
	}
	for _, l := range c.lanes {
		d := l.dest.Load()
		if d == nil {
			continue
		}
		if s.Lanes++; s.Lanes == 1 {
			s.Remote = d.remote
		}
		l.mu.Lock()
		p := &l.prober
		if p.up {
			s.LanesUp++
			s.Loss += p.loss.share
			if s.RTT == 0 || p.rtt < s.RTT {
				s.RTT, s.Jitter = p.rtt, p.jitter
			}
		}
		l.mu.Unlock()
	}
	if s.LanesUp > 0 {
		s.Loss /= float32(s.LanesUp)
	}
	return s
}

// tick does what is due: questions, incomplete messages given up, old epochs forgotten.
func (c *Channel) tick(now time.Duration) {
	for _, l := range c.lanes {
		if l.dest.Load() == nil {
			continue
		}
		l.mu.Lock()
		q, n := l.prober.tick(now)
		dropped := l.assembly.expire(c.t.blocks, now)
		l.mu.Unlock()
		c.t.counters.drop(dropIncomplete, dropped)
		for i := range n {
			c.sendProbe(l, &q[i].probe, wire.PacketPing, q[i].size)
		}
	}
	c.refresh()
	c.turnEpochs(now)
}

// refresh takes the lanes' states together, and tells of a change.
func (c *Channel) refresh() {
	c.stateMu.Lock()
	defer c.stateMu.Unlock()
	mask, payload := uint32(0), payloadCeiling
	for i, l := range c.lanes {
		l.mu.Lock()
		if l.prober.up {
			mask |= 1 << i
			payload = min(payload, l.prober.search.payload())
		}
		l.mu.Unlock()
	}
	if mask == 0 {
		payload = payloadBase
	}
	c.payload.Store(int32(payload))
	if c.closed.Load() {
		return
	}
	was := c.upMask.Swap(mask)
	if up := mask != 0; up != (was != 0) {
		c.t.cfg.Log.Info("datagram channel changed", "peer", c.peer, "up", up)
		if c.onState != nil {
			c.onState(up)
		}
	}
}

// turnEpochs forgets epochs that a newer one has replaced for long enough, and says when one is due.
func (c *Channel) turnEpochs(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used := -1 // the newest epoch that the peer uses
	for i, in := range c.epochs {
		if in.heard.Load() {
			used = i
		}
	}
	for i, in := range c.epochs[:max(used, 0)] {
		if in.retire == 0 {
			in.retire = now + epochOverlap
		} else if now >= in.retire && i == 0 {
			c.t.leave(nil, in)
			c.epochs = append([]*inbound(nil), c.epochs[1:]...)
			break
		}
	}
	out := c.out.Load()
	if c.rekeyed != nil && c.warned != out.epoch+1 && out.sealed() >= rekeyDuePackets {
		c.warned = out.epoch + 1
		c.rekeyed()
	}
}

// turnOut has a responder send under the epoch that the peer has begun to use.
func (c *Channel) turnOut(epoch uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil && c.pending.epoch <= epoch {
		c.out.Store(c.pending)
		c.pending = nil
	}
}
