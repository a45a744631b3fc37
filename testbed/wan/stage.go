package wan

import (
	"math/rand/v2"
	"time"
)

// stageConf are a stage's parameters in the engine's units. Immutable.
type stageConf struct {
	delay     int64 // ns
	jitter    int64 // ns
	loss      float64
	enterBad  float64 // Gilbert-Elliott: chance to enter a burst, per packet; 0: independent loss
	leaveBad  float64 // and to leave it
	nsPerByte float64 // 0: no bottleneck
	queue     float64 // bytes
	mtu       int
	quantum   int64
	counts    *counters
}

// newStageConf converts valid parameters.
func newStageConf(p Params, counts *counters) *stageConf {
	c := &stageConf{
		delay: int64(p.Delay), jitter: int64(p.Jitter), loss: p.Loss, mtu: p.MTU,
		quantum: int64(tick), counts: counts,
	}
	if p.Burst > 1 && p.Loss > 0 && p.Loss < 1 {
		// A bad state in which every packet is lost. Its mean length gives leaveBad; the share of packets in it,
		// enter/(enter+leave), must be Loss.
		c.leaveBad = 1 / p.Burst
		c.enterBad = p.Loss * c.leaveBad / (1 - p.Loss)
	}
	if p.Rate > 0 {
		c.nsPerByte = 8 * float64(time.Second) / float64(p.Rate)
		c.queue = float64(p.Queue)
		if p.Queue == 0 {
			c.queue = max(queueBytesMin, float64(p.Rate)/8*queueTimeDefault.Seconds())
		}
		if c.nsPerByte*mtu > float64(quantumSlow) {
			c.quantum = 0
		}
	}
	return c
}

// fate is what became of a packet at a stage.
type fate uint8

const (
	passed fate = iota
	fateLost
	fateQueueFull
	fateTooBig
)

// stage is what the engine remembers of a stage between packets.
type stage struct {
	conf *stageConf // what the state below was last used with
	free float64    // ns: when the bottleneck has sent all it has accepted (a virtual clock)
	bad  bool       // in a loss burst
	wave wave
	rng  *rand.PCG
}

func newStage(seed uint64, number int) stage {
	return stage{rng: rand.NewPCG(seed, uint64(number))}
}

// admit decides what happens to a packet of size bytes that arrives at time now (ns), and when it comes out.
// Arrivals at a stage with a bottleneck must be in order of time, or nearly.
func (s *stage) admit(c *stageConf, now int64, size int) (out int64, f fate) {
	if s.conf != c {
		s.adopt(c, now)
	}
	if c.mtu > 0 && size > c.mtu {
		return 0, fateTooBig
	}
	t := float64(now)
	if c.nsPerByte > 0 {
		s.free = max(s.free, t)
		backlog := (s.free - t) / c.nsPerByte
		if backlog+float64(size) > c.queue && backlog > 0 { // an empty queue takes any packet
			return 0, fateQueueFull
		}
		s.free += float64(size) * c.nsPerByte
		t = s.free
	}
	// Behind the bottleneck: a packet lost on the line has used its rate.
	if c.loss > 0 && s.lose(c) {
		return 0, fateLost
	}
	out = int64(t) + c.delay
	if c.jitter > 0 {
		out += s.wave.at(int64(t), c.jitter, s)
	}
	return out, passed
}

// adopt carries the state over to new parameters: the bytes in the queue stay, at the new rate.
func (s *stage) adopt(c *stageConf, now int64) {
	backlogTime := s.free - float64(now)
	switch {
	case s.conf == nil || backlogTime <= 0 || c.nsPerByte == 0 || s.conf.nsPerByte == 0:
		s.free = min(s.free, float64(now))
	default:
		s.free = float64(now) + backlogTime/s.conf.nsPerByte*c.nsPerByte
	}
	if c.enterBad == 0 {
		s.bad = false
	}
	s.conf = c
}

func (s *stage) lose(c *stageConf) bool {
	if c.enterBad == 0 {
		return s.random() < c.loss
	}
	if s.bad {
		s.bad = s.random() >= c.leaveBad
	} else {
		s.bad = s.random() < c.enterBad
	}
	return s.bad
}

// random returns a number in [0,1).
func (s *stage) random() float64 { return float64(s.rng.Uint64()>>11) / (1 << 53) }

// wave is jitter over time: straight lines between independent uniform values, which never falls faster than
// time passes. So packets keep their order, however close together they are.
type wave struct {
	start      int64 // ns: when the current line began; 0: never
	step       int64
	first, end float64
}

// at returns the extra delay at time t, between 0 and height.
func (w *wave) at(t, height int64, s *stage) int64 {
	step := max(int64(jitterStep), height)
	switch {
	case w.start == 0 || w.step != step || t >= w.start+2*step:
		*w = wave{start: t, step: step, first: s.random(), end: s.random()}
	case t >= w.start+step:
		*w = wave{start: w.start + step, step: step, first: w.end, end: s.random()}
	}
	at := max(0, float64(t-w.start)/float64(step))
	return int64((w.first + (w.end-w.first)*at) * float64(height))
}
