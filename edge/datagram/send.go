package datagram

import (
	"errors"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
)

// builder makes packets one behind the other in its arena and sends them together. It belongs to one
// goroutine at a time.
type builder struct {
	arena []byte // packets, then the open one
	start int    // of the open packet, -1: none
	limit int    // bytes of a packet before its tag
	count int    // messages that end in the open packet
	pkts  [batchPackets]udpio.Packet
	ends  [batchPackets]int // messages that end in each packet
	n     int               // packets sealed and not yet sent

	nonce [12]byte
	lanes []uint8 // of each message of the call

	c    *Channel
	l    *lane
	d    *dest
	out  *outbound
	sent int // messages given to the kernel
	lost int // messages dropped
}

func newBuilder() *builder { return &builder{arena: make([]byte, 0, arenaBytes), start: -1} }

// Send sends messages of at most wire.DatagramMessageMax bytes each; msgs and their bytes are the
// caller's again when it returns. It never blocks. The messages of one flow (wire.DatagramHead) go
// in one lane and so stay in order, if one goroutine at a time sends them. Small messages of one
// call share packets, so it pays to hand over together what is ready together.
//
// It returns how many messages the kernel took; the others were dropped and counted: the channel is
// down, the kernel's buffer full, a message too large.
func (c *Channel) Send(msgs [][]byte) (sent int) {
	if len(msgs) == 0 {
		return 0
	}
	up := c.upMask.Load()
	if up == 0 || c.closed.Load() {
		c.drop(dropDown, len(msgs))
		return 0
	}
	b := c.t.builders.Get().(*builder)
	b.c, b.out, b.sent, b.lost = c, c.out.Load(), 0, 0
	b.lanes = b.lanes[:0]
	used := uint32(0)
	for _, m := range msgs {
		l := laneOf(m, up)
		used |= 1 << l
		b.lanes = append(b.lanes, l)
	}
	for ; used != 0; used &= used - 1 {
		l := uint8(bits.TrailingZeros32(used))
		if !b.begin(c.lanes[l]) {
			continue // was never heard: cannot be up
		}
		for i, m := range msgs {
			if b.lanes[i] == l {
				b.add(m)
			}
		}
		b.flush()
	}
	sent = b.sent
	c.traffic.sentMessages.Add(uint64(sent))
	c.t.counters.sentMessages.Add(uint64(sent))
	b.release()
	return sent
}

// laneOf chooses among the lanes that are up, by the flow: rendezvous, so that a lane that goes down
// moves its own flows only.
func laneOf(m []byte, up uint32) (lane uint8) {
	if up&(up-1) == 0 {
		return uint8(bits.TrailingZeros32(up))
	}
	_, flow, _ := wire.DatagramHead(m)
	best := uint64(0)
	for rest := up; rest != 0; rest &= rest - 1 {
		l := bits.TrailingZeros32(rest)
		// The finalizer of SplitMix64 (public domain).
		h := flow ^ uint64(l+1)*0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		if h ^= h >> 31; h >= best {
			best, lane = h, uint8(l)
		}
	}
	return lane
}

// sendProbe sends a PING or PONG by itself, padded to size bytes of UDP payload if size is not 0.
func (c *Channel) sendProbe(l *lane, p *wire.PacketProbe, kind wire.PacketFrameType, size int) {
	if c.closed.Load() {
		return
	}
	b := c.t.builders.Get().(*builder)
	b.c, b.out = c, c.out.Load()
	if b.begin(l) {
		b.open()
		b.arena = p.Append(b.arena, kind)
		if size != 0 {
			b.limit = size - wire.PacketTagBytes
			b.pad()
		}
		b.seal()
		b.flush()
	}
	b.release()
}

// begin turns to a lane.
func (b *builder) begin(l *lane) bool {
	b.l, b.d = l, l.dest.Load()
	b.limit = int(b.c.payload.Load()) - wire.PacketTagBytes
	return b.d != nil
}

// add puts a message into the open packet, or a new one, or several.
func (b *builder) add(m []byte) {
	if len(m) > wire.DatagramMessageMax {
		b.c.drop(dropTooLarge, 1)
		return
	}
	if b.start >= 0 && len(b.arena)-b.start+wire.PacketDataBytes+len(m) > b.limit {
		b.fill()
		b.seal()
	}
	if wire.PacketHeaderBytes+wire.PacketDataBytes+len(m) > b.limit {
		b.cut(m)
		return
	}
	if b.start < 0 {
		b.open()
	}
	b.arena = wire.AppendPacketData(b.arena, m)
	b.count++
}

// cut sends a message in pieces, a packet each.
func (b *builder) cut(m []byte) {
	chunk, pieces := chunkOf(len(m), b.limit-wire.PacketHeaderBytes)
	id := b.l.message.Add(1)
	for i := range pieces {
		b.open()
		b.arena = wire.AppendPacketFragment(b.arena, id, m, chunk, i)
		if i == pieces-1 {
			b.count++
		}
		b.seal()
	}
}

// open begins a packet.
func (b *builder) open() {
	if b.n == len(b.pkts) || len(b.arena)+b.limit+wire.PacketTagBytes > cap(b.arena) {
		b.flush()
	}
	b.start = len(b.arena)
	b.arena = b.arena[:b.start+wire.PacketHeaderBytes]
}

// fill pads a packet that is as good as full, so that neighbours are of one size and leave as a
// train: worth a sixteenth of the bytes, as a packet by itself costs ten times the work.
func (b *builder) fill() {
	if slack := b.limit - (len(b.arena) - b.start); slack <= b.limit/16 {
		b.pad()
	}
}

// pad pads the open packet to its limit.
func (b *builder) pad() {
	end := max(b.start+b.limit, len(b.arena))
	clear(b.arena[len(b.arena):end])
	b.arena = b.arena[:end]
}

// seal closes the open packet.
func (b *builder) seal() {
	h := wire.PacketHeader{Key: b.out.id, Lane: b.l.index}
	h.Number = b.out.next[b.l.index].number.Add(1) - 1
	ends := b.count
	start := b.start
	b.start, b.count = -1, 0
	if h.Number > wire.PacketNumberMax {
		b.arena = b.arena[:start]
		b.c.drop(dropExhausted, ends)
		return
	}
	h.Put(b.arena[start:])
	h.Nonce(&b.nonce, &b.out.iv)
	head := b.arena[start : start+wire.PacketHeaderBytes]
	frames := b.arena[start+wire.PacketHeaderBytes:]
	sealed := b.out.aead.Seal(frames[:0], b.nonce[:], frames, head)
	end := start + wire.PacketHeaderBytes + len(sealed)
	b.arena = b.arena[:end]
	b.pkts[b.n] = udpio.Packet{Data: b.arena[start:end:end], Remote: b.d.remote, Local: b.d.local}
	b.ends[b.n] = ends
	b.n++
}

// flush sends what is sealed, after sealing the open packet. A packet that the kernel does not take
// is dropped: waiting for it would hold up every other flow.
func (b *builder) flush() {
	if b.start >= 0 {
		b.seal()
	}
	bytes := 0
	for at := 0; at < b.n; {
		n, err := b.d.socket.WriteBatch(b.pkts[at:b.n])
		for i := at; i < at+n; i++ {
			b.sent += b.ends[i]
			bytes += len(b.pkts[i].Data)
		}
		b.c.traffic.sentPackets.Add(uint64(n))
		b.c.t.counters.sentPackets.Add(uint64(n))
		at += n
		if at == b.n || err == nil && n > 0 {
			continue
		}
		switch {
		case udpio.Full(err):
			for ; at < b.n; at++ { // nor will it take the others
				b.c.drop(dropFull, b.ends[at])
			}
		case errors.Is(err, unix.EMSGSIZE):
			b.l.refused(len(b.pkts[at].Data), b.c.t.now())
			b.c.drop(dropPathMTU, b.ends[at])
			at++
		default:
			b.c.drop(dropPath, b.ends[at])
			at++
		}
	}
	b.c.traffic.sentBytes.Add(uint64(bytes))
	b.c.t.counters.sentBytes.Add(uint64(bytes))
	b.n = 0
	b.arena = b.arena[:0]
}

// refused takes note that the device cannot carry packets of the size.
func (l *lane) refused(size int, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.prober.search.refused(size, now)
}

// release gives the builder back.
func (b *builder) release() {
	t := b.c.t
	clear(b.pkts[:])
	b.c, b.l, b.d, b.out = nil, nil, nil, nil
	t.builders.Put(b)
}

// drop counts messages that were not sent, and packets without messages (probes) not at all.
func (c *Channel) drop(why dropReason, messages int) {
	if messages > 0 {
		c.traffic.dropped.Add(uint64(messages))
		c.t.counters.drop(why, messages)
	}
}
