package datagram

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
)

// receiver is what one reading goroutine needs: messages of one channel are collected over the
// packets of a batch and handed over together.
type receiver struct {
	t      *Transport
	socket socket
	nonce  [12]byte
	frame  wire.PacketFrame

	keys    map[uint64]*inbound // as of the batch
	now     time.Duration       // of the batch
	channel *Channel            // whose messages these are
	msgs    [][]byte
	blocks  []*block // that messages lie in
	pong    wire.PacketProbe
	pongs   int // 1: pong is to be sent
	probed  bool
	moved   *dest
	tally   tally
}

// tally counts a batch, to touch the shared counters once.
type tally struct {
	packets, bytes int
}

// read receives from one socket until it is closed.
func (t *Transport) read(s socket) error {
	r := &receiver{t: t, socket: s}
	failed := 0
	err := s.Serve(func(pkts []udpio.Packet, err error) error {
		if err == nil {
			failed = 0
			r.batch(pkts)
			return nil
		}
		if failed++; failed == readErrorsMax {
			return fmt.Errorf("receive at %v: %w", s.LocalAddr(), err)
		}
		t.counters.drop(dropReceive, 1)
		return nil
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// batch handles what one read brought.
func (r *receiver) batch(pkts []udpio.Packet) {
	r.keys = *r.t.keys.Load()
	r.now = r.t.now()
	for i := range pkts {
		r.packet(&pkts[i])
	}
	r.deliver()
}

// packet opens one packet and takes its frames. What is not authentic, or came before, changes
// nothing but a counter.
func (r *receiver) packet(p *udpio.Packet) {
	h, ok := wire.ParsePacketHeader(p.Data)
	if !ok {
		r.t.counters.drop(dropMalformed, 1)
		return
	}
	in := r.keys[h.Key]
	if in == nil || int(h.Lane) >= len(in.channel.lanes) {
		r.t.counters.drop(dropUnknown, 1)
		return
	}
	h.Nonce(&r.nonce, &in.iv)
	head, body := p.Data[:wire.PacketHeaderBytes], p.Data[wire.PacketHeaderBytes:]
	frames, err := in.aead.Open(body[:0], r.nonce[:], body, head)
	if err != nil {
		r.t.counters.drop(dropForged, 1)
		return
	}
	c := in.channel
	if c != r.channel {
		r.deliver()
		r.channel = c
	}
	l := c.lanes[h.Lane]
	if !r.take(l, in, h, frames, p) {
		r.t.counters.drop(dropReplayed, 1)
		return
	}
	r.tally.packets++
	r.tally.bytes += len(p.Data)
	if !in.heard.Load() {
		in.heard.Store(true)
		c.turnOut(in.epoch)
	}
	if r.moved != nil {
		l.dest.Store(r.moved)
		r.moved = nil
		r.t.counters.moves.Add(1)
	}
	if r.pongs > 0 {
		r.pongs = 0
		c.sendProbe(l, &r.pong, wire.PacketPong, 0)
	}
	if r.probed {
		r.probed = false
		c.refresh()
	}
}

// take does what needs the lane's lock. It reports false for a packet that came before.
func (r *receiver) take(l *lane, in *inbound, h wire.PacketHeader, frames []byte, p *udpio.Packet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := in.windows[h.Lane]
	if w == nil {
		w = &window{}
		in.windows[h.Lane] = w
	}
	ahead, ok := w.accept(h.Number)
	if !ok || in.channel.closed.Load() {
		return false
	}
	l.prober.seen(ahead)
	if ahead > 0 && !in.channel.initiator {
		// Only the latest packet moves the lane, so that a late one does not move it back.
		r.follow(l, p)
	}
	for len(frames) > 0 {
		rest, err := r.frame.Decode(frames)
		if err != nil {
			r.t.counters.drop(dropMalformed, 1)
			break
		}
		frames = rest
		r.handle(l)
	}
	return true
}

// follow notes where the peer sends from, if that is new.
func (r *receiver) follow(l *lane, p *udpio.Packet) {
	d := l.dest.Load()
	if d == nil || d.remote != p.Remote || d.local != p.Local || d.socket != r.socket {
		r.moved = &dest{socket: r.socket, remote: p.Remote, local: p.Local}
	}
}

// handle takes one frame.
func (r *receiver) handle(l *lane) {
	f := &r.frame
	switch f.Type {
	case wire.PacketData:
		r.msgs = append(r.msgs, f.Message)
	case wire.PacketFragment:
		m, size, dropped := l.assembly.add(r.t.blocks, f, r.now)
		if dropped > 0 {
			r.t.counters.drop(dropIncomplete, dropped)
		}
		if m != nil {
			r.msgs = append(r.msgs, m.bytes[:size])
			r.blocks = append(r.blocks, m)
		}
	case wire.PacketPing:
		r.pong = l.prober.onPing(&f.Probe, r.t.now())
		r.pongs, r.probed = 1, true
	case wire.PacketPong:
		l.prober.onPong(&f.Probe, r.t.now())
		r.probed = true
	}
}

// deliver hands over the messages collected, and takes their memory back.
func (r *receiver) deliver() {
	if r.channel == nil {
		return
	}
	c := r.channel
	r.channel = nil
	if len(r.msgs) > 0 && !c.closed.Load() {
		c.recv(r.msgs)
	}
	c.traffic.receivedMessages.Add(uint64(len(r.msgs)))
	c.traffic.receivedPackets.Add(uint64(r.tally.packets))
	c.traffic.receivedBytes.Add(uint64(r.tally.bytes))
	r.t.counters.receivedMessages.Add(uint64(len(r.msgs)))
	r.t.counters.receivedPackets.Add(uint64(r.tally.packets))
	r.t.counters.receivedBytes.Add(uint64(r.tally.bytes))
	r.tally = tally{}
	clear(r.msgs)
	r.msgs = r.msgs[:0]
	for i, m := range r.blocks {
		r.t.blocks.put(m)
		r.blocks[i] = nil
	}
	r.blocks = r.blocks[:0]
}
