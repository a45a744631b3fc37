package fleet

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
)

// prober probes, from the leading controller, the endpoints of regions that have no gateway to do it.
type prober struct {
	f     *Fleet
	slots chan struct{}             // probes at once
	kick  chan struct{}             // capacity 1: a state has changed
	tasks chan map[health.Key]probe // capacity 1: the newest targets
	rules atomic.Pointer[model.EndpointRules]

	mu      sync.Mutex
	results map[health.Key]health.Report
	version uint64
}

// probe is what to ask of one endpoint.
type probe struct {
	host  string
	check model.HealthCheck
}

func newProber(f *Fleet) *prober {
	return &prober{
		f: f, slots: make(chan struct{}, probesAtOnce), kick: make(chan struct{}, 1),
		tasks: make(chan map[health.Key]probe, 1), results: map[health.Key]health.Report{},
	}
}

// set makes the prober probe what the state asks for. It must be called by one goroutine only.
func (p *prober) set(s *catalog.State) {
	p.rules.Store(model.NewEndpointRules(&model.Snapshot{
		Accelerators: s.Accelerators, Nodes: s.Nodes, Pools: s.Pools,
		EndpointAllowNetworks: s.Settings.EndpointAllowNetworks,
	}))
	targets := probeTargets(s)
	if extra := len(targets) - probesMax; extra > 0 {
		p.f.log.Warn("more endpoints than a controller probes lie in regions without a gateway",
			"endpoints", len(targets), "left_out", extra)
		for k := range targets {
			if extra--; extra < 0 {
				break
			}
			delete(targets, k)
		}
	}
	select {
	case <-p.tasks:
	default:
	}
	p.tasks <- targets
}

// probeTargets returns the endpoints of regions where no gateway is registered.
func probeTargets(s *catalog.State) map[health.Key]probe {
	region := make(map[model.SiteName]model.RegionName, len(s.Sites))
	for _, site := range s.Sites {
		region[site.Name] = site.Region
	}
	probed := map[model.RegionName]bool{}
	for _, n := range s.Nodes {
		if n.Gateway && n.State != model.NodeRevoked {
			probed[region[n.Site]] = true
		}
	}
	targets := map[health.Key]probe{}
	for _, g := range s.Groups {
		if probed[g.Region] {
			continue
		}
		for _, e := range g.Endpoints {
			targets[health.Key{Group: g.ID, Endpoint: e.ID}] = probe{e.Host, g.HealthCheck}
		}
	}
	return targets
}

// reports returns what the probes found, and a number that is another one after each change.
func (p *prober) reports() ([]health.Report, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]health.Report, 0, len(p.results))
	for _, r := range p.results {
		list = append(list, r)
	}
	return list, p.version
}

// run probes until ctx ends; one goroutine an endpoint, of which few probe at once.
func (p *prober) run(ctx context.Context) error {
	type running struct {
		probe
		stop context.CancelFunc
	}
	tasks := map[health.Key]running{}
	var all sync.WaitGroup
	defer all.Wait()
	for {
		var want map[health.Key]probe
		select {
		case <-ctx.Done():
			return ctx.Err()
		case want = <-p.tasks:
		}
		for k, t := range tasks {
			if w, ok := want[k]; !ok || w.host != t.host || w.check != t.check {
				t.stop()
				delete(tasks, k)
				if !ok {
					p.drop(k)
				}
			}
		}
		for k, w := range want {
			if _, there := tasks[k]; there {
				continue
			}
			taskCtx, stop := context.WithCancel(ctx)
			tasks[k] = running{w, stop}
			all.Go(func() { p.probe(taskCtx, k, w) })
		}
	}
}

// probe asks one endpoint again and again. One success makes a new endpoint healthy, as with gateways;
// after that the thresholds count.
func (p *prober) probe(ctx context.Context, k health.Key, w probe) {
	verdict := health.Report{Key: k, State: model.HealthInitial, Since: time.Now()}
	p.store(ctx, verdict)
	var run int
	var last bool
	wait := rand.N(min(firstProbe, w.check.Interval) + 1)
	for sleep(ctx, wait) {
		began := time.Now()
		ok, reason := p.ask(ctx, w)
		if ctx.Err() != nil {
			return
		}
		if ok != last {
			run = 0
		}
		last = ok
		run++
		state := verdict.State
		switch {
		case ok && (state == model.HealthInitial || run >= w.check.HealthyThreshold):
			state = model.HealthHealthy
		case !ok && run >= w.check.UnhealthyThreshold:
			state = model.HealthUnhealthy
		}
		if ok {
			verdict.Latency = time.Since(began)
			reason = ""
		}
		if state != verdict.State {
			verdict.State, verdict.Reason, verdict.Since = state, reason, time.Now()
			p.store(ctx, verdict)
		}
		wait = max(time.Until(began.Add(jitter(w.check.Interval))), 0)
	}
}

// ask probes once, when there is a slot.
func (p *prober) ask(ctx context.Context, w probe) (ok bool, reason string) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return false, ""
	}
	if err := health.Check(ctx, w.host, w.check, p.rules.Load()); err != nil {
		return false, clip(err.Error(), textMax)
	}
	return true, ""
}

// store makes a verdict known, unless the probe was stopped meanwhile.
func (p *prober) store(ctx context.Context, r health.Report) {
	p.mu.Lock()
	if ctx.Err() == nil {
		p.results[r.Key] = r
		p.version++
	}
	p.mu.Unlock()
	p.poke()
}

func (p *prober) drop(k health.Key) {
	p.mu.Lock()
	delete(p.results, k)
	p.version++
	p.mu.Unlock()
	p.poke()
}

func (p *prober) poke() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}
