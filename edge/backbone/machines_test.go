package backbone

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// slowScheduler is what scheduler must do, without being clever.
type slowScheduler struct {
	queues [levels][]int
	passed [levels]int
}

func (q *slowScheduler) push(v, level int) { q.queues[level] = append(q.queues[level], v) }

func (q *slowScheduler) pop() (int, bool) {
	turn := -1
	for i := range levels { // the highest level that has waited too long, else the highest
		if len(q.queues[i]) > 0 && q.passed[i] >= passMax {
			turn = i
			break
		}
	}
	for i := 0; turn < 0 && i < levels; i++ {
		if len(q.queues[i]) > 0 {
			turn = i
		}
	}
	if turn < 0 {
		return 0, false
	}
	for i := range levels {
		switch {
		case i == turn || len(q.queues[i]) == 0:
			q.passed[i] = 0
		default:
			q.passed[i]++
		}
	}
	v := q.queues[turn][0]
	q.queues[turn] = q.queues[turn][1:]
	return v, true
}

func TestSchedulerAgreesWithTheSlowOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var fast scheduler[int]
	var slow slowScheduler
	for i := range 200_000 {
		if rng.IntN(100) < 50 {
			level := rng.IntN(levels)
			fast.push(i, level)
			slow.push(i, level)
			continue
		}
		a, aok := fast.pop()
		b, bok := slow.pop()
		if a != b || aok != bok {
			t.Fatalf("step %d: %d %v, want %d %v", i, a, aok, b, bok)
		}
	}
}

func TestSchedulerShares(t *testing.T) {
	var q scheduler[int]
	got := [levels]int{}
	for level := range levels {
		q.push(level, level)
	}
	for range 1000 {
		v, _ := q.pop()
		got[v]++
		q.push(v, v) // each level always has somebody waiting
	}
	if got[0] < 600 || got[1] < 150 || got[2] < 150 {
		t.Fatalf("turns %v: the first must have most, and the others a fifth each", got)
	}
}

// slowAssembly keeps every byte that came, by its offset.
type slowAssembly map[uint64]byte

// TestAssemblyAgreesWithTheSlowOne inserts overlapping pieces of a known text in any order.
func TestAssemblyAgreesWithTheSlowOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 60 {
		m := NewMemory(1 << 30)
		text := make([]byte, 200+rng.IntN(60_000))
		for i := range text {
			text[i] = byte(rng.Uint32())
		}
		var a assembly
		slow := slowAssembly{}
		next := uint64(0)
		for next < uint64(len(text)) {
			from := rng.IntN(len(text))
			to := min(len(text), from+rng.IntN(1+len(text)/3))
			if rng.IntN(4) == 0 {
				from, to = int(next), min(len(text), int(next)+rng.IntN(3000)) // what is missing
			}
			if uint64(from) < next {
				from = int(next) // as onData cuts it
			}
			if from < to {
				a.insert(m, uint64(from), text[from:to])
				for i := from; i < to; i++ {
					slow[uint64(i)] = text[i]
				}
			}
			for p := a.front(m, next); p != nil; p = a.front(m, next) {
				n := min(len(p), 1+rng.IntN(len(p))) // a sink that does not always take all
				if !bytes.Equal(p[:n], text[next:int(next)+n]) {
					t.Fatalf("round %d: wrong bytes at %d", round, next)
				}
				next += uint64(n)
			}
			if _, have := slow[next]; have {
				t.Fatalf("round %d: byte %d has come and is not offered", round, next)
			}
			checkAssembly(t, &a)
		}
		a.drop(m)
		if m.Used() != 0 || a.held != 0 {
			t.Fatalf("round %d: %d bytes are not given back, %d held", round, m.Used(), a.held)
		}
	}
}

func checkAssembly(t *testing.T, a *assembly) {
	t.Helper()
	held, last := 0, (*chunk)(nil)
	for c := a.head; c != nil; last, c = c, c.next {
		held += len(c.b)
		if last != nil && c.off < last.end() || c.w <= c.r {
			t.Fatalf("chunk of %d to %d behind one to %d", c.off, c.end(), last.end())
		}
	}
	if last != a.tail || held != a.held {
		t.Fatalf("tail or held (%d, have %d) is wrong", a.held, held)
	}
}

// TestSendBuffer drives a sendBuffer with random writes, sends, consumption, and rewinds, beside a
// plain slice.
func TestSendBuffer(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	m := NewMemory(1 << 30)
	for round := range 50 {
		b := sendBuffer{limit: 1 << 20}
		var all []byte
		var pinned []*chunk
		for range 2000 {
			switch rng.IntN(10) {
			case 0, 1, 2:
				p := make([]byte, rng.IntN(20_000)+1)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if b.end+uint64(len(p)) <= b.limit {
					b.append(m, p)
					all = append(all, p...)
				}
			case 3, 4, 5, 6:
				if b.sendable() == 0 {
					break
				}
				from := b.next
				c, lo, hi := b.take(1 + rng.IntN(wire.DataMax))
				if hi <= lo || !bytes.Equal(c.b[lo:hi], all[from:b.next]) {
					t.Fatalf("round %d: wrong bytes at %d", round, from)
				}
				if rng.IntN(3) == 0 {
					c.pins++
					pinned = append(pinned, c)
				}
			case 7, 8:
				to := b.base + uint64(rng.IntN(int(b.high-b.base)+1))
				if !b.consume(m, to) || b.base != to {
					t.Fatal("consumption of what was sent is refused")
				}
				b.limit = b.base + 1<<20
				if b.consume(m, b.high+1) {
					t.Fatal("consumption of what was not sent is taken")
				}
			case 9:
				if rng.IntN(5) == 0 {
					b.rewind()
				}
				for _, c := range pinned {
					m.unpin(c)
				}
				pinned = nil
			}
		}
		b.drop(m)
		for _, c := range pinned {
			m.unpin(c)
		}
		if m.Used() != 0 || b.held != 0 {
			t.Fatalf("round %d: %d bytes are not given back", round, m.Used())
		}
	}
}

func TestWindowGrowsOnlyWhenItIsTheLimit(t *testing.T) {
	const most, rtt = 16 << 20, 100 * time.Millisecond
	for _, c := range []struct {
		rate int // bytes a second that the sink takes
		want uint32
	}{
		{1 << 20, 4 << 20},     // 4 MiB a round trip would be 40 times that
		{20 << 20, 8 << 20},    // half of 4 MiB in less than two round trips, but not half of 16
		{1000 << 20, 16 << 20}, // as far as it may
	} {
		w := window{size: 4 << 20}
		now := time.Second
		for range 5000 {
			now += time.Duration(float64(16<<10) / float64(c.rate) * float64(time.Second))
			w.consumed(16<<10, most, rtt, func() time.Duration { return now })
		}
		if w.size != c.want {
			t.Errorf("%d bytes a second: window %d, want %d", c.rate, w.size, c.want)
		}
	}
}

func TestSizer(t *testing.T) {
	type step struct {
		at   time.Duration
		in   sizing
		want int
	}
	for name, steps := range map[string][]step{
		"idle": {{0, sizing{up: 2}, 2}, {time.Hour, sizing{up: 2}, 2}},
		"loss": {
			{0, sizing{up: 2, loss: 0.002}, 8}, {time.Second, sizing{up: 8, loss: 0.006}, 16},
			{2 * time.Second, sizing{up: 16}, 16}, {61 * time.Second, sizing{up: 16}, 16},
			{63 * time.Second, sizing{up: 16}, 2}},
		"load": {
			{time.Second, sizing{up: 2, busy: 2}, 2 + 0},
			{time.Second + 100*time.Millisecond, sizing{up: 2, busy: 2}, 2},
			{time.Second + 300*time.Millisecond, sizing{up: 2, busy: 2}, 3},
			{time.Second + 400*time.Millisecond, sizing{up: 3, busy: 2}, 3},
			{2 * time.Second, sizing{up: 3, busy: 3}, 3}, {3 * time.Second, sizing{up: 3, busy: 3}, 4},
			{9 * time.Second, sizing{up: 8, busy: 8}, 8}, {10 * time.Second, sizing{up: 8, busy: 8}, 8}},
		"peer": {{0, sizing{up: 2, peerWant: 12}, 12}, {0, sizing{up: 12, peerWant: 99}, 16}},
	} {
		z := sizer{least: 2, most: 16}
		for i, s := range steps {
			s.in.now = s.at + time.Second
			if got := z.decide(s.in); got != s.want {
				t.Errorf("%s, step %d: %d, want %d", name, i, got, s.want)
			}
		}
	}
}

func TestTombstones(t *testing.T) {
	var g tombstones
	if g.has(1) {
		t.Fatal("the empty one has something")
	}
	for i := range uint64(1000) {
		g.add(3*i, time.Duration(i)*time.Millisecond)
	}
	for i := range uint64(3000) {
		if g.has(i) != (i%3 == 0) {
			t.Fatal(i)
		}
	}
	g.add(1, time.Second+tombstonesEvery)
	if !g.has(3) || !g.has(1) {
		t.Fatal("forgotten too early")
	}
	g.add(4, time.Second+3*tombstonesEvery)
	if g.has(3) || !g.has(1) || !g.has(4) {
		t.Fatal("not forgotten, or too much")
	}
}

func TestDecayed(t *testing.T) {
	for _, c := range []struct {
		in    uint32
		pause time.Duration
		want  uint32
	}{
		{1000, 0, 1000}, {1000, 127 * time.Millisecond, 1000}, {1000, 128 * time.Millisecond, 500},
		{1 << 31, time.Second, 1 << 24}, {1 << 31, time.Hour, 0}, {1000, -time.Second, 1000},
	} {
		if got := decayed(c.in, c.pause); got != c.want {
			t.Errorf("%d after %v: %d, want %d", c.in, c.pause, got, c.want)
		}
	}
}

func TestRing(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var r ring[int]
	var slow []int
	for i := range 10_000 {
		if rng.IntN(5) < 3 {
			r.push(i)
			slow = append(slow, i)
		} else if len(slow) > 0 {
			if f, v := r.front(), r.pop(); f != slow[0] || v != slow[0] {
				t.Fatal(f, v, slow[0])
			}
			slow = slow[1:]
		}
		if r.n != len(slow) {
			t.Fatal(r.n, len(slow))
		}
	}
}

// TestMemoryShares: one stream alone may hold an eighth of three quarters; many end up with equal
// shares, and leave the last quarter alone.
func TestMemoryShares(t *testing.T) {
	m := NewMemory(80 << 20)
	if m.share() != 60<<20/8 {
		t.Fatal(m.share())
	}
	held := make([]int, 100)
	var chunks []*chunk
	for range 2000 { // all want more, one chunk at a time
		for i := range held {
			if m.share()-held[i] >= 16<<10 {
				c := m.get(wire.DataMax)
				held[i] += len(c.b)
				chunks = append(chunks, c)
			}
		}
	}
	least, most := slices.Min(held), slices.Max(held)
	if m.Used() > m.Max()/4*3 || most-least > 32<<10 || least < 512<<10 {
		t.Fatalf("used %d of %d; shares from %d to %d", m.Used(), m.Max(), least, most)
	}
	for _, c := range chunks {
		m.release(c)
	}
	if m.Used() != 0 {
		t.Fatal(m.Used())
	}
}

// TestHotPathAllocatesNothing: a stream that is written, sent, received and acknowledged, without
// sockets.
func TestHotPathAllocatesNothing(t *testing.T) {
	e := newEnv(Common{LeaveHost: true}, "test", true)
	tun := newTunnel(e, "peer", wire.TunnelID{1})
	tun.peerWindow.Store(4 << 20)
	c := newCarrier(tun, nil, nil, 1)
	if !tun.join(c) {
		t.Fatal("no room")
	}
	s, err := tun.dial(&wire.Open{}, &deafSink{take: true})
	if err != nil {
		t.Fatal(err)
	}
	s.onResult(wire.OpenResult{})
	b := batch{c: c}
	p := make([]byte, wire.DataMax)
	in := uint64(0)
	step := func() {
		if _, err := s.Write(p); err != nil {
			t.Fatal(err)
		}
		b.take()
		for {
			next, ok := c.streams.pop()
			if !ok {
				break
			}
			next.emit(c, &b, e.now())
		}
		for i := range b.runs {
			if r := b.runs[i]; r.k != nil {
				r.s.unpin(r.k)
			}
			b.runs[i] = run{}
		}
		b.runs, b.buf, b.size = b.runs[:0], b.buf[:0], 0
		a := wire.Ack{Stream: s.id, Consumed: s.out.next, Limit: s.out.next + 4<<20}
		s.onAck(&a)
		s.onData(in, p, false)
		in += uint64(len(p))
		tun.flushLate(e.now() + time.Second)
	}
	for range 100 {
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n > 0 {
		t.Fatalf("%v allocations a frame", n)
	}
	if s.out.held+s.in.held != 0 {
		t.Fatal("an idle stream holds memory")
	}
}

// TestCarriersCloseTogether: carriers have closed, and the readers of all but one have not ended yet, so
// that they are still in the list. The streams of that one are parked, instead of being offered to the
// others in turn for ever while their readers wait for the same streams; the next carrier takes them.
func TestCarriersCloseTogether(t *testing.T) {
	tun := newTunnel(newEnv(Common{LeaveHost: true}, "test", true), "peer", wire.TunnelID{1})
	join := func(number uint32) *carrier {
		c := newCarrier(tun, nil, noConn{}, number)
		if !tun.join(c) {
			t.Fatal("no room")
		}
		return c
	}
	carriers := []*carrier{join(1), join(2), join(3)}
	s, err := tun.dial(&wire.Open{}, &deafSink{take: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range carriers {
		c.close()
	}
	lost := make(chan struct{})
	go func() {
		tun.lost(s.car)
		close(lost)
	}()
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		panic("a stream is offered to closed carriers for ever") // it spins with its lock held
	}
	next := join(4)
	if got, ok := next.streams.pop(); !ok || got != s {
		t.Fatal("the next carrier did not get the stream")
	}
}
