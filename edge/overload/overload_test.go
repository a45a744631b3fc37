package overload

import (
	"testing"
	"time"
)

var start = time.Unix(1000, 0)

// drive has flows arrive and be served at steady rates through a Gate, in simulated time, first come first
// served. It returns how many were served in the last half and how long the longest of them waited.
func drive(g *Gate, arrive, serve float64, lasts time.Duration) (served int, longest time.Duration) {
	var queue []time.Time
	now, nextServe := start, start
	for now.Before(start.Add(lasts)) {
		now = now.Add(time.Duration(float64(time.Second) / arrive))
		for !nextServe.After(now) {
			if len(queue) > 0 {
				entered := queue[0]
				queue = queue[1:]
				if g.Begin(entered, nextServe) && now.Sub(start) > lasts/2 {
					served++
					longest = max(longest, nextServe.Sub(entered))
				}
			}
			nextServe = nextServe.Add(time.Duration(float64(time.Second) / serve))
		}
		if g.Enter() {
			queue = append(queue, now)
		}
	}
	for range queue {
		g.Leave()
	}
	start = now
	return served, longest
}

// TestGate: with less than a node can do nobody is turned away; with more, as much is served as before, and
// whoever is served has waited for a moment only; when the load goes, so does the state.
func TestGate(t *testing.T) {
	for _, c := range []struct {
		name          string
		arrive, serve float64
		overloaded    bool
	}{
		{"nothing to do", 10, 1000, false},
		{"nearly all it can do", 900, 1000, false},
		{"slow, few flows", 3, 4, false},
		{"one and a half times", 1500, 1000, true},
		{"twice", 2000, 1000, true},
		{"twice, slow", 200, 100, true},
		{"twenty times", 20000, 1000, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var changes []int
			g := &Gate{OnChange: func(bound int) { changes = append(changes, bound) }}
			served, longest := drive(g, c.arrive, c.serve, 10*time.Second)
			if g.Overloaded() != c.overloaded || c.overloaded == (len(changes) == 0) {
				t.Fatalf("overloaded: %v, changes %v", g.Overloaded(), changes)
			}
			if want := min(c.arrive, c.serve) * 5; float64(served) < 0.98*want {
				t.Errorf("%d served of %.0f possible", served, want)
			}
			allowed := 2*queueTime + time.Duration(boundMin/c.serve*float64(time.Second))
			if longest > allowed {
				t.Errorf("somebody waited %v, more than %v", longest, allowed)
			}
			if g.Waiting() != 0 {
				t.Errorf("%d still wait", g.Waiting())
			}
			if !c.overloaded {
				return
			}
			if _, longest = drive(g, c.serve/2, c.serve, 5*time.Second); g.Overloaded() || changes[len(changes)-1] != 0 {
				t.Errorf("still overloaded: %v, waits %v", changes, longest)
			}
		})
	}
}

// TestBurst: what comes at once and is served within the interval is no overload.
func TestBurst(t *testing.T) {
	g := &Gate{OnChange: func(bound int) { t.Errorf("a burst is taken for overload: %d", bound) }}
	now := start
	for range 20 {
		for i := range 80 {
			if !g.Enter() {
				t.Fatal("turned away")
			}
			g.Begin(now, now.Add(time.Duration(i)*time.Millisecond))
		}
		now = now.Add(2 * interval)
	}
}

// TestSilence: overload ends also when nobody comes any more.
func TestSilence(t *testing.T) {
	g := &Gate{}
	drive(g, 2000, 1000, 3*time.Second)
	if !g.Overloaded() {
		t.Fatal("not overloaded")
	}
	now := start.Add(time.Minute)
	for range 3 {
		if !g.Enter() {
			t.Fatal("the first after a minute is turned away")
		}
		g.Begin(now, now)
		now = now.Add(interval)
	}
	if g.Overloaded() {
		t.Error("still overloaded after a minute without flows")
	}
}

// TestElsewhere: what somebody else took is no waiting, and gives room to as many more.
func TestElsewhere(t *testing.T) {
	const away = 300 * time.Millisecond // an endpoint far away
	for _, c := range []struct {
		own        time.Duration
		overloaded bool
	}{{time.Millisecond, false}, {2 * target, true}} {
		g, now := &Gate{}, start
		for range 1000 { // 1000 a second, for a second
			now = now.Add(time.Millisecond)
			g.Enter()
			g.BeginAfter(now.Add(-away-c.own), now, away)
		}
		if g.Overloaded() != c.overloaded {
			t.Errorf("own %v: overloaded %v", c.own, g.Overloaded())
		}
		if bound := g.bound.Load(); c.overloaded && (bound < 300 || bound > 400) {
			t.Errorf("%d may wait, want 1000/s × (40 + 300 ms)", bound)
		}
	}
}
