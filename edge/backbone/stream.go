package backbone

import (
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// A Stream is one flow's bytes, both ways, over a tunnel. Its two directions end by themselves:
// this side's by CloseWrite, the other's when the sink was given fin. The stream is over when both
// have ended, or by a Reset of either side; nothing needs to be closed then.
//
// Write and ReadFrom are for one goroutine at a time; everything else is safe for concurrent use.
type Stream struct {
	t    *tunnel
	id   uint64
	sink Sink // set before the first callback

	mu     sync.Mutex
	wake   sync.Cond // for who writes: credit, memory, or the end
	car    *carrier  // what it sends goes there; nil: no carrier is up
	queued *carrier  // in whose scheduler it stands, if any
	rouse  *carrier  // to be woken when mu is let go
	ackOn  *carrier  // carried the last ACK
	used   uint64    // slots of carriers that carried frames of it, and may die with them unread
	dataOn uint64    // of them, those that carried bytes that are outstanding

	// sending
	out      sendBuffer
	open     *wire.Open       // until the peer has shown that it knows the stream
	result   *wire.OpenResult // this side's answer, until the edge has shown that it has it
	emitted  time.Duration    // when it last sent
	touched  time.Duration    // when it was last moved, was acknowledged, or began to have something out
	attained uint32           // bytes sent lately; see decayed
	moves    uint32

	// receiving
	in         assembly
	answer     *wire.OpenResult // the gateway's answer, on its way to the sink
	taken      uint64           // the sink has taken all before this offset
	acked      uint64           // of taken, what the peer was told
	granted    uint64           // credit as the peer was last told
	grantedMax uint64           // the most it was ever told: only a Rewind takes credit back
	finAt      uint64           // the peer's end, if finKnown
	win        window
	reason     wire.ResetReason // of the end, if resetIn or tell

	// Each of these is a fact about the stream; together they are its state.
	isOpener  bool // at the edge's side
	answered  bool // OpenResult was called, or its frame has come
	dead      bool // over: it sends no frames and holds no memory
	mute      bool // the sink gets no more calls
	removed   bool // out of the tunnel's table
	busy      bool // somebody is in a callback of the sink
	again     bool // Resume was called meanwhile
	blocked   bool // the sink took less; waits for Resume
	opened    bool // bytes may be delivered (at the edge's side: after Opened)
	finQueued bool // CloseWrite was called
	finSent   bool
	finAcked  bool
	finKnown  bool
	finTaken  bool // the sink was given fin
	finTold   bool // the peer was told so
	resetIn   bool // a reset waits for the sink
	tell      bool // a RESET must be sent
	dropped   bool // bytes from the end of in were not kept
	sendBack  bool // the next ACK says: send again from taken
	awaitBack bool // it was said, and nothing has come yet
	needOpen  bool // frames to be sent at the stream's next turn
	needRes   bool
	needAck   bool
	lazy      bool // stands in the tunnel's list of late acknowledgements
	logged    bool // stands in a carrier's log of short streams
}

// Peer returns the node at the other end.
func (s *Stream) Peer() model.NodeID { return s.t.peer }

// ID returns the stream's number in its tunnel, for logs.
func (s *Stream) ID() uint64 { return s.id }

// unlock lets go of mu, and does what followed from what was done under it and must not be done
// under it.
func (s *Stream) unlock() {
	rouse := s.rouse
	s.rouse = nil
	var last farewell
	say := false
	if s.finAcked && s.finTold && !s.dead {
		s.end()
		s.mute = true
		last = farewell{stream: s.id, consumed: s.taken}
		say = s.ackOn == nil || !s.ackOn.part(last, false)
		s.ackOn = nil
	}
	gone := s.dead && !s.removed
	s.removed = s.removed || gone
	if s.tell {
		last, say, s.tell = farewell{stream: s.id, reset: true, reason: s.reason}, true, false
	}
	s.mu.Unlock()
	if rouse != nil {
		rouse.cond.Signal()
	}
	if gone {
		s.t.forget(s)
	}
	if say {
		s.t.part(last)
	}
}

// end makes the stream dead and gives back its memory. The caller holds mu.
func (s *Stream) end() {
	s.dead = true
	if s.car != nil {
		s.car.load.Add(-int64(s.out.end - s.out.base))
	}
	s.out.drop(s.t.env.memory)
	s.in.drop(s.t.env.memory)
	s.car, s.open, s.result = nil, nil, nil
	s.wake.Broadcast()
}

// Write sends p. It copies the bytes and returns when all are copied: it blocks while the peer's
// credit is used up, while too much waits for the carrier, and while memory is short. It fails with
// ErrClosed after CloseWrite or Reset, and with a *ResetError when the stream was reset.
func (s *Stream) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		s.mu.Lock()
		room, err := s.reserve()
		if err != nil {
			s.mu.Unlock()
			return n, err
		}
		take := min(room, len(p), wire.DataMax) // memory is looked at for each chunk
		s.out.append(s.t.env.memory, p[:take])
		s.wrote(take)
		s.unlock()
		n += take
		p = p[take:]
	}
	return n, nil
}

// ReadFrom sends what it reads from r until r ends (that is no error) or either fails, and returns
// how much it sent. It does not call CloseWrite. From a *net.TCPConn, or anything else that has a
// file descriptor, it reads straight into what is sent, and holds no memory while r is silent.
func (s *Stream) ReadFrom(r io.Reader) (n int64, err error) {
	if sc, ok := r.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			return s.readFromFD(rc)
		}
	}
	buf := make([]byte, batchBytesMax)
	for {
		k, rerr := r.Read(buf)
		w, werr := s.Write(buf[:k])
		n += int64(w)
		switch {
		case werr != nil:
			return n, werr
		case rerr == io.EOF:
			return n, nil
		case rerr != nil:
			return n, rerr
		}
	}
}

// readFromFD reads from a descriptor into chunks of the send buffer.
func (s *Stream) readFromFD(rc syscall.RawConn) (n int64, err error) {
	r := newFDReader(rc, s.t.env.memory)
	for {
		s.mu.Lock()
		room, err := s.reserve()
		s.mu.Unlock()
		if err != nil {
			return n, err
		}
		chunks, err := r.read(room)
		if err != nil || len(chunks) == 0 {
			return n, err
		}
		k, err := s.writeChunks(chunks)
		if n += int64(k); err != nil {
			return n, err
		}
	}
}

// writeChunks sends what lies in chunks, which it takes over (and out of the slice).
func (s *Stream) writeChunks(chunks []*chunk) (n int, err error) {
	memory := s.t.env.memory
	s.mu.Lock()
	defer s.unlock()
	_, err = s.writable()
	for i, c := range chunks {
		chunks[i] = nil
		k := c.w - c.r
		switch {
		case err != nil:
			memory.put(c)
			continue
		case k < smallWrite || s.out.tail != nil && s.out.tail.room() >= k:
			s.out.append(memory, c.data()) // not worth a chunk of its own, which would be held
			memory.put(c)
		default:
			s.out.pushFilled(c)
		}
		n += k
	}
	if n > 0 {
		s.wrote(n)
	}
	return n, err
}

// reserve waits until something may be written, and says how much. The caller holds mu.
func (s *Stream) reserve() (room int, err error) {
	for {
		if room, err = s.writable(); room != 0 || err != nil {
			return room, err
		}
		s.wake.Wait()
	}
}

// writable says how much may be written now. The caller holds mu.
func (s *Stream) writable() (room int, err error) {
	switch {
	case s.resetIn:
		return 0, &ResetError{s.reason}
	case s.dead || s.mute || s.finQueued:
		return 0, ErrClosed
	case s.out.limit <= s.out.end:
		return 0, nil
	}
	unsent := unsentMax - int(s.out.end-s.out.next)
	if unsent < quantum {
		return 0, nil // the carrier wakes us when half of it has gone, which makes large pieces
	}
	// A stream that may hold no more gets its turn when its own bytes are consumed. One that holds
	// nothing would wait for ever, so it may always hold a little.
	held := s.t.env.memory.share() - s.out.held
	if held < smallWrite {
		held = smallWrite - s.out.held
	}
	return max(0, min(unsent, held, int(s.out.limit-s.out.end))), nil
}

// wrote does what follows from n bytes more in the send buffer. The caller holds mu.
func (s *Stream) wrote(n int) {
	if int(s.out.end-s.out.base) == n {
		s.place()
		s.touched = s.t.env.now()
	}
	if s.car != nil {
		s.car.load.Add(int64(n))
	}
	s.enqueue()
}

// place puts a stream that has nothing outstanding on the best carrier for what comes now. The
// caller holds mu.
func (s *Stream) place() {
	if s.car != nil && (s.open != nil || s.finSent || s.car.fit() && s.car.load.Load() < moveSlack) {
		return
	}
	if c := s.t.pick(nil); c != nil {
		s.car = c
	}
}

// enqueue puts the stream into its carrier's scheduler if it has anything to say. The caller holds
// mu.
func (s *Stream) enqueue() {
	for s.car != nil && !s.dead && s.queued != s.car && s.pending() {
		c := s.car
		wake, ok := c.push(s, levelOf(s.attained))
		if !ok {
			s.leave(c, s.t.pick(c)) // it was chosen while it died
			continue
		}
		s.queued = c
		if wake {
			if s.rouse != nil && s.rouse != c {
				s.rouse.cond.Signal()
			}
			s.rouse = c
		}
	}
}

// pending reports whether the stream has anything to send. The caller holds mu.
func (s *Stream) pending() bool {
	return s.needOpen || s.needRes || s.needAck || s.out.sendable() > 0 ||
		s.finQueued && !s.finSent && s.out.next == s.out.end
}

// emit adds to b what the stream has to send at its turn: at most a quantum of bytes, or what is left
// of the batch for one that sends in bulk. It is called by the writer of c only.
func (s *Stream) emit(c *carrier, b *batch, now time.Duration) {
	s.mu.Lock()
	defer s.unlock()
	if s.queued == c {
		s.queued = nil
	}
	if s.dead || s.car != c {
		return // it has gone elsewhere since it was queued
	}
	if s.needOpen && s.open != nil {
		b.small(wire.AppendOpen(b.buf, s.id, s.open))
	}
	if s.needRes && s.result != nil {
		b.small(wire.AppendResult(b.buf, s.id, s.result))
	}
	if s.needAck || s.taken != s.acked {
		s.emitAck(b)
		s.ackOn = c
	}
	s.needOpen, s.needRes, s.needAck = false, false, false
	s.used |= 1 << c.slot
	s.attained, s.emitted = decayed(s.attained, now-s.emitted), now
	if s.out.next == s.out.base && !(s.finSent && !s.finAcked) {
		s.dataOn = 0
	}
	sent, turn := 0, quantum
	if levelOf(s.attained) == levels-1 {
		turn = max(turn, batchBytesMax-b.size) // among bulk: what leaves together arrives together
	}
	for sent < turn && s.out.sendable() > 0 {
		sent += s.emitData(b, turn-sent)
	}
	if s.finQueued && !s.finSent && s.out.next == s.out.end {
		b.data(s.id, s.out.end, nil, true)
		s.finSent = true
	}
	if sent > 0 || s.finSent {
		s.dataOn |= 1 << c.slot
	}
	if sent > 0 {
		s.attained += uint32(sent)
		if !s.logged && s.out.end-s.out.base <= shortStream {
			s.logged = c.logShort(s, now)
		}
		if s.out.end-s.out.next <= unsentMax/2 {
			s.wake.Signal()
		}
	}
	s.enqueue()
}

// emitData adds one DATA frame of at most n bytes, or DATAFIN if it is the last. The caller holds
// mu.
func (s *Stream) emitData(b *batch, n int) int {
	offset := s.out.next
	k, lo, hi := s.out.take(min(n, wire.DataMax))
	fin := s.finQueued && s.out.next == s.out.end
	s.finSent = s.finSent || fin
	if lo == wire.DataHeaderBytes && hi-lo >= directMin && k.pins == 0 {
		k.pins++
		wire.PutDataHeader(k.b, fin, s.id, offset, hi-lo)
		b.direct(s, k, k.b[:hi])
	} else {
		b.data(s.id, offset, k.b[lo:hi], fin)
	}
	return hi - lo
}

// unpin is called when a carrier has written out a chunk.
func (s *Stream) unpin(c *chunk) {
	s.mu.Lock()
	s.t.env.memory.unpin(c)
	s.mu.Unlock()
}

// onAck takes the peer's word on what it has consumed and how far this side may send.
func (s *Stream) onAck(a *wire.Ack) {
	s.mu.Lock()
	defer s.unlock()
	if s.dead {
		return
	}
	s.open = nil
	before := s.out.base
	if !s.out.consume(s.t.env.memory, a.Consumed) ||
		a.Fin && (!s.finQueued || a.Consumed != s.out.end) {
		s.fail(wire.ResetProtocol)
		return
	}
	if s.out.base != before {
		s.touched = s.t.env.now()
		s.result = nil // an edge takes bytes only after the answer
		if s.car != nil {
			s.car.load.Add(-int64(s.out.base - before))
		}
	}
	s.finAcked = s.finAcked || a.Fin
	s.finSent = s.finSent || a.Fin
	switch {
	case !a.Rewind:
		s.out.limit = max(s.out.limit, a.Limit)
	case a.Consumed == s.out.base: // an older one has nothing to say any more
		s.out.limit = a.Limit
		s.out.rewind()
		s.finSent = s.finSent && s.finAcked
	}
	s.enqueue()
	s.wake.Signal()
}

// fail ends the stream from within: both sides are told. The caller holds mu.
func (s *Stream) fail(reason wire.ResetReason) {
	if !s.dead {
		s.resetIn, s.tell, s.reason = true, true, reason
		s.end()
		s.drive()
	}
}

// CloseWrite ends this side's direction behind what was written (FIN).
func (s *Stream) CloseWrite() {
	s.mu.Lock()
	defer s.unlock()
	if s.dead || s.finQueued {
		return
	}
	s.finQueued = true
	if s.car == nil {
		s.place()
	}
	s.enqueue()
	s.wake.Broadcast()
}

// Reset ends the stream at once, and tells the peer why. The sink gets no more calls, except for
// one that may be running at this moment. A stream that is over is left alone.
func (s *Stream) Reset(reason wire.ResetReason) {
	s.mu.Lock()
	defer s.unlock()
	s.mute = true
	if !s.dead {
		s.tell, s.reason = true, reason
		s.end()
	}
}

// OpenResult answers the Open, at the gateway's side, once, before the first Write. A code other
// than OpenOK ends the stream; the sink gets no more calls then.
func (s *Stream) OpenResult(r wire.OpenResult) {
	s.mu.Lock()
	defer s.unlock()
	if s.dead || s.isOpener || s.answered {
		return
	}
	s.answered, s.result, s.needRes = true, &r, true
	if r.Code != wire.OpenOK {
		s.mute = true // the edge's RESET will end it; until then the answer can be repeated
		s.in.drop(s.t.env.memory)
	}
	if s.car == nil {
		s.place()
	}
	s.enqueue()
}

// Stats returns the stream's figures.
func (s *Stream) Stats() StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return StreamStats{
		Sent: s.out.high, Acked: s.out.base, Received: s.taken,
		Held: s.out.held + s.in.held, Moves: s.moves, Peer: s.t.peer,
	}
}
