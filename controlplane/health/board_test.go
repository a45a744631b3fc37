package health

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nearcast/nearcast/proto/model"
)

const (
	initial   = model.HealthInitial
	healthy   = model.HealthHealthy
	unhealthy = model.HealthUnhealthy
)

var begin = time.Unix(1_700_000_000, 0)

// at is s seconds after the beginning.
func at(s float64) time.Time { return begin.Add(time.Duration(s * float64(time.Second))) }

// groupOf returns a group with endpoints e0, e1 … of weight 1.
func groupOf(id string, n int) model.EndpointGroup {
	g := model.EndpointGroup{ID: model.GroupID(id)}
	for i := range n {
		g.Endpoints = append(g.Endpoints, model.Endpoint{ID: model.EndpointID(fmt.Sprint("e", i)), Weight: 1})
	}
	return g
}

func key(e int) Key { return Key{"g", model.EndpointID(fmt.Sprint("e", e))} }

func says(e int, s model.HealthState, reason string) []Report {
	return []Report{{Key: key(e), State: s, Reason: reason}}
}

// newBoard knows one group g of n endpoints.
func newBoard(n, share int) *Board {
	b := New(Config{})
	b.SetGroups(begin, []model.EndpointGroup{groupOf("g", n)}, share)
	return b
}

func wantState(t *testing.T, b *Board, e int, want model.HealthState) {
	t.Helper()
	if got := b.Verdicts()[key(e)]; got.State != want {
		t.Errorf("e%d is %v (%s), want %v", e, got.State, got.Reason, want)
	}
}

// TestVotes: what the verdict on a fresh endpoint and on a healthy one is, for what its probers say.
func TestVotes(t *testing.T) {
	for _, c := range []struct {
		votes            string // i, h, u: one prober each
		fresh, wasHealth model.HealthState
	}{
		{"", initial, healthy},
		{"i", initial, healthy},
		{"h", healthy, healthy},
		{"u", unhealthy, unhealthy},
		{"ih", healthy, healthy},
		{"iu", unhealthy, unhealthy},
		{"hu", healthy, healthy}, // half of them cut off is no failure (R-HC4)
		{"huu", unhealthy, unhealthy},
		{"hhu", healthy, healthy},
		{"iiiuh", healthy, healthy},
		{"hhuuui", unhealthy, unhealthy},
		{"hhhuuu", healthy, healthy},
	} {
		for _, fresh := range []bool{true, false} {
			b, want := newBoard(1, 100), c.fresh
			if !fresh {
				want = c.wasHealth
				b.Restore(begin, map[Key]Verdict{key(0): {State: healthy, Since: begin}})
			}
			for i, v := range c.votes {
				state := map[rune]model.HealthState{'i': initial, 'h': healthy, 'u': unhealthy}[v]
				b.Report(at(1), fmt.Sprint("p", i), says(0, state, "down"), true)
			}
			changed := b.Tick(at(1))
			got := b.Verdicts()[key(0)]
			if got.State != want {
				t.Errorf("%q, fresh %v: %v, want %v", c.votes, fresh, got.State, want)
			}
			was := initial
			if !fresh {
				was = healthy
			}
			if (len(changed) == 1) != (want != was) {
				t.Errorf("%q, fresh %v: transitions %v", c.votes, fresh, changed)
			}
			if want == unhealthy && !strings.HasSuffix(got.Reason, "down") || want == healthy && got.Reason != "" {
				t.Errorf("%q, fresh %v: reason %q", c.votes, fresh, got.Reason)
			}
		}
	}
}

func TestReasonOfMost(t *testing.T) {
	b := newBoard(1, 100)
	for i, r := range []string{"timeout", "refused", "refused"} {
		b.Report(at(0), fmt.Sprint("p", i), says(0, unhealthy, r), true)
	}
	b.Report(at(0), "p3", says(0, healthy, ""), true)
	got := b.Tick(at(0))
	want := []Transition{{key(0), Verdict{Since: begin}, Verdict{unhealthy, "3 of 4 probers: refused", begin}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if r := b.Reports(at(0), key(0)); len(r) != 4 || r[1].Prober != "p1" || r[1].Reason != "refused" {
		t.Fatalf("reports %v", r)
	}
}

// TestStale: who is silent loses its vote, and the last word of all stays.
func TestStale(t *testing.T) {
	b := newBoard(1, 100)
	b.Report(at(0), "dead", says(0, unhealthy, "x"), true)
	b.Report(at(0), "busy", says(0, healthy, ""), true)
	b.Tick(at(0))
	wantState(t, b, 0, healthy) // a tie
	b.Report(at(100), "dead", says(0, unhealthy, "x"), true)
	if len(b.Tick(at(149))) != 0 {
		t.Fatal("changed before anything was stale")
	}
	if changed := b.Tick(at(150)); len(changed) != 1 { // busy is stale, dead alone says unhealthy
		t.Fatalf("changed: %v", changed)
	}
	if changed := b.Tick(at(1000)); len(changed) != 0 {
		t.Fatalf("silence changed %v", changed)
	}
	wantState(t, b, 0, unhealthy)
	if r := b.Reports(at(1000), key(0)); len(r) != 0 {
		t.Fatalf("stale reports %v", r)
	}
}

// TestWakes: stale votes and ended holds are acted on at the first Tick after, without a new report.
func TestWakes(t *testing.T) {
	b := newBoard(1, 100)
	b.Report(at(0), "p", says(0, unhealthy, "x"), true)
	b.Tick(at(0))
	b.Report(at(1), "p", says(0, healthy, ""), true)
	for s := 1.0; s < 6; s += 0.25 {
		if changed := b.Tick(at(s)); len(changed) != 0 {
			t.Fatalf("after %v s: %v", s, changed)
		}
	}
	if changed := b.Tick(at(6)); len(changed) != 1 || changed[0].To.State != healthy || !changed[0].To.Since.Equal(at(6)) {
		t.Fatalf("when the hold ended: %v", changed)
	}
}

func TestCompleteAndForget(t *testing.T) {
	b := newBoard(2, 100)
	b.Report(at(0), "p", append(says(0, unhealthy, "x"), says(1, unhealthy, "x")...), true)
	b.Report(at(0), "q", append(says(0, healthy, ""), says(1, healthy, "")...), true)
	b.Tick(at(0))
	wantState(t, b, 0, healthy)
	b.Report(at(1), "q", says(0, healthy, ""), false) // says nothing about e1, and need not
	b.Tick(at(1))
	wantState(t, b, 1, healthy)
	b.Report(at(2), "q", says(0, healthy, ""), true) // does not probe e1 any more
	b.Tick(at(2))
	wantState(t, b, 0, healthy)
	wantState(t, b, 1, unhealthy)
	b.Forget("q")
	b.Tick(at(3))
	wantState(t, b, 0, unhealthy)
	b.Forget("p")
	b.Forget("nobody")
	if len(b.Tick(at(400))) != 0 || len(b.said["p"]) != 0 {
		t.Fatal("forgetting everybody changed a verdict")
	}
}

func TestSetGroups(t *testing.T) {
	b := newBoard(2, 100)
	b.Report(at(0), "p", append(says(0, healthy, ""), says(1, unhealthy, "x")...), true)
	b.Tick(at(0))
	b.SetGroups(at(1), []model.EndpointGroup{groupOf("g", 3)}, 100)
	wantState(t, b, 0, healthy)
	wantState(t, b, 1, unhealthy)
	wantState(t, b, 2, initial)
	b.SetGroups(at(2), []model.EndpointGroup{groupOf("g", 1), groupOf("h", 1)}, 100)
	if v := b.Verdicts(); len(v) != 2 {
		t.Fatalf("verdicts %v", v)
	}
	b.SetGroups(at(3), []model.EndpointGroup{groupOf("g", 2)}, 100)
	wantState(t, b, 1, initial) // it was gone: it begins anew
	b.Report(at(3), "p", []Report{{Key: Key{"h", "e0"}, State: unhealthy}}, true)
	if len(b.Tick(at(3))) != 0 {
		t.Fatal("a report on nothing changed something")
	}
}

func TestRestore(t *testing.T) {
	b := newBoard(2, 100)
	b.Restore(at(0), map[Key]Verdict{
		key(0): {State: healthy, Since: begin.Add(-time.Hour)},
		key(1): {State: unhealthy, Reason: "x", Since: begin.Add(-time.Hour)},
		key(7): {State: healthy},
	})
	if len(b.Tick(at(0))) != 0 {
		t.Fatal("restoring is a transition")
	}
	wantState(t, b, 0, healthy)
	wantState(t, b, 1, unhealthy)
	// What was out must hold before it is back, as if this Board had taken it out.
	b.Report(at(1), "p", says(1, healthy, ""), false)
	b.Tick(at(1))
	wantState(t, b, 1, unhealthy)
	b.Tick(at(6))
	wantState(t, b, 1, healthy)
}

// TestLargestShare: no more of a group is out than may be, who failed first is out, and it is let go
// when the share shrinks.
func TestLargestShare(t *testing.T) {
	for _, c := range []struct{ n, share, out int }{
		{4, 100, 4}, {4, 50, 2}, {5, 50, 2}, {3, 34, 1}, {3, 33, 0}, {1, 50, 0}, {1, 100, 1}, {10, 99, 9},
	} {
		b := newBoard(c.n, c.share)
		for e := range c.n {
			b.Report(at(0), "p", says(e, healthy, ""), false)
		}
		b.Tick(at(0))
		order := rand.New(rand.NewPCG(1, 1)).Perm(c.n)
		for i, e := range order {
			b.Report(at(float64(1+i)), "p", says(e, unhealthy, "x"), false)
			b.Tick(at(float64(1 + i)))
		}
		for i, e := range order {
			want := healthy
			if i < c.out {
				want = unhealthy
			}
			wantState(t, b, e, want)
			if v := b.Verdicts()[key(e)]; want == healthy && !strings.Contains(v.Reason, "kept in service") {
				t.Errorf("n %d share %d: the reason of e%d is %q", c.n, c.share, e, v.Reason)
			}
		}
	}
}

func TestShareChanges(t *testing.T) {
	b := newBoard(4, 100)
	for e := range 4 {
		b.Report(at(0), "p", says(e, healthy, ""), false)
	}
	b.Tick(at(0))
	for e := range 4 {
		b.Report(at(float64(e)), "p", says(e, unhealthy, "x"), false)
		b.Tick(at(float64(e)))
	}
	b.SetGroups(at(10), []model.EndpointGroup{groupOf("g", 4)}, 25)
	b.Tick(at(10))
	for e, want := range []model.HealthState{unhealthy, healthy, healthy, healthy} {
		wantState(t, b, e, want)
	}
	// One that recovers makes room for the next.
	b.Report(at(11), "p", says(0, healthy, ""), false)
	b.Tick(at(16))
	wantState(t, b, 0, healthy)
	b.Tick(at(17))
	wantState(t, b, 1, unhealthy)
}

// TestShareOfWeighted: endpoints of weight 0 take no traffic, so they neither count nor are spared.
func TestShareOfWeighted(t *testing.T) {
	b := New(Config{})
	g := groupOf("g", 4)
	g.Endpoints[2].Weight, g.Endpoints[3].Weight = 0, 0
	b.SetGroups(begin, []model.EndpointGroup{g}, 50)
	for e := range 4 {
		b.Report(at(0), "p", says(e, healthy, ""), false)
	}
	b.Tick(at(0))
	for e := range 4 {
		b.Report(at(1), "p", says(e, unhealthy, "x"), false)
	}
	b.Tick(at(1))
	for e, want := range []model.HealthState{unhealthy, healthy, unhealthy, unhealthy} {
		wantState(t, b, e, want)
	}
}

// TestInitialIsNotKept: what never passed is not called healthy for the share's sake.
func TestInitialIsNotKept(t *testing.T) {
	b := newBoard(2, 50)
	b.Report(at(0), "p", append(says(0, unhealthy, "x"), says(1, unhealthy, "x")...), true)
	b.Tick(at(0))
	wantState(t, b, 0, unhealthy)
	wantState(t, b, 1, initial)
}

// TestFlapping is R-HC5: an endpoint that flaps at 0.5 Hz for five minutes makes at most two published
// transitions, whatever the phase and however often Tick is called; slower flapping is dampened, too.
func TestFlapping(t *testing.T) {
	for _, c := range []struct {
		period float64 // seconds
		most   int
	}{{0.5, 2}, {2, 2}, {4, 2}, {8, 2}, {12, 4}, {20, 5}, {60, 9}} {
		for _, tick := range []float64{0.1, 0.5, 1} {
			for phase := 0.0; phase < c.period; phase += c.period / 7 {
				b := newBoard(1, 100)
				b.Report(at(0), "p", says(0, healthy, ""), true)
				b.Tick(at(0))
				transitions, last := 0, healthy
				for s := 1.0; s <= 301; s += tick {
					state := healthy
					if int((s+phase)/(c.period/2))%2 == 1 {
						state = unhealthy
					}
					if state != last {
						b.Report(at(s), "p", says(0, state, "flap"), true)
						last = state
					}
					transitions += len(b.Tick(at(s)))
				}
				b.Report(at(302), "p", says(0, healthy, ""), true)
				for s := 302.0; s < 700; s++ {
					b.Report(at(s), "p", says(0, healthy, ""), true)
					transitions += len(b.Tick(at(s)))
				}
				wantState(t, b, 0, healthy) // it is believed in the end
				if transitions > c.most {
					t.Errorf("period %v s, phase %.2f, tick %v: %d transitions", c.period, phase, tick, transitions)
				}
				if transitions < 2 && c.period > 2 {
					t.Errorf("period %v s, phase %.2f: %d transitions: it was never out", c.period, phase, transitions)
				}
			}
		}
	}
}

// TestFailsFast: dampening never delays bad news, not even of an endpoint with a past.
func TestFailsFast(t *testing.T) {
	b := newBoard(1, 100)
	now := 0.0
	for i := range 10 {
		b.Report(at(now), "p", says(0, healthy, ""), true)
		for s := range 1000 {
			b.Report(at(now+float64(s)), "p", says(0, healthy, ""), true)
			b.Tick(at(now + float64(s)))
		}
		now += 1000
		wantState(t, b, 0, healthy)
		b.Report(at(now), "p", says(0, unhealthy, "x"), true)
		if changed := b.Tick(at(now)); len(changed) != 1 {
			t.Fatalf("failure %d: %v", i, changed)
		}
		now++
	}
}

// TestHoldGrows: 5, 10, 20 … seconds, to five minutes, and it is forgotten after ten.
func TestHoldGrows(t *testing.T) {
	b, e := newBoard(1, 100), &endpoint{}
	var got []float64
	for i := range 9 {
		e.fail(at(float64(i)), b.cfg.FlapMemory)
		got = append(got, b.hold(at(float64(i)), e).Seconds())
	}
	if want := []float64{5, 10, 20, 40, 80, 160, 300, 300, 300}; !slices.Equal(got, want) {
		t.Fatalf("holds %v, want %v", got, want)
	}
	if h := b.hold(at(700), e); h != recoverHold {
		t.Fatalf("after ten minutes the hold is %v", h)
	}
	for i := range 100 {
		e.fail(at(float64(i)), b.cfg.FlapMemory)
	}
	if len(e.failures) > failuresMax {
		t.Fatalf("%d failures are remembered", len(e.failures))
	}
}

func TestVotesAreBounded(t *testing.T) {
	b := newBoard(1, 100)
	for i := range 2 * votesMax {
		b.Report(at(0), fmt.Sprint("p", i), says(0, healthy, strings.Repeat("é", model.ReasonMax)), true)
	}
	r := b.Reports(at(0), key(0))
	if len(r) != votesMax || len(r[0].Reason) > model.ReasonMax {
		t.Fatalf("%d reports, a reason of %d bytes", len(r), len(r[0].Reason))
	}
}
