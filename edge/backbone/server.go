package backbone

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// A Server accepts the tunnels of edges at a gateway. One a process; safe for concurrent use.
type Server struct {
	cfg        ServerConfig
	env        *env
	tls        *tls.Config
	handshakes chan struct{}  // a place for each that may be under way
	running    sync.WaitGroup // of tunnels and connections

	mu       sync.Mutex
	allowed  map[model.NodeID]bool
	tunnels  map[model.NodeID][]*tunnel // oldest first
	groups   map[model.GroupID]bool     // replaced, never changed
	version  uint64                     // of groups
	draining bool
	handed   bool
	closed   bool
	listener net.Listener // of Run
}

// NewServer returns a Server that does nothing until Run.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.ServerTLS == nil {
		cfg.ServerTLS = cfg.Credentials.ServerTLS(identity.KindNode)
	}
	if cfg.PeerID == nil {
		cfg.PeerID = nodeOf
	}
	s := &Server{
		cfg: cfg, env: newEnv(cfg.Common, "server", false), tls: carrierTLS(cfg.ServerTLS),
		handshakes: make(chan struct{}, handshakesMax),
		tunnels:    make(map[model.NodeID][]*tunnel),
	}
	s.env.metrics.tunnels("server", s.count)
	return s, s.env.metrics.register(cfg.Metrics)
}

// nodeOf reads the node's name from its certificate.
func nodeOf(cs tls.ConnectionState) (model.NodeID, error) {
	subject, err := identity.PeerSubject(cs)
	return model.NodeID(subject.Name), err
}

// count returns the numbers of carriers and streams, for metrics.
func (s *Server) count() (carriers, streams int) {
	for _, t := range s.all() {
		carriers, streams = carriers+len(t.carriers()), streams+t.streams.len()
	}
	return carriers, streams
}

// Run accepts tunnels until ctx ends; then it says goodbye to every edge and resets what is open.
// It returns when everything has ended. An error means that it could not listen.
func (s *Server) Run(ctx context.Context) error {
	if !s.cfg.LeaveHost {
		keepWindows(s.env.log)
	}
	l := s.cfg.Listener
	if l == nil {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var err error
		if l, err = lc.Listen(ctx, "tcp", s.cfg.Listen.String()); err != nil {
			return fmt.Errorf("listen for the backbone: %w", err)
		}
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	defer s.running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.running.Go(func() {
		<-ctx.Done()
		_ = l.Close()
		s.closeAll()
	})
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			s.running.Go(func() { s.serve(ctx, conn) })
		case ctx.Err() != nil:
			return nil
		case s.isHanded():
			<-ctx.Done()
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept carriers: %w", err)
		default: // out of descriptors, most likely: it passes
			s.env.log.Warn("carrier not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, t := range s.all() {
		t.close(wire.ResetShutdown, true)
	}
}

func (s *Server) all() (all []*tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.tunnels {
		all = append(all, of...)
	}
	return all
}

// serve takes one connection from its first byte to its end.
func (s *Server) serve(ctx context.Context, raw net.Conn) {
	c, err := s.welcome(ctx, raw)
	log := s.env.log.With("remote", raw.RemoteAddr())
	if err != nil {
		_ = raw.Close()
		s.env.metrics.carriersFailed.Inc()
		log.Debug("carrier refused", "error", err)
		return
	}
	s.env.metrics.carriersBegun.Inc()
	log = log.With("peer", c.t.peer, "carrier", c.number)
	log.Debug("carrier up")
	log.Debug("carrier ended", "error", c.run())
}

// welcome does the handshake, and takes the carrier into its tunnel.
func (s *Server) welcome(ctx context.Context, raw net.Conn) (*carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	select {
	case s.handshakes <- struct{}{}:
		defer func() { <-s.handshakes }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	setupSocket(raw, s.env.CongestionControl, s.env.log)
	conn := tls.Server(below(raw), s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	peer, err := s.cfg.PeerID(conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	var h wire.Hello
	if err := readFrame(conn, wire.TypeHello, h.Decode); err != nil {
		return nil, err
	}
	t, w := s.tunnel(peer, &h)
	if _, err := conn.Write(w.Append(nil)); err != nil {
		return nil, fmt.Errorf("say welcome: %w", err)
	}
	if t == nil {
		return nil, fmt.Errorf("carrier of %s: %v", peer, w.Code)
	}
	_ = raw.SetDeadline(time.Time{})
	c := newCarrier(t, conn, raw, h.Number)
	if !t.join(c) {
		return nil, fmt.Errorf("carrier of %s: its tunnel has just ended", peer)
	}
	if s.isDraining() {
		c.send(func(b []byte) []byte { return wire.AppendGoAway(b, false, wire.ResetShutdown) })
	}
	return c, nil
}

// tunnel finds the tunnel that a HELLO names, or begins it. It returns nil if the carrier is not
// welcome.
func (s *Server) tunnel(peer model.NodeID, h *wire.Hello) (*tunnel, *wire.Welcome) {
	version, ok := h.Negotiate()
	w := &wire.Welcome{Version: version, Window: uint64(s.env.Window)}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !ok:
		w.Code = wire.WelcomeVersion
		return nil, w
	case s.closed:
		w.Code = wire.WelcomeDraining
		return nil, w
	case !s.allowed[peer]:
		w.Code = wire.WelcomeUnauthorized
		return nil, w
	}
	for _, t := range s.tunnels[peer] {
		if t.id == h.Tunnel && !t.isClosed() {
			w.Generation = t.generation
			return t, w
		}
	}
	if len(s.tunnels[peer]) >= tunnelsPerPeerMax && !s.evict(peer) {
		w.Code = wire.WelcomeFull
		return nil, w
	}
	t := newTunnel(s.env, peer, h.Tunnel)
	t.generation = generation()
	t.onStream = s.cfg.HandleStream
	t.announced = s.announced
	t.peerWindow.Store(h.Window)
	t.watcher.sizer = sizer{least: 1, most: carriersMaxDefault}
	s.tunnels[peer] = append(s.tunnels[peer], t)
	s.running.Go(func() { s.watch(t) })
	w.Generation = t.generation
	return t, w
}

// evict gives up the oldest tunnel of a peer that has no carrier: most likely that of a process
// that is no more. The caller holds mu.
func (s *Server) evict(peer model.NodeID) bool {
	for i, t := range s.tunnels[peer] {
		if len(t.carriers()) == 0 {
			s.tunnels[peer] = slices.Delete(slices.Clone(s.tunnels[peer]), i, i+1)
			s.running.Go(func() { t.close(wire.ResetPathLost, false) })
			return true
		}
	}
	return false
}

// generation returns a random number that is not 0.
func generation() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:]) | 1
}

// watch runs a tunnel until it is closed.
func (s *Server) watch(t *tunnel) {
	t.run(context.Background(), nil) // closeAll ends it
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(s.tunnels[t.peer]), func(o *tunnel) bool { return o == t })
	if s.tunnels[t.peer] = left; len(left) == 0 {
		delete(s.tunnels, t.peer)
	}
}

// SetPeers names the nodes of the snapshot: those that are edges and not revoked may connect. The
// tunnels of others are closed at once, and their streams reset. Before the first call nobody may.
func (s *Server) SetPeers(nodes []model.Node) {
	allowed := make(map[model.NodeID]bool, len(nodes))
	for _, n := range nodes {
		if n.Edge && n.State != model.NodeRevoked {
			allowed[n.ID] = true
		}
	}
	var cut []*tunnel
	s.mu.Lock()
	s.allowed = allowed
	for id, of := range s.tunnels {
		if !allowed[id] {
			cut = append(cut, of...)
		}
	}
	s.mu.Unlock()
	for _, t := range cut {
		s.env.log.Info("tunnel closed: its edge may not connect any more", "peer", t.peer)
		t.close(wire.ResetRevoked, true)
	}
}

// AnnounceGroups tells every edge which endpoint groups can (true) and cannot be served here; edges
// that connect later are told then. The map replaces the one before; it is copied.
func (s *Server) AnnounceGroups(groups map[model.GroupID]bool) {
	s.mu.Lock()
	if s.version > 0 && maps.Equal(groups, s.groups) {
		s.mu.Unlock()
		return
	}
	s.groups = maps.Clone(groups)
	s.version++
	s.mu.Unlock()
	for _, t := range s.all() {
		t.sendGroups()
	}
}

func (s *Server) announced() (uint64, map[model.GroupID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version, s.groups
}

// SendDatagrams sends datagram messages to a peer. It never blocks, keeps nothing of msgs, and
// returns how many were taken; the others are dropped and counted.
func (s *Server) SendDatagrams(peer model.NodeID, msgs [][]byte) int {
	s.mu.Lock()
	of := s.tunnels[peer]
	s.mu.Unlock()
	// An edge has several tunnels while it is upgraded: one of each of its processes, which drop what is of
	// flows that they do not know.
	sent, up := 0, false
	for _, t := range of {
		if len(t.carriers()) > 0 {
			up = true
			sent = max(sent, t.sendDatagrams(msgs))
		}
	}
	if up {
		return sent
	}
	s.env.metrics.datagramsDropped.Add(float64(len(msgs)))
	return 0
}

// Drain tells every edge to open no more streams here (GOAWAY). Streams that are open go on.
func (s *Server) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	for _, t := range s.all() {
		for _, c := range t.carriers() {
			c.send(func(b []byte) []byte { return wire.AppendGoAway(b, false, wire.ResetShutdown) })
		}
	}
}

// HandOver stops accepting and tells every edge that this node's next process does: they begin a tunnel with
// that one, and this one's streams go on where they are.
func (s *Server) HandOver() {
	s.mu.Lock()
	s.handed = true
	if s.listener != nil {
		_ = s.listener.Close()
	}
	s.mu.Unlock()
	for _, t := range s.all() {
		for _, c := range t.carriers() {
			c.send(func(b []byte) []byte { return wire.AppendGoAway(b, false, wire.ResetHandover) })
		}
	}
}

func (s *Server) isHanded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}
