package probe

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// world is endpoints whose answers a test decides, and what a prober says of them.
type world struct {
	*Prober
	mu      sync.Mutex
	failing map[string]string // host → reason
	delay   time.Duration
	checks  map[string]int
	running int
	most    int
	said    map[subject]Verdict
}

func newWorld(t *testing.T, cfg Config) *world {
	w := &world{failing: map[string]string{}, checks: map[string]int{}, said: map[subject]Verdict{}}
	cfg.OnVerdict = func(v Verdict) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.said[subject{v.Group, v.Endpoint}] = v
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Prober = p
	p.check = w.answer
	return w
}

func (w *world) answer(ctx context.Context, host string, c *model.HealthCheck, _ *model.EndpointRules) result {
	w.mu.Lock()
	w.checks[host]++
	w.running++
	w.most = max(w.most, w.running)
	reason, delay := w.failing[host], w.delay
	w.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(delay):
	}
	w.mu.Lock()
	w.running--
	w.mu.Unlock()
	return result{reason: reason, latency: time.Millisecond}
}

// run starts the prober and returns a function that ends it and waits for it.
func (w *world) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (w *world) set(host, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failing[host] = reason
}

func (w *world) state(g model.GroupID, e model.EndpointID) model.HealthState {
	return w.verdict(g, e).State
}

// checked returns how often host was checked, and how many checks ran at once at most.
func (w *world) checked(host string) (n, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checks[host], w.most
}

func (w *world) verdict(g model.GroupID, e model.EndpointID) Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said[subject{g, e}]
}

func target(g model.GroupID, e model.EndpointID, interval time.Duration) Target {
	return Target{Group: g, Endpoint: e, Host: string(e), Check: model.HealthCheck{
		Port: 80, Interval: interval, Timeout: time.Second, HealthyThreshold: 3, UnhealthyThreshold: 3,
	}}
}

func TestDetectionTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.run(t)()
		interval := 10 * time.Second
		w.SetTargets([]Target{target("g", "e", interval)}, nil)
		time.Sleep(firstSpread)
		synctest.Wait()
		if s := w.state("g", "e"); s != model.HealthHealthy {
			t.Fatalf("a new endpoint is %s after %v", stateName(s), firstSpread)
		}
		for range 20 {
			w.set("e", "connect: connection refused")
			time.Sleep(2 * interval * 9 / 10)
			synctest.Wait()
			if s := w.state("g", "e"); s != model.HealthHealthy {
				t.Fatalf("%s too early", stateName(s))
			}
			time.Sleep(3*interval - 2*interval*9/10)
			synctest.Wait()
			if s := w.state("g", "e"); s != model.HealthUnhealthy {
				t.Fatalf("%s after thresholds × interval", stateName(s))
			}
			w.set("e", "")
			time.Sleep(3 * interval)
			synctest.Wait()
			if s := w.state("g", "e"); s != model.HealthHealthy {
				t.Fatalf("%s after thresholds × interval", stateName(s))
			}
		}
	})
}

func TestEqualChecksAreMadeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.run(t)()
		one, other := target("g1", "e", 10*time.Second), target("g2", "e", 10*time.Second)
		differs := target("g3", "e", 10*time.Second)
		differs.Check.Path = "/x"
		w.SetTargets([]Target{one, other}, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if n, _ := w.checked("e"); n != 1 {
			t.Errorf("%d checks of two equal targets", n)
		}
		w.SetTargets([]Target{one, other, differs}, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if n, _ := w.checked("e"); n != 2 {
			t.Errorf("%d checks with a third target that differs", n)
		}
		for _, g := range []model.GroupID{"g1", "g2", "g3"} {
			if s := w.state(g, "e"); s != model.HealthHealthy {
				t.Errorf("%s is %s", g, stateName(s))
			}
		}
		if n := len(w.Verdicts()); n != 3 {
			t.Errorf("%d verdicts", n)
		}
	})
}

// TestConfigurationChanges: what is known survives a change that does not concern it.
func TestConfigurationChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.run(t)()
		interval := 10 * time.Second
		keep, drop := target("g", "keep", interval), target("g", "drop", interval)
		w.SetTargets([]Target{keep, drop}, nil)
		time.Sleep(time.Second)
		w.set("keep", "status 503")
		// Configuration that changes more often than the thresholds take must not hide the failure.
		for i := range 35 {
			other := target("g", model.EndpointID(fmt.Sprint("other", i)), interval)
			w.SetTargets([]Target{keep, other}, nil)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if s := w.state("g", "keep"); s != model.HealthUnhealthy {
			t.Errorf("keep is %s", stateName(s))
		}
		if n, _ := w.checked("drop"); n != 1 {
			t.Errorf("a removed endpoint was checked %d times", n)
		}
		// A changed check keeps the state until its own thresholds say otherwise.
		keep.Check.Path = "/new"
		w.set("keep", "")
		w.SetTargets([]Target{keep}, nil)
		time.Sleep(interval)
		synctest.Wait()
		if s := w.state("g", "keep"); s != model.HealthUnhealthy {
			t.Errorf("keep is %s after two successes of the changed check", stateName(s))
		}
		time.Sleep(2 * interval)
		synctest.Wait()
		if s := w.state("g", "keep"); s != model.HealthHealthy {
			t.Errorf("keep is %s", stateName(s))
		}
		// Another machine under the same id is another endpoint.
		keep.Host = "moved"
		w.set("moved", "connect: connection refused")
		w.SetTargets([]Target{keep}, nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if v := w.verdict("g", "keep"); v.State != model.HealthInitial || v.Reason == "" {
			t.Errorf("moved is %s, reason %q", stateName(v.State), v.Reason)
		}
		// A second group of a known check learns the state at once.
		w.SetTargets([]Target{target("a", "known", interval)}, nil)
		time.Sleep(time.Second)
		w.SetTargets([]Target{target("a", "known", interval), target("b", "known", interval)}, nil)
		synctest.Wait()
		if s := w.state("b", "known"); s != model.HealthHealthy {
			t.Errorf("the second group's is %s", stateName(s))
		}
	})
}

func TestConcurrencyIsBoundedAndSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Concurrency: 10})
		w.delay = time.Second
		defer w.run(t)()
		var targets []Target
		for i := range 100 {
			targets = append(targets, target("g", model.EndpointID(fmt.Sprint(i)), 30*time.Second))
		}
		w.SetTargets(targets, nil)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if _, most := w.checked(""); most != 10 {
			t.Errorf("%d checks ran at once, want 10", most)
		}
		for _, tg := range targets {
			if s := w.state("g", tg.Endpoint); s != model.HealthHealthy {
				t.Errorf("endpoint %s is %s after 11 s", tg.Endpoint, stateName(s))
			}
		}
		time.Sleep(time.Hour)
		total := 0
		for _, tg := range targets {
			n, _ := w.checked(tg.Host)
			total += n
		}
		if want := 100 * 3600 / 30; total < want || total > want*12/10 {
			t.Errorf("%d checks in an hour, want about %d", total, want)
		}
	})
}

func TestTargets(t *testing.T) {
	s := &model.Snapshot{
		Listeners: []model.Listener{{ID: "l", PortRanges: []model.PortRange{{From: 8000, To: 8100}}}},
		Groups: []model.EndpointGroup{
			{ID: "here", Listener: "l", Region: "r1", Endpoints: []model.Endpoint{
				{ID: "a", Host: "10.0.0.1"}, {ID: "b", Host: "10.0.0.2", Weight: 0},
			}, PortOverrides: []model.PortOverride{{ListenerPort: 8000, EndpointPort: 9}}},
			{ID: "there", Listener: "l", Region: "r2", Endpoints: []model.Endpoint{{ID: "c", Host: "10.0.0.3"}}},
		},
	}
	got := Targets(s, "r1")
	if len(got) != 2 || got[0].Group != "here" || got[1].Host != "10.0.0.2" {
		t.Fatalf("%+v", got)
	}
	if p := got[0].Check.Port; p != 8000 { // overrides never apply to checks
		t.Errorf("port %d", p)
	}
}
