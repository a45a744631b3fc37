package backbone

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// A Pool keeps a tunnel open to each gateway that the snapshot authorises, and opens streams in
// them. One a process; safe for concurrent use.
type Pool struct {
	cfg PoolConfig
	env *env

	peers   atomic.Pointer[map[model.NodeID]*peer] // replaced by Run only
	changes chan struct{}                          // a peer has changed; capacity 1
	resized chan struct{}                          // wanted has changed; capacity 1

	mu        sync.Mutex
	wanted    map[model.NodeID]model.Node
	listeners []func()
}

// NewPool returns a Pool that does nothing until Run.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.CarriersMax == 0 {
		cfg.CarriersMax = max(carriersMaxDefault, cfg.CarriersMin)
	}
	if cfg.CarriersMin == 0 {
		cfg.CarriersMin = min(carriersMinDefault, cfg.CarriersMax)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.ClientTLS == nil {
		creds := cfg.Credentials
		cfg.ClientTLS = func(peer model.NodeID) *tls.Config {
			return creds.ClientTLS(identity.Subject{Kind: identity.KindNode, Name: string(peer)})
		}
	}
	p := &Pool{
		cfg: cfg, env: newEnv(cfg.Common, "pool", true),
		changes: make(chan struct{}, 1), resized: make(chan struct{}, 1),
	}
	p.peers.Store(&map[model.NodeID]*peer{})
	p.env.metrics.tunnels("pool", func() (carriers, streams int) {
		for _, s := range p.Peers() {
			carriers, streams = carriers+s.Carriers, streams+s.Streams
		}
		return carriers, streams
	})
	return p, p.env.metrics.register(cfg.Metrics)
}

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false) // Multipath TCP has no NOTSENT_LOWAT, no BBR and other TCP_INFO
	return d.DialContext(ctx, "tcp", addr.String())
}

// Run keeps tunnels to the peers until ctx ends; then it says goodbye to them and resets what is
// open. It returns when everything has ended.
func (p *Pool) Run(ctx context.Context) error {
	if !p.cfg.LeaveHost {
		keepWindows(p.env.log)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer func() {
		for _, peer := range *p.peers.Load() {
			peer.stop()
		}
	}()
	running.Go(func() { p.notify(ctx) })
	for {
		p.resize(ctx, &running)
		select {
		case <-ctx.Done():
			return nil
		case <-p.resized:
		}
	}
}

// resize starts and stops peers until they are those that are wanted.
func (p *Pool) resize(ctx context.Context, running *sync.WaitGroup) {
	p.mu.Lock()
	wanted := p.wanted
	p.mu.Unlock()
	peers := maps.Clone(*p.peers.Load())
	for id, peer := range peers {
		if _, ok := wanted[id]; !ok {
			peer.stop()
			delete(peers, id)
		}
	}
	var started []func()
	for id, node := range wanted {
		if known := peers[id]; known != nil {
			known.addresses.Store(&node.BackboneAddresses)
			continue
		}
		peer, run := newPeer(ctx, p, id)
		peer.addresses.Store(&node.BackboneAddresses)
		peers[id] = peer
		started = append(started, run)
	}
	p.peers.Store(&peers)
	for _, run := range started {
		running.Go(run)
	}
	p.change()
}

// notify calls the listeners after changes.
func (p *Pool) notify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.changes:
		}
		p.mu.Lock()
		listeners := slices.Clone(p.listeners)
		p.mu.Unlock()
		for _, f := range listeners {
			f()
		}
		select { // what changes meanwhile is told together
		case <-ctx.Done():
			return
		case <-time.After(notifyEvery):
		}
	}
}

func (p *Pool) change() {
	select {
	case p.changes <- struct{}{}:
	default:
	}
}

// SetPeers names the nodes of the snapshot. The Pool keeps tunnels to those that are gateways, not
// revoked, and not itself; the streams of others are reset. It may be called before Run, and
// returns at once.
func (p *Pool) SetPeers(nodes []model.Node) {
	wanted := make(map[model.NodeID]model.Node)
	for _, n := range nodes {
		if n.Gateway && n.State != model.NodeRevoked && n.ID != p.cfg.Self && len(n.BackboneAddresses) > 0 {
			wanted[n.ID] = n
		}
	}
	p.mu.Lock()
	p.wanted = wanted
	p.mu.Unlock()
	select {
	case p.resized <- struct{}{}:
	default:
	}
}

// Open begins a stream to a peer and returns at once: what is written to it leaves behind the Open,
// and no round trip is waited for. It returns ErrNoPath when no carrier to the peer answers. A
// draining peer is not refused here: who opens looks at PeerState.
func (p *Pool) Open(id model.NodeID, o wire.Open, sink Sink) (*Stream, error) {
	peer := (*p.peers.Load())[id]
	if peer == nil {
		return nil, ErrNoPath
	}
	return peer.tunnel.Load().dial(&o, sink)
}

// Peer returns what is known about a peer; false for a node that is none. It takes no lock.
func (p *Pool) Peer(id model.NodeID) (PeerState, bool) {
	peer := (*p.peers.Load())[id]
	if peer == nil {
		return PeerState{}, false
	}
	return *peer.state.Load(), true
}

// Peers returns what is known about every peer.
func (p *Pool) Peers() map[model.NodeID]PeerState {
	peers := *p.peers.Load()
	all := make(map[model.NodeID]PeerState, len(peers))
	for id, peer := range peers {
		s := *peer.state.Load()
		s.Streams = peer.tunnel.Load().streams.len()
		all[id] = s
	}
	return all
}

// GroupState returns a gateway's own word about the endpoint groups it can (true) or cannot serve.
// A group that is missing is one the gateway has said nothing about. The map must not be changed;
// nil: nothing was heard yet. It takes no lock.
func (p *Pool) GroupState(id model.NodeID) map[model.GroupID]bool {
	if peer := (*p.peers.Load())[id]; peer != nil {
		if groups := peer.tunnel.Load().groups.Load(); groups != nil {
			return *groups
		}
	}
	return nil
}

// OnChange has f called after peers came or went, changed their state (RTT: by more than a tenth),
// or told new group states; several changes may be told as one. f is called by one goroutine of Run
// and should not block it for long.
func (p *Pool) OnChange(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners = append(p.listeners, f)
}

// Redial has what is missing towards a peer dialled at once and not when a backoff ends: for hints
// that the peer has come back.
func (p *Pool) Redial(id model.NodeID) {
	peer := (*p.peers.Load())[id]
	if peer == nil {
		return
	}
	peer.mu.Lock()
	peer.backoff, peer.nextDial = 0, 0
	peer.mu.Unlock()
	peer.tunnel.Load().wake()
}

// SendDatagrams sends datagram messages to a peer. It never blocks, keeps nothing of msgs, and
// returns how many were taken; the others are dropped and counted.
func (p *Pool) SendDatagrams(id model.NodeID, msgs [][]byte) int {
	peer := (*p.peers.Load())[id]
	if peer == nil {
		p.env.metrics.datagramsDropped.Add(float64(len(msgs)))
		return 0
	}
	return peer.tunnel.Load().sendDatagrams(msgs)
}
