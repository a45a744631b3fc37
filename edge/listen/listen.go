// Package listen answers: on which sockets do the accelerated addresses of this node take flows?
//
//	Apply(bindings) ─▶ one TCP socket a port, its accept loop ─▶ HandleTCP
//	                └▶ UDP sockets (one a CPU for each port) ─▶ udpio.Poller ─▶ HandleUDP, by batches
//
// These are plain sockets, bound to one address each, so that a socket's own address is what the client
// meant. Addresses need not be this machine's yet (IP_FREEBIND). Apply leaves sockets alone that stay;
// those that cannot be opened are tried again until they can.
//
// With a dispatcher (package bpf/dispatch) a few sockets take everything, whatever the number of addresses
// and ports, and Apply changes rules in the kernel: see shared.go.
package listen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
)

// Binding is ports of an address that a listener takes flows on.
type Binding struct {
	Listener model.ListenerID // for messages
	Proto    flow.Proto
	Addr     netip.Addr
	Ports    model.PortRange

	// Spare says that ports for which there is no room among plain sockets stay closed, and are told of by
	// Short, where those of other bindings would be an error. There may be very many of them.
	Spare bool
}

// Config configures a Set.
type Config struct {
	// HandleTCP takes a connection: it is the callee's from then on. It must not block. Its local
	// address is what the client meant. Required.
	HandleTCP func(*net.TCPConn)

	// HandleUDP takes a batch of datagrams, valid during the call. Their Local is what the client meant,
	// at the port of the socket, from which answers are sent. It must not block. Required.
	HandleUDP func(*udpio.Conn, []udpio.Packet)

	// Dispatch is the kernel's dispatcher, attached. nil: plain sockets.
	Dispatch *dispatch.Dispatcher

	// Mark is called with each listening TCP socket before it is bound: for the kernel program that looks
	// after clients' connections. nil: nobody wants it.
	Mark func(syscall.RawConn) error

	// MaxSegment bounds the TCP segments that clients are told to send, in bytes. 0: by the interface.
	MaxSegment int

	// Inherited returns the listening TCP socket of an address that the process before this one left, or nil.
	// nil: there was none.
	Inherited func(at netip.AddrPort) (*net.TCPListener, error)

	// AcceptSockets is how many sockets of each family accept connections with a dispatcher. Default one for
	// eight CPUs, at most 64.
	AcceptSockets int

	// PortsMax bounds plain sockets: address × port × protocol. Default 4,096.
	PortsMax int

	// ManageAddresses adds bound addresses to the loopback interface when no interface has them, and
	// removes them when they are no longer bound. It needs CAP_NET_ADMIN.
	ManageAddresses bool

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.HandleTCP == nil || c.HandleUDP == nil:
		return errors.New("listen: nobody handles connections or datagrams")
	case c.AcceptSockets < 0 || c.AcceptSockets > AcceptSocketsMax:
		return fmt.Errorf("listen: %d accepting sockets: must be 0 to %d", c.AcceptSockets, AcceptSocketsMax)
	case c.PortsMax < 0:
		return fmt.Errorf("listen: at most %d ports: must not be negative", c.PortsMax)
	}
	return nil
}

// Set is the sockets of this node. Its methods may be called at any time from any goroutine.
type Set struct {
	cfg     Config
	metrics *metrics
	machine machine
	poller  *udpio.Poller[*udpio.Conn]
	running sync.WaitGroup // accept loops
	answers answers        // with a dispatcher
	backlog atomic.Int64   // see Backlog
	behind  atomic.Int64   // when a socket was last found behind, Unix nanoseconds

	mu      sync.Mutex // guards what follows, and is held while sockets are opened
	wanted  []socketWish
	short   map[netip.Addr]int // sockets of spare bindings that there is no room for
	sockets map[socketKey]*socket
	shared  shared
	handed  bool // the next process has taken over: nothing is opened any more
	addrs   addresses
	ctx     context.Context // of Run; nil before
	closed  bool
}

type socketKey struct {
	proto flow.Proto
	at    netip.AddrPort
}

type socketWish struct {
	socketKey
	listener model.ListenerID
}

// socket is what listens at one port of one address.
type socket struct {
	key     socketKey
	tcp     *net.TCPListener
	udp     []*udpio.Conn
	shared  bool // the dispatcher's
	started bool
	done    chan struct{} // the accept loop has ended
}

// New returns a Set without sockets.
func New(cfg Config) (*Set, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.PortsMax == 0 {
		cfg.PortsMax = portsMaxDefault
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s := &Set{cfg: cfg, sockets: map[socketKey]*socket{}, machine: machine{interfaceAddresses, listening}}
	s.metrics = newMetrics(s)
	var err error
	s.poller, err = udpio.NewPoller(udpio.PollerConfig[*udpio.Conn]{Handle: s.handleUDP})
	if err != nil {
		return nil, err
	}
	return s, s.metrics.register(cfg.Metrics)
}

// Check reports why bindings could not be applied whatever the state of this machine: they need more
// sockets than PortsMax. The error names the listener with which the bound was passed, and what to do.
func (s *Set) Check(bindings []Binding) error {
	if s.cfg.Dispatch != nil {
		_, err := rules(bindings)
		return err
	}
	_, _, err := s.wishes(bindings)
	return err
}

// wishes returns the sockets that bindings need, and how many spare ones there is no room for. With an error,
// they are those that there is room for.
func (s *Set) wishes(bindings []Binding) (wishes []socketWish, short map[netip.Addr]int, err error) {
	seen := map[socketKey]bool{}
	short = map[netip.Addr]int{}
	for _, spare := range []bool{false, true} {
		for _, b := range bindings {
			if b.Spare != spare {
				continue
			}
			for port := uint32(b.Ports.From); port <= uint32(b.Ports.To); port++ {
				k := socketKey{b.Proto, netip.AddrPortFrom(b.Addr.Unmap(), uint16(port))}
				switch {
				case seen[k]:
				case len(wishes) < s.cfg.PortsMax:
					seen[k] = true
					wishes = append(wishes, socketWish{k, b.Listener})
				case spare:
					short[k.at.Addr()]++
				default:
					return wishes, short, fmt.Errorf("listener %s: port %d of %v is beyond the %d sockets that a "+
						"node opens (one for each address, port and protocol): give it, or other listeners, "+
						"fewer ports", b.Listener, port, b.Addr, s.cfg.PortsMax)
				}
			}
		}
	}
	slices.SortFunc(wishes, func(a, b socketWish) int {
		return cmp.Or(cmp.Compare(a.proto, b.proto), a.at.Compare(b.at))
	})
	return wishes, short, nil
}

// Short returns how many ports of spare bindings are closed because there is no room for more sockets, and
// how many sockets there may be.
func (s *Set) Short() (ports, room int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.short {
		ports += n
	}
	return ports, s.cfg.PortsMax
}

// Apply opens and closes sockets until they are those of the bindings. Sockets that stay are not
// touched, and connections that were accepted are nobody's business here. An error names what could not
// be opened, and why; everything else is open, and Run goes on trying.
func (s *Set) Apply(bindings []Binding) error {
	if s.cfg.Dispatch != nil {
		return s.applyShared(bindings)
	}
	wishes, short, err := s.wishes(bindings)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.handed {
		return nil
	}
	s.wanted, s.short = wishes, short
	return errors.Join(err, s.settle())
}

// Missing returns how many sockets could not be opened yet.
func (s *Set) Missing() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Dispatch != nil {
		return s.shared.missing
	}
	return len(s.wanted) - len(s.sockets)
}

// settle makes the sockets those that are wanted. The caller holds mu.
func (s *Set) settle() error {
	var errs []error
	keep := make(map[socketKey]bool, len(s.wanted))
	used := map[netip.Addr]bool{}
	udpPorts := 0
	for _, w := range s.wanted {
		keep[w.socketKey] = true
		used[w.at.Addr()] = true
		if w.proto == flow.UDP {
			udpPorts++
		}
	}
	if s.cfg.ManageAddresses {
		errs = append(errs, s.addrs.add(used))
	}
	for _, w := range s.wanted {
		if s.sockets[w.socketKey] != nil {
			continue
		}
		k, err := s.open(w.socketKey, udpPorts)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", w.listener, err))
			continue
		}
		s.sockets[w.socketKey] = k
		if s.ctx != nil {
			s.serve(k)
		}
	}
	var gone []*socket
	for key, k := range s.sockets {
		if !keep[key] {
			gone = append(gone, k)
			delete(s.sockets, key)
		}
	}
	s.shut(gone)
	if s.cfg.ManageAddresses && !s.handed {
		errs = append(errs, s.addrs.removeOthers(used))
	}
	return errors.Join(errs...)
}

func (s *Set) open(key socketKey, udpPorts int) (*socket, error) {
	k := &socket{key: key, done: make(chan struct{})}
	var err error
	switch key.proto {
	case flow.TCP:
		k.tcp, err = s.inherit(key.at)
		if k.tcp == nil && err == nil {
			k.tcp, err = s.listenTCP(key.at)
		}
	case flow.UDP:
		k.udp, err = listenUDP(key.at, udpPorts)
	default:
		err = fmt.Errorf("protocol %d is neither TCP nor UDP", key.proto)
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

func (s *Set) listenTCP(at netip.AddrPort) (*net.TCPListener, error) {
	// Keep-alive is inherited from the listening socket, which saves four system calls a connection.
	lc := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) error {
		if s.cfg.Mark != nil {
			if err := s.cfg.Mark(c); err != nil {
				return err
			}
		}
		if err := setMaxSegment(c, s.cfg.MaxSegment); err != nil {
			return err
		}
		return control(network, address, c)
	}, KeepAlive: -1}
	lc.SetMultipathTCP(false) // Multipath TCP sockets can't be spliced, and have another TCP_INFO
	network := "tcp4"
	if at.Addr().Is6() {
		network = "tcp6"
	}
	l, err := lc.Listen(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func listenUDP(at netip.AddrPort, ports int) ([]*udpio.Conn, error) {
	n, o := runtime.GOMAXPROCS(0), udpio.Options{FreeBind: true, Unpolled: true}
	if ports > manyUDPPorts {
		n, o.RecvBuffer, o.SendBuffer = 1, smallRecvBuffer, smallRecvBuffer
	}
	if n == 1 { // two processes on one port would be a mistake that nobody notices
		c, err := udpio.Listen(at, o)
		return []*udpio.Conn{c}, err
	}
	return udpio.ListenGroup(at, n, o)
}

// serve starts what reads a socket. The caller holds mu.
func (s *Set) serve(k *socket) {
	k.started = true
	if k.tcp != nil {
		s.running.Go(func() { s.accept(k) })
		return
	}
	for _, c := range k.udp {
		if k.shared {
			s.running.Go(func() { s.readShared(c) })
			continue
		}
		if err := s.poller.Add(c, c); err != nil {
			s.cfg.Log.Error("datagrams are not read", "address", k.key.at, "error", err)
		}
	}
}

// Run serves the sockets until ctx ends, and closes them then. It returns when all loops have ended.
func (s *Set) Run(ctx context.Context) error {
	var group errgroup.Group
	group.Go(func() error { return s.poller.Run(ctx) })
	s.mu.Lock()
	s.ctx = ctx
	for _, k := range s.sockets {
		s.serve(k)
	}
	for _, k := range s.shared.sockets {
		s.serve(k)
	}
	s.mu.Unlock()
	s.retry(ctx)
	s.mu.Lock()
	s.closed = true
	s.wanted = nil
	err := s.settle() // after a hand-over, of what is left
	if s.cfg.Dispatch != nil {
		err = errors.Join(err, s.closeShared())
	}
	s.mu.Unlock()
	s.running.Wait()
	return errors.Join(err, group.Wait())
}

// retry opens what could not be opened until ctx ends.
func (s *Set) retry(ctx context.Context) {
	tick := time.NewTicker(retryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.cfg.Dispatch != nil {
			s.retryShared()
			continue
		}
		s.mu.Lock()
		missing := len(s.wanted) - len(s.sockets)
		if missing > 0 {
			err := s.settle()
			if left := len(s.wanted) - len(s.sockets); left != missing {
				s.cfg.Log.Info("listening sockets opened late", "opened", missing-left, "missing", left, "error", err)
			}
		}
		s.mu.Unlock()
	}
}

func (s *Set) handleUDP(c *udpio.Conn, pkts []udpio.Packet, err error) {
	if err != nil {
		s.metrics.readErrors.Inc()
		return
	}
	s.watch(c)
	s.cfg.HandleUDP(c, pkts)
}
