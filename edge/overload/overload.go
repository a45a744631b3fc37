// Package overload answers: is this node asked for more than it can do, and whom does it turn away then?
//
//	Enter (a flow is accepted) ─▶ waits for its turn ─▶ Begin (its own goroutine runs)
//
// A node that has too little processor time accepts flows faster than it begins them, and all of them wait
// longer and longer, until clients give up and what was done for them was for nothing. How long flows wait
// between the two moments is what tells: a burst makes some wait, but only overload makes all of them wait,
// also the one that waited least (the insight of CoDel, RFC 8289). Where a flow waits is not always where it
// begins: a new goroutine runs before most others, and the queue is in front of what it does next. So who does
// something first that others take part in says how long those took, and the rest was waiting. From then on no more flows may wait than
// begin within a moment, and the others are turned away at once, which costs next to nothing.
package overload

import (
	"sync"
	"sync/atomic"
	"time"
)

// A Gate stands where flows are accepted. The zero value is ready. It is safe for concurrent use, and its
// figures say nothing about flows that have begun.
type Gate struct {
	// OnChange, if not nil, is told when overload begins, whenever the bound changes meanwhile, and with 0
	// when overload is over. It must not block. Set it before use.
	OnChange func(bound int)

	waiting atomic.Int64 // entered and not begun
	bound   atomic.Int64 // of waiting, while there is overload; 0: there is none
	shed    atomic.Int64 // turned away in this interval

	mu sync.Mutex
	m  machine
}

// Enter counts a flow in, or reports false for one that must be turned away. It is told apart by nothing:
// those that wait already are older.
func (g *Gate) Enter() bool {
	n := g.waiting.Add(1)
	if bound := g.bound.Load(); bound > 0 && n > bound {
		g.waiting.Add(-1)
		g.shed.Add(1)
		return false
	}
	return true
}

// Begin is BeginAfter for a flow that nobody else kept.
func (g *Gate) Begin(entered, now time.Time) bool { return g.BeginAfter(entered, now, 0) }

// BeginAfter says that a flow which entered at a moment (of time.Now's clock) has got its turn at another, and
// how much of the time between was not this node's: an endpoint's, to answer. It
// reports false for one that has waited for so long, in overload, that it must be turned away after all:
// what came before overload was noticed would delay all that come later.
func (g *Gate) BeginAfter(entered, now time.Time, elsewhere time.Duration) bool {
	wait := now.Sub(entered) - elsewhere
	g.waiting.Add(-1)
	g.mu.Lock()
	over := g.m.see(now, wait, elsewhere)
	if over {
		was := g.bound.Load()
		bound := g.m.decide(now, g.shed.Swap(0))
		g.bound.Store(int64(bound))
		if int(was) != bound && g.OnChange != nil {
			defer g.OnChange(bound)
		}
	}
	old := g.m.overloaded && entered.Before(g.m.noticed)
	g.mu.Unlock()
	if old && wait > late {
		g.shed.Add(1)
		return false
	}
	return true
}

// Leave counts a flow out that will not begin.
func (g *Gate) Leave() { g.waiting.Add(-1) }

// Overloaded reports whether flows are being turned away.
func (g *Gate) Overloaded() bool { return g.bound.Load() > 0 }

// Waiting returns how many flows wait for their turn.
func (g *Gate) Waiting() int { return int(g.waiting.Load()) }

// machine decides from waits, without a clock of its own.
type machine struct {
	begun time.Time     // of the interval
	least time.Duration // wait in it
	count int           // of flows that began in it
	away  time.Duration // sum of what they were kept by others

	overloaded bool
	noticed    time.Time // when it became so
	calm       int       // intervals without a reason to be overloaded, in a row
	silent     bool      // before this interval nearly nobody came
}

// see takes note of a flow's wait, and reports whether the interval is over.
func (m *machine) see(now time.Time, wait, elsewhere time.Duration) bool {
	if m.begun.IsZero() || now.Sub(m.begun) > intervalMax {
		m.begun, m.count, m.away, m.silent = now, 0, 0, true // too few came to tell anything
	}
	if m.count == 0 || wait < m.least {
		m.least = wait
	}
	m.count++
	m.away += elsewhere
	return now.Sub(m.begun) >= interval && (m.count >= flowsMin || m.overloaded)
}

// decide ends an interval in which so many were turned away, and returns how many may wait in the next
// one; 0 is any number.
func (m *machine) decide(now time.Time, shed int64) (bound int) {
	lasted := now.Sub(m.begun)
	rate := float64(m.count) / lasted.Seconds()
	takes := queueTime
	if m.count > 0 {
		takes += min(m.away/time.Duration(m.count), awayMax)
	}
	switch {
	case m.least > target:
		if m.calm = 0; !m.overloaded {
			m.overloaded, m.noticed = true, now
		}
	case m.silent:
		m.calm = calmIntervals
	case shed > 0:
		m.calm = 0
	default:
		m.calm++
	}
	if m.calm >= calmIntervals {
		m.overloaded = false
	}
	m.begun, m.count, m.away, m.silent = now, 0, 0, false
	if !m.overloaded {
		return 0
	}
	return max(boundMin, int(rate*takes.Seconds()))
}
