package backbone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

const (
	// patience is how long anything may take that others do, on a machine that has no time.
	patience = time.Minute
	// worldMax bounds what only streams or their ends end: then all of them are reset.
	worldMax = 8 * time.Minute
)

// A world is a pool and a server on loopback, with connections that can be broken.
type world struct {
	t      testing.TB
	ca     *identity.CA
	pool   *Pool
	server *Server
	net    *faults

	stopPool, stopServer func()
	poolDone, serverDone chan struct{}

	edge, gateway model.Node
	serverConfig  ServerConfig
}

type option func(*PoolConfig, *ServerConfig)

// newWorld starts a pool and a server whose streams go to handle. It ends with the test.
func newWorld(t testing.TB, handle func(*Stream, *wire.Open) Sink, options ...option) *world {
	t.Helper()
	w := &world{t: t, net: &faults{}}
	w.edge = model.Node{ID: "edge-1", Edge: true}
	w.gateway = model.Node{ID: "gw-1", Gateway: true}
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	w.ca = ca
	pc := PoolConfig{Self: w.edge.ID, Dial: w.net.dial}
	pc.Credentials = w.credentials("edge-1")
	sc := ServerConfig{HandleStream: handle}
	sc.Credentials = w.credentials("gw-1")
	for _, c := range []*Common{&pc.Common, &sc.Common} {
		c.PingInterval = 50 * time.Millisecond
		c.DeadAfter = time.Second
		c.PathWait = time.Minute
		c.LeaveHost = true
		if testing.Verbose() {
			c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
	}
	sc.Listener = w.listen(fmt.Sprintf("127.0.0.1:%d", netns.FreePort(t)))
	for _, o := range options {
		o(&pc, &sc)
	}
	w.serverConfig = sc
	w.startServer("")
	if w.pool, err = NewPool(pc); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.poolDone = make(chan struct{})
	w.stopPool = cancel
	go func() {
		defer close(w.poolDone)
		if err := w.pool.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	w.pool.SetPeers([]model.Node{w.edge, w.gateway})
	t.Cleanup(w.stop)
	if _, test := t.(*testing.T); test {
		late := time.AfterFunc(worldMax, func() {
			t.Errorf("the test takes longer than %v: its tunnels are closed", worldMax)
			w.net.heal()
			w.stopPool()
			w.stopServer()
		})
		t.Cleanup(func() { late.Stop() })
	}
	return w
}

func (w *world) listen(addr string) net.Listener {
	w.t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// startServer starts the server, or another one on the address of one that has ended.
func (w *world) startServer(addr string) {
	sc := w.serverConfig
	if addr != "" {
		sc.Listener = w.listen(addr)
	}
	w.gateway.BackboneAddresses = []netip.AddrPort{sc.Listener.Addr().(*net.TCPAddr).AddrPort()}
	var err error
	if w.server, err = NewServer(sc); err != nil {
		w.t.Fatal(err)
	}
	w.server.SetPeers([]model.Node{w.edge, w.gateway})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.serverDone, w.stopServer = done, cancel
	server := w.server
	go func() {
		defer close(done)
		if err := server.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
}

func (w *world) stop() {
	w.describe()
	w.net.heal()
	w.stopPool()
	w.ends("the pool", w.poolDone)
	w.stopServer()
	w.ends("the server", w.serverDone)
}

func (w *world) ends(what string, done <-chan struct{}) {
	select {
	case <-done:
	case <-time.After(patience):
		w.t.Errorf("%s does not end", what)
	}
}

// next takes what comes next.
func next[V any](t testing.TB, what string, from <-chan V) (v V) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

func (w *world) credentials(name string) *identity.Credentials {
	w.t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	subject := identity.Subject{Cluster: "test", Kind: identity.KindNode, Name: name}
	der, err := w.ca.Sign(csr, subject, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := identity.NewCredentials(der, key, identityRoots(w.ca))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// waitFor polls until ok; what it waits for is made by other goroutines and has no event.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (w *world) waitUp(carriers int) {
	w.t.Helper()
	waitFor(w.t, "carriers", func() bool {
		s, _ := w.pool.Peer("gw-1")
		return s.Up && s.Carriers >= carriers
	})
}

// open opens a stream and returns it as a conn.
func (w *world) open() (c *conn) {
	w.t.Helper()
	waitFor(w.t, "a path", func() bool {
		w.open0(&c)
		return c != nil
	})
	return c
}

// openTo opens a stream of a group. As a relay does it waits for a path: on a machine that has no time all
// carriers may pass for stalled at once.
func (w *world) openTo(group string, sink Sink) (s *Stream) {
	w.t.Helper()
	waitFor(w.t, "a path", func() bool {
		var err error
		if s, err = w.pool.Open("gw-1", wire.Open{Group: group}, sink); err != nil && !errors.Is(err, ErrNoPath) {
			w.t.Fatal(err)
		}
		return err == nil
	})
	return s
}

// open0 is open that leaves c nil when there is no path.
func (w *world) open0(c **conn) {
	k := newConn()
	s, err := w.pool.Open("gw-1", wire.Open{Listener: "l", Group: "g", Proto: 6, HopsLeft: 4,
		Src: netip.MustParseAddrPort("192.0.2.1:1000"), Dst: netip.MustParseAddrPort("198.51.100.1:443")}, k)
	if err == nil {
		k.set(s)
		*c = k
	}
}

// accept makes a handler that runs f for each stream, in a goroutine of its own. The goroutines end
// with their streams.
func accept(f func(*conn, wire.Open)) func(*Stream, *wire.Open) Sink {
	return func(s *Stream, o *wire.Open) Sink {
		c := newConn()
		c.set(s)
		open := *o
		go f(c, open)
		return c
	}
}

// describe says what a stream is waiting for.
func (s *Stream) describe() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	car := "none"
	if s.car != nil {
		car = fmt.Sprintf("%d (stalled %v)", s.car.number, s.car.stalled.Load())
	}
	return fmt.Sprintf("stream %d opener %v carrier %s queued %v; base %d next %d end %d limit %d; taken %d acked %d; "+
		"held %d+%d blocked %v busy %v dropped %v back %v/%v; fin queued %v sent %v acked %v known %v taken %v told %v; "+
		"opened %v mute %v dead %v need open %v result %v ack %v lazy %v", s.id, s.isOpener, car, s.queued != nil,
		s.out.base, s.out.next, s.out.end, s.out.limit, s.taken, s.acked, s.out.held, s.in.held, s.blocked, s.busy,
		s.dropped, s.sendBack, s.awaitBack, s.finQueued, s.finSent, s.finAcked, s.finKnown, s.finTaken, s.finTold,
		s.opened, s.mute, s.dead, s.needOpen, s.needRes, s.needAck, s.lazy)
}

// describe logs the streams that are left at both sides, when a test has failed.
func (w *world) describe() {
	if !w.t.Failed() {
		return
	}
	tunnels := w.server.all()
	for _, p := range *w.pool.peers.Load() {
		tunnels = append(tunnels, p.tunnel.Load())
	}
	for _, t := range tunnels {
		n := 0
		t.streams.each(func(s *Stream) {
			if n++; n <= 10 {
				w.t.Log(s.describe())
			}
		})
		w.t.Logf("tunnel client %v: %d streams, %d carriers, memory %d", t.client, n, len(t.carriers()),
			t.env.memory.Used())
	}
}

// checkClean waits until no stream is left and all memory was given back.
func (w *world) checkClean() {
	w.t.Helper()
	waitFor(w.t, "streams to be forgotten", func() bool {
		_, streams := w.server.count()
		return streams == 0 && w.pool.Peers()["gw-1"].Streams == 0
	})
	waitFor(w.t, "memory to be given back", func() bool {
		return w.pool.env.memory.Used()+w.server.env.memory.Used() == 0
	})
	t := (*w.pool.peers.Load())["gw-1"].tunnel.Load()
	waitFor(w.t, "carriers to have no load", func() bool {
		for _, c := range t.carriers() {
			if c.load.Load() != 0 {
				return false
			}
		}
		return true
	})
}

// count returns a counter's value.
func count(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return -1
	}
	return m.GetCounter().GetValue()
}

// noConn is a connection that only closes.
type noConn struct{ net.Conn }

func (noConn) Close() error { return nil }
