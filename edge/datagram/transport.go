package datagram

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
)

// Config configures a [Transport]. The zero value is a transport that reaches others and cannot be
// reached first.
type Config struct {
	// Listen is where peers reach this process; port 0 takes any. Not valid: nowhere.
	Listen netip.AddrPort

	// Sockets is how many sockets share Listen, default GOMAXPROCS: the kernel spreads the lanes of
	// peers over them, and each has a goroutine that opens what it receives.
	Sockets int

	// Lanes is how many 4-tuples, and sockets of its own, this process uses towards each peer that
	// it reaches. Default GOMAXPROCS, but no more than 4; at most wire.LanesMax. One lane is one
	// network path and one receive queue on the way; each costs a keep-alive a second.
	Lanes int

	// KeepAlive is how often each lane is asked whether it works; three unanswered ones in a row
	// take it down. Default 1 s. Shorter notices sooner and costs packets.
	KeepAlive time.Duration

	// PayloadMax bounds the UDP payload that the path MTU search goes up to, in bytes. Default and
	// most 8,952 (jumbo frames), least 1,200 (no search).
	PayloadMax int

	// AssemblyBytes bounds what incomplete messages hold in the whole process. Default 64 MiB. When
	// it is reached, messages in pieces are dropped.
	AssemblyBytes int64

	Log     *slog.Logger          // nil: nothing is logged
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Sockets < 0:
		return fmt.Errorf("%d sockets", c.Sockets)
	case c.Lanes < 0 || c.Lanes > wire.LanesMax:
		return fmt.Errorf("%d lanes: must be 1 to %d", c.Lanes, wire.LanesMax)
	case c.KeepAlive < 0 || c.KeepAlive > 0 && c.KeepAlive < tickShare*time.Millisecond:
		return fmt.Errorf("keep-alive of %v: must be at least %v", c.KeepAlive, tickShare*time.Millisecond)
	case c.PayloadMax != 0 && (c.PayloadMax < payloadBase || c.PayloadMax > payloadCeiling):
		return fmt.Errorf("payload of %d bytes: must be %d to %d", c.PayloadMax, payloadBase, payloadCeiling)
	case c.AssemblyBytes < 0:
		return fmt.Errorf("%d bytes for incomplete messages", c.AssemblyBytes)
	}
	return nil
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	if c.Sockets == 0 {
		c.Sockets = runtime.GOMAXPROCS(0)
	}
	if c.Lanes == 0 {
		c.Lanes = min(runtime.GOMAXPROCS(0), 4)
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = keepAliveDefault
	}
	if c.PayloadMax == 0 {
		c.PayloadMax = payloadCeiling
	}
	if c.AssemblyBytes == 0 {
		c.AssemblyBytes = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// socket is a *udpio.Conn, or in tests an end of a network in memory.
type socket interface {
	Serve(handle func(pkts []udpio.Packet, err error) error) error
	WriteBatch(pkts []udpio.Packet) (int, error)
	LocalAddr() netip.AddrPort
	Close() error
}

// Transport is the UDP side of this process: its sockets, and the channels that use them. All
// methods are for any goroutine.
type Transport struct {
	// Constant after New.
	cfg      Config
	servers  []socket
	clients  []socket // one a lane
	start    time.Time
	blocks   *blocks
	counters counters
	builders sync.Pool

	// Replaced as a whole under mu, read without.
	keys     atomic.Pointer[map[uint64]*inbound]
	channels atomic.Pointer[[]*Channel]

	mu     sync.Mutex
	closed bool
}

// New opens the sockets. Run must be called, or Close to give them up.
func New(cfg Config) (*Transport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("datagram transport: %w", err)
	}
	cfg = cfg.withDefaults()
	var servers, clients []socket
	closeAll := func() {
		for _, s := range slices.Concat(servers, clients) {
			s.Close()
		}
	}
	if cfg.Listen.IsValid() {
		group, err := udpio.ListenGroup(cfg.Listen, cfg.Sockets, udpio.Options{NoFragment: true})
		if err != nil {
			return nil, err
		}
		for _, c := range group {
			servers = append(servers, c)
		}
	}
	for range cfg.Lanes {
		c, err := listenAnywhere()
		if err != nil {
			closeAll()
			return nil, err
		}
		clients = append(clients, c)
	}
	t := newTransport(cfg, servers, clients)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(collector{t}); err != nil {
			closeAll()
			return nil, fmt.Errorf("register datagram metrics: %w", err)
		}
	}
	return t, nil
}

// listenAnywhere opens a socket for both families, or for IPv4 where there is no IPv6.
func listenAnywhere() (*udpio.Conn, error) {
	o := udpio.Options{NoFragment: true}
	if c, err := udpio.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 0), o); err == nil {
		return c, nil
	}
	return udpio.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), o)
}

func newTransport(cfg Config, servers, clients []socket) *Transport {
	t := &Transport{cfg: cfg, servers: servers, clients: clients, blocks: newBlocks(cfg.AssemblyBytes)}
	t.start = time.Now().Add(-time.Second) // so that no time is 0
	t.builders.New = func() any { return newBuilder() }
	t.keys.Store(&map[uint64]*inbound{})
	t.channels.Store(&[]*Channel{})
	return t
}

// LocalAddr is where peers reach this process; not valid if nowhere.
func (t *Transport) LocalAddr() netip.AddrPort {
	if len(t.servers) == 0 {
		return netip.AddrPort{}
	}
	return t.servers[0].LocalAddr()
}

// Run receives, and asks every lane whether it works, until ctx ends. Then the sockets are closed;
// a Transport runs once.
func (t *Transport) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		t.Close()
		return nil
	})
	for _, s := range slices.Concat(t.servers, t.clients) {
		g.Go(func() error { return t.read(s) })
	}
	g.Go(func() error { return t.watch(ctx) })
	return g.Wait()
}

// CloseServers closes the sockets that peers reach first, which another process of this node has, too, from
// now on. Channels of peers go down and their messages another way.
func (t *Transport) CloseServers() {
	for _, s := range t.servers {
		s.Close()
	}
}

// Close closes the sockets, which ends Run. Channels send nothing from then on.
func (t *Transport) Close() {
	t.mu.Lock()
	done := t.closed
	t.closed = true
	t.mu.Unlock()
	if done {
		return
	}
	for _, s := range slices.Concat(t.servers, t.clients) {
		s.Close()
	}
	if t.cfg.Metrics != nil {
		t.cfg.Metrics.Unregister(collector{t})
	}
}

// watch looks at every lane's machine.
func (t *Transport) watch(ctx context.Context) error {
	ticker := time.NewTicker(t.cfg.KeepAlive / tickShare)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			now := t.now()
			for _, c := range *t.channels.Load() {
				c.tick(now)
			}
		}
	}
}

// now is the time on the clock of the machines and of stamps: since a moment of this process, > 0.
func (t *Transport) now() time.Duration { return time.Since(t.start) }

// errClosed: the transport was closed.
var errClosed = fmt.Errorf("datagram transport: %w", net.ErrClosed)

// enter has packets of in's key go to its channel, which is added if it is new.
func (t *Transport) enter(c *Channel, in *inbound, isNew bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	keys := *t.keys.Load()
	if keys[in.id] != nil {
		return errors.New("the secret is in use by another channel")
	}
	keys = maps.Clone(keys)
	keys[in.id] = in
	t.keys.Store(&keys)
	if isNew {
		channels := append(slices.Clone(*t.channels.Load()), c)
		t.channels.Store(&channels)
	}
	return nil
}

// leave forgets keys, and the channel if it is given.
func (t *Transport) leave(c *Channel, gone ...*inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := maps.Clone(*t.keys.Load())
	for _, in := range gone {
		delete(keys, in.id)
	}
	t.keys.Store(&keys)
	if c != nil {
		channels := slices.DeleteFunc(slices.Clone(*t.channels.Load()), func(o *Channel) bool { return o == c })
		t.channels.Store(&channels)
	}
}

// kernelDrops is how many packets the sockets lost for want of buffer.
func (t *Transport) kernelDrops() (n uint64) {
	for _, s := range slices.Concat(t.servers, t.clients) {
		if c, ok := s.(*udpio.Conn); ok {
			n += c.Stats().KernelDrops
		}
	}
	return n
}
