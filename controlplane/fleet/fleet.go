package fleet

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/enroll"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config of a Fleet. Store, Catalog, Authority and ID are needed; every other zero value is the default.
type Config struct {
	Store     *store.Store
	Catalog   *catalog.Catalog
	Authority *enroll.Authority

	ID      string // of this controller, unique and lasting
	Address string // "host:port" where nodes and operators reach this controller
	Version string // build version

	DebounceMin time.Duration // of snapshots after a quiet time. 50 ms
	DebounceMax time.Duration // under constant change; bounds what nodes are sent. 1 s
	Resync      time.Duration // how often the store is asked without any reason. 8 s; more delays revocation
	Compare     time.Duration // how often each node is told what it should have. 10 s
	LeaseTTL    time.Duration // how long a dead controller and its nodes seem alive. 10 s
	ProberGrace time.Duration // how long a prober that is away keeps its say. 30 s

	// Traffic keeps what nodes report of their traffic. nil: nobody does.
	Traffic TrafficSink

	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Store == nil || c.Catalog == nil || c.Authority == nil || c.ID == "" {
		return errors.New("fleet: Store, Catalog, Authority and ID must be set")
	}
	return nil
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.DebounceMin, debounceMin}, {&c.DebounceMax, debounceMax}, {&c.Resync, resync},
		{&c.Compare, compare}, {&c.LeaseTTL, leaseTTL}, {&c.ProberGrace, proberGrace},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	c.DebounceMax = max(c.DebounceMax, c.DebounceMin)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Fleet is one controller's side of all its nodes. Its methods may be called from any goroutine.
type Fleet struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	published atomic.Pointer[Published]    // never nil
	known     atomic.Pointer[knownClients] // never nil
	triggers  chan struct{}                // capacity 1
	mirror    *mirror
	presence  *presence
	leading   atomic.Bool

	mu       sync.Mutex
	sessions map[model.NodeID]*session
	asked    map[uint64]chan *v1.ExplainReply // who waits for which answer
	lastCall uint64
	stopping bool           // no session begins any more
	streams  sync.WaitGroup // goroutines that read and write streams
	stopped  chan struct{}  // closed when Run ends: all streams end
}

// New makes a Fleet. Nothing is started before Run.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	f := &Fleet{
		cfg: cfg, log: cfg.Log, triggers: make(chan struct{}, 1), mirror: newMirror(cfg.Log),
		sessions: map[model.NodeID]*session{}, asked: map[uint64]chan *v1.ExplainReply{}, stopped: make(chan struct{}),
	}
	f.presence = newPresence(f)
	f.published.Store(&Published{next: make(chan struct{})})
	f.known.Store(&knownClients{next: make(chan struct{})})
	var err error
	f.metrics, err = newMetrics(cfg.Metrics, f.Gains)
	return f, err
}

// Run serves until ctx ends, then ends all streams and returns when they have ended. The gRPC server
// must be serving meanwhile, or streams could not end.
func (f *Fleet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.mirror.run(ctx, f.cfg.Store) })
	g.Go(func() error { return f.compile(ctx) })
	g.Go(func() error { return f.watchCatalog(ctx) })
	g.Go(func() error { return f.watchVerdicts(ctx) })
	g.Go(func() error { return f.watchCountries(ctx) })
	g.Go(func() error { return f.shareClients(ctx) })
	g.Go(func() error { return f.campaign(ctx) })
	// The presence outlives the streams, which say goodbye through it.
	present, absent := context.WithCancel(context.WithoutCancel(ctx))
	defer absent()
	gone := make(chan error, 1)
	go func() { gone <- f.presence.run(present) }()
	g.Go(func() error {
		<-ctx.Done()
		f.mu.Lock()
		f.stopping = true
		f.mu.Unlock()
		close(f.stopped)
		f.streams.Wait()
		return nil
	})
	err := g.Wait()
	absent()
	<-gone
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Ready is nil when this controller can tell nodes what to do, and otherwise says what is missing.
func (f *Fleet) Ready() error {
	select {
	case <-f.mirror.ready:
	default:
		return errors.New("the fleet's records are not read yet")
	}
	if f.published.Load().Snapshot == nil {
		return errors.New("there is no snapshot yet")
	}
	return nil
}

// Published returns what the fleet is told now. Its Snapshot is nil before the first one is built.
func (f *Fleet) Published() *Published { return f.published.Load() }
