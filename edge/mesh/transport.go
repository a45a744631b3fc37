package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is memberlist's packets and streams over this process's sockets. memberlist's own one
// allocates 64 KiB a packet, blocks its reader when memberlist is slow, bounds no streams, and leaves
// them open when it ends.
type transport struct {
	cfg     *Config
	metrics *metrics
	tcp     *net.TCPListener
	udp     *net.UDPConn
	local   netip.AddrPort
	packets chan *memberlist.Packet // packetQueue; full: dropped and counted
	streams chan net.Conn
	slots   chan struct{} // streamsMax
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex // guards conns and closed
	conns  map[*trackedConn]struct{}
	closed bool
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listenAttempts is for port 0: the port that the kernel gives for TCP may be taken for UDP.
const listenAttempts = 10

// newTransport opens the sockets and starts reading them; Shutdown ends it.
func newTransport(cfg *Config, m *metrics) (*transport, error) {
	t := &transport{
		cfg: cfg, metrics: m,
		packets: make(chan *memberlist.Packet, packetQueue),
		streams: make(chan net.Conn),
		slots:   make(chan struct{}, streamsMax),
		conns:   map[*trackedConn]struct{}{},
	}
	var err error
	for range listenAttempts {
		if err = t.listen(); err == nil || cfg.Listen.Port() != 0 {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.wg.Go(t.readPackets)
	t.wg.Go(t.acceptStreams)
	return t, nil
}

func (t *transport) listen() error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", t.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("listen for gossip on TCP %v: %w", t.cfg.Listen, err)
	}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	at := netip.AddrPortFrom(t.cfg.Listen.Addr(), port)
	pc, err := lc.ListenPacket(context.Background(), "udp", at.String())
	if err != nil {
		ln.Close()
		return fmt.Errorf("listen for gossip on UDP %v: %w", at, err)
	}
	t.tcp, t.udp, t.local = ln.(*net.TCPListener), pc.(*net.UDPConn), at
	return nil
}

// readPackets hands packets to memberlist, and drops them when it does not keep up.
func (t *transport) readPackets() {
	buf := make([]byte, 64<<10)
	for t.ctx.Err() == nil {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // like an ICMP error of an earlier send
		}
		if n == 0 || !t.cfg.admits(from.Addr()) {
			t.metrics.dropped.WithLabelValues("network").Inc()
			continue
		}
		p := &memberlist.Packet{
			Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now(),
		}
		select {
		case t.packets <- p:
		default:
			t.metrics.dropped.WithLabelValues("queue").Inc()
		}
	}
}

// acceptStreams hands state exchanges to memberlist.
func (t *transport) acceptStreams() {
	for t.ctx.Err() == nil {
		conn, err := t.tcp.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: accepting again at once would spin.
			select {
			case <-t.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if !t.cfg.admits(from) {
			t.metrics.dropped.WithLabelValues("network").Inc()
			conn.Close()
			continue
		}
		select {
		case t.slots <- struct{}{}:
		default:
			t.metrics.dropped.WithLabelValues("streams").Inc()
			conn.Close()
			continue
		}
		tracked, err := t.track(conn, true)
		if err != nil {
			return
		}
		select {
		case t.streams <- tracked:
		case <-t.ctx.Done():
			tracked.Close()
		}
	}
}

// trackedConn is a connection that Shutdown can find.
type trackedConn struct {
	net.Conn
	t    *transport
	slot bool // holds one of the slots
	once sync.Once
}

func (t *transport) track(conn net.Conn, slot bool) (net.Conn, error) {
	c := &trackedConn{Conn: conn, t: t, slot: slot}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.conns[c] = struct{}{}
	}
	t.mu.Unlock()
	if closed {
		c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.t.mu.Lock()
		delete(c.t.conns, c)
		c.t.mu.Unlock()
		if c.slot {
			<-c.t.slots
		}
	})
	return err
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	at := t.cfg.Advertise
	if !at.IsValid() {
		at = t.local
	}
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), t.local.Port())
	}
	if at.Addr().IsUnspecified() {
		return nil, 0, fmt.Errorf("advertise gossip at %v: others cannot reach an unspecified address", at)
	}
	return net.IP(at.Addr().Unmap().AsSlice()), int(at.Port()), nil
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip to %q: %w", a.Addr, err)
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return t.track(conn, false)
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport: it closes every socket and connection and waits for the
// readers.
func (t *transport) Shutdown() error {
	t.cancel()
	t.tcp.Close()
	t.udp.Close()
	t.mu.Lock()
	t.closed = true
	open := make([]*trackedConn, 0, len(t.conns))
	for c := range t.conns {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open { // Close takes mu
		c.Close()
	}
	t.wg.Wait()
	return nil
}
