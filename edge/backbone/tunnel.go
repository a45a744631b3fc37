package backbone

import (
	"log/slog"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// env is what all tunnels of a Pool or Server share.
type env struct {
	Common  // with every default filled in
	memory  *Memory
	log     *slog.Logger
	metrics *metrics
	start   time.Time
	buffers sync.Pool // of []byte, for batches
	client  bool
}

func newEnv(c Common, room string, client bool) *env {
	fill := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	fillTime := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&c.WindowMax, max(windowMaxDefault, c.Window))
	fill(&c.Window, min(windowDefault, c.WindowMax))
	fill(&c.Warm, warmDefault)
	fillTime(&c.PathWait, pathWaitDefault)
	fillTime(&c.PingInterval, pingIntervalDefault)
	fillTime(&c.DeadAfter, deadAfterDefault)
	e := &env{Common: c, memory: c.Memory, log: c.Log, start: time.Now(), client: client}
	if e.memory == nil {
		e.memory = NewMemory(0)
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.metrics = newMetrics(room, e.memory)
	e.buffers.New = func() any { return make([]byte, 0, batchBytesMax+quantum) }
	return e
}

// now returns the monotonic time since the Pool or Server was made.
func (e *env) now() time.Duration { return time.Since(e.start) }

// A tunnel is the lasting association of two nodes: its streams, and the carriers that come and go.
type tunnel struct {
	env    *env
	id     wire.TunnelID
	peer   model.NodeID
	client bool

	streams    streamTable
	nextID     atomic.Uint64              // edge
	peerWindow atomic.Uint64              // credit of a new stream
	list       atomic.Pointer[[]*carrier] // all that are alive; replaced under mu
	turn       atomic.Uint32              // where pick begins
	rttNow     atomic.Int64               // smoothed, of the fastest carrier; 0: not known
	peerWant   atomic.Uint32              // carriers the peer asks for
	parked     atomic.Bool                // a stream may have no carrier
	draining   atomic.Bool                // the peer said GOAWAY
	groups     atomic.Pointer[map[model.GroupID]bool]
	says       atomic.Uint64 // for PINGs and PONGs: loss in parts a million << 8 | carriers wanted
	poke       chan struct{} // wakes the watcher; capacity 1
	moved      chan struct{} // closed when the peer's next process wants a tunnel of its own
	moveOnce   sync.Once

	mu         sync.Mutex
	closed     bool
	slots      uint64        // in use
	generation uint64        // edge: of the gateway's state; 0: not known yet
	downSince  time.Duration // since when no carrier is up; meaningful while list is empty
	unsent     []farewell    // for when a carrier is up again
	grave      tombstones
	parts      groupParts
	groupsOn   *carrier // gateway: who carries the newest table of groups; nil: nobody
	keys       keyState // of the datagram channel

	groupsMu sync.Mutex // one table is sent at a time; before mu

	lateMu sync.Mutex
	late   []*Stream // with acknowledgements that can wait
	spare  []*Stream // late's memory the next time
	lateAt time.Duration

	// The owner's. Called without any lock.
	changed   func() // carriers, draining, groups
	onStream  func(*Stream, *wire.Open) Sink
	announced func() (version uint64, groups map[model.GroupID]bool) // gateway
	watcher   watcher
}

func newTunnel(e *env, peer model.NodeID, id wire.TunnelID) *tunnel {
	t := &tunnel{env: e, peer: peer, id: id, client: e.client, poke: make(chan struct{}, 1),
		moved: make(chan struct{})}
	t.list.Store(new([]*carrier))
	t.downSince = e.now()
	t.changed = func() {}
	return t
}

// carriers returns those that are alive. The slice must not be changed.
func (t *tunnel) carriers() []*carrier { return *t.list.Load() }

// rtt returns the smoothed round trip time, or a guess.
func (t *tunnel) rtt() time.Duration {
	if v := t.rttNow.Load(); v > 0 {
		return time.Duration(v)
	}
	return 100 * time.Millisecond
}

// wake wakes the watcher.
func (t *tunnel) wake() {
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

// pick returns the carrier for what comes next: the least loaded of those that are fit, or of the
// others when none is; of those that are idle the one with the largest congestion window, which is
// the one that was used most. It never returns not; nil means that there is none.
func (t *tunnel) pick(not *carrier) *carrier {
	list := t.carriers()
	var best *carrier
	var bestRank int
	var bestLoad, bestRoom int64
	from := int(t.turn.Add(1))
	for i := range list {
		c := list[(from+i)%len(list)]
		if c == not || c.gone.Load() { // it is delisted only when its reader has ended
			continue
		}
		rank, load, room := c.rank(), c.load.Load(), c.room.Load()
		if best == nil || rank < bestRank ||
			rank == bestRank && (load < bestLoad || load == bestLoad && room > bestRoom) {
			best, bestRank, bestLoad, bestRoom = c, rank, load, room
		}
	}
	return best
}

// rank orders carriers by fitness: less is better.
func (c *carrier) rank() int {
	switch {
	case c.stalled.Load():
		return 3
	case c.leaving.Load():
		return 2
	case c.recovering.Load():
		return 1
	}
	return 0
}

// up returns the number of carriers that answer.
func (t *tunnel) up() (n int) {
	for _, c := range t.carriers() {
		if c.rank() < 2 {
			n++
		}
	}
	return n
}

// join takes a carrier into the tunnel. It reports false if the tunnel is closed or has no room.
func (t *tunnel) join(c *carrier) bool {
	t.mu.Lock()
	free := bits.TrailingZeros64(^t.slots)
	if t.closed || free >= slotsMax || len(t.carriers()) > carriersCeiling {
		t.mu.Unlock()
		return false
	}
	t.slots |= 1 << free
	c.slot = uint(free)
	c.health.begin(t.env.now())
	list := append(slices.Clone(t.carriers()), c)
	t.list.Store(&list)
	tableMissing := t.announced != nil && t.groupsOn == nil
	unsent := t.unsent
	t.unsent = nil
	t.mu.Unlock()

	for _, f := range unsent {
		t.part(f)
	}
	if tableMissing {
		t.sendGroups()
	}
	t.askKeys()
	t.unpark()
	t.wake()
	t.changed()
	return true
}

// lost is called when a carrier has ended: its streams go elsewhere.
func (t *tunnel) lost(c *carrier) {
	t.delist(c)
	t.mu.Lock()
	again := t.groupsOn == c
	if again {
		t.groupsOn = nil
	}
	t.mu.Unlock()

	t.streams.each(func(s *Stream) { s.lost(c) })
	c.mu.Lock()
	farewells := c.farewells
	c.farewells, c.streams, c.short = ring[farewell]{}, scheduler[*Stream]{}, ring[shortEntry]{}
	c.mu.Unlock()
	for farewells.n > 0 {
		t.part(farewells.pop())
	}
	if again {
		t.sendGroups()
	}
	t.lostKeys(c)

	t.mu.Lock()
	t.slots &^= 1 << c.slot // only now: no stream remembers it any more
	t.mu.Unlock()
	t.wake()
	t.changed()
}

// part sends the last frame of a stream, by any carrier, and again by another if that one dies.
func (t *tunnel) part(f farewell) {
	for c := t.pick(nil); c != nil; c = t.pick(nil) {
		if c.part(f, true) {
			return
		}
		t.delist(c) // it has closed, and will be lost in a moment
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.unsent = append(t.unsent, f)
	}
}

// delist takes a carrier off the list, so that nobody picks it.
func (t *tunnel) delist(c *carrier) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(t.carriers()), func(o *carrier) bool { return o == c })
	t.list.Store(&list)
	if len(list) == 0 {
		t.downSince = t.env.now()
	}
}

// dial begins a stream at the edge's side.
func (t *tunnel) dial(o *wire.Open, sink Sink) (*Stream, error) {
	c := t.pick(nil)
	if c == nil || c.stalled.Load() {
		return nil, ErrNoPath
	}
	s := t.newStream(t.nextID.Add(1))
	s.isOpener, s.open, s.needOpen, s.sink, s.car = true, o, true, sink, c
	t.streams.add(s)
	if t.isClosed() { // it was closed before it could see the stream
		s.mu.Lock()
		s.mute = true
		s.end()
		s.unlock()
		return nil, ErrNoPath
	}
	s.mu.Lock()
	s.enqueue()
	s.unlock()
	t.env.metrics.opened.Inc()
	return s, nil
}

// accept begins a stream at the gateway's side, unless it is a second copy of its OPEN.
func (t *tunnel) accept(c *carrier, id uint64, o *wire.Open) {
	s := t.newStream(id)
	s.busy, s.opened, s.car = true, true, c
	if !t.streams.add(s) {
		if s = t.streams.get(id); s != nil {
			s.mu.Lock()
			s.needAck = true // so that the edge learns that we know it
			s.enqueue()
			s.unlock()
		}
		return
	}
	t.mu.Lock()
	over, closed := t.grave.has(id), t.closed
	t.mu.Unlock()
	if over || closed {
		t.streams.remove(id)
		return
	}
	t.env.metrics.opened.Inc()
	sink := t.onStream(s, o)
	s.mu.Lock()
	defer s.unlock()
	s.sink, s.busy = sink, false
	if sink == nil && !s.dead {
		s.mute = true
		s.tell, s.reason = true, wire.ResetRefused
		s.end()
	}
	s.drive()
}

func (t *tunnel) newStream(id uint64) *Stream {
	s := &Stream{t: t, id: id}
	s.wake.L = &s.mu
	s.out.limit = t.peerWindow.Load()
	s.granted = uint64(t.env.Window)
	s.grantedMax = s.granted
	s.win.size = uint32(t.env.Window)
	return s
}

// forget takes a stream that is over out of the table.
func (t *tunnel) forget(s *Stream) {
	if !t.client {
		t.bury(s.id)
	}
	t.streams.remove(s.id)
}

// bury remembers that a stream is over.
func (t *tunnel) bury(id uint64) {
	t.mu.Lock()
	t.grave.add(id, t.env.now())
	t.mu.Unlock()
}

// ackLater has the watcher acknowledge what the stream has taken.
func (t *tunnel) ackLater(s *Stream) {
	t.lateMu.Lock()
	t.late = append(t.late, s)
	first := len(t.late) == 1
	if first {
		t.lateAt = t.env.now() + ackDelay
	}
	t.lateMu.Unlock()
	if first {
		t.wake()
	}
}

// flushLate sends late acknowledgements that are due, and returns when the next are; 0: none.
func (t *tunnel) flushLate(now time.Duration) time.Duration {
	t.lateMu.Lock()
	if len(t.late) == 0 || now < t.lateAt {
		defer t.lateMu.Unlock()
		if len(t.late) == 0 {
			return 0
		}
		return t.lateAt
	}
	late := t.late
	t.late, t.spare = t.spare[:0], nil
	t.lateMu.Unlock()
	for _, s := range late {
		s.mu.Lock()
		s.lazy = false
		if !s.dead && (s.taken != s.acked || s.finTaken != s.finTold) {
			s.needAck = true
			s.enqueue()
		}
		s.unlock()
	}
	clear(late)
	t.lateMu.Lock()
	t.spare = late
	t.lateMu.Unlock()
	return 0
}

func (t *tunnel) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// resetAll ends every stream, telling nobody but the sinks.
func (t *tunnel) resetAll(reason wire.ResetReason) {
	t.streams.each(func(s *Stream) {
		s.mu.Lock()
		if !s.dead {
			s.resetIn, s.reason = true, reason
			s.end()
			s.drive()
		}
		s.unlock()
	})
}

// close ends the tunnel: its streams are reset and its carriers closed. With say the peer is told
// why; otherwise it sees the carriers end and waits for others.
func (t *tunnel) close(reason wire.ResetReason, say bool) {
	t.mu.Lock()
	was := t.closed
	t.closed = true
	t.unsent = nil
	t.mu.Unlock()
	if was {
		return
	}
	for _, c := range t.carriers() {
		if say {
			c.finish(func(b []byte) []byte { return wire.AppendGoAway(b, true, reason) })
		} else {
			c.close()
		}
	}
	t.resetAll(reason)
	t.closeKeys()
	t.wake()
}

// onGoAway takes the peer's word that it wants no more streams, or that all are over.
func (t *tunnel) onGoAway(final bool, reason wire.ResetReason) {
	if !final && reason == wire.ResetHandover && t.client {
		t.moveOnce.Do(func() { close(t.moved) })
		return
	}
	if !t.draining.Swap(true) {
		t.changed()
	}
	if final {
		t.close(reason, false)
	}
}

// peerSays takes what a PING or PONG says about the peer's side.
func (t *tunnel) peerSays(g *wire.Ping) { t.peerWant.Store(uint32(g.Want)) }
