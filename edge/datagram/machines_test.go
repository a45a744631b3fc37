package datagram

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// race runs two probers against each other in steps of 10 ms over a path with the given one-way
// delay and loss, and calls each at every step.
type race struct {
	edge, gateway prober
	delay         time.Duration
	loss          float64
	rng           *rand.Rand
	now           time.Duration
	flying        []flying
	numbers       [2]uint64 // of the next packet of each
	windows       [2]window
	downs         int
}

type flying struct {
	due        time.Duration
	to         int // 0 the edge, 1 the gateway
	kind       wire.PacketFrameType
	probe      wire.PacketProbe
	number     uint64
	background bool
}

func newRace(delay time.Duration, loss float64) *race {
	return &race{
		edge:    newProber(time.Second, true, payloadCeiling, time.Second),
		gateway: newProber(time.Second, false, payloadCeiling, time.Second),
		delay:   delay, loss: loss, now: time.Second, rng: rand.New(rand.NewPCG(7, 8)),
	}
}

func (r *race) send(to int, f flying) {
	f.to, f.due, f.number = to, r.now+r.delay, r.numbers[to]
	r.numbers[to]++
	if r.rng.Float64() >= r.loss {
		r.flying = append(r.flying, f)
	}
}

func (r *race) step() {
	r.now += 10 * time.Millisecond
	was := r.edge.up
	machines := [2]*prober{&r.edge, &r.gateway}
	for i, p := range machines {
		q, n := p.tick(r.now)
		for _, q := range q[:n] {
			r.send(1-i, flying{kind: wire.PacketPing, probe: q.probe})
		}
	}
	rest := r.flying[:0]
	arrived := []flying{}
	for _, f := range r.flying {
		if f.due > r.now {
			rest = append(rest, f)
		} else {
			arrived = append(arrived, f)
		}
	}
	r.flying = rest
	for _, f := range arrived {
		p := machines[f.to]
		if ahead, ok := r.windows[f.to].accept(f.number); ok {
			p.seen(ahead)
		}
		switch {
		case f.background:
		case f.kind == wire.PacketPing:
			r.send(1-f.to, flying{kind: wire.PacketPong, probe: p.onPing(&f.probe, r.now)})
		default:
			p.onPong(&f.probe, r.now)
		}
	}
	if was && !r.edge.up {
		r.downs++
	}
}

func (r *race) run(d time.Duration) {
	for end := r.now + d; r.now < end; {
		r.step()
	}
}

func TestProberMeasures(t *testing.T) {
	for _, tc := range []struct {
		delay time.Duration
		loss  float64
	}{{0, 0}, {10 * time.Millisecond, 0.01}, {50 * time.Millisecond, 0.05}, {150 * time.Millisecond, 0.2},
		{300 * time.Millisecond, 0}} {
		r := newRace(tc.delay, tc.loss)
		r.run(5 * time.Second)
		for range 60 * 100 { // a minute with 100 packets a second each way
			r.send(0, flying{background: true})
			r.send(1, flying{background: true})
			r.step()
		}
		for name, p := range map[string]*prober{"edge": &r.edge, "gateway": &r.gateway} {
			if !p.up {
				t.Errorf("%v, loss %.2f: %s is down", tc.delay, tc.loss, name)
			}
			if off := p.rtt - 2*tc.delay; off < 0 || off > 21*time.Millisecond { // steps of 10 ms
				t.Errorf("%v, loss %.2f: %s measured %v", tc.delay, tc.loss, name, p.rtt)
			}
			if off := float64(p.loss.share) - tc.loss; off < -0.08 || off > 0.08 {
				t.Errorf("%v, loss %.2f: %s measured loss %.3f", tc.delay, tc.loss, name, p.loss.share)
			}
		}
	}
}

// Loss alone does not take a lane down: a tenth each way, for six hours.
func TestProberStaysUpUnderLoss(t *testing.T) {
	r := newRace(50*time.Millisecond, 0.1)
	r.run(6 * time.Hour)
	if r.downs > 0 {
		t.Errorf("down %d times in six hours at 10 %% loss", r.downs)
	}
}

// A process that was stopped does not take its own silence for the peer's.
func TestProberAfterAPause(t *testing.T) {
	r := newRace(50*time.Millisecond, 0)
	r.run(10 * time.Second)
	r.now += time.Minute
	r.step()
	if !r.edge.up || !r.gateway.up {
		t.Error("down at once after a pause")
	}
	r.loss = 1
	r.flying = nil
	r.run(6 * time.Second)
	if r.edge.up || r.gateway.up {
		t.Error("up with a dead path after a pause")
	}
}

// Echoes that nobody sent prove nothing.
func TestProberIgnoresImpossibleEchoes(t *testing.T) {
	p := newProber(time.Second, true, payloadCeiling, time.Second)
	p.tick(time.Second)
	for _, b := range []wire.PacketProbe{
		{Stamp: 1}, {Stamp: 2, Echo: 1 << 62}, {Stamp: 3, Echo: p.stamp + 1},
		{Stamp: 4, Echo: p.stamp, Delay: 1 << 31},
	} {
		if p.onPong(&b, 1100*time.Millisecond); p.up || p.rtt != 0 {
			t.Fatalf("%+v took it up", b)
		}
	}
}

// Whatever the path carries is found, with loss and without.
func TestSearchFindsThePath(t *testing.T) {
	for _, loss := range []float64{0, 0.05} {
		rng := rand.New(rand.NewPCG(1, 1))
		missed := 0
		for path := payloadBase; path <= payloadCeiling+100; path += 4 {
			s := newSearch(payloadCeiling)
			best := 0
			for _, size := range s.sizes {
				if size <= path {
					best = size
				}
			}
			asked := 0
			for now, stamp := time.Duration(0), uint64(1); now < time.Minute; now += 50 * time.Millisecond {
				if size := s.tick(now); size != 0 {
					asked++
					stamp++
					s.asked(stamp, now+300*time.Millisecond)
					if size <= path && rng.Float64() >= loss {
						s.answered(stamp, now+20*time.Millisecond)
					}
				}
				s.answered(999999, now) // not to any question
			}
			if s.payload() > path || loss == 0 && s.payload() != best {
				t.Errorf("path of %d: found %d, want %d", path, s.payload(), best)
			}
			if s.payload() != best {
				missed++
			}
			if asked > 45 {
				t.Errorf("path of %d: asked %d times in a minute", path, asked)
			}
		}
		if missed > 2 {
			t.Errorf("loss %.2f: %d sizes missed", loss, missed)
		}
	}
}

// The oracle remembers every piece of every message that still has a slot.
func TestAssemblyAgreesWithTheSlowOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 3))
	pool := newBlocks(1 << 30)
	var a assembly
	type whole struct {
		message []byte
		chunk   int
		left    map[int]bool
		gone    bool
	}
	var sent []*whole
	done := map[int]bool{}
	var f wire.PacketFrame
	for step := range 60000 {
		if len(sent) == 0 || rng.IntN(40) == 0 {
			w := &whole{message: make([]byte, 1100+rng.IntN(20000)), left: map[int]bool{}}
			for i := range w.message {
				w.message[i] = byte(len(sent) + i*3)
			}
			var pieces int
			w.chunk, pieces = chunkOf(len(w.message), 600+rng.IntN(480))
			if w.chunk < wire.FragmentChunkMin {
				continue
			}
			for i := range pieces {
				w.left[i] = true
			}
			sent = append(sent, w)
			if old := len(sent) - 1 - assemblySlots; old >= 0 {
				sent[old].gone = true // once the new one's first piece comes; see below
			}
		}
		// A piece of one of the latest messages; sometimes one too old, sometimes one twice.
		at := len(sent) - 1 - rng.IntN(min(len(sent), assemblySlots+3))
		w := sent[at]
		index := rng.IntN((len(w.message) + w.chunk - 1) / w.chunk)
		b := wire.AppendPacketFragment(nil, uint32(at), w.message, w.chunk, index)
		if _, err := f.Decode(b); err != nil {
			t.Fatal(err)
		}
		got, size, _ := a.add(pool, &f, time.Duration(step))
		if got != nil {
			if !bytes.Equal(got.bytes[:size], w.message) {
				t.Fatalf("message %d is not what was sent", at)
			}
			done[at] = true
			pool.put(got)
		}
		if !w.gone {
			delete(w.left, index)
			if len(w.left) == 0 && !done[at] {
				t.Fatalf("message %d is complete, but was not handed over", at)
			}
		}
	}
	if len(done) < len(sent)/3 || len(done) == 0 {
		t.Errorf("%d of %d messages were completed", len(done), len(sent))
	}
	a.clear(pool)
	if n := pool.used.Load(); n != 0 {
		t.Errorf("%d bytes are not given back", n)
	}
}

func TestAssemblyBounds(t *testing.T) {
	pool := newBlocks(10 * int64(blockSizes[0]))
	var a assembly
	piece := func(id uint32, total, chunk, index int) wire.PacketFrame {
		return wire.PacketFrame{ID: id, Total: total, Chunk: chunk, Index: index, Message: make([]byte, 600)}
	}
	for id := range uint32(20) {
		f := piece(id, 1200, 600, 0)
		_, _, dropped := a.add(pool, &f, 0)
		if want := map[bool]int{false: 0, true: 1}[id >= 10]; dropped != want {
			t.Errorf("message %d: %d dropped, want %d", id, dropped, want)
		}
	}
	if n := pool.used.Load(); n > pool.max {
		t.Errorf("%d bytes in use, more than %d", n, pool.max)
	}
	f := piece(3, 1300, 650, 1) // not the message that 3 was
	if m, _, dropped := a.add(pool, &f, 0); m != nil || dropped != 1 {
		t.Errorf("a piece of another message completed one: %v, %d dropped", m != nil, dropped)
	}
	if n := a.expire(pool, assemblyTime-1); n != 0 {
		t.Errorf("%d messages expired early", n)
	}
	if n := a.expire(pool, assemblyTime); n != 9 {
		t.Errorf("%d messages expired, want 9", n)
	}
	if n := pool.used.Load(); n != 0 || a.open != 0 {
		t.Errorf("%d bytes in use by %d messages after all are gone", n, a.open)
	}
}

func TestChunks(t *testing.T) {
	for room := payloadBase - overhead; room <= payloadCeiling-overhead; room += 97 {
		for total := room - wire.PacketDataBytes + 1; total <= wire.DatagramMessageMax; total += 531 {
			chunk, pieces := chunkOf(total, room)
			if chunk < wire.FragmentChunkMin || chunk+wire.PacketFragmentBytes > room || chunk >= total ||
				(total+chunk-1)/chunk != pieces {
				t.Fatalf("%d bytes in packets of %d: %d pieces of %d", total, room, pieces, chunk)
			}
		}
	}
}
