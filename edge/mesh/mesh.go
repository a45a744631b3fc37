// Package mesh answers: which nodes are alive, as the nodes themselves tell each other?
//
// It is gossip (hashicorp/memberlist with its WAN profile), encrypted with the keys of the snapshot
// and labelled with the cluster's name. It never decides alone: tunnels are built only to nodes that
// the snapshot authorises, and traffic leaves a gateway on the tunnel's own evidence. What the mesh
// adds is speed: a node that has come back is dialled again at once, and not when a backoff ends.
package mesh

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/proto/model"
)

// Config configures a Mesh. Node, Cluster and Listen are needed.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered

	Node    model.NodeID // this node's id, its name among the members
	Cluster string       // the label on every packet: other clusters' are ignored

	// Listen is the address and port for gossip, TCP and UDP. Port 0 takes a free one.
	Listen netip.AddrPort
	// Advertise is where others reach Listen. Zero: Listen, which must then be a specific address.
	Advertise netip.AddrPort

	Meta Meta // what to say about this node; its region comes from the snapshot

	// Networks that gossip is accepted from. Empty: any; the keys protect it.
	Networks []netip.Prefix

	// OnAlive is called when a node became alive (again), from Run's goroutine, holding no lock.
	OnAlive func(model.NodeID)

	profile func(*memberlist.Config) // tests: a faster pace
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Node == "":
		return fmt.Errorf("mesh: node id is empty")
	case c.Cluster == "" || len(c.Cluster) > memberlist.LabelMaxSize:
		return fmt.Errorf("mesh: cluster name must have 1 to %d bytes", memberlist.LabelMaxSize)
	case !c.Listen.IsValid():
		return fmt.Errorf("mesh: listening address is not set")
	case !c.Advertise.IsValid() && c.Listen.Addr().IsUnspecified():
		return fmt.Errorf("mesh: advertised address is needed when listening on %v", c.Listen)
	}
	return nil
}

// admits reports whether gossip from addr is read at all.
func (c *Config) admits(addr netip.Addr) bool {
	addr = addr.Unmap()
	return len(c.Networks) == 0 ||
		slices.ContainsFunc(c.Networks, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Member is one node that is alive, as gossip has it.
type Member struct {
	ID      model.NodeID
	Address netip.AddrPort // gossip
	Meta    Meta
	Since   time.Time // first seen alive, since when it was last not
}

// Mesh is this node's membership. Its methods may be called at any time from any goroutine.
type Mesh struct {
	cfg       Config
	metrics   *metrics
	wake      chan struct{} // 1: something for Run to look at
	left      atomic.Bool   // Run is ending: what memberlist still calls is ignored
	abandoned atomic.Bool

	// Lock order: memberlist calls the delegate with its own lock held, so under mu nothing of
	// memberlist is called.
	mu       sync.Mutex
	peers    map[model.NodeID]netip.AddrPort // of the snapshot, without revoked ones and this node
	keys     [][]byte
	meta     Meta
	metaNew  bool // meta has changed and others have not been told
	members  map[model.NodeID]Member
	arrivals []model.NodeID // for OnAlive
}

// New returns a mesh that does nothing until Run runs and a snapshot with keys is set.
func New(cfg Config) (*Mesh, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnAlive == nil {
		cfg.OnAlive = func(model.NodeID) {}
	}
	m := &Mesh{
		cfg:     cfg,
		wake:    make(chan struct{}, 1),
		meta:    cfg.Meta,
		members: map[model.NodeID]Member{},
	}
	m.metrics = newMetrics(cfg.Metrics, m)
	return m, nil
}

// SetSnapshot sets who belongs to the mesh and by which keys it speaks. The keys rotate without a
// gap as the snapshot's rule says: the first encrypts, all decrypt.
func (m *Mesh) SetSnapshot(s *model.Snapshot) {
	peers := make(map[model.NodeID]netip.AddrPort, len(s.Nodes))
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.ID != m.cfg.Node && n.State != model.NodeRevoked {
			peers[n.ID] = n.GossipAddress
		}
	}
	var region model.RegionName
	if site := s.Site(m.cfg.Meta.Site); site != nil {
		region = site.Region
	}
	m.mu.Lock()
	m.peers, m.keys = peers, s.GossipKeys
	m.metaNew = m.metaNew || m.meta.Region != region
	m.meta.Region = region
	m.mu.Unlock()
	m.poke()
}

// SetDraining tells the others that this node takes no new flows, or that it does again.
func (m *Mesh) SetDraining(draining bool) {
	m.mu.Lock()
	m.metaNew = m.metaNew || m.meta.Draining != draining
	m.meta.Draining = draining
	m.mu.Unlock()
	m.poke()
}

// SetShedding tells the others that this node is nearly full, or that it is not any more.
func (m *Mesh) SetShedding(shedding bool) {
	m.mu.Lock()
	m.metaNew = m.metaNew || m.meta.Shedding != shedding
	m.meta.Shedding = shedding
	m.mu.Unlock()
	m.poke()
}

// SetAnnouncing tells the others what this node announces by BGP; see Meta.
func (m *Mesh) SetAnnouncing(announcing, wantsOut bool) {
	m.mu.Lock()
	m.metaNew = m.metaNew || m.meta.Announcing != announcing || m.meta.WantsOut != wantsOut
	m.meta.Announcing, m.meta.WantsOut = announcing, wantsOut
	m.mu.Unlock()
	m.poke()
}

// Members returns the nodes that gossip has for alive, this one not among them, sorted by id.
func (m *Mesh) Members() []Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Member
	for id, member := range m.members {
		if _, ok := m.peers[id]; ok { // gossip may still know who was revoked
			all = append(all, member)
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Abandon has Run end without a farewell: this node's next process goes on in its name.
func (m *Mesh) Abandon() { m.abandoned.Store(true) }

func (m *Mesh) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run waits for a snapshot with keys, takes part in the mesh, and when ctx ends says farewell and
// closes everything. It returns an error if the sockets cannot be opened.
func (m *Mesh) Run(ctx context.Context) error {
	for {
		if _, keys, _ := m.wanted(); len(keys) > 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
	}
	trans, err := newTransport(&m.cfg, m.metrics)
	if err != nil {
		return err
	}
	mark := newMark(m)
	var list *memberlist.Memberlist
	var ring *memberlist.Keyring
	mark.do(ctx, func() { list, ring, err = m.create(trans) })
	if err != nil {
		trans.Shutdown()
		return fmt.Errorf("start gossip: %w", err)
	}
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		m.join(ctx, list)
	}()
	m.serve(ctx, list, ring)

	if m.abandoned.Load() {
		m.cfg.Log.Debug("the mesh is left to the next process")
	} else if err := list.Leave(leaveWait); err != nil {
		m.cfg.Log.Debug("leave the mesh", "error", err)
	}
	m.left.Store(true)
	err = list.Shutdown()
	<-joined
	mark.wait(stopWait)
	return err
}

// create starts memberlist.
func (m *Mesh) create(t *transport) (*memberlist.Memberlist, *memberlist.Keyring, error) {
	_, keys, _ := m.wanted()
	ring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return nil, nil, err
	}
	cfg := memberlist.DefaultWANConfig()
	cfg.Name = string(m.cfg.Node)
	cfg.Label = m.cfg.Cluster
	cfg.Transport = t
	cfg.Keyring = ring
	cfg.GossipVerifyIncoming, cfg.GossipVerifyOutgoing = true, true
	cfg.TCPTimeout = streamTimeout
	cfg.DeadNodeReclaimTime = reclaimAfter
	cfg.Logger = log.New(newLogWriter(m), "", 0)
	d := &delegate{m}
	cfg.Delegate, cfg.Events, cfg.Alive, cfg.Conflict = d, d, d, d
	if m.cfg.profile != nil {
		m.cfg.profile(cfg)
	}
	list, err := memberlist.Create(cfg)
	return list, ring, err
}

// wanted returns what the snapshot asks for, and takes the news about the metadata.
func (m *Mesh) wanted() (peers map[model.NodeID]netip.AddrPort, keys [][]byte, metaNew bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	metaNew, m.metaNew = m.metaNew, false
	return m.peers, m.keys, metaNew
}

// serve passes changes on until ctx ends.
func (m *Mesh) serve(ctx context.Context, list *memberlist.Memberlist, ring *memberlist.Keyring) {
	for {
		_, keys, metaNew := m.wanted()
		if err := setKeys(ring, keys); err != nil {
			m.cfg.Log.Warn("gossip keys of the snapshot", "error", err)
		}
		if metaNew {
			_ = list.UpdateNode(updateWait) // the only error is that others have not been told yet
		}
		m.mu.Lock()
		arrivals := m.arrivals
		m.arrivals = nil
		m.mu.Unlock()
		for _, id := range arrivals {
			m.cfg.OnAlive(id)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		}
	}
}

// setKeys makes a ring hold exactly keys, the first of them primary. An empty list changes nothing:
// speaking in clear is never right.
func setKeys(ring *memberlist.Keyring, keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	for _, k := range keys {
		if err := ring.AddKey(k); err != nil {
			return err
		}
	}
	has := func(key []byte) bool {
		return slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(key) })
	}
	for _, old := range slices.Clone(ring.GetKeys()) {
		if has(old) {
			continue
		}
		// RemoveKey shifts what lies behind the key in the very array that readers walk without a
		// lock. Using every other key once moves this one to the end, where nothing is shifted.
		for _, k := range keys {
			if err := ring.UseKey(k); err != nil {
				return err
			}
		}
		for _, k := range slices.Clone(ring.GetKeys()) {
			if string(k) != string(old) {
				if err := ring.UseKey(k); err != nil {
					return err
				}
			}
		}
		if err := ring.RemoveKey(old); err != nil {
			return err
		}
	}
	return ring.UseKey(keys[0])
}
