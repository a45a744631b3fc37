package backbone

import (
	"cmp"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// A carrier is one TLS connection of a tunnel: a reader and a writer goroutine, and a scheduler of
// the streams that have something to send on it.
type carrier struct {
	t      *tunnel
	conn   *tls.Conn
	raw    net.Conn
	bulk   *bulkConn // between the two; nil for what is no TCP connection
	number uint32    // as its edge counts them, for logs
	slot   uint      // its bit in Stream.used; unique in the tunnel as long as it lives

	load       atomic.Int64 // bytes of its streams that the peer has not consumed
	room       atomic.Int64 // its congestion window, bytes, as last seen
	lastRead   atomic.Int64 // when bytes last came (env.now)
	stalled    atomic.Bool  // silent for too long
	recovering atomic.Bool  // the kernel repairs a loss
	leaving    atomic.Bool  // one side has said LEAVE
	gone       atomic.Bool  // closed: the same as closed, for who does not hold mu
	health     health       // the tunnel's watcher owns it, with pongs from the reader

	mu        sync.Mutex
	cond      sync.Cond // for the writer; L is &mu
	idle      bool      // the writer waits
	closed    bool
	ending    bool // the writer closes when it has written what is in control
	streams   scheduler[*Stream]
	control   []byte       // frames that belong to no stream's turn
	dgrams    ring[[]byte] // DATAGRAM frames
	dgramLen  int          // bytes of them
	farewells ring[farewell]
	fence     uint64 // number of the next PING (edge) or PONG (gateway): see confirmed
	short     ring[shortEntry]
	warmLeft  int // bytes of padding to send when there is nothing else

	// The reader's own.
	last      *Stream // whose frame came last
	unknown   uint64  // the stream whose frame was last answered by a RESET
	unknownAt time.Duration
	opening   wire.Open // the last OPEN decoded; see wire.Open.Decode
	arrived   [][]byte  // datagram messages in the read buffer
}

// A farewell is the last frame of a stream that is forgotten: a RESET, or the ACK of its end. Nobody
// could say it again if it were lost with the carrier, so the carrier remembers it until a PING or
// PONG shows that it was read.
type farewell struct {
	fence    uint64
	stream   uint64
	consumed uint64 // of an ACK
	reset    bool
	reason   wire.ResetReason // of a RESET
}

func (f *farewell) append(b []byte) []byte {
	if f.reset {
		return wire.AppendReset(b, f.stream, f.reason)
	}
	a := wire.Ack{Stream: f.stream, Consumed: f.consumed, Limit: f.consumed, Fin: true}
	return a.Append(b)
}

// shortEntry is a short stream with something outstanding on the carrier.
type shortEntry struct {
	s  *Stream
	at time.Duration
}

var errSilent = errors.New("silent for too long")

func newCarrier(t *tunnel, conn *tls.Conn, raw net.Conn, number uint32) *carrier {
	c := &carrier{t: t, conn: conn, raw: raw, number: number}
	if conn != nil {
		c.bulk, _ = conn.NetConn().(*bulkConn)
	}
	c.cond.L = &c.mu
	c.lastRead.Store(int64(t.env.now()))
	return c
}

// fit reports whether a carrier should get new work.
func (c *carrier) fit() bool { return !c.stalled.Load() && !c.recovering.Load() && !c.leaving.Load() }

// run reads and writes until the carrier ends, and returns why. The tunnel has it in its list
// meanwhile.
func (c *carrier) run() error {
	var writing sync.WaitGroup
	writing.Go(c.write)
	err := c.read()
	c.close()
	c.t.lost(c)
	writing.Wait()
	return err
}

// close ends both goroutines. Nothing that waits in the kernel is sent any more: its streams send
// it again elsewhere, and what comes late is only work for the peer.
func (c *carrier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.gone.Store(true)
	c.cond.Broadcast()
	if lc, ok := c.raw.(interface{ SetLinger(int) error }); ok && !c.leaving.Load() {
		_ = lc.SetLinger(0) // a matter of speed only
	}
	_ = c.raw.Close()
}

// push puts a stream into the scheduler, and says whether the writer must be woken. ok is false
// when the carrier is closed.
func (c *carrier) push(s *Stream, level int) (wake, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, false
	}
	c.streams.push(s, level)
	return c.wakes(), true
}

// wakes reports whether the writer waits, once for each time it does. The caller holds mu.
func (c *carrier) wakes() bool {
	idle := c.idle
	c.idle = false
	return idle
}

// send adds control frames, which go before the streams'. A peer that makes us say more than it
// reads is cut off. It reports false if the carrier is closed.
func (c *carrier) send(add func(b []byte) []byte) bool {
	c.mu.Lock()
	if c.closed || c.ending {
		c.mu.Unlock()
		return false
	}
	c.control = add(c.control)
	full := len(c.control) > controlMax
	wake := c.wakes()
	c.mu.Unlock()
	if wake {
		c.cond.Signal()
	}
	if full {
		c.t.env.log.Warn("carrier closed: its peer does not read", "peer", c.t.peer, "carrier", c.number)
		c.close()
	}
	return true
}

// finish says goodbye with a last frame and closes when it has been written, or cannot be.
func (c *carrier) finish(last func(b []byte) []byte) {
	c.leaving.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ending {
		return
	}
	c.control = last(c.control)
	c.ending = true
	_ = c.raw.SetDeadline(time.Now().Add(finishTimeout))
	c.cond.Broadcast()
}

// part remembers a farewell, and with say sends it too. It reports false if the carrier is closed.
func (c *carrier) part(f farewell, say bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	f.fence = c.fence
	c.farewells.push(f)
	if say {
		c.control = f.append(c.control)
		if c.wakes() {
			c.cond.Signal()
		}
	}
	return true
}

// confirmed forgets what was sent before the PING or PONG with the number.
func (c *carrier) confirmed(seq uint64) {
	c.mu.Lock()
	for c.farewells.n > 0 && c.farewells.front().fence <= seq {
		c.farewells.pop()
	}
	c.mu.Unlock()
}

// logShort remembers that a short stream has something outstanding here, so that loss on the
// carrier finds it. It reports whether there was room.
func (c *carrier) logShort(s *Stream, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.short.n >= interestingMax {
		return false
	}
	c.short.push(shortEntry{s, now})
	return true
}

// sendDatagrams adds as many messages as there is room for.
func (c *carrier) sendDatagrams(msgs [][]byte) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0
	}
	for _, m := range msgs {
		if c.dgramLen+len(m) > datagramsMax || len(m) > wire.PayloadMax {
			break
		}
		f := wire.AppendDatagram(make([]byte, 0, wire.HeaderBytes+len(m)), m)
		c.dgrams.push(f)
		c.dgramLen += len(f)
		n++
	}
	if c.wakes() {
		c.cond.Signal()
	}
	return n
}

// write is the writer goroutine.
func (c *carrier) write() {
	b := batch{c: c}
	for c.next(&b) {
		if err := b.flush(); err != nil {
			break
		}
	}
	b.give()
	c.close()
}

// next waits for something to send and collects it, up to a batch. It reports false when the
// carrier is closed.
func (c *carrier) next(b *batch) bool {
	c.mu.Lock()
	for !c.closed && !c.ending && c.streams.n == 0 && len(c.control) == 0 && c.dgrams.n == 0 && c.warmLeft <= 0 {
		if b.buf != nil {
			c.mu.Unlock() // it will be silent for a while: it keeps no buffer
			b.give()
			c.mu.Lock()
			continue
		}
		c.idle = true
		c.cond.Wait()
		c.idle = false
		// Who is about to run may have something to send as well, and it costs less together. (One that
		// was just woken would run before all others.)
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if c.closed || c.ending && len(c.control) == 0 {
		c.mu.Unlock()
		return false
	}
	b.take()
	if len(c.control) > 0 {
		b.small(append(b.buf, c.control...))
		if c.control = c.control[:0]; cap(c.control) > readBytes {
			c.control = nil
		}
	}
	for c.dgrams.n > 0 && b.size < quantum {
		f := c.dgrams.pop()
		c.dgramLen -= len(f)
		b.small(append(b.buf, f...))
	}
	now := c.t.env.now()
	for b.size < batchBytesMax {
		s, ok := c.streams.pop()
		if !ok {
			break
		}
		c.mu.Unlock()
		s.emit(c, b, now)
		c.mu.Lock()
	}
	if b.size == 0 && c.warmLeft > 0 {
		c.warmLeft -= quantum
		b.small(wire.AppendPad(b.buf, quantum-wire.HeaderBytes))
	}
	c.mu.Unlock()
	return true
}

// A batch is what a carrier sends in one go: runs of small frames that were copied together, and
// large ones that are sent from where they lie.
type batch struct {
	c    *carrier
	buf  []byte // the small frames, all of them
	runs []run
	size int

	sealed []byte // where the records of a batch are collected; nil: none yet
}

// A run is buf[from:to], or direct, which is the last part of a pinned chunk.
type run struct {
	from, to int
	direct   []byte
	s        *Stream
	k        *chunk
}

// small takes over buf, to which the caller has appended frames.
func (b *batch) small(buf []byte) {
	from := len(b.buf)
	b.buf = buf
	b.size += len(buf) - from
	if n := len(b.runs); n > 0 && b.runs[n-1].k == nil {
		b.runs[n-1].to = len(buf)
		return
	}
	b.runs = append(b.runs, run{from: from, to: len(buf)})
}

// data adds a DATA frame by copying.
func (b *batch) data(stream, offset uint64, p []byte, fin bool) {
	var header [wire.DataHeaderBytes]byte
	wire.PutDataHeader(header[:], fin, stream, offset, len(p))
	b.small(append(append(b.buf, header[:]...), p...))
}

// direct adds a frame that lies in a pinned chunk.
func (b *batch) direct(s *Stream, k *chunk, frame []byte) {
	b.size += len(frame)
	b.runs = append(b.runs, run{direct: frame, s: s, k: k})
}

// flush writes everything out, in one piece if it makes several TLS records. Chunks are let go even
// when that fails.
func (b *batch) flush() (err error) {
	bulk := b.c.bulk
	if len(b.runs) < 2 && b.size <= quantum {
		bulk = nil
	}
	if bulk != nil {
		if b.sealed == nil {
			b.sealed = b.c.t.env.buffers.Get().([]byte)
		}
		bulk.hold(b.sealed)
	}
	for i := range b.runs {
		r := &b.runs[i]
		p := r.direct
		if r.k == nil {
			p = b.buf[r.from:r.to]
		}
		if err == nil {
			_, err = b.c.conn.Write(p)
		}
		if r.k != nil {
			r.s.unpin(r.k)
		}
		*r = run{}
	}
	if bulk != nil {
		var rerr error
		b.sealed, rerr = bulk.release()
		err = cmp.Or(err, rerr)
	}
	b.c.t.env.metrics.sent.Add(float64(b.size))
	b.runs, b.buf, b.size = b.runs[:0], b.buf[:0], 0
	return err
}

// take gets a buffer if there is none, and give returns it.
func (b *batch) take() {
	if b.buf == nil {
		b.buf = b.c.t.env.buffers.Get().([]byte)[:0]
	}
}

func (b *batch) give() {
	for _, buf := range [][]byte{b.buf, b.sealed} {
		if cap(buf) > 0 && cap(buf) <= 2*batchBytesMax {
			b.c.t.env.buffers.Put(buf[:0]) //nolint:staticcheck // the slice header is small
		}
	}
	b.buf, b.sealed = nil, nil
}
