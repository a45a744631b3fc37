package datagram

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/udpio"
)

// memory is a network in memory: it loses, doubles, delays and reorders.
type memory struct {
	mu      sync.Mutex
	rng     *rand.Rand
	sockets map[netip.AddrPort]*memorySocket
	loss    float64
	twice   float64
	delay   time.Duration
	jitter  time.Duration // uniform, so packets overtake each other
	mtu     int           // UDP payload that passes, 0: any
	device  int           // UDP payload that may be sent, 0: any
	block   func(from, to netip.AddrPort) bool
	tap     func(p udpio.Packet, to netip.AddrPort) // sees what is sent
	alias   map[netip.AddrPort]netip.AddrPort       // address translation of senders
	packets int
}

func newMemory() *memory {
	return &memory{
		rng: rand.New(rand.NewPCG(5, 6)), sockets: map[netip.AddrPort]*memorySocket{},
		alias: map[netip.AddrPort]netip.AddrPort{}, delay: 10 * time.Millisecond,
	}
}

// set changes the network while it runs.
func (m *memory) set(f func(m *memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m)
}

type memorySocket struct {
	m     *memory
	addr  netip.AddrPort
	queue chan udpio.Packet
	done  chan struct{}
	once  sync.Once
}

func (m *memory) socket(addr string) *memorySocket {
	s := &memorySocket{
		m: m, addr: netip.MustParseAddrPort(addr),
		queue: make(chan udpio.Packet, 1<<14), done: make(chan struct{}),
	}
	m.sockets[s.addr] = s
	return s
}

func (s *memorySocket) LocalAddr() netip.AddrPort { return s.addr }

func (s *memorySocket) Close() error { s.once.Do(func() { close(s.done) }); return nil }

func (s *memorySocket) Serve(handle func(pkts []udpio.Packet, err error) error) error {
	pkts := make([]udpio.Packet, 128)
	for {
		n, err := s.read(pkts)
		if err == nil {
			err = handle(pkts[:n], nil)
		}
		if err != nil {
			return err
		}
	}
}

func (s *memorySocket) read(pkts []udpio.Packet) (n int, err error) {
	select {
	case pkts[0] = <-s.queue:
	case <-s.done:
		return 0, net.ErrClosed
	}
	for n = 1; n < len(pkts); n++ {
		select {
		case pkts[n] = <-s.queue:
		default:
			return n, nil
		}
	}
	return n, nil
}

func (s *memorySocket) WriteBatch(pkts []udpio.Packet) (n int, err error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for i, p := range pkts {
		if s.m.device != 0 && len(p.Data) > s.m.device {
			return i, unix.EMSGSIZE
		}
		s.m.send(s.addr, p)
	}
	return len(pkts), nil
}

// send is called with mu held.
func (m *memory) send(from netip.AddrPort, p udpio.Packet) {
	m.packets++
	to := p.Remote
	if m.tap != nil {
		m.tap(p, to)
	}
	if m.block != nil && m.block(from, to) || m.mtu != 0 && len(p.Data) > m.mtu || m.rng.Float64() < m.loss {
		return
	}
	if a, ok := m.alias[from]; ok {
		from = a
	}
	for real, a := range m.alias {
		if a == to {
			to = real
		}
	}
	copies := 1
	if m.rng.Float64() < m.twice {
		copies = 2
	}
	for range copies {
		delay := m.delay
		if m.jitter > 0 {
			delay += time.Duration(m.rng.Int64N(int64(m.jitter)))
		}
		m.deliverLater(delay, to, udpio.Packet{Data: bytes.Clone(p.Data), Remote: from, Local: to.Addr()})
	}
}

func (m *memory) deliverLater(delay time.Duration, to netip.AddrPort, p udpio.Packet) {
	s := m.sockets[to]
	if s == nil {
		return
	}
	if delay == 0 {
		s.queue <- p
		return
	}
	time.AfterFunc(delay, func() {
		select {
		case s.queue <- p:
		case <-s.done:
		}
	})
}

var testSecret = []byte("0123456789abcdef0123456789abcdef")

// pair is an edge and a gateway on a network in memory, with a channel between them.
type pair struct {
	m             *memory
	edge, gateway *Transport
	a, b          *Channel // the edge's, the gateway's
	atA, atB      *inbox
}

// inbox keeps the messages that came.
type inbox struct {
	mu   sync.Mutex
	msgs [][]byte
	echo *Channel
}

func (i *inbox) recv(msgs [][]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range msgs {
		i.msgs = append(i.msgs, bytes.Clone(m))
	}
}

func (i *inbox) take() (msgs [][]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	msgs, i.msgs = i.msgs, nil
	return msgs
}

const (
	gatewayAddr = "192.0.2.1:7444"
	edgeAddr0   = "198.51.100.1:1000"
	edgeAddr1   = "198.51.100.1:1001"
)

// newPair makes transports with two lanes, runs them until the test ends, and opens the channel.
func newPair(t testing.TB, m *memory) *pair {
	t.Helper()
	cfg := Config{}.withDefaults()
	p := &pair{
		m:       m,
		edge:    newTransport(cfg, nil, []socket{m.socket(edgeAddr0), m.socket(edgeAddr1)}),
		gateway: newTransport(cfg, []socket{m.socket(gatewayAddr)}, nil),
		atA:     &inbox{}, atB: &inbox{},
	}
	p.run(t, p.edge)
	p.run(t, p.gateway)
	var err error
	p.b, err = p.gateway.Open("edge", testSecret, 1, netip.AddrPort{}, false, p.atB.recv)
	if err != nil {
		t.Fatal(err)
	}
	p.a, err = p.edge.Open("gateway", testSecret, 1, netip.MustParseAddrPort(gatewayAddr), true, p.atA.recv)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) run(t testing.TB, tr *Transport) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
