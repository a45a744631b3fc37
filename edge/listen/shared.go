package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/udpio"
)

// shared is the few sockets that the kernel's dispatcher brings everything to: for each family one or several for
// TCP (see acceptSockets) and one a CPU for UDP, where each datagram is a system call's worth of work. They are bound
// to free ports of the loopback addresses, which nobody uses: a connection keeps its original destination as its
// local address, and a datagram tells its own.
//
// An answer leaves from a socket that is bound to what the datagram was addressed to; such sockets are opened
// when they are needed. They receive nothing, since the program is asked before them.
type shared struct {
	sockets  []*socket
	live     bool      // the dispatcher leads to them
	bindings []Binding // wanted
	missing  int       // of bindings, that do not hold yet
	left     left      // to other services
	gone     bool      // another process has taken over
	until    time.Time // that handshakes are finished here after a hand-over; zero: no hand-over
}

// loopbacks are what the shared sockets are bound to.
var loopbacks = []struct {
	family dispatch.Family
	at     netip.AddrPort
}{
	{dispatch.IPv4, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)},
	{dispatch.IPv6, netip.AddrPortFrom(netip.IPv6Loopback(), 0)},
}

// rules are what bindings are for the dispatcher.
func rules(bindings []Binding) ([]dispatch.Rule, error) {
	all := make([]dispatch.Rule, 0, len(bindings))
	prefixes := map[netip.Prefix]bool{}
	for _, b := range bindings {
		r := dispatch.Rule{Ports: dispatch.Ports{First: b.Ports.From, Last: b.Ports.To}}
		a := b.Addr.Unmap()
		r.Prefix = netip.PrefixFrom(a, a.BitLen())
		switch b.Proto {
		case flow.TCP:
			r.Proto = dispatch.TCP
		case flow.UDP:
			r.Proto = dispatch.UDP
		default:
			return nil, fmt.Errorf("listener %s: protocol %d is neither TCP nor UDP", b.Listener, b.Proto)
		}
		if prefixes[r.Prefix] = true; 2*len(prefixes) > dispatch.DefaultPrefixesMax {
			return nil, fmt.Errorf("listener %s: address %v is beyond the %d that a node serves",
				b.Listener, b.Addr, dispatch.DefaultPrefixesMax/2)
		}
		all = append(all, r)
	}
	return all, nil
}

// applyShared makes the dispatcher lead exactly what the bindings say to the shared sockets. A change of an
// address's ports is one write to a map: no SYN meets a moment in between.
func (s *Set) applyShared(bindings []Binding) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.shared.bindings = bindings
	return s.settleShared()
}

// settleShared does what is to be done. The caller holds mu.
func (s *Set) settleShared() (err error) {
	h := &s.shared
	if h.gone || s.handed {
		h.missing = 0
		return nil // the rules are the business of the process that took over
	}
	h.missing = len(h.bindings)
	used := map[netip.Addr]bool{}
	for _, b := range h.bindings {
		used[b.Addr.Unmap()] = true
	}
	var errs []error
	if s.cfg.ManageAddresses {
		errs = append(errs, s.addrs.add(used))
	}
	if err = s.openShared(); err == nil {
		var all []dispatch.Rule
		kept, left := s.leaveServices(h.bindings)
		if all, err = rules(kept); err == nil {
			err = s.cfg.Dispatch.Update(all)
		}
		if !slices.Equal(left.wide, h.left.wide) || !slices.Equal(left.narrow, h.left.narrow) {
			s.cfg.Log.Info("ports are left to other services of this machine", "all_ports", left.wide, "wanted", left.narrow)
		}
		h.left = left
	}
	switch {
	case errors.Is(err, dispatch.ErrTakenOver):
		h.gone, h.missing = true, 0
		return nil
	case err == nil:
		h.missing = 0
	default:
		errs = append(errs, err)
	}
	if s.cfg.ManageAddresses && err == nil {
		errs = append(errs, s.addrs.removeOthers(used))
	}
	return errors.Join(errs...)
}

// openShared opens the sockets and has the dispatcher lead to them, once. The caller holds mu.
func (s *Set) openShared() error {
	h := &s.shared
	if h.live {
		return nil
	}
	var groups []dispatch.Group
	var opened []*socket
	fail := func(err error) error {
		s.shut(opened)
		return err
	}
	for _, l := range loopbacks {
		accepting, err := s.openAccepting(l.family, l.at)
		if l.family == dispatch.IPv6 && errors.Is(err, syscall.EADDRNOTAVAIL) {
			break // this machine has no IPv6
		}
		opened = append(opened, accepting...)
		if err != nil {
			return fail(err)
		}
		tcp := dispatch.Group{Proto: dispatch.TCP, Family: l.family}
		for _, k := range accepting {
			tcp.Sockets = append(tcp.Sockets, k.tcp)
		}
		groups = append(groups, tcp)
		u := &socket{key: socketKey{flow.UDP, l.at}, shared: true}
		opened = append(opened, u)
		group := dispatch.Group{Proto: dispatch.UDP, Family: l.family}
		for range min(runtime.GOMAXPROCS(0), dispatch.GroupSockets) {
			c, err := udpio.Listen(l.at, udpio.Options{OriginalPort: true})
			if err != nil {
				return fail(err)
			}
			u.udp = append(u.udp, c)
			group.Sockets = append(group.Sockets, rawConn{c})
		}
		groups = append(groups, group)
	}
	if err := s.cfg.Dispatch.SetSockets(groups); err != nil {
		return fail(fmt.Errorf("give sockets to the dispatcher: %w", err))
	}
	h.sockets, h.live = opened, true
	if s.ctx != nil {
		for _, k := range opened {
			s.serve(k)
		}
	}
	return nil
}

// openAccepting opens the sockets for TCP of a family. With an error it returns those that are open already.
func (s *Set) openAccepting(family dispatch.Family, at netip.AddrPort) (opened []*socket, err error) {
	for range acceptSockets(s.cfg.AcceptSockets, runtime.GOMAXPROCS(0)) {
		l, err := s.listenTCP(at)
		if err != nil {
			return opened, err
		}
		opened = append(opened, &socket{key: socketKey{flow.TCP, at}, tcp: l, shared: true, done: make(chan struct{})})
	}
	return opened, nil
}

// acceptSockets is how many sockets of a family accept connections, each with a queue and a goroutine of its own.
// The program gives a SYN to that of the CPU which works on it.
//
// One is enough, and not slower than several on two CPUs (docs/BENCH.md), as long as the goroutine that empties it
// takes less time a connection than all other CPUs take to carry them. A new connection costs an edge ten times what
// accepting it does, and more.
func acceptSockets(wanted, cpus int) int {
	if wanted == 0 {
		wanted = (cpus + acceptorCPUs - 1) / acceptorCPUs
	}
	return max(1, min(wanted, AcceptSocketsMax))
}

// rawConn makes a udpio.Conn a syscall.Conn.
type rawConn struct{ *udpio.Conn }

// SyscallConn implements syscall.Conn.
func (c rawConn) SyscallConn() (syscall.RawConn, error) { return c.Conn.SyscallConn(), nil }

// retryShared does what failed before, and closes sockets that answer nobody any more.
func (s *Set) retryShared() {
	s.mu.Lock()
	if s.handed && !s.shared.until.IsZero() && time.Now().After(s.shared.until) {
		s.shared.until = time.Time{}
		s.leaveAccepting()
	}
	if before := s.shared.missing; before > 0 {
		err := s.settleShared()
		if s.shared.missing != before || err == nil {
			s.cfg.Log.Info("listeners opened late", "missing", s.shared.missing, "error", err)
		}
	} else if _, now := s.leaveServices(s.shared.bindings); !slices.Equal(now.wide, s.shared.left.wide) ||
		!slices.Equal(now.narrow, s.shared.left.narrow) {
		if err := s.settleShared(); err != nil {
			s.cfg.Log.Warn("services of this machine have changed", "error", err)
		}
	}
	s.mu.Unlock()
	s.answers.sweep(time.Now())
}

// closeShared takes the rules back, unless another process has taken over, and closes the sockets. The caller
// holds mu.
func (s *Set) closeShared() error {
	s.shared.bindings = nil
	err := s.settleShared()
	s.shut(s.shared.sockets)
	s.shared.sockets = nil
	s.answers.close()
	return err
}

// readShared reads a socket of the dispatcher's until it is closed. It has a goroutine of its own: all datagrams
// come through a few such sockets, and asking a poller first would be one more system call a batch.
func (s *Set) readShared(c *udpio.Conn) {
	_ = c.Serve(func(pkts []udpio.Packet, err error) error { // ends when the socket is closed
		if err != nil {
			s.metrics.readErrors.Inc()
			return nil
		}
		s.watch(c)
		s.handleShared(pkts)
		return nil
	})
}

// handleShared hands datagrams over by the address and port that they were sent to.
func (s *Set) handleShared(pkts []udpio.Packet) {
	for len(pkts) > 0 {
		at := netip.AddrPortFrom(pkts[0].Local, pkts[0].LocalPort)
		n := 1
		for n < len(pkts) && pkts[n].Local == at.Addr() && pkts[n].LocalPort == at.Port() {
			n++
		}
		switch c, err := s.answers.at(at); {
		case err == errAnswersFull:
			s.metrics.answersFull.Add(float64(n))
		case err != nil:
			s.metrics.answersError.Add(float64(n))
		default:
			s.cfg.HandleUDP(c, pkts[:n])
		}
		pkts = pkts[n:]
	}
}

// answers are the sockets that answers leave from, by what they are bound to. The zero value has none.
type answers struct {
	count  atomic.Int64
	shards [answerShards]answerShard
}

type answerShard struct {
	mu     sync.Mutex
	m      map[netip.AddrPort]*answer
	closed bool
}

type answer struct {
	conn *udpio.Conn
	last time.Time // that a datagram came; guarded by the shard's mu
}

var errAnswersFull = errors.New("too many sockets to answer from")

// at returns the socket that answers for an address and port, which it opens if need be.
func (a *answers) at(at netip.AddrPort) (*udpio.Conn, error) {
	b := at.Addr().As16()
	shard := &a.shards[(uint16(b[15])*31+uint16(b[7])*17+at.Port())%answerShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if k := shard.m[at]; k != nil {
		k.last = time.Now()
		return k.conn, nil
	}
	if shard.closed {
		return nil, net.ErrClosed
	}
	if a.count.Add(1) > answersMax {
		a.count.Add(-1)
		return nil, errAnswersFull
	}
	// Another process of ours may have the same one, before or after an upgrade: SO_REUSEPORT.
	c, err := udpio.Listen(at, udpio.Options{
		ReusePort: true, FreeBind: true, Unpolled: true, NoGRO: true, RecvBuffer: 4096, SendBuffer: smallRecvBuffer,
	})
	if err != nil {
		a.count.Add(-1)
		return nil, err
	}
	if shard.m == nil {
		shard.m = map[netip.AddrPort]*answer{}
	}
	shard.m[at] = &answer{conn: c, last: time.Now()}
	return c, nil
}

// sweep closes what no flow uses and no datagram came for. A flow that is just beginning has not said yet that
// it uses its socket, but its datagram has just come.
func (a *answers) sweep(now time.Time) {
	for i := range a.shards {
		shard := &a.shards[i]
		shard.mu.Lock()
		for at, k := range shard.m {
			if k.conn.Users() == 0 && now.Sub(k.last) >= answerIdle {
				delete(shard.m, at)
				k.conn.Close()
				a.count.Add(-1)
			}
		}
		shard.mu.Unlock()
	}
}

// close closes all, for good.
func (a *answers) close() {
	for i := range a.shards {
		shard := &a.shards[i]
		shard.mu.Lock()
		shard.closed = true
		for at, k := range shard.m {
			delete(shard.m, at)
			k.conn.Close()
			a.count.Add(-1)
		}
		shard.mu.Unlock()
	}
}
