package backbone

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// health is what is known about how a carrier fares.
type health struct {
	mu     sync.Mutex
	seq    uint64           // edge: of the last PING
	sentAt [8]time.Duration // edge: when the last PINGs were sent, by seq modulo 8
	seen   uint64           // edge: of the last PONG
	srtt   time.Duration    // edge: smoothed, of PINGs; they wait behind what is being sent
	tcp    tcpSample        // as the kernel sees it

	// The watcher's own.
	nextPing   time.Duration
	from       time.Duration // silence does not count before
	evacuated  bool          // since it has stalled
	paced      bool
	warmed     bool
	warmAgain  time.Duration // not before
	warmTries  int
	queueUntil time.Duration // the path's queue was full before
	peak       int           // the largest congestion window since the last loss, bytes
	bbr        bool
	leaveUntil time.Duration // edge: when a carrier that said LEAVE is closed at the latest
}

func (h *health) begin(now time.Duration) { h.from, h.nextPing = now, now }

// ping counts a PING that is sent now.
func (h *health) ping(now time.Duration) (seq, seen uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	h.sentAt[h.seq%uint64(len(h.sentAt))] = now
	return h.seq, h.seen
}

// pong takes the answer to a PING.
func (h *health) pong(seq uint64, now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if seq > h.seq || seq <= h.seen {
		return
	}
	h.seen = seq
	if h.seq-seq >= uint64(len(h.sentAt)) {
		return // so late that its time is forgotten
	}
	rtt := now - h.sentAt[seq%uint64(len(h.sentAt))]
	if h.srtt == 0 {
		h.srtt = rtt
	}
	h.srtt += (rtt - h.srtt) / 8
}

// rtt returns the smoothed and the least round trip time; 0: not known.
func (h *health) rtt() (smoothed, least time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	smoothed, least = h.srtt, h.srtt
	if h.tcp.ok && h.tcp.rtt > 0 && (smoothed == 0 || h.tcp.rtt < smoothed) {
		smoothed = h.tcp.rtt // the kernel's does not wait behind our own bytes
	}
	if h.tcp.ok && h.tcp.minRTT > 0 {
		least = h.tcp.minRTT
	}
	return smoothed, least
}

// A watcher looks after a tunnel's carriers. One goroutine owns it.
type watcher struct {
	nextLook time.Duration
	lastLook time.Duration
	every    time.Duration // between looks
	sizer    sizer
	want     int     // carriers to have
	loss     float32 // share of segments repeated, smoothed
	segments uint64  // since loss was last updated
	repeated uint64
	warming  *carrier      // the one that is sent padding on
	cleanAt  time.Duration // since when there is no loss
	bbr      bool          // the carriers should use it
}

// run watches the tunnel until it is closed or ctx ends. each is called after every look, and says
// when it wants to be called again at the latest.
func (t *tunnel) run(ctx context.Context, each func(now time.Duration) (next time.Duration)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !t.isClosed() {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-t.poke:
		}
		now := t.env.now()
		next := t.watch(now)
		if each != nil {
			next = min(next, each(now))
		}
		timer.Reset(next - now)
	}
}

// watch does what is due, and returns when it must be called again.
func (t *tunnel) watch(now time.Duration) (next time.Duration) {
	w := &t.watcher
	late := t.flushLate(now)
	if now >= w.nextLook {
		t.look(now)
	}
	next = w.nextLook
	if late > 0 {
		next = min(next, late)
	}
	t.mu.Lock()
	down := t.downSince
	t.mu.Unlock()
	if len(t.carriers()) == 0 {
		if now-down >= t.env.PathWait {
			t.env.log.Info("tunnel closed: no carrier for too long", "peer", t.peer)
			t.close(wire.ResetPathLost, false)
		}
		next = min(next, down+t.env.PathWait)
	}
	return next
}

// look looks at every carrier.
func (t *tunnel) look(now time.Duration) {
	w := &t.watcher
	asleep := w.lastLook > 0 && now-w.lastLook > 2*w.every+100*time.Millisecond
	w.lastLook = now
	busy, loaded, best := 0, false, time.Duration(0)
	for _, c := range t.carriers() {
		if asleep {
			c.health.from = now // we were not scheduled, so the silence may be our own
		}
		t.lookSilence(c, now)
		t.lookTCP(c, now)
		t.lookPing(c, now)
		load := c.load.Load()
		loaded = loaded || load > 0
		if load >= max(carrierBusy, c.room.Load()+carrierBusy/2) { // more than may be under way
			busy++
		}
		if rtt, _ := c.health.rtt(); rtt > 0 && c.rank() < 2 && (best == 0 || rtt < best) {
			best = rtt
		}
	}
	if best > 0 {
		t.rttNow.Store(int64(best))
	}
	t.judgeLoss(now)
	t.renewKeys()
	w.want = w.sizer.decide(sizing{
		now: now, up: t.up(), busy: busy, loss: w.loss, peerWant: int(t.peerWant.Load()),
	})
	if w.every = t.env.PingInterval; loaded {
		w.every = min(tickBusy, w.every)
	}
	w.nextLook = now + w.every
}

// lookSilence judges how long nothing has come. An edge asks each carrier every PingInterval, so
// that neither side should ever be without news for long.
func (t *tunnel) lookSilence(c *carrier, now time.Duration) {
	quiet := now - max(time.Duration(c.lastRead.Load()), c.health.from)
	if quiet > t.env.DeadAfter || c.health.leaveUntil > 0 && now > c.health.leaveUntil {
		if c.health.leaveUntil == 0 {
			t.env.log.Warn("carrier closed", "peer", t.peer, "carrier", c.number, "reason", errSilent)
		}
		c.close()
		return
	}
	allowed := pingsMissed*t.env.PingInterval + min(t.rtt(), t.env.DeadAfter/4)
	if !t.client {
		allowed += t.env.PingInterval // the questions themselves come so often
	}
	if stalled := quiet > allowed; stalled != c.stalled.Load() {
		c.stalled.Store(stalled)
		c.health.evacuated = false
		t.env.log.Debug("carrier stalled", "peer", t.peer, "carrier", c.number, "stalled", stalled)
		t.changed()
	}
	if c.stalled.Load() && !c.health.evacuated {
		c.health.evacuated = t.evacuate(c)
	}
}

// lookTCP asks the kernel about the connection.
func (t *tunnel) lookTCP(c *carrier, now time.Duration) {
	w, h := &t.watcher, &c.health
	s := sampleTCP(c.raw)
	h.mu.Lock()
	last := h.tcp
	h.tcp = s
	h.mu.Unlock()
	if !s.ok {
		c.sweepShort()
		return
	}
	c.room.Store(int64(s.cwndBytes))
	// Losses with a full queue on the path are our own doing: more carriers would make them worse.
	if s.rtt-s.minRTT > s.minRTT/4+longRTT {
		h.queueUntil = now + 4*s.rtt + ownLoss
	}
	if now > h.queueUntil {
		w.segments += uint64(s.segments - last.segments)
		w.repeated += uint64(s.repeated - last.repeated)
	}
	recovering := s.caState >= tcpRecovery || s.backoff > 0
	c.recovering.Store(recovering)
	if recovering {
		t.reinject(c)
		h.peak = 0 // what the path carries is less than what we had
	} else {
		c.sweepShort()
	}
	h.peak = max(h.peak, s.cwndBytes)
	if w.bbr != h.bbr && t.env.CongestionControl == "" {
		h.bbr = w.bbr
		chooseCongestionControl(c.raw, w.bbr)
		h.warmed, h.warmTries, h.warmAgain = false, 0, 0 // it knows the path anew
	}
	if s.rtt >= longRTT {
		t.prepare(c, &s, now)
	}
}

// prepare makes a carrier of a long path ready for large bursts: it is paced, and warmed with
// padding while the tunnel has nothing better to do.
func (t *tunnel) prepare(c *carrier, s *tcpSample, now time.Duration) {
	w, h := &t.watcher, &c.health
	if !h.paced {
		h.paced = true
		paceSocket(c.raw)
	}
	if t.env.Warm <= 0 {
		return
	}
	if w.warming == c {
		switch {
		case c.warmth() <= 0 && s.unacked <= warmRest || now > h.warmAgain:
			w.warming = nil
		case s.caState >= tcpRecovery && !h.bbr:
			c.warm(0) // the window is as large as this path lets it be now; perhaps later
			h.warmed, w.warming = false, nil
		}
		return
	}
	busy := w.warming != nil && slices.Contains(t.carriers(), w.warming) || t.load() > 0
	faded := s.cwndBytes < h.peak/2 && w.loss < lossSome // as windows of idle carriers do
	if busy || h.warmed && !faded || h.warmTries >= warmTriesMax || now < h.warmAgain {
		return // padding must not stand in the way of anything
	}
	h.warmed, h.warmAgain = true, now+warmFor
	h.warmTries++
	w.warming = c
	c.warm(t.env.Warm)
}

// load returns the bytes of all streams that the peer has not consumed.
func (t *tunnel) load() (n int64) {
	for _, c := range t.carriers() {
		n += c.load.Load()
	}
	return n
}

// warmth returns how much padding is left to send.
func (c *carrier) warmth() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.warmLeft
}

// warm sends n bytes of padding when there is nothing else to send.
func (c *carrier) warm(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.warmLeft = n
	if n > 0 && c.wakes() {
		c.cond.Signal()
	}
}

// lookPing sends a PING when it is due.
func (t *tunnel) lookPing(c *carrier, now time.Duration) {
	if !t.client || now < c.health.nextPing {
		return
	}
	c.health.nextPing = now + t.env.PingInterval
	g := t.pingFrame(c)
	g.Seq, g.Seen = c.health.ping(now)
	c.mu.Lock()
	c.fence = g.Seq + 1
	c.mu.Unlock()
	c.send(g.AppendPing)
}

// pingFrame returns what both sides' PINGs and PONGs say.
func (t *tunnel) pingFrame(*carrier) wire.Ping {
	said := t.says.Load()
	return wire.Ping{Loss: uint32(said >> 8), Want: uint8(said)}
}

// judgeLoss updates the estimate of loss, and what follows from it.
func (t *tunnel) judgeLoss(now time.Duration) {
	w := &t.watcher
	if w.segments >= lossSegments/10 {
		x := float32(min(w.repeated, w.segments)) / float32(w.segments)
		w.loss += (x - w.loss) * min(1, float32(w.segments)/lossSegments)
		w.segments, w.repeated = 0, 0
	}
	if w.loss >= lossNone {
		w.cleanAt = now
	}
	switch {
	case w.loss >= lossSome:
		w.bbr = true
	case now-w.cleanAt > shrinkAfter:
		w.bbr = false
	}
	t.says.Store(uint64(w.loss*1e6)<<8 | uint64(min(w.want, 255)))
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
