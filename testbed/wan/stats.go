package wan

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Counters are what a stage has done since the Fabric was built. Segments of superpackets count as the
// packets they are on a wire; bytes are of IP packets.
type Counters struct {
	Packets    uint64 // passed on
	Bytes      uint64 // of those
	Lost       uint64 // by Loss
	QueueDrops uint64 // before a full bottleneck
	Blocked    uint64 // by Cut or Block (superpackets, not segments)
	TooBig     uint64 // above MTU
}

// counters is the live form: only the engine adds, anyone reads.
type counters struct {
	packets, bytes, lost, queueDrops, blocked, tooBig atomic.Uint64
}

func (c *counters) read() Counters {
	return Counters{
		Packets: c.packets.Load(), Bytes: c.bytes.Load(), Lost: c.lost.Load(),
		QueueDrops: c.queueDrops.Load(), Blocked: c.blocked.Load(), TooBig: c.tooBig.Load(),
	}
}

// LinkStats are the counters of a Link, or of the links inside a place (From and To are the place then).
type LinkStats struct {
	From, To string
	Counters
}

// StageStats are the counters of an Access (one direction) or a Shaper.
type StageStats struct {
	Name string // of the host, place or shaper
	What string // "up", "down" or "shaper"
	Counters
}

// Stats is what the engine has done since the Fabric was built.
type Stats struct {
	Links  []LinkStats
	Stages []StageStats

	Delivered   uint64 // packets and superpackets written to their destination
	NoRoute     uint64 // dropped: no route to the destination address, or no Link to its host
	Overflow    uint64 // dropped: more bytes in flight than memory for them
	Malformed   uint64 // dropped: not an IP packet, or one whose headers make no sense
	WriteErrors uint64 // dropped: the kernel refused it
	RingDrops   uint64 // dropped: a TUN's ring was full because the engine was too slow
	MemoryBytes uint64 // packet memory mapped, the most that was ever needed
	Realtime    bool   // the engine's thread runs as SCHED_FIFO

	// BacklogDrops were dropped between their host and the engine: this machine was too busy to receive them.
	BacklogDrops uint64

	CPU time.Duration // processor time of the engine's thread, with the kernel's work in its calls; 0 when ended

	Lateness Lateness
}

// Lateness is how far from their due times packets were delivered. Under load the engine wakes once a tick,
// so that they are up to half a tick early or late; more than that means that the machine was too busy, and
// that measured latencies contain as much.
type Lateness struct {
	Count   uint64
	Mean    time.Duration // early ones count negative
	Max     time.Duration
	buckets [latenessBuckets]uint64
}

// latenessBuckets: bucket 0 is early or up to 1 µs late, bucket i up to 2^i µs.
const latenessBuckets = 26

// Quantile returns a bound below which the share q (0 to 1) of packets was late; it is at most twice the
// truth.
func (l Lateness) Quantile(q float64) time.Duration {
	want := q * float64(l.Count)
	var sum uint64
	for i, n := range l.buckets {
		sum += n
		if float64(sum) >= want {
			return min(time.Microsecond<<i, max(l.Max, time.Microsecond))
		}
	}
	return l.Max
}

func (l Lateness) String() string {
	return fmt.Sprintf("n=%d mean=%v p50<%v p99<%v p99.9<%v max=%v", l.Count, l.Mean.Round(time.Microsecond),
		l.Quantile(0.5), l.Quantile(0.99), l.Quantile(0.999), l.Max.Round(time.Microsecond))
}

// totals are the engine's own counters.
type totals struct {
	delivered, noRoute, overflow, malformed, writeErrors, memory atomic.Uint64
	realtime                                                     atomic.Bool
	tid                                                          atomic.Int32 // 0: not running

	lateSum, lateMax atomic.Int64
	late             [latenessBuckets]atomic.Uint64
}

// delivery counts one packet that left late by d (negative: early).
func (t *totals) delivery(d int64) {
	t.delivered.Add(1)
	t.lateSum.Add(d)
	if d > t.lateMax.Load() {
		t.lateMax.Store(d)
	}
	bucket := 0
	if d > int64(time.Microsecond) {
		bucket = min(bits.Len64(uint64(d-1)/uint64(time.Microsecond)), latenessBuckets-1)
	}
	t.late[bucket].Add(1)
}

// cpu returns the processor time of the engine's thread.
func (t *totals) cpu() time.Duration {
	tid := t.tid.Load()
	if tid == 0 {
		return 0
	}
	// The kernel's encoding of the CPU clock of any thread of this process (clock_getcpuclockid).
	const perThread, schedClock = 4, 2
	var ts unix.Timespec
	if err := unix.ClockGettime(^tid<<3|perThread|schedClock, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (t *totals) lateness() Lateness {
	l := Lateness{Max: time.Duration(t.lateMax.Load())}
	for i := range t.late {
		l.buckets[i] = t.late[i].Load()
		l.Count += l.buckets[i]
	}
	if l.Count > 0 {
		l.Mean = time.Duration(t.lateSum.Load() / int64(l.Count))
	}
	return l
}

// stats fills in what the stages have counted. Stages that have not been used by any pair are in it as well.
func (b *stageBook) stats(s *Stats) {
	for i, key := range b.keys {
		c := b.counts[i].read()
		switch key.kind {
		case kindLink:
			s.Links = append(s.Links, LinkStats{From: key.from, To: key.to, Counters: c})
		case kindLocal:
			s.Links = append(s.Links, LinkStats{From: key.from, To: key.from, Counters: c})
		default:
			what := map[stageKind]string{kindUp: "up", kindDown: "down", kindShaper: "shaper"}[key.kind]
			s.Stages = append(s.Stages, StageStats{Name: key.from, What: what, Counters: c})
		}
	}
}
