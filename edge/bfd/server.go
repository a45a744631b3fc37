package bfd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Config configures a Server.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
	// OnChange is told of each change of a session's state, and whether it went down because the other side
	// has failed (see Machine.Failed). It must not block.
	OnChange func(peer netip.Addr, s State, failed bool)
}

// Server watches neighbours. Its methods may be called from any goroutine.
type Server struct {
	cfg     Config
	metrics *metrics

	mu       sync.Mutex
	ctx      context.Context // of Run; nil before and after
	running  sync.WaitGroup
	sessions map[netip.Addr]*held
	sockets  map[bool]*net.UDPConn // by "is IPv6"
	wanted   []Peer
}

// held is a running session.
type held struct {
	*session
	conn *net.UDPConn
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	state State
}

// New returns a server that watches nobody and has opened nothing.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(netip.Addr, State, bool) {}
	}
	s := &Server{cfg: cfg, sessions: map[netip.Addr]*held{}, sockets: map[bool]*net.UDPConn{}}
	s.metrics = newMetrics(cfg.Metrics, s)
	return s
}

// Run watches until ctx ends; sessions then tell their neighbours that nothing has failed.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	err := s.settle()
	s.mu.Unlock()
	if err != nil {
		s.cfg.Log.Warn("BFD", "error", err)
	}
	<-ctx.Done()
	s.mu.Lock()
	s.wanted = nil
	_ = s.settle() // closes all
	s.ctx = nil
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// SetPeers makes the watched neighbours these. An error names those that cannot be watched.
func (s *Server) SetPeers(peers []Peer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = peers
	if s.ctx == nil {
		return nil
	}
	return s.settle()
}

// State returns a neighbour's session; Down if it is not watched.
func (s *Server) State(peer netip.Addr) State {
	s.mu.Lock()
	h := s.sessions[peer]
	s.mu.Unlock()
	if h == nil {
		return Down
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// settle starts and stops sessions until they are those that are wanted. The caller holds mu.
func (s *Server) settle() error {
	want := map[netip.Addr]Peer{}
	families := map[bool]bool{}
	for _, p := range s.wanted {
		want[p.Addr], families[p.Addr.Is6()] = p, true
	}
	for addr, h := range s.sessions {
		if p, ok := want[addr]; !ok || p != h.peer {
			h.stop()
			<-h.done
			delete(s.sessions, addr)
		}
	}
	var errs []error
	for six, conn := range s.sockets {
		if !families[six] {
			conn.Close()
			delete(s.sockets, six)
		}
	}
	for six := range families {
		if s.sockets[six] != nil {
			continue
		}
		conn, err := listen(s.ctx, six)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.sockets[six] = conn
		s.running.Go(func() { s.read(conn) })
	}
	for addr, p := range want {
		if s.sessions[addr] == nil && s.sockets[addr.Is6()] != nil {
			errs = append(errs, s.start(p))
		}
	}
	return errors.Join(errs...)
}

// start starts a session. The caller holds mu.
func (s *Server) start(p Peer) error {
	conn, err := source(s.ctx, p)
	if err != nil {
		return fmt.Errorf("watch %v by BFD: %w", p.Addr, err)
	}
	ctx, stop := context.WithCancel(s.ctx)
	h := &held{conn: conn, stop: stop, done: make(chan struct{}), state: Down}
	to := netip.AddrPortFrom(p.Addr, Port)
	h.session = &session{
		peer: p, machine: NewMachine(rand.Uint32()|1, p.Params), inbox: make(chan Packet, inboxPackets),
		send: func(b []byte) {
			if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
				s.metrics.dropped.WithLabelValues("send").Inc()
			}
		},
		change: func(now State, why Diag, failed bool) {
			h.mu.Lock()
			h.state = now
			h.mu.Unlock()
			s.metrics.changes.Inc()
			s.cfg.Log.Info("BFD session", "peer", p.Addr, "state", now.String(), "diag", why,
				"failed", failed)
			s.cfg.OnChange(p.Addr, now, failed)
		},
	}
	s.sessions[p.Addr] = h
	s.running.Go(func() {
		defer close(h.done)
		defer conn.Close()
		h.run(ctx)
	})
	return nil
}

// read takes packets of one family until the socket is closed.
func (s *Server) read(conn *net.UDPConn) {
	buf, oob := make([]byte, packetBytesMax), make([]byte, 64)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.metrics.dropped.WithLabelValues("read").Inc()
			time.Sleep(time.Millisecond) // an error that repeats must not spin
			continue
		}
		if hops(oob[:oobn]) != 255 { // RFC 5881 5: it came over a router
			s.metrics.dropped.WithLabelValues("ttl").Inc()
			continue
		}
		p, err := Parse(buf[:n])
		if err != nil {
			s.metrics.dropped.WithLabelValues("malformed").Inc()
			continue
		}
		s.mu.Lock()
		h := s.sessions[from.Addr().Unmap().WithZone("")]
		s.mu.Unlock()
		if h == nil {
			s.metrics.dropped.WithLabelValues("stranger").Inc()
			continue
		}
		select {
		case h.inbox <- p:
		default:
			s.metrics.dropped.WithLabelValues("inbox full").Inc()
		}
	}
}

// hops returns the TTL or hop limit that a packet arrived with, 0 if the kernel did not say.
func hops(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range msgs {
		ttl := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL
		limit := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
		if (ttl || limit) && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// listen opens the socket that packets of one family arrive at.
func listen(ctx context.Context, six bool) (*net.UDPConn, error) {
	network, level, option := "udp4", unix.IPPROTO_IP, unix.IP_RECVTTL
	if six {
		network, level, option = "udp6", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return onSocket(c, func(fd int) error { return unix.SetsockoptInt(fd, level, option, 1) })
	}}
	conn, err := lc.ListenPacket(ctx, network, fmt.Sprintf(":%d", Port))
	if err != nil {
		return nil, fmt.Errorf("listen for BFD (does another BFD daemon run here?): %w", err)
	}
	return conn.(*net.UDPConn), nil
}

// source opens the socket that packets to a neighbour leave from.
func source(ctx context.Context, p Peer) (*net.UDPConn, error) {
	network, local := "udp4", netip.IPv4Unspecified()
	if p.Addr.Is6() {
		network, local = "udp6", netip.IPv6Unspecified()
	}
	if p.Local.IsValid() {
		local = p.Local
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return onSocket(c, func(fd int) error {
			if p.Addr.Is6() {
				return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, classControl))
			}
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255),
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, classControl))
		})
	}}
	var conn net.PacketConn
	var err error
	for range sourceTries {
		port := sourceMin + rand.IntN(1<<16-sourceMin)
		conn, err = lc.ListenPacket(ctx, network, netip.AddrPortFrom(local, uint16(port)).String())
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// classControl is the traffic class of routing protocols, CS6 (RFC 4594).
const classControl = 0xc0

func onSocket(c syscall.RawConn, f func(fd int) error) (err error) {
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
