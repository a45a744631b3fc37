package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/nearcast/nearcast/edge/agent"
	"github.com/nearcast/nearcast/edge/announce"
	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/clients"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/handover"
	"github.com/nearcast/nearcast/edge/kernel"
	"github.com/nearcast/nearcast/edge/mesh"
	"github.com/nearcast/nearcast/edge/probe"
	"github.com/nearcast/nearcast/edge/site"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
)

// Node is one node of a cluster: an edge, a gateway, or both. One a process.
type Node struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics

	// Set by Run before anything starts that reads them, never changed then. Parts that the node's
	// roles do not need are nil.
	self    model.NodeID
	agent   *agent.Agent
	prober  *probe.Prober    // gateways
	mesh    *mesh.Mesh       //
	site    *site.Site       // edges that balance flows with the other nodes of the site
	kernel  *kernel.Programs // edges
	pool    *backbone.Pool   // edges
	server  *backbone.Server // gateways
	traffic *traffic
	names   *names         // nodes that answer DNS
	clients *clients.Table // edges
	// announce is the edges' part that announces addresses by BGP.
	announce *announce.Announcer
	memory   *backbone.Memory // of all streams

	table    atomic.Pointer[steer.Table]
	snapshot atomic.Pointer[model.Snapshot]
	up       atomic.Bool // all of the above is set and runs
	draining atomic.Bool
	events   chan struct{} // 1: something that the table depends on has changed
	aborted  chan struct{}
	abort    sync.Once
	ended    chan struct{}
	upgrades chan struct{} // 1: the next process is to be started
	released chan struct{} // closed when the process before has let go; nil: there was none

	// Set by Run and handed to the next process.
	lock             *os.File
	httpListener     net.Listener // nil: none
	backboneListener net.Listener // gateways

	held map[flow.Tuple]bool // Run's own: UDP flows that stay here after a hand-over

	// mu makes one change at a time: a snapshot, or a new table. It guards compiled and waiting.
	mu       sync.Mutex
	compiled steer.View // that the table was compiled with
	// doorsShut says that new flows are refused. Guarded by mu.
	doorsShut bool
	waiting   bool // doors stay shut: the process before still has them
}

// New returns a node that does nothing until Run.
func New(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
		cfg.Registry.MustRegister(collectors.NewGoCollector(),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = MaxFlowsDefault
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = DrainTimeoutDefault
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, registry: cfg.Registry,
		events:  make(chan struct{}, 1),
		aborted: make(chan struct{}),
		ended:   make(chan struct{}), upgrades: make(chan struct{}, 1), held: map[flow.Tuple]bool{},
	}
	if cfg.Previous != nil {
		n.released, n.waiting = make(chan struct{}), true
	}
	n.metrics = newMetrics(n)
	return n, nil
}

// RuntimeMemory returns what the garbage collector should be told to stay below, for a limit of the
// whole process.
func RuntimeMemory(limit int64) int64 { return int64(memoryRuntime * float64(limit)) }

// Run runs the node until ctx ends; then it drains: it takes no new flows, and returns when the old
// ones have ended, the drain timeout is over, or Abort is called. All that it started has ended then.
// It returns an error if the node cannot enrol, cannot open its sockets, or one of its parts fails.
func (n *Node) Run(ctx context.Context) (err error) {
	defer close(n.ended)
	if n.lock = n.cfg.Previous.Take(lockName); n.lock == nil {
		if n.lock, err = agent.LockDir(n.cfg.DataDir); err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
	}
	defer n.lock.Close()
	if n.httpListener, err = n.listenHTTP(ctx); err != nil {
		return err
	}
	defer func() {
		if n.kernel != nil {
			err = errors.Join(err, n.kernel.Close()) // of a node that was not built whole
		}
	}()
	parts := newRooms(n.log)
	if n.httpListener != nil && n.cfg.Previous == nil {
		parts.start("metrics", func(ctx context.Context) error { return n.serveHTTP(ctx, n.httpListener) })
	}
	defer func() { err = errors.Join(err, parts.stop()) }()

	creds, err := n.identify(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop before it had begun
		}
		return err
	}
	if err := n.build(creds); err != nil {
		return err
	}
	n.startAll(parts)
	if n.cfg.Previous != nil {
		if err := n.takeOver(ctx, parts); err != nil {
			return fmt.Errorf("take over: %w", err)
		}
	}
	n.serving()
	return n.serve(ctx, parts)
}

// serve waits for the end: of ctx, of a part, or of the flows that are left after an upgrade.
func (n *Node) serve(ctx context.Context, parts *rooms) error {
	for {
		select {
		case err := <-parts.failed:
			n.log.Error("a part of the node failed", "error", err)
			return nil // parts.stop says it
		case <-ctx.Done():
			n.drain(parts.failed)
			return nil
		case <-n.upgrades:
		}
		n.tell(handover.Reloading())
		switch done, err := n.handOver(ctx, parts); {
		case done:
			n.retire(ctx, parts.failed)
			return nil
		case errors.Is(err, errHalfWay):
			return err
		default:
			n.log.Error("upgrade failed; this process goes on", "error", err)
			n.tell("READY=1")
		}
	}
}

// Abort ends a drain at once. It may be called at any time, also more than once.
func (n *Node) Abort() { n.abort.Do(func() { close(n.aborted) }) }

// Ended is closed when Run has returned.
func (n *Node) Ended() <-chan struct{} { return n.ended }

// identify makes the agent and returns this node's credentials, enrolling if need be.
func (n *Node) identify(ctx context.Context) (*identity.Credentials, error) {
	at, err := n.cfg.advertised(n.cfg.BackboneAdvertise, n.cfg.BackboneListen)
	if err != nil {
		return nil, err
	}
	var said []netip.AddrPort
	if n.cfg.GossipAdvertise.IsValid() {
		said = []netip.AddrPort{n.cfg.GossipAdvertise}
	}
	gossip, err := n.cfg.advertised(said, n.cfg.GossipListen)
	if err != nil {
		return nil, err
	}
	n.cfg.BackboneAdvertise, n.cfg.GossipAdvertise = at, gossip[0]
	n.agent, err = agent.New(agent.Config{
		Log: n.log.With("room", "agent"), Metrics: n.registry,
		DataDir: n.cfg.DataDir, Controllers: n.cfg.Controllers, Token: n.cfg.JoinToken,
		Node: n.cfg.node(at, gossip[0]), Version: n.cfg.Version, Crashed: n.cfg.Crashed,
		Hold:  n.released,
		Apply: n.apply, Health: n.health, Paths: n.paths, Notes: n.notes, Explain: n.explain,
		Announce: n.report, Clients: n.measured, OnClients: n.onClients(),
	})
	if err != nil {
		return nil, err
	}
	return n.agent.Identify(ctx)
}

// build makes the parts that this node's roles need.
func (n *Node) build(creds *identity.Credentials) error {
	n.self = model.NodeID(creds.Subject().Name)
	n.memory = backbone.NewMemory(int64(memoryHeld * float64(n.cfg.MemoryMax))) // of 0: its default
	common := backbone.Common{
		Credentials: creds, Memory: n.memory, Log: n.log.With("room", "backbone"), Metrics: n.registry,
	}
	var err error
	if n.cfg.Gateway {
		n.prober, err = probe.New(probe.Config{
			Log: n.log.With("room", "probe"), Metrics: n.registry, OnVerdict: n.verdict,
		})
		if err != nil {
			return err
		}
	}
	n.mesh, err = mesh.New(mesh.Config{
		Log: n.log.With("room", "mesh"), Metrics: n.registry,
		Node: n.self, Cluster: creds.Subject().Cluster,
		Listen: n.cfg.GossipListen, Advertise: n.cfg.GossipAdvertise,
		Meta: mesh.Meta{
			Edge: n.cfg.Edge, Gateway: n.cfg.Gateway, Site: model.SiteName(n.cfg.Site), Version: n.cfg.Version,
		},
		OnAlive: n.alive,
	})
	if err != nil {
		return err
	}
	if err := n.buildTraffic(common); err != nil {
		return err
	}
	if err := n.buildNames(); err != nil {
		return err
	}
	return n.buildAnnounce()
}

// startAll starts the parts, in the order in which a snapshot is applied. The agent is last, since a
// snapshot that it brings touches all others.
func (n *Node) startAll(parts *rooms) {
	if n.prober != nil {
		parts.start("probe", n.prober.Run)
	}
	if n.cfg.Previous == nil { // else when that one has let go of the ports
		parts.start("mesh", n.mesh.Run)
	}
	if n.kernel != nil {
		parts.start("kernel", n.kernel.Run)
	}
	if n.site != nil && n.cfg.Previous == nil {
		parts.start("site", n.site.Run)
	}
	n.traffic.start(parts)
	parts.start("steer", n.recompile)
	if n.cfg.Previous == nil {
		n.startOutward(parts)
	}
	n.up.Store(true)
	parts.start("agent", n.agent.Run)
}

// startOutward starts what one process of a node can do at a time: answering DNS, and speaking BGP.
func (n *Node) startOutward(parts *rooms) {
	if n.names != nil {
		parts.start("dns", n.names.run)
	}
	if n.announce != nil {
		parts.start("announce", n.announce.Run)
	}
}

// alive is a hint of the mesh that a node has come (back) to life.
func (n *Node) alive(id model.NodeID) {
	if n.pool != nil {
		n.pool.Redial(id)
	}
	n.names.poke()
}

// verdict acts on what the prober holds of an endpoint: on this gateway at once, on the edges by the
// tunnels, and on everybody else by the controllers.
func (n *Node) verdict(v probe.Verdict) {
	// While a snapshot takes effect the prober may know endpoints that the gateway does not yet.
	n.mu.Lock()
	n.traffic.verdict(v)
	n.mu.Unlock()
	n.agent.ReportHealth(agent.Health(v))
}

// changed has the table compiled anew.
func (n *Node) changed() {
	n.names.poke()
	select {
	case n.events <- struct{}{}:
	default:
	}
}

// recompile compiles the table when something that it depends on has changed: at once after a quiet
// time, and otherwise once a few milliseconds, or less often where compiling takes long itself.
func (n *Node) recompile(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.events:
		}
		began := time.Now()
		n.refresh()
		pause := max(recompilePause, recompileRest*time.Since(began))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// refresh compiles the table of the present snapshot if this node sees something new. A panic leaves
// the table as it was: the same snapshot has compiled before.
func (n *Node) refresh() {
	defer func() {
		if p := recover(); p != nil {
			n.metrics.compilePanics.Inc()
			n.log.Error("panic while compiling the steering table", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.snapshot.Load()
	if s == nil {
		return
	}
	view := n.view()
	if n.table.Load() != nil && !isNews(n.compiled, view) {
		return
	}
	began := time.Now()
	table := steer.Compile(s, n.self, view)
	n.metrics.compileSeconds.Observe(time.Since(began).Seconds())
	n.setTable(table, view)
}

// setTable swaps the table. n.mu is held.
func (n *Node) setTable(t *steer.Table, v steer.View) {
	v.Previous = nil // or each table would keep all before it
	n.compiled = v
	n.table.Store(t)
	n.traffic.setTable(t)
}
