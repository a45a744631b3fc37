package backbone

import (
	"sync"

	"github.com/nearcast/nearcast/proto/wire"
)

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

// unpark gives streams a carrier again that have none.
func (t *tunnel) unpark() {
	if !t.parked.Swap(false) {
		return
	}
	t.streams.each(func(s *Stream) {
		s.mu.Lock()
		if s.car == nil && !s.dead {
			s.moveTo(t.pick(nil), nil)
			s.enqueue()
		}
		s.unlock()
	})
}

// evacuate moves the streams of a carrier that has stalled or is leaving to fit ones. It reports
// false when there is none.
func (t *tunnel) evacuate(c *carrier) bool {
	if to := t.pick(c); to == nil || !to.fit() {
		return false
	}
	t.streams.each(func(s *Stream) {
		s.mu.Lock()
		if s.car == c && !s.dead {
			s.leave(c, t.pick(c))
			s.enqueue()
		}
		s.unlock()
	})
	return true
}

// reinject sends again, on fit carriers, what short streams have outstanding on a carrier that
// repairs a loss: everything behind the lost segment waits for the repair, which takes a round trip
// at best. What arrives twice is dropped by its offset.
func (t *tunnel) reinject(c *carrier) {
	to := t.pick(c)
	if to == nil || !to.fit() {
		return
	}
	c.mu.Lock()
	short := c.short
	c.short = ring[shortEntry]{}
	c.mu.Unlock()
	for short.n > 0 {
		e := short.pop()
		s := e.s
		s.mu.Lock()
		s.logged = false
		out := s.out.end - s.out.base
		if !s.dead && s.car == c && out > 0 && out <= shortStream {
			s.leave(c, t.pick(c))
			s.enqueue()
			t.env.metrics.reinjected.Add(float64(out))
		}
		s.unlock()
	}
}

// sweepShort drops entries of short streams that have nothing outstanding any more.
func (c *carrier) sweepShort() {
	for range interestingMax {
		c.mu.Lock()
		if c.short.n == 0 {
			c.mu.Unlock()
			return
		}
		e := c.short.pop()
		c.mu.Unlock()
		s := e.s
		s.mu.Lock()
		done := s.dead || s.car != c || s.out.end == s.out.base || s.out.end-s.out.base > shortStream
		if done {
			s.logged = false
		}
		s.mu.Unlock()
		if !done {
			c.mu.Lock()
			c.short.push(e)
			c.mu.Unlock()
			return // those behind it are younger
		}
	}
}

// onLeave takes the peer's word that it sends nothing more on the carrier. We answer with ours, and
// the edge closes.
func (t *tunnel) onLeave(c *carrier) {
	if c.leaving.Swap(true) {
		if t.client {
			c.close()
		}
		return
	}
	t.evacuate(c)
	c.send(wire.AppendLeave)
	t.changed()
}

// streamShards is a power of two: the readers of many carriers look up streams at once.
const streamShards = 16

// A streamTable finds streams by their numbers.
type streamTable struct {
	shards [streamShards]struct {
		mu sync.RWMutex
		m  map[uint64]*Stream
	}
}

// add reports false if there is one with that number already.
func (t *streamTable) add(s *Stream) bool {
	sh := &t.shards[s.id%streamShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.m[s.id] != nil {
		return false
	}
	if sh.m == nil {
		sh.m = make(map[uint64]*Stream)
	}
	sh.m[s.id] = s
	return true
}

func (t *streamTable) get(id uint64) *Stream {
	sh := &t.shards[id%streamShards]
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.m[id]
}

func (t *streamTable) remove(id uint64) {
	sh := &t.shards[id%streamShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.m, id)
}

// len returns the number of streams.
func (t *streamTable) len() (n int) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.RLock()
		n += len(sh.m)
		sh.mu.RUnlock()
	}
	return n
}

// each calls f with every stream that was there when it began, without holding a lock.
func (t *streamTable) each(f func(*Stream)) {
	var all []*Stream
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.RLock()
		for _, s := range sh.m {
			all = append(all, s)
		}
		sh.mu.RUnlock()
	}
	for _, s := range all {
		f(s)
	}
}
