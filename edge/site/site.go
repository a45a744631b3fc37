// Package site answers: which nodes of this node's site take flows, and how are they reached?
//
//	snapshot ─▶ who belongs to the site, where, with which weight; who drains
//	heartbeats ─▶ who answers, and what it says of itself ─▶ members ─▶ the balancer's table (bpf/balance)
//	routing table, neighbours ─▶ interface and MAC address of each
//
// Gossip is made for wide networks and takes half a minute to declare a node dead; nodes of a site are a
// fraction of a millisecond apart, and ask each other four times a second. A node that does not answer for three
// seconds owns nothing any more and is a suspect: what only it can have is still sent to it; after ten it is gone.
// A node joins when it answers and says that it serves.
//
// Nothing here decides who may belong: that is the snapshot's. Heartbeats are authenticated with the snapshot's
// gossip keys, and so are, by a word made from them, the packets that nodes pass on to each other.
package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/proto/model"
)

// Balancer is what is told about the site: a balance.Balancer.
type Balancer interface {
	Update(balance.Site, time.Time) error
	Alive() error
	Beyond() (rows int, tables bool)
}

// State is what a node says of itself.
type State uint8

// The states.
const (
	Closed   State = 0 // its doors are not open: it takes nothing
	Serving  State = 1
	Draining State = 2 // no new flows
)

func (s State) String() string {
	switch s {
	case Serving:
		return "serving"
	case Draining:
		return "draining"
	}
	return "closed"
}

// Config configures a Site. All but Log and Metrics is needed.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered

	Self     model.NodeID
	Site     model.SiteName
	Balancer Balancer
	State    func() State // of this node, now; it must not block

	// routes finds the way to addresses. nil: the kernel's tables.
	routes func([]netip.Addr) map[netip.Addr]balance.Route
}

// Site is this node's view of its site. One a process; its methods may be called at any time.
type Site struct {
	cfg     Config
	metrics *metrics
	wake    chan struct{} // 1: a snapshot has come

	mu      sync.Mutex // guards what follows
	self    netip.AddrPort
	weight  int
	keys    [][]byte
	peers   map[model.NodeID]*peer
	applied balance.Site
	problem string   // why the balancer does not have the site
	extra   []string // names of the site's nodes for which there is no room, this one perhaps among them
	without bool     // this node is one of them
}

// peer is another node of the site.
type peer struct {
	id      model.NodeID
	name    string
	at      netip.AddrPort
	weight  int
	drained bool // by an operator

	state    State     // as it last said
	answered time.Time // last; zero: never
	// nonces are those of the questions that it may answer now: the present ones and those of the second before.
	nonces  [2]uint64
	rotated time.Time // when the present one was made
}

// New returns a site of this node alone until SetSnapshot.
func New(cfg Config) (*Site, error) {
	if cfg.Self == "" || cfg.Site == "" || cfg.Balancer == nil || cfg.State == nil {
		return nil, errors.New("site: node, site, balancer and state are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.routes == nil {
		cfg.routes = new(finder).routes
	}
	s := &Site{cfg: cfg, wake: make(chan struct{}, 1), peers: map[model.NodeID]*peer{}}
	s.metrics = newMetrics(cfg.Metrics, s)
	return s, nil
}

// SetSnapshot says who belongs to the site: its edges that have an address for it and are not revoked.
func (s *Site) SetSnapshot(snapshot *model.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = snapshot.GossipKeys
	s.self, s.extra, s.without = netip.AddrPort{}, nil, false
	seen := map[model.NodeID]bool{}
	for i, n := range s.nodesOf(snapshot) {
		if i >= balance.MembersMax {
			s.extra = append(s.extra, n.Name)
			s.without = s.without || n.ID == s.cfg.Self
			continue
		}
		if n.ID == s.cfg.Self {
			s.self, s.weight = n.BalanceAddress, n.BalanceWeight
			continue
		}
		seen[n.ID] = true
		p := s.peers[n.ID]
		if p == nil || p.at != n.BalanceAddress {
			p = &peer{id: n.ID, at: n.BalanceAddress}
			s.peers[n.ID] = p
		}
		p.name, p.weight, p.drained = n.Name, n.BalanceWeight, n.State == model.NodeDraining
	}
	for id := range s.peers {
		if !seen[id] {
			delete(s.peers, id)
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// nodesOf are the nodes of this one's site that balance its flows, in the same order on all of them: where there is
// no room for all, they leave out the same.
func (s *Site) nodesOf(snapshot *model.Snapshot) []*model.Node {
	var all []*model.Node
	for i := range snapshot.Nodes {
		n := &snapshot.Nodes[i]
		if n.Site == s.cfg.Site && n.Edge && n.State != model.NodeRevoked && n.BalanceAddress.IsValid() {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *model.Node) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Run exchanges heartbeats and keeps the balancer's table until ctx ends. Without an address of this node in the
// snapshot there is nothing to do, and it waits for one.
func (s *Site) Run(ctx context.Context) error {
	for {
		s.mu.Lock()
		at := s.self
		s.mu.Unlock()
		if at.IsValid() {
			if err := s.serve(ctx, at); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
}

// serve runs at one address, until ctx ends or the snapshot has another one.
func (s *Site) serve(ctx context.Context, at netip.AddrPort) error {
	conn, err := listen(ctx, at)
	if err != nil {
		return err
	}
	s.cfg.Log.Info("balancing among the nodes of the site", "address", at)
	var reading sync.WaitGroup
	reading.Go(func() { s.read(conn) })
	defer reading.Wait()
	defer conn.Close()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		s.ask(conn)
		s.settle(time.Now())
		select {
		case <-ctx.Done():
			s.leave(time.Now())
			return nil
		case <-s.wake:
		case <-tick.C:
		}
		s.mu.Lock()
		moved := s.self != at
		without := !s.self.IsValid()
		s.mu.Unlock()
		if without { // then it is alone
			s.settle(time.Now())
		}
		if moved {
			return nil
		}
	}
}

// listen opens the socket for heartbeats. At an upgrade two processes have one for a moment.
func listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, fmt.Errorf("listen for the site's other nodes (--balance-address): %w", err)
	}
	return c.(*net.UDPConn), nil
}

// settle tells the balancer what the site is now.
func (s *Site) settle(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	site := s.members(now, s.cfg.State())
	err := s.cfg.Balancer.Update(site, now)
	if err == nil {
		err = s.cfg.Balancer.Alive()
	}
	was := s.problem
	s.problem = ""
	if err != nil {
		s.problem = err.Error()
		if s.problem != was {
			s.cfg.Log.Error("the balancer did not take the site's members", "error", err)
		}
		return
	}
	if !reflect.DeepEqual(describe(site), describe(s.applied)) {
		s.cfg.Log.Info("members of the site", "members", describe(site))
		s.metrics.changes.Inc()
	}
	s.applied = site
}

// leave gives this node's rows to the others, as it ends: what is left of the program goes on forwarding.
func (s *Site) leave(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.State() == Serving {
		return // the next process goes on in its name
	}
	if err := s.cfg.Balancer.Update(s.members(now, Closed), now); err != nil {
		s.cfg.Log.Warn("this node's flows are not left to others", "error", err)
	}
}

// members works out who owns flows. It holds mu.
func (s *Site) members(now time.Time, own State) balance.Site {
	out := balance.Site{Keys: dataKeys(s.keys, s.cfg.Site)}
	if !s.self.IsValid() || len(out.Keys) == 0 {
		return balance.Site{}
	}
	all := make([]*peer, 0, len(s.peers))
	var addrs []netip.Addr
	taken := map[netip.AddrPort]bool{s.self: true}
	for _, p := range s.sorted() {
		if taken[p.at] {
			continue // by one that is misconfigured: the first one has it
		}
		taken[p.at] = true
		if p.answered.IsZero() || now.Sub(p.answered) >= goneAfter ||
			p.at.Addr().Is4() != s.self.Addr().Is4() || p.at.Port() != s.self.Port() {
			continue
		}
		all = append(all, p)
		addrs = append(addrs, p.at.Addr())
	}
	ways := s.cfg.routes(addrs)
	// If everybody drains, they are all that there is.
	serving := own == Serving
	for _, p := range all {
		serving = serving || p.owns(now, Serving)
	}
	least := Serving
	if !serving {
		least = Draining
	}
	out.Members = append(out.Members, balance.Member{
		Name: string(s.cfg.Self), Address: s.self, Weight: weightOf(s.weight), Self: true, Owner: own == least,
	})
	for _, p := range all {
		way, ok := ways[p.at.Addr()]
		up := now.Sub(p.answered) < suspectAfter && ok
		out.Members = append(out.Members, balance.Member{
			Name: string(p.id), Address: p.at, Weight: weightOf(p.weight), Owner: up && p.owns(now, least), Up: up,
			Suspect: !up && ok, Route: way,
		})
	}
	return out
}

// sorted returns the peers by their ids. It holds mu.
func (s *Site) sorted() []*peer {
	all := make([]*peer, 0, len(s.peers))
	for _, p := range s.peers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
	return all
}

// owns reports whether new flows may be the peer's, if nodes in the least state may have any.
func (p *peer) owns(now time.Time, least State) bool {
	state := p.state
	if state == Serving && p.drained {
		state = Draining
	}
	return state == least && now.Sub(p.answered) < suspectAfter
}

func weightOf(w int) int {
	if w == 0 {
		return model.BalanceWeightDefault
	}
	return w
}

// MemberStatus is a node of the site, for people.
type MemberStatus struct {
	ID      model.NodeID   `json:"id"`
	Name    string         `json:"name,omitempty"`
	Address netip.AddrPort `json:"address"`
	State   string         `json:"state"` // serving, draining, closed, suspect or gone
	Weight  int            `json:"weight"`
	Self    bool           `json:"self,omitempty"`
}

// Status returns the nodes of the site, this one first.
func (s *Site) Status() []MemberStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.self.IsValid() {
		return nil
	}
	now := time.Now()
	all := []MemberStatus{{ID: s.cfg.Self, Address: s.self, State: s.cfg.State().String(), Weight: weightOf(s.weight),
		Self: true}}
	for _, p := range s.peers {
		state := p.state
		if state == Serving && p.drained {
			state = Draining
		}
		m := MemberStatus{ID: p.id, Name: p.name, Address: p.at, Weight: weightOf(p.weight), State: state.String()}
		switch {
		case p.answered.IsZero() || now.Sub(p.answered) >= goneAfter:
			m.State = "gone"
		case now.Sub(p.answered) >= suspectAfter:
			m.State = "suspect"
		}
		all = append(all, m)
	}
	slices.SortFunc(all[1:], func(a, b MemberStatus) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
