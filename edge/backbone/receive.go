package backbone

import "github.com/nearcast/nearcast/proto/wire"

// onData takes bytes that a carrier brought. p is valid during the call only. It reports false when
// the stream is over.
func (s *Stream) onData(offset uint64, p []byte, fin bool) bool {
	s.mu.Lock()
	defer s.unlock()
	if s.dead {
		return false
	}
	s.open = nil
	end := offset + uint64(len(p))
	if end > s.grantedMax || s.finKnown && (end > s.finAt || fin && end != s.finAt) || fin && end < s.taken {
		s.fail(wire.ResetProtocol)
		return true
	}
	if fin {
		s.finKnown, s.finAt = true, end
	}
	if s.mute {
		return true // refused: nobody wants it
	}
	if offset < s.taken {
		p = p[min(uint64(len(p)), s.taken-offset):]
		offset = end - uint64(len(p))
	}
	if len(p) == 0 && (!fin || s.finTaken) {
		s.needAck = true // the peer repeats what was consumed: it has missed that
		s.enqueue()
		return true
	}
	if offset == s.taken {
		s.awaitBack = false
	}
	if len(p) > 0 {
		if offset == s.taken && s.opened && !s.busy && !s.blocked {
			n := s.deliver(p)
			offset, p = offset+uint64(n), p[n:]
		}
		if len(p) > 0 && !s.dead {
			s.keep(offset, p)
		}
	}
	s.drive()
	return true
}

// keep holds what cannot be delivered now, or as much as memory allows. What it does not keep the
// peer still has, and is asked for again when the sink wants it. The caller holds mu.
func (s *Stream) keep(offset uint64, p []byte) {
	memory := s.t.env.memory
	fits := max(memory.share(), smallWrite) - s.in.held
	if s.dropped && s.in.tail != nil && offset >= s.in.tail.end() {
		fits = 0 // a hole lies before it, which will be filled from behind it as well
	}
	if fits < len(p) {
		s.dropped = true
		s.t.env.metrics.reneged.Add(float64(len(p) - max(0, fits)))
		p = p[:max(0, fits)]
	}
	if len(p) > 0 {
		s.in.insert(memory, offset, p)
	}
}

// deliver calls the sink with the next bytes. The caller holds mu, which is let go meanwhile; busy
// keeps everybody else from calling the sink.
func (s *Stream) deliver(p []byte) (n int) {
	fin := s.finKnown && s.taken+uint64(len(p)) == s.finAt
	s.busy = true
	s.mu.Unlock()
	n = s.sink.Deliver(p, fin)
	s.mu.Lock()
	s.busy = false
	n = min(max(n, 0), len(p))
	s.blocked = n < len(p) && !s.again
	s.again = false
	if s.dead {
		return n
	}
	s.taken += uint64(n)
	s.finTaken = fin && n == len(p)
	s.win.consumed(n, uint32(s.t.env.WindowMax), s.t.rtt(), s.t.env.now)
	if s.taken-s.acked >= min(s.win.ackStep(), (s.granted-s.acked)/2) {
		s.needAck = true
		s.enqueue()
	} else if !s.lazy {
		s.lazy = true
		s.t.ackLater(s)
	}
	return n
}

// drive calls the sink as long as there is something to call it for. The caller holds mu.
func (s *Stream) drive() {
	for !s.busy && !s.mute && s.sink != nil {
		switch {
		case s.resetIn:
			s.mute, s.busy = true, true
			s.mu.Unlock()
			s.sink.Reset(s.reason)
			s.mu.Lock()
			s.busy = false
		case s.dead:
			return
		case s.answer != nil:
			s.driveAnswer()
		case !s.opened || s.blocked || s.finTaken:
			return
		default:
			p := s.in.front(s.t.env.memory, s.taken)
			if p == nil && !(s.finKnown && s.taken == s.finAt) {
				s.askBack()
				return
			}
			s.deliverHeld(p)
		}
	}
}

// driveAnswer hands the gateway's answer to the sink. The caller holds mu.
func (s *Stream) driveAnswer() {
	answer := *s.answer
	s.answer = nil
	s.busy = true
	s.mu.Unlock()
	s.sink.Opened(answer)
	s.mu.Lock()
	s.busy = false
	s.opened = answer.Code == wire.OpenOK
	if !s.opened && !s.dead {
		s.mute = true
		s.tell, s.reason = true, wire.ResetRefused // so that the gateway can forget the stream
		s.end()
	}
}

// deliverHeld delivers bytes of the assembly. They must not be given back to the pool while the
// sink reads them, even if the stream is reset meanwhile: the chunk is pinned. The caller holds mu.
func (s *Stream) deliverHeld(p []byte) {
	c := s.in.head
	if c == nil || len(p) == 0 {
		s.deliver(nil)
		return
	}
	c.pins++
	s.deliver(p)
	s.t.env.memory.unpin(c)
	if !s.dead {
		s.in.front(s.t.env.memory, s.taken) // gives back what was taken
	}
}

// askBack asks for bytes that were not kept, now that the sink has taken all that was. The caller
// holds mu.
func (s *Stream) askBack() {
	if s.dropped {
		s.dropped, s.sendBack, s.needAck = false, true, true
		s.in.drop(s.t.env.memory)
		s.enqueue()
	}
}

// Resume has what the sink did not take delivered again, from this goroutine or from one that is
// just delivering. It is cheap when there is nothing.
func (s *Stream) Resume() {
	s.mu.Lock()
	defer s.unlock()
	if s.busy {
		s.again = true
		return
	}
	s.blocked = false
	s.drive()
}

// onResult takes the gateway's answer. It reports false when the stream is over.
func (s *Stream) onResult(r wire.OpenResult) bool {
	s.mu.Lock()
	defer s.unlock()
	if s.dead {
		return false
	}
	if !s.isOpener || s.answered {
		return true
	}
	s.open = nil
	s.answered, s.answer = true, &r
	s.drive()
	return true
}

// onReset takes the peer's reset.
func (s *Stream) onReset(reason wire.ResetReason) {
	s.mu.Lock()
	defer s.unlock()
	if s.dead {
		return
	}
	// A peer that has forgotten the stream because both directions had ended is no news for a stream
	// that only misses the last acknowledgement. A refused one is ended by the edge in this way.
	done := s.finTaken && s.finSent && s.out.base == s.out.end
	if reason == wire.ResetUnknown && done || reason == wire.ResetRefused && s.mute {
		s.mute = true
		s.end()
		return
	}
	s.resetIn, s.reason = true, reason
	s.end()
	s.drive()
}

// emitAck adds an ACK of what the sink has taken, with new credit. The caller holds mu.
func (s *Stream) emitAck(b *batch) {
	credit := min(int(s.win.size), max(s.t.env.memory.share(), windowFloor))
	limit := s.taken + uint64(credit)
	if !s.sendBack {
		limit = max(limit, s.granted)
	}
	s.granted, s.grantedMax = limit, max(limit, s.grantedMax)
	a := wire.Ack{Stream: s.id, Consumed: s.taken, Limit: limit, Fin: s.finTaken, Rewind: s.sendBack}
	b.small(a.Append(b.buf))
	s.acked, s.finTold = s.taken, s.finTaken
	s.awaitBack = s.awaitBack || s.sendBack
	s.sendBack = false
}

// leave takes the stream from carrier c, which nothing can be expected of any more, to another one
// (nil: to none, it is parked). Everything that the peer may not have got is said again, so that
// nothing depends on c from now on. The caller holds mu.
func (s *Stream) leave(c, to *carrier) {
	bit := uint64(1) << c.slot
	if s.queued == c {
		s.queued = nil
	}
	s.needOpen = s.open != nil
	s.needRes = s.result != nil
	s.needAck = s.needAck || s.taken > 0 || s.finTaken
	s.sendBack = s.sendBack || s.awaitBack
	if s.dataOn&bit != 0 {
		s.out.rewind()
		s.finSent = s.finSent && s.finAcked
	}
	s.used &^= bit
	s.dataOn &^= bit
	if s.car == c {
		s.moveTo(to, c)
	}
}

// moveTo makes to the stream's carrier; nil parks it until there is one besides not. The caller
// holds mu.
func (s *Stream) moveTo(to, not *carrier) {
	if to == nil {
		s.t.parked.Store(true)
		to = s.t.pick(not) // one that joined before it could see the mark
	}
	load := int64(s.out.end - s.out.base)
	if s.car != nil {
		s.car.load.Add(-load)
	}
	if s.car = to; to != nil {
		to.load.Add(load)
	}
	s.moves++
	s.touched = s.t.env.now()
	s.t.env.metrics.moves.Inc()
}

// lost is called for every stream of the tunnel when a carrier has ended.
func (s *Stream) lost(c *carrier) {
	s.mu.Lock()
	defer s.unlock()
	if s.dead || s.car != c && s.used&(1<<c.slot) == 0 {
		return
	}
	s.leave(c, s.t.pick(c))
	s.enqueue()
}
