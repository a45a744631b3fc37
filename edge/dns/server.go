package dns

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/udpio"
)

// Config of a Server.
type Config struct {
	// Listen is where to answer, by UDP and TCP; port 0 takes a free one, the same for both. The
	// unspecified IPv6 address takes IPv4, too. Needed.
	Listen []netip.AddrPort
	// TLSListen and TLS are for DNS over TLS (RFC 7858). Empty: none.
	TLSListen []netip.AddrPort
	TLS       *tls.Config
	// NSID says who answers (RFC 5001): the node's name. At most 64 bytes are used.
	NSID string
	// Loops is how many sockets and goroutines each UDP address has; 0: GOMAXPROCS.
	Loops int
	// Rate is how many like answers a second a network gets by UDP without a cookie; 0: DefaultRate,
	// negative: no limit.
	Rate float64

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong.
func (c *Config) Validate() error {
	if len(c.Listen) == 0 {
		return errors.New("dns: no address to answer at")
	}
	if len(c.TLSListen) > 0 && c.TLS == nil {
		return errors.New("dns: TLS without a certificate")
	}
	return nil
}

// Server answers DNS queries. Set gives it what to answer; before that it says nothing.
type Server struct {
	cfg    Config
	log    *slog.Logger
	nsid   []byte
	state  atomic.Pointer[State]
	counts []*counters
	local  [cookieSecretLen]byte // where the fleet has no cookie secrets
	conns  connections
	quiet  atomic.Int64 // when a panic was logged last

	udp  []*udpio.Conn
	tcp  []net.Listener
	tls  []net.Listener
	addr []netip.AddrPort
}

// New opens the sockets. Nothing is answered before Run; Close undoes New if Run is never called.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Loops == 0 {
		cfg.Loops = runtime.GOMAXPROCS(0)
	}
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	s := &Server{cfg: cfg, log: cfg.Log, nsid: []byte(cfg.NSID[:min(len(cfg.NSID), 64)])}
	rand.Read(s.local[:])
	for _, at := range cfg.Listen {
		if err := s.open(at); err != nil {
			s.Close()
			return nil, err
		}
	}
	for _, at := range cfg.TLSListen {
		ln, err := listenTCP(at)
		if err != nil {
			s.Close()
			return nil, err
		}
		s.tls = append(s.tls, tls.NewListener(ln, cfg.TLS))
	}
	s.counts = append(s.counts, new(counters)) // of TCP
	if cfg.Metrics != nil {
		if err := s.register(cfg.Metrics); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// open opens UDP and TCP sockets at one address. SO_REUSEPORT lets the next process open the same ones
// before this one closes them, so that an upgrade loses no query.
func (s *Server) open(at netip.AddrPort) error {
	tries := 1
	if at.Port() == 0 {
		tries = 20 // a port that is free for UDP may not be for TCP
	}
	for {
		tries--
		conns, err := udpio.ListenGroup(at, s.cfg.Loops, udpio.Options{NoGRO: true, NoGSO: true, NoFragment: true})
		if err != nil {
			return err
		}
		local := netip.AddrPortFrom(at.Addr(), conns[0].LocalAddr().Port())
		ln, err := listenTCP(local)
		if err == nil {
			s.udp, s.tcp, s.addr = append(s.udp, conns...), append(s.tcp, ln), append(s.addr, local)
			for range conns {
				s.counts = append(s.counts, new(counters))
			}
			return nil
		}
		for _, c := range conns {
			c.Close()
		}
		if tries == 0 {
			return err
		}
	}
}

func listenTCP(at netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			// Clients speak first; a connection without a query need not wake anybody.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_DEFER_ACCEPT, 3)
		})
		return errors.Join(controlErr, err)
	}}
	lc.SetMultipathTCP(false)
	network := "tcp"
	if at.Addr().Is4() {
		network = "tcp4"
	} else if !at.Addr().IsUnspecified() {
		network = "tcp6"
	}
	ln, err := lc.Listen(context.Background(), network, at.String())
	if err != nil {
		return nil, fmt.Errorf("listen tcp %v: %w", at, err)
	}
	return ln, nil
}

// Addrs returns where the server answers by UDP and TCP.
func (s *Server) Addrs() []netip.AddrPort { return s.addr }

// TLSAddrs returns where it answers over TLS.
func (s *Server) TLSAddrs() (all []netip.AddrPort) {
	for _, ln := range s.tls {
		all = append(all, ln.Addr().(*net.TCPAddr).AddrPort())
	}
	return all
}

// Set gives the server what to answer from now on.
func (s *Server) Set(st State) {
	if len(st.Cookies) == 0 {
		st.Cookies = [][cookieSecretLen]byte{s.local}
	}
	s.state.Store(&st)
}

// State returns what the server answers now; nil: nothing yet.
func (s *Server) State() *State { return s.state.Load() }

// Close closes the sockets.
func (s *Server) Close() {
	for _, c := range s.udp {
		c.Close()
	}
	for _, ln := range append(append([]net.Listener{}, s.tcp...), s.tls...) {
		ln.Close()
	}
}

// Run answers until ctx ends; the sockets are closed then.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		s.Close()
		s.conns.closeAll()
	})
	defer stop()
	for i, c := range s.udp {
		a := s.newAnswerer(s.counts[i])
		g.Go(func() error { return s.serveUDP(ctx, c, a) })
	}
	counts := s.counts[len(s.counts)-1]
	for _, ln := range s.tcp {
		g.Go(func() error { return s.accept(ctx, ln, overTCP, counts) })
	}
	for _, ln := range s.tls {
		g.Go(func() error { return s.accept(ctx, ln, overTLS, counts) })
	}
	err := g.Wait()
	s.conns.wait()
	return err
}

func (s *Server) newAnswerer(c *counters) *answerer {
	return &answerer{s: s, count: c, rate: newLimiter(s.cfg.Rate / float64(s.cfg.Loops)), now: time.Now}
}

// serveUDP answers what one socket receives.
func (s *Server) serveUDP(ctx context.Context, c *udpio.Conn, a *answerer) error {
	var in [batch]udpio.Packet
	out := make([]udpio.Packet, 0, batch)
	arena := make([]byte, 0, batch*(udpSizeMax+256))
	writer := udpio.NewWriter()
	var now time.Time
	a.now = func() time.Time { return now }
	for {
		n, err := c.ReadBatch(in[:])
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("read dns: %w", err)
			}
			continue // an ICMP error of an earlier answer
		}
		now = time.Now() // once a batch: the clock costs as much as a lookup
		out, arena = out[:0], arena[:0]
		for i := range in[:n] {
			p := &in[i]
			a.count.udp.Add(1)
			if p.Remote.Port() == 0 {
				continue // nobody can be there
			}
			begin := len(arena)
			arena = a.answer(arena, p.Data, p.Remote.Addr(), overUDP)
			if len(arena) > begin {
				out = append(out, udpio.Packet{Data: arena[begin:len(arena):len(arena)], Remote: p.Remote, Local: p.Local})
			}
		}
		for rest := out; len(rest) > 0; {
			sent, err := writer.Write(c, rest)
			rest = rest[sent:]
			if err != nil && len(rest) > 0 { // that one cannot be sent: the client asks again
				a.count.unsent.Add(1)
				rest = rest[1:]
			}
		}
	}
}

// panicked logs a bug, at most once a second.
func (s *Server) panicked(p any) {
	now := time.Now().Unix()
	if s.quiet.Swap(now) != now {
		s.log.Error("panic while answering; the query is dropped", "panic", p, "stack", string(debug.Stack()))
	}
}

// connections are the open TCP and TLS connections.
type connections struct {
	mu     sync.Mutex // guards below
	open   map[*connection]struct{}
	source map[netip.Addr]int
	closed bool
	group  sync.WaitGroup
}
