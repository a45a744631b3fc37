// Package probe answers: which endpoints of this gateway's region are healthy, as seen from here?
//
//	SetTargets ─▶ tasks, one per distinct check ─▶ heap by due time ─▶ bounded checks ─▶ judge ─▶ OnVerdict
//
// Everything but the checks themselves happens under one lock and is quick; verdicts are handed out
// by Run's own goroutine, in order. A change of configuration keeps what is known: a check that stays
// keeps its history, and an endpoint whose check changed keeps its state until the new check's
// thresholds say otherwise.
package probe

import (
	"container/heap"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/proto/model"
)

// Config configures a Prober. The zero value works.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered

	// Concurrency bounds the checks that run at once, each of which holds a socket. 0: 256. Too small
	// a bound delays checks when many endpoints are dead at once; the late ones are counted.
	Concurrency int

	// OnVerdict is called when what is to be said about an endpoint changed: its state, or the reason
	// why it is not healthy. Calls come from one goroutine, in order, and hold no lock; while one
	// lasts no new check starts.
	OnVerdict func(Verdict)

	// Resolver looks up endpoints that are names. nil: the system's.
	Resolver *net.Resolver
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	if c.Concurrency < 0 {
		return fmt.Errorf("concurrency is %d, must not be negative", c.Concurrency)
	}
	return nil
}

// Verdict is what this prober holds of one endpoint.
type Verdict struct {
	Group    model.GroupID
	Endpoint model.EndpointID
	State    model.HealthState
	Reason   string        // why it is not healthy, like "connect: connection refused"; else empty
	Since    time.Time     // when the state began
	Latency  time.Duration // of the last successful check; 0: none yet
}

// Prober checks endpoints. Its methods may be called at any time from any goroutine.
type Prober struct {
	cfg     Config
	metrics *metrics
	check   func(ctx context.Context, host string, c *model.HealthCheck, rules *model.EndpointRules) result
	wake    chan struct{} // 1: something for Run to look at
	results chan finished // as long as Concurrency, so a check never waits to report

	mu      sync.Mutex // guards all below
	tasks   map[key]*task
	due     dueHeap
	rules   *model.EndpointRules
	running int
	outbox  []Verdict
}

// task is one distinct check and everybody whom its result is about.
type task struct {
	key      key
	subjects map[subject]told
	judge    judge
	reason   string // of the last failure, "" after a success
	since    time.Time
	latency  time.Duration
	due      time.Time
	index    int  // in the heap, -1: not there (running)
	gone     bool // removed while running
}

// told is what was last said about a subject.
type told struct {
	state  model.HealthState
	reason string
}

type finished struct {
	task   *task
	result result
}

// New returns a prober that checks nothing until Run runs and targets are set.
func New(cfg Config) (*Prober, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = concurrencyDefault
	}
	if cfg.OnVerdict == nil {
		cfg.OnVerdict = func(Verdict) {}
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	p := &Prober{
		cfg:     cfg,
		wake:    make(chan struct{}, 1),
		results: make(chan finished, cfg.Concurrency),
		tasks:   map[key]*task{},
		rules:   model.NewEndpointRules(nil),
	}
	k := &checker{resolver: cfg.Resolver}
	k.dialer.Resolver = cfg.Resolver
	k.dialer.SetMultipathTCP(false)
	p.check = k.check
	p.metrics = newMetrics(cfg.Metrics, p)
	return p, nil
}

// Run checks until ctx ends, and returns nil once every check has ended.
func (p *Prober) Run(ctx context.Context) error {
	var checks errgroup.Group
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		verdicts, wait := p.step(ctx, &checks)
		for _, v := range verdicts {
			p.cfg.OnVerdict(v)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return checks.Wait()
		case <-p.wake:
		case f := <-p.results:
			p.finish(f)
		case <-timer.C:
		}
	}
}

// step starts what is due and returns the verdicts to hand out and how long nothing will be due.
func (p *Prober) step(ctx context.Context, checks *errgroup.Group) ([]Verdict, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := time.Hour
	now := time.Now()
	for len(p.due) > 0 && p.running < p.cfg.Concurrency {
		t := p.due[0]
		if late := now.Sub(t.due); late < 0 {
			wait = -late
			break
		} else if late > lateAfter {
			p.metrics.late.Inc()
		}
		heap.Pop(&p.due)
		p.running++
		rules := p.rules
		checks.Go(func() error {
			p.results <- finished{t, p.check(ctx, t.key.host, &t.key.check, rules)}
			return nil
		})
	}
	verdicts := p.outbox
	p.outbox = nil
	return verdicts, wait
}

// finish counts a result and puts the task back into the queue.
func (p *Prober) finish(f finished) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	t, c, ok := f.task, &f.task.key.check, f.result.reason == ""
	if t.gone {
		return
	}
	p.metrics.count(ok)
	t.reason = f.result.reason
	if ok {
		t.latency = f.result.latency
	}
	now := time.Now()
	if t.judge.add(ok, c.HealthyThreshold, c.UnhealthyThreshold) {
		t.since = now
	}
	p.tell(t)
	interval := c.Interval
	if t.judge.state == model.HealthInitial {
		interval = min(interval, initialInterval)
	}
	early := time.Duration(rand.Float64() * intervalJitter * float64(interval))
	// Counted from when the check was due and not from its end, so that a slow endpoint is not
	// checked at a slower pace; but never at once.
	t.due = t.due.Add(interval - early)
	if soonest := now.Add(interval / 10); t.due.Before(soonest) {
		t.due = soonest
	}
	heap.Push(&p.due, t)
}

// tell puts what changed about t's subjects into the outbox. p.mu is held.
func (p *Prober) tell(t *task) {
	now := told{state: t.judge.state}
	if now.state != model.HealthHealthy {
		now.reason = t.reason
	}
	for s, before := range t.subjects {
		if before == now {
			continue
		}
		t.subjects[s] = now
		p.outbox = append(p.outbox, t.verdict(s, now))
		if before.state != now.state {
			p.cfg.Log.Info("endpoint", "group", s.group, "endpoint", s.endpoint,
				"state", stateName(now.state), "was", stateName(before.state), "reason", now.reason)
		}
	}
}

func (t *task) verdict(s subject, said told) Verdict {
	return Verdict{
		Group: s.group, Endpoint: s.endpoint,
		State: said.state, Reason: said.reason, Since: t.since, Latency: t.latency,
	}
}

// SetTargets replaces what is checked, and the rules by which addresses are refused; nil rules are
// the general ones.
func (p *Prober) SetTargets(targets []Target, rules *model.EndpointRules) {
	if rules == nil {
		rules = model.NewEndpointRules(nil)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = rules

	type known struct {
		host string
		task *task
		said told
	}
	before := map[subject]known{}
	for k, t := range p.tasks {
		for s, said := range t.subjects {
			before[s] = known{k.host, t, said}
		}
	}
	old := p.tasks
	p.tasks = make(map[key]*task, len(targets))
	now := time.Now()
	for i := range targets {
		k, s := targets[i].key(), targets[i].subject()
		t := p.tasks[k]
		if t == nil {
			if t = old[k]; t != nil {
				t.subjects = map[subject]told{}
			} else {
				t = newTask(k, now)
				heap.Push(&p.due, t)
			}
			p.tasks[k] = t
		}
		was := before[s]
		t.subjects[s] = was.said
		if t.judge.state == model.HealthInitial && was.task != nil && was.task != t && was.host == k.host {
			t.judge = judge{state: was.task.judge.state}
			t.reason, t.since, t.latency = was.task.reason, was.task.since, was.task.latency
		}
	}
	for k, t := range old {
		if p.tasks[k] != t {
			p.remove(t)
		}
	}
	for _, t := range p.tasks {
		p.tell(t)
	}
	p.metrics.targets.Set(float64(len(targets)))
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func newTask(k key, now time.Time) *task {
	spread := min(k.check.Interval, firstSpread)
	return &task{
		key:      k,
		subjects: map[subject]told{},
		since:    now,
		due:      now.Add(time.Duration(rand.Float64() * float64(spread))),
	}
}

// remove takes a task out of the queue; if it is running, its result will be ignored. p.mu is held.
func (p *Prober) remove(t *task) {
	t.gone = true
	if t.index >= 0 {
		heap.Remove(&p.due, t.index)
	}
}

// Verdicts returns what is held of every target now, in no order: what a complete report says.
func (p *Prober) Verdicts() []Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Verdict
	for _, t := range p.tasks {
		for s, said := range t.subjects {
			all = append(all, t.verdict(s, said))
		}
	}
	return all
}
