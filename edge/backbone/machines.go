package backbone

import (
	"sync"
	"time"
)

// levels of a scheduler: by bytes of service a stream has had lately.
const levels = 3

// levelOf returns the level of a stream that has sent so many bytes lately.
func levelOf(attained uint32) int {
	switch {
	case attained < 64<<10:
		return 0
	case attained < 1<<20:
		return 1
	}
	return 2
}

// decayed returns what counts of a stream's service after a pause: half for each 128 ms. A stream
// that talks now and then is short for ever; a download is long as long as it lasts.
func decayed(attained uint32, pause time.Duration) uint32 {
	if halvings := pause / (128 * time.Millisecond); halvings < 32 {
		return attained >> max(0, halvings)
	}
	return 0
}

// A scheduler says whose turn it is: least attained service first, round robin among equals. A
// level that was passed over passMax times in a row gets a turn, so that a flood of short streams
// slows the long ones and does not starve them. It is a pure machine; the zero value is empty.
type scheduler[T any] struct {
	queues [levels]ring[T]
	passed [levels]int
	n      int
}

// passMax is how often a level is passed over before it gets a turn: long streams keep a fifth.
const passMax = 4

// push puts v at the end of a level's queue.
func (q *scheduler[T]) push(v T, level int) {
	q.queues[level].push(v)
	q.n++
}

// pop takes whose turn it is.
func (q *scheduler[T]) pop() (v T, ok bool) {
	if q.n == 0 {
		return v, false
	}
	turn := -1
	for i := range levels {
		if q.queues[i].n == 0 {
			q.passed[i] = 0
			continue
		}
		if turn < 0 || q.passed[i] >= passMax && q.passed[turn] < passMax {
			turn = i
		}
	}
	for i := range levels {
		if i != turn && q.queues[i].n > 0 {
			q.passed[i]++
		}
	}
	q.passed[turn] = 0
	q.n--
	return q.queues[turn].pop(), true
}

// A ring is a queue that grows as needed and keeps its memory.
type ring[T any] struct {
	items   []T // a power of two
	head, n int
}

func (r *ring[T]) push(v T) {
	if r.n == len(r.items) {
		grown := make([]T, max(16, 2*len(r.items)))
		for i := range r.n {
			grown[i] = r.items[(r.head+i)&(len(r.items)-1)]
		}
		r.items, r.head = grown, 0
	}
	r.items[(r.head+r.n)&(len(r.items)-1)] = v
	r.n++
}

// front returns the oldest. Precondition: n > 0.
func (r *ring[T]) front() T { return r.items[r.head] }

// pop takes the oldest. Precondition: n > 0.
func (r *ring[T]) pop() T {
	var zero T
	v := r.items[r.head]
	r.items[r.head] = zero
	r.head = (r.head + 1) & (len(r.items) - 1)
	r.n--
	return v
}

// A window is how far ahead of its sink a stream lets the peer send. It doubles whenever half of it
// was consumed within two round trips: then it was the window that held the sender back, or nearly.
type window struct {
	size  uint32
	count uint32        // bytes consumed since start
	start time.Duration // when counting began
}

// consumed counts n bytes that the sink took. now is asked only once per half window.
func (w *window) consumed(n int, most uint32, rtt time.Duration, now func() time.Duration) {
	if w.size >= most {
		return
	}
	if w.start == 0 {
		w.start = now()
	}
	if w.count += uint32(n); w.count < w.size/2 {
		return
	}
	t := now()
	if t-w.start < 2*rtt {
		w.size = min(2*w.size, most)
	}
	w.start, w.count = t, 0
}

// ackStep returns how many consumed bytes are acknowledged without delay: often enough that the
// sender never waits, seldom enough that acknowledgements cost nothing.
func (w *window) ackStep() uint64 { return uint64(min(max(w.size/16, 32<<10), 512<<10)) }

// A sizer decides how many carriers a tunnel should have. It is a pure machine.
type sizer struct {
	least, most int
	want        int
	lowSince    time.Duration // since when fewer would do; 0: they would not
	fullSince   time.Duration // since when all have been busy, or one was added for that; 0: not all are
}

// sizing is what a sizer looks at.
type sizing struct {
	now      time.Duration
	up       int     // carriers that answer
	busy     int     // of them, those with a load above carrierBusy
	loss     float32 // share of segments lost, smoothed
	peerWant int     // what the peer asks for; 0: nothing
}

// decide returns the number of carriers to have. It follows loss at once, adds one whenever all
// have been busy for fullFor, so that short streams find one that is not behind a long one, and
// shrinks after shrinkAfter.
func (z *sizer) decide(s sizing) int {
	need := z.least
	switch {
	case s.loss >= lossMuch:
		need = max(need, 16)
	case s.loss >= lossSome:
		need = max(need, 8)
	}
	need = max(need, min(s.up, s.busy+1, z.most/2))
	switch {
	case s.up == 0 || s.busy < s.up:
		z.fullSince = 0
	case z.fullSince == 0:
		z.fullSince = s.now
	case s.now-z.fullSince >= fullFor:
		z.fullSince = s.now
		need = max(need, min(s.up+1, z.most/2))
	}
	need = min(max(need, s.peerWant), z.most)
	switch {
	case need >= z.want:
		z.want, z.lowSince = need, 0
	case z.lowSince == 0:
		z.lowSince = s.now
	case s.now-z.lowSince >= shrinkAfter:
		z.want, z.lowSince = need, 0
	}
	return z.want
}

// tombstones remember which streams have ended, so that an Open that was sent twice, and whose
// second copy comes late, does not begin the stream again. A bit each, in two generations: an entry
// lives for one to two times the interval between turns. A copy cannot come later than a silent
// carrier lives. Not safe for concurrent use; the zero value is ready.
type tombstones struct {
	young, old map[uint64]uint64
	turned     time.Duration
}

// add remembers a stream.
func (t *tombstones) add(id uint64, now time.Duration) {
	if t.young == nil || now-t.turned > tombstonesEvery {
		t.old, t.young, t.turned = t.young, make(map[uint64]uint64), now
	}
	t.young[id>>6] |= 1 << (id & 63)
}

// has reports whether a stream is remembered.
func (t *tombstones) has(id uint64) bool {
	return (t.young[id>>6]|t.old[id>>6])&(1<<(id&63)) != 0
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
