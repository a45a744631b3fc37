// Package gateway answers: which endpoint does a flow get, and how do its bytes get there?
//
//	backbone.Server ─ HandleStream ─▶ choose, dial, answer ─▶ pump (one socket a flow)
//	backbone.Server ─ HandleDatagrams ─▶ session (one socket a flow) ─▶ endpoint
//	     ◀─ messages, batch by batch ◀─ udpio.Poller (one goroutine a CPU for all sockets) ◀─┘
//	this node's own relay ─ DialLocal, HandleDatagrams ─▶ the same
//
// The edge has chosen the group; the gateway chooses the endpoint, by the flow's hash and its own word on
// who is healthy, which is fresher than the snapshot's. An endpoint that does not take a connection is
// followed by another one, and comes last for a moment. Every address is checked against
// model.EndpointRules when it is dialled, since a name may lead anywhere by then.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/overload"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// Config configures a Gateway. Zero values are the defaults, except where noted.
type Config struct {
	// Self is this node. Datagrams that HandleDatagrams gets as coming from it are its own relay's.
	Self model.NodeID

	// MaxFlows bounds the TCP flows, default 262,144; further ones are answered OpenOverloaded.
	// MaxSessions bounds the UDP sessions, default 65,536; further ones are closed as ResetOverload.
	// Each costs a file descriptor.
	MaxFlows    int
	MaxSessions int

	// DialTimeout bounds one try to connect to an endpoint, default 3 s (half of it while there are
	// other endpoints to try); OpenBudget bounds all tries of a flow, default 5 s. Edges wait for 7 s.
	DialTimeout time.Duration
	OpenBudget  time.Duration

	// SendDatagrams sends messages to an edge: backbone.Server's. LocalDatagrams takes those for this
	// node's own relay: relay.UDP's HandleDatagrams. Neither may block or keep the messages. nil: dropped.
	SendDatagrams  func(peer model.NodeID, msgs [][]byte) int
	LocalDatagrams func(peer model.NodeID, msgs [][]byte)

	// OnGroups is told which groups of this node's region can be served, whenever that changes, one
	// call at a time: backbone.Server's AnnounceGroups. It must not call back. The map is the callee's.
	OnGroups func(map[model.GroupID]bool)

	// Resolver looks up endpoints that are names. nil: the system's.
	Resolver *net.Resolver

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Self == "":
		return errors.New("gateway: the node's own id is missing")
	case c.MaxFlows < 0 || c.MaxSessions < 0:
		return fmt.Errorf("gateway: at most %d flows and %d sessions: must not be negative", c.MaxFlows, c.MaxSessions)
	case c.DialTimeout < 0 || c.OpenBudget < 0:
		return fmt.Errorf("gateway: timeouts %v, %v: must not be negative", c.DialTimeout, c.OpenBudget)
	}
	return nil
}

// A Gateway hands flows to endpoints. One a process; safe for concurrent use.
type Gateway struct {
	cfg     Config
	metrics *metrics
	names   *names
	poller  *udpio.Poller[*session]
	trouble troubles
	gate    overload.Gate // of streams
	begun   time.Time

	plan     atomic.Pointer[plan]
	draining atomic.Bool
	flows    atomic.Int64 // over the backbone, and local ones
	streams  pump.Registry[*stream]
	sessions sessions
	claims   claims

	announce sync.Mutex // orders calls of OnGroups; before mu

	mu       sync.Mutex // guards what follows
	verdicts map[model.GroupID]map[model.EndpointID]model.HealthState
	told     map[model.GroupID]bool
	ctx      context.Context // of what runs for flows
	cancel   context.CancelFunc
	running  sync.WaitGroup
	closed   bool
}

// New returns a Gateway that knows no group until Apply. Flows are served before Run, but UDP replies
// only while it runs.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = flowsMaxDefault
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = sessionsMaxDefault
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = dialTimeoutDefault
	}
	if cfg.OpenBudget == 0 {
		cfg.OpenBudget = openBudgetDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	g := &Gateway{
		cfg: cfg, names: newNames(cfg.Resolver), begun: time.Now(),
		verdicts: map[model.GroupID]map[model.EndpointID]model.HealthState{},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.plan.Store(&plan{rules: model.NewEndpointRules(nil)})
	g.metrics = newMetrics(g)
	var err error
	if g.poller, err = udpio.NewPoller(udpio.PollerConfig[*session]{PerLoop: g.newReplies}); err != nil {
		return nil, err
	}
	return g, g.metrics.register(cfg.Metrics)
}

// Run serves until ctx ends; then it ends all flows, and returns when everything has ended.
func (g *Gateway) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { return g.poller.Run(ctx) })
	group.Go(func() error { g.sweep(ctx); return nil })
	<-ctx.Done()
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel()
	g.streams.Each(func(f *stream) { f.End(wire.ResetShutdown) })
	g.running.Wait()
	err := group.Wait()
	g.closeSessions()
	return err
}

// start runs f in a goroutine of its own, unless the Gateway has ended.
func (g *Gateway) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running.Go(f)
	return true
}

// SetDraining has new flows refused (OpenDraining), so that edges take them elsewhere; those for which
// there is no elsewhere come back failing open, and are taken. Those that are there go on. This node's
// own relay is still served.
func (g *Gateway) SetDraining(on bool) { g.draining.Store(on) }

// Flows returns the numbers of TCP flows and UDP sessions.
func (g *Gateway) Flows() (tcp, udp int) { return int(g.flows.Load()), g.sessions.len() }

// Busy returns the numbers of TCP flows, and of UDP sessions in which a datagram passed a moment ago.
func (g *Gateway) Busy(within time.Duration) (tcp, udp int) {
	since := int64(g.now() - within)
	return int(g.flows.Load()), len(g.sessions.which(func(s *session) bool { return s.last.Load() >= since }))
}

// Apply has the Gateway serve by a snapshot. Flows that are there stay with their endpoints; of UDP, those
// whose endpoint is to be told of clients in another way are begun anew.
func (g *Gateway) Apply(s *model.Snapshot) {
	g.announce.Lock()
	defer g.announce.Unlock()
	g.mu.Lock()
	p := compile(s, g.cfg.Self)
	for id, known := range g.verdicts {
		group := p.groups[id]
		for endpoint := range known {
			if group == nil || !group.has(endpoint) {
				delete(known, endpoint)
			}
		}
		if len(known) == 0 {
			delete(g.verdicts, id)
		}
	}
	for id, group := range p.groups {
		group.judge(g.verdicts[id])
	}
	old := g.plan.Swap(p)
	g.mu.Unlock()
	g.retell(old)
	g.tellGroups()
}

// SetVerdict takes this node's own word on an endpoint, which counts at once and before the
// snapshot's. HealthInitial takes an earlier word back.
func (g *Gateway) SetVerdict(id model.GroupID, endpoint model.EndpointID, state model.HealthState) {
	g.announce.Lock()
	defer g.announce.Unlock()
	g.mu.Lock()
	known := g.verdicts[id]
	group := g.plan.Load().groups[id]
	if group == nil || !group.has(endpoint) {
		g.mu.Unlock()
		return // a late word on what was removed
	}
	if known == nil {
		known = map[model.EndpointID]model.HealthState{}
		g.verdicts[id] = known
	}
	known[endpoint] = state
	if state == model.HealthInitial {
		delete(known, endpoint)
	}
	group.judge(known)
	g.mu.Unlock()
	// Most verdicts do not change what a group is; then the others need not be looked at.
	if told, ok := g.told[id]; ok && told == group.picker.Load().Servable() {
		return
	}
	g.tellGroups()
}

// Groups returns which groups of this node's region can be served.
func (g *Gateway) Groups() map[model.GroupID]bool {
	word := map[model.GroupID]bool{}
	for id, group := range g.plan.Load().groups {
		if group.ours && group.ports == nil { // nobody asks about the health of custom routing
			word[id] = group.picker.Load().Servable()
		}
	}
	return word
}

// tellGroups calls OnGroups after a change. The caller holds announce.
func (g *Gateway) tellGroups() {
	word := g.Groups()
	if g.told != nil && maps.Equal(word, g.told) {
		return
	}
	g.told = word
	if g.cfg.OnGroups != nil {
		g.cfg.OnGroups(maps.Clone(word))
	}
}

// plan is a snapshot as the Gateway needs it. All but the pickers is immutable.
type plan struct {
	seed   uint64
	rules  *model.EndpointRules
	groups map[model.GroupID]*groupPlan
}

// groupPlan is one endpoint group.
type groupPlan struct {
	*model.EndpointGroup
	listener *model.Listener
	ours     bool // in this node's region
	direct   bool // its region has no gateway: this node's own relay may use it
	picker   atomic.Pointer[steer.Picker]
	ports    *model.PortTable // of custom routing: where its listener's ports lead; nil: there are endpoints
}

func compile(s *model.Snapshot, self model.NodeID) *plan {
	p := &plan{
		seed: steer.Seed(s.Cluster), rules: model.NewEndpointRules(s),
		groups: make(map[model.GroupID]*groupPlan, len(s.Groups)),
	}
	siteRegion := make(map[model.SiteName]model.RegionName, len(s.Sites))
	for i := range s.Sites {
		siteRegion[s.Sites[i].Name] = s.Sites[i].Region
	}
	var home model.RegionName
	gated := map[model.RegionName]bool{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Gateway && n.State != model.NodeRevoked {
			gated[siteRegion[n.Site]] = true
			if n.ID == self {
				home = siteRegion[n.Site]
			}
		}
	}
	for i := range s.Groups {
		group := &s.Groups[i]
		p.groups[group.ID] = &groupPlan{
			EndpointGroup: group,
			listener:      s.Listener(group.Listener),
			ours:          home != "" && group.Region == home,
			direct:        !gated[group.Region],
		}
	}
	p.mapPorts(s, home)
	return p
}

// mapPorts adds the groups of custom routing in this node's region. The ports of a listener lead where they
// do by a rule that edges and gateways share, so the gateway needs not be told, and believes nobody.
func (p *plan) mapPorts(s *model.Snapshot, home model.RegionName) {
	tables := map[model.ListenerID]*model.PortTable{}
	for i := range s.CustomRoutingGroups {
		g := &s.CustomRoutingGroups[i]
		if home == "" || g.Region != home {
			continue
		}
		if tables[g.Listener] == nil {
			tables[g.Listener] = model.NewPortTable(s, g.Listener)
		}
		p.groups[g.ID] = &groupPlan{
			EndpointGroup: &model.EndpointGroup{ID: g.ID, Listener: g.Listener, Region: g.Region},
			listener:      s.Listener(g.Listener), ours: true, ports: tables[g.Listener],
		}
	}
}

// mapped returns where a flow to an accelerated port goes by the rule of custom routing, as an endpoint that
// is named by its address. ok is false for what is not mapped, denied, or of another group.
func (p *groupPlan) mapped(open *wire.Open) (e *model.Endpoint, port uint16, ok bool) {
	proto := model.TCP
	if flow.Proto(open.Proto) == flow.UDP {
		proto = model.UDP
	}
	m, to, ok := p.ports.Lookup(open.Dst.Port(), proto)
	if !ok || m.Group != p.ID {
		return nil, 0, false
	}
	at := to.Addr().String()
	return &model.Endpoint{ID: model.EndpointID(at), Host: at, ClientAddress: m.ClientAddress}, to.Port(), true
}

func (p *groupPlan) has(id model.EndpointID) bool {
	for i := range p.Endpoints {
		if p.Endpoints[i].ID == id {
			return true
		}
	}
	return false
}

// judge makes the picker anew from this node's own word.
func (p *groupPlan) judge(word map[model.EndpointID]model.HealthState) {
	p.picker.Store(steer.NewPicker(p.EndpointGroup, func(e *model.Endpoint) model.HealthState {
		if state, ok := word[e.ID]; ok {
			return state
		}
		return e.Health
	}))
}
