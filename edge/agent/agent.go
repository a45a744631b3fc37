// Package agent answers: what does the control plane want of this node, and what must it hear from
// it?
//
//	controller ─▶ Sync stream ─▶ verify ─▶ trial ─▶ Apply ─▶ acknowledge
//	                                                  └────▶ disk (the two newest)
//	disk ─▶ newest intact ─▶ Apply, before any controller is reached
//
// With every controller dead the agent only notes it: the snapshot in use goes on serving, and a
// restart begins from the one on disk. An older revision is never applied over a newer one; a
// snapshot that cannot be decoded, is inconsistent, or makes Apply fail or panic is refused whole,
// and the controller is told why.
package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config configures an Agent. DataDir, Controllers, Node and Apply are needed.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered

	// DataDir holds the identity and the last snapshots. It may be full or read-only: then the node
	// serves, and says in its notes what a restart would lose.
	DataDir string

	Controllers []string   // "host:port" each, at least one
	Token       string     // join token; needed while DataDir has no identity
	Node        model.Node // name, site, roles and addresses as configured; the id is ignored
	Version     string     // build version, for people

	// Hold keeps the agent from talking to controllers until it is closed: while the process before this one
	// still does. The snapshot on disk is applied before. nil: talk at once.
	Hold <-chan struct{}

	// Crashed says that the process before this one ended by a panic or fatal error; see trials.
	Crashed bool

	// Apply makes a snapshot take effect, or returns why it cannot: model.FieldErrors are reported
	// field by field. It is called from one goroutine, with rising revisions.
	Apply func(*model.Snapshot) error

	// Health returns every verdict of this node's prober, Paths what it measures towards other nodes,
	// Notes what it runs without. They are called now and then and must not block. nil: none.
	Health func() []Health
	Paths  func() []Path
	Notes  func() []string
	// Explain says where a client would be brought, for an operator who asks. It must not block.
	Explain func(*pb.ExplainSteerRequest) (*pb.ExplainSteerResponse, error)
	// Clients returns what this node measured of clients' networks. OnClients takes what all nodes did; nil: this
	// node does not go by it. Neither may block.
	Clients   func() []model.ClientNetwork
	OnClients func([]model.ClientNetwork)
	// Announce returns what this node announces by BGP; AnnounceChanged says that it is another one now.
	Announce func() *pb.AnnounceReport
}

// Health is this node's own verdict on one endpoint of one group.
type Health struct {
	Group    model.GroupID
	Endpoint model.EndpointID
	State    model.HealthState
	Reason   string
	Since    time.Time
	Latency  time.Duration // of the last successful check; 0: unknown
}

// Path is what this node measures towards another one.
type Path struct {
	Peer     model.NodeID
	RTT      time.Duration
	Loss     float32 // 0..1
	Carriers int
	UDP, Up  bool
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return errors.New("data directory is not set")
	case len(c.Controllers) == 0:
		return errors.New("no controllers are given")
	case len(cleanAddresses(c.Controllers)) != len(c.Controllers):
		return fmt.Errorf("controllers %q: each must be host:port, and be there once", c.Controllers)
	case c.Node.Name == "" || c.Node.Site == "":
		return errors.New("node name and site are needed")
	case c.Apply == nil:
		return errors.New("nobody applies snapshots")
	}
	return nil
}

// Agent is the node's side of the control plane.
type Agent struct {
	cfg         Config
	metrics     *metrics
	disk        disk
	trials      *trials
	controllers *controllers
	creds       atomic.Pointer[identity.Credentials]
	current     atomic.Pointer[applied]
	wake        chan struct{} // 1: the session has something to send
	toSave      chan stored   // 1, the newest wins

	mu       sync.Mutex // guards below
	session  string     // the controller of the present session, "" without
	acks     []*pb.SnapshotAck
	health   map[healthKey]Health // changes not sent yet
	hello    bool                 // say Hello again
	replies  []*pb.ExplainReply   // not sent yet
	noted    map[string]string    // what this agent itself runs without, by subject
	rejected *applied             // the newest snapshot that was refused
	why      string               // why it was
	traffic  trafficQueue
}

// applied names one snapshot.
type applied struct {
	revision uint64
	hash     [32]byte
	at       time.Time
	fromDisk bool
}

type healthKey struct {
	group    model.GroupID
	endpoint model.EndpointID
}

// New returns an agent that does nothing until Identify and Run.
func New(cfg Config) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		cfg:         cfg,
		disk:        disk{dir: filepath.Join(cfg.DataDir, "snapshots")},
		controllers: newControllers(cfg.Controllers, filepath.Join(cfg.DataDir, "controllers")),
		wake:        make(chan struct{}, 1),
		toSave:      make(chan stored, 1),
		health:      map[healthKey]Health{},
		noted:       map[string]string{},
	}
	a.metrics = newMetrics(cfg.Metrics, a)
	return a, nil
}

// Run applies the newest intact snapshot on disk, then talks to controllers until ctx ends.
// Precondition: Identify has succeeded.
func (a *Agent) Run(ctx context.Context) error {
	if a.creds.Load() == nil {
		return errors.New("agent runs without an identity")
	}
	a.trials = openTrials(filepath.Join(a.cfg.DataDir, "trial.json"), a.cfg.Crashed, time.Now())
	a.restore()
	if a.cfg.Hold != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-a.cfg.Hold:
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.sessions(ctx) })
	g.Go(func() error { return a.renewals(ctx) })
	g.Go(func() error { return a.saver(ctx) })
	g.Go(func() error { return a.trialTimer(ctx) })
	err := g.Wait()
	a.trials.passed() // an end in order
	return err
}

// restore applies the newest snapshot on disk that is intact and not a suspect. If all are suspects
// the newest is applied nevertheless: serving with it now and then is better than never.
func (a *Agent) restore() {
	found, damaged := a.disk.load()
	for _, err := range damaged {
		a.cfg.Log.Error("snapshot is not used", "error", err)
	}
	if len(damaged) > 0 {
		a.note("disk", damaged[0].Error())
	}
	try := func(s stored) bool {
		err := a.apply(s, true)
		if err != nil {
			a.cfg.Log.Error("apply the snapshot on disk", "revision", s.snapshot.Revision, "error", err)
		}
		return err == nil
	}
	var suspects []stored
	for _, s := range found {
		if a.trials.suspect(s.hash) {
			suspects = append(suspects, s)
			a.cfg.Log.Error("snapshot crashed this node and is held back", "revision", s.snapshot.Revision)
			continue
		}
		if try(s) {
			return
		}
	}
	for _, s := range suspects {
		if try(s) {
			return
		}
	}
}

// apply makes a snapshot take effect unless that is refused, and recovers from panics on the way.
func (a *Agent) apply(s stored, fromDisk bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.cfg.Log.Error("panic while applying a snapshot", "revision", s.snapshot.Revision,
				"panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic while applying: %v", p)
		}
	}()
	now := time.Now()
	a.trials.begin(s.hash, now)
	if err := a.cfg.Apply(s.snapshot); err != nil {
		return err
	}
	a.current.Store(&applied{revision: s.snapshot.Revision, hash: s.hash, at: now, fromDisk: fromDisk})
	a.cfg.Log.Info("snapshot applied", "revision", s.snapshot.Revision, "from_disk", fromDisk,
		"took", time.Since(now).Round(time.Microsecond))
	return nil
}

// saver writes applied snapshots to disk, in its own goroutine: a slow disk holds nothing up.
func (a *Agent) saver(ctx context.Context) error {
	var pending *stored
	for {
		var again <-chan time.Time
		if pending != nil {
			again = time.After(saveRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case s := <-a.toSave:
			pending = &s
		case <-again:
		}
		if err := a.disk.save(pending.snapshot.Revision, pending.raw); err != nil {
			a.metrics.diskErrors.Inc()
			a.note("disk", err.Error()+"; a restart would begin with an older snapshot")
			a.cfg.Log.Error("keep the snapshot", "error", err)
			continue
		}
		a.note("disk", "")
		pending = nil
	}
}

// save hands a snapshot to the saver; one that waits there is replaced.
func (a *Agent) save(s stored) {
	for {
		select {
		case a.toSave <- s:
			return
		default:
		}
		select {
		case <-a.toSave:
		default:
		}
	}
}

// trialTimer acquits the snapshot in use once it has lasted, and asks for one that was held back.
func (a *Agent) trialTimer(ctx context.Context) error {
	tick := time.NewTicker(trialPeriod / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c := a.current.Load(); c != nil && time.Since(c.at) >= trialPeriod && a.trials.passed() {
			a.mu.Lock()
			a.hello = true
			a.rejected = nil
			a.mu.Unlock()
			a.poke()
		}
	}
}

// ReportHealth passes a changed verdict on to the controllers; it never blocks. Without a session
// it is forgotten: every session begins with a complete report.
func (a *Agent) ReportHealth(h Health) {
	a.mu.Lock()
	if a.session != "" && len(a.health) < healthMax {
		a.health[healthKey{h.Group, h.Endpoint}] = h
	}
	a.mu.Unlock()
	a.poke()
}

// AnnounceChanged has the controllers told what Announce returns, soon; it never blocks.
func (a *Agent) AnnounceChanged() { a.poke() }

// note records what this agent runs without; an empty text means that all is well again.
func (a *Agent) note(subject, text string) {
	a.mu.Lock()
	if text == "" {
		delete(a.noted, subject)
	} else {
		a.noted[subject] = text
	}
	a.mu.Unlock()
	a.poke()
}

// Notes returns what this agent runs without, for people.
func (a *Agent) Notes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var notes []string
	for _, subject := range slices.Sorted(maps.Keys(a.noted)) {
		notes = append(notes, subject+": "+a.noted[subject])
	}
	return notes
}

// Status is what is to be known of an agent.
type Status struct {
	Controller         string    `json:"controller,omitempty"` // of the present session
	Revision           uint64    `json:"revision"`             // applied; 0: none
	Hash               string    `json:"hash,omitempty"`
	Applied            time.Time `json:"applied,omitzero"`
	FromDisk           bool      `json:"from_disk,omitempty"`
	RejectedRevision   uint64    `json:"rejected_revision,omitempty"` // newest refused
	Rejection          string    `json:"rejection,omitempty"`
	CertificateExpires time.Time `json:"certificate_expires,omitzero"`
}

// Status returns the present state.
func (a *Agent) Status() Status {
	var s Status
	if c := a.current.Load(); c != nil {
		s.Revision, s.Hash, s.Applied = c.revision, hex.EncodeToString(c.hash[:]), c.at
		s.FromDisk = c.fromDisk
	}
	if creds := a.creds.Load(); creds != nil {
		s.CertificateExpires = creds.NotAfter()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.Controller = a.session
	if a.rejected != nil {
		s.RejectedRevision, s.Rejection = a.rejected.revision, a.why
	}
	return s
}

func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
