package health

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/proto/model"
)

// oracle says the same as Board in another way: it keeps everything that was ever said and works each
// verdict out from the beginning of time at every tick.
type oracle struct {
	group  model.EndpointGroup
	share  int
	said   []saying
	ticks  []time.Time
	result map[Key]model.HealthState
}

type saying struct {
	at     time.Time
	prober string
	states map[model.EndpointID]model.HealthState // nil: it was forgotten
}

// opinion is what the probers hold of an endpoint after the first n sayings, at time now.
func (o *oracle) opinion(e model.EndpointID, n int, now time.Time) model.HealthState {
	last := map[string]saying{}
	for _, s := range o.said[:n] {
		last[s.prober] = s
	}
	count := map[model.HealthState]int{}
	for _, s := range last {
		if now.Sub(s.at) < staleAfter {
			if state, named := s.states[e]; named {
				count[state]++
			}
		}
	}
	switch {
	case count[unhealthy] > count[healthy]:
		return unhealthy
	case count[healthy] > 0:
		return healthy
	}
	return initial
}

// history is an endpoint's opinions in time: one after each saying and at each tick, since only then a
// Board looks.
func (o *oracle) history(e model.EndpointID) (times []time.Time, opinions []model.HealthState) {
	add := func(t time.Time, op model.HealthState) {
		times, opinions = append(times, t), append(opinions, op)
	}
	n := 0
	for _, tick := range o.ticks {
		for n < len(o.said) && !o.said[n].at.After(tick) {
			n++
			if _, named := o.said[n-1].states[e]; named || o.said[n-1].states == nil {
				add(o.said[n-1].at, o.opinion(e, n, o.said[n-1].at))
			}
		}
		add(tick, o.opinion(e, n, tick))
	}
	return times, opinions
}

// since returns how long the last opinion up to time now has held.
func since(times []time.Time, opinions []model.HealthState, now time.Time) (model.HealthState, time.Time) {
	i := len(times) - 1
	for times[i].After(now) {
		i--
	}
	op := opinions[i]
	for i > 0 && opinions[i-1] == op {
		i--
	}
	if i == 0 && op == initial {
		return op, begin
	}
	return op, times[i]
}

type oracleState struct {
	state model.HealthState
	since time.Time
	fails []time.Time
}

func (o *oracle) run() map[Key]model.HealthState {
	type past struct {
		times    []time.Time
		opinions []model.HealthState
	}
	pasts := map[model.EndpointID]past{}
	now := map[model.EndpointID]*oracleState{}
	for _, e := range o.group.Endpoints {
		t, op := o.history(e.ID)
		pasts[e.ID], now[e.ID] = past{t, op}, &oracleState{since: begin}
	}
	for _, tick := range o.ticks {
		var bad []model.EndpointID
		changedAt := map[model.EndpointID]time.Time{}
		for _, e := range o.group.Endpoints {
			s := now[e.ID]
			op, from := since(pasts[e.ID].times, pasts[e.ID].opinions, tick)
			changedAt[e.ID] = from
			recent := 0
			for _, f := range s.fails {
				if tick.Sub(f) < flapMemory {
					recent++
				}
			}
			hold := min(recoverHold<<max(recent-1, 0), recoverHoldMax)
			switch {
			case op == unhealthy,
				s.state == unhealthy && (op == initial || tick.Before(from.Add(hold))):
				bad = append(bad, e.ID)
			case op == healthy && s.state != healthy:
				s.state, s.since = healthy, tick
			}
		}
		slices.SortFunc(bad, func(x, y model.EndpointID) int {
			a, b := now[x], now[y]
			switch {
			case a.state == unhealthy && b.state != unhealthy:
				return -1
			case a.state != unhealthy && b.state == unhealthy:
				return 1
			case a.state == unhealthy:
				if c := a.since.Compare(b.since); c != 0 {
					return c
				}
			}
			return cmp.Or(changedAt[x].Compare(changedAt[y]), strings.Compare(string(x), string(y)))
		})
		for i, id := range bad {
			s := now[id]
			switch {
			case i < len(o.group.Endpoints)*o.share/100:
				if s.state == healthy {
					s.fails = append(s.fails, tick)
				}
				if s.state != unhealthy {
					s.state, s.since = unhealthy, tick
				}
			case s.state == unhealthy:
				s.state, s.since = healthy, tick
			}
		}
	}
	result := map[Key]model.HealthState{}
	for id, s := range now {
		result[Key{o.group.ID, id}] = s.state
	}
	return result
}

// TestBoardAgainstOracle lets probers say things at random and compares after every tick.
func TestBoardAgainstOracle(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	transitions := 0
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 7))
		n := 1 + r.IntN(5)
		o := &oracle{group: groupOf("g", n), share: []int{100, 50, 34, 75}[r.IntN(4)]}
		b := newBoard(n, o.share)
		now := begin
		for range 60 {
			for range r.IntN(4) {
				now = now.Add(time.Duration(r.IntN(3000)) * time.Millisecond)
				s := saying{at: now, prober: fmt.Sprint("p", r.IntN(1+r.IntN(5)))}
				if r.IntN(15) == 0 {
					// The Board takes no time with it: the latest it knows is the one.
					b.Report(now, "nobody", nil, false)
					b.clock(now)
					b.Forget(s.prober)
				} else {
					s.states = map[model.EndpointID]model.HealthState{}
					var reports []Report
					for _, e := range o.group.Endpoints {
						state := []model.HealthState{initial, healthy, healthy, healthy, unhealthy, unhealthy}[r.IntN(6)]
						s.states[e.ID] = state
						reports = append(reports, Report{Key: Key{"g", e.ID}, State: state, Reason: "x"})
					}
					b.Report(now, s.prober, reports, true)
				}
				o.said = append(o.said, s)
			}
			now = now.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
			if r.IntN(10) == 0 {
				now = now.Add(time.Duration(r.IntN(200)) * time.Second)
			}
			o.ticks = append(o.ticks, now)
			transitions += len(b.Tick(now))
			got := map[Key]model.HealthState{}
			for k, v := range b.Verdicts() {
				got[k] = v.State
			}
			if diff := gocmp.Diff(o.run(), got); diff != "" {
				t.Fatalf("seed %d, tick %d, share %d (oracle -, board +):\n%s", seed, len(o.ticks), o.share, diff)
			}
		}
	}
	if transitions < int(seeds)*5 {
		t.Fatalf("only %d transitions were compared", transitions)
	}
	t.Logf("%d transitions compared", transitions)
}
