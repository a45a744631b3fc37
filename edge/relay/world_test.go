package relay

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/datagram"
	"github.com/nearcast/nearcast/edge/gateway"
	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

var (
	vip  = netip.MustParseAddr("127.0.1.1")
	vip6 = netip.MustParseAddr("::1")
)

// A world is one edge and some gateways, each in its own region, joined by the real backbone over
// loopback. The accelerated address is vip; endpoints are at 127.0.2.N.
type world struct {
	t     testing.TB
	ca    *identity.CA
	edge  part
	gates map[model.NodeID]*gate
	snap  *model.Snapshot
	port  uint16

	pool   *backbone.Pool
	local  *gateway.Gateway
	tcp    *TCP
	udp    *UDP
	doors  *listen.Set
	memory *backbone.Memory
	reg    *prometheus.Registry

	cuts cuts

	mu   sync.Mutex // guards snap (once it runs), view and the table
	view steer.View
}

// cuts breaks the carriers to a gateway, as when it is killed or its network is gone.
type cuts struct {
	mu    sync.Mutex
	conns map[netip.AddrPort][]*net.TCPConn
	cut   map[netip.AddrPort]bool
}

func (x *cuts) dial(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cut[at] {
		return nil, syscall.ECONNREFUSED
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	if x.conns == nil {
		x.conns, x.cut = map[netip.AddrPort][]*net.TCPConn{}, map[netip.AddrPort]bool{}
	}
	x.conns[at] = append(x.conns[at], c.(*net.TCPConn))
	return c, nil
}

func (w *world) cut(id model.NodeID) {
	at := w.snap.Node(id).BackboneAddresses[0]
	w.cuts.mu.Lock()
	defer w.cuts.mu.Unlock()
	w.cuts.cut[at] = true
	for _, c := range w.cuts.conns[at] {
		_ = c.SetLinger(0)
		c.Close()
	}
}

// mend lets carriers to a gateway be dialled again.
func (w *world) mend(id model.NodeID) {
	w.cuts.mu.Lock()
	defer w.cuts.mu.Unlock()
	w.cuts.cut[w.snap.Node(id).BackboneAddresses[0]] = false
	w.pool.Redial(id)
}

// part is what runs and can be stopped.
type part struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (p *part) run(t testing.TB, what ...func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = sync.OnceFunc(cancel)
	for _, f := range what {
		p.done.Go(func() {
			if err := f(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func (p *part) stop() {
	if p.cancel != nil {
		p.cancel()
		p.done.Wait()
	}
}

// gate is one gateway node.
type gate struct {
	part
	gateway *gateway.Gateway
	server  *backbone.Server
	reg     *prometheus.Registry
}

type spec struct {
	gates       []string // region names; a gateway gw-REGION each
	selfGateway string   // the edge is a gateway, too: of this region
	relay       func(*Config)
	gateway     func(*gateway.Config)
	listener    func(*model.Listener)
	udpBlocked  bool
	groups      []model.EndpointGroup
}

func logger(name string) *slog.Logger {
	if os.Getenv("NEARCAST_TEST_LOG") == "" {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	h := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	return slog.New(h).With("node", name)
}

// endpoints makes a group of a region with healthy endpoints 127.0.2.N.
func group(region string, hosts ...int) model.EndpointGroup {
	g := model.EndpointGroup{ID: model.GroupID("g-" + region), Listener: "l", Region: model.RegionName(region), TrafficDial: 100}
	for _, n := range hosts {
		host := fmt.Sprintf("127.0.2.%d", n)
		g.Endpoints = append(g.Endpoints, model.Endpoint{ID: model.EndpointID(host), Host: host, Weight: 128, Health: model.HealthHealthy})
	}
	return g
}

func newWorld(t testing.TB, s spec) *world {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ca: ca, gates: map[model.NodeID]*gate{}, port: netns.FreePorts(t, 4), memory: backbone.NewMemory(64 << 20)}
	w.snap = &model.Snapshot{
		Revision: 1, Cluster: "test",
		Accelerators:          []model.Accelerator{{ID: "a", Enabled: true, Addresses: []netip.Addr{vip, vip6}}},
		Sites:                 []model.Site{{Name: "here", Region: model.RegionName(s.selfGateway)}},
		Nodes:                 []model.Node{{ID: "edge", Site: "here", Edge: true, Gateway: s.selfGateway != ""}},
		EndpointAllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Groups:                s.groups,
	}
	l := model.Listener{ID: "l", Accelerator: "a", Protocol: model.TCPUDP, TCPIdleTimeout: time.Hour, UDPIdleTimeout: time.Hour,
		PortRanges: []model.PortRange{{From: w.port, To: w.port}}}
	if s.listener != nil {
		s.listener(&l)
	}
	w.snap.Listeners = []model.Listener{l}
	w.startEdge(s)
	for i, region := range s.gates {
		site := model.SiteName("site-" + region)
		w.snap.Sites = append(w.snap.Sites, model.Site{Name: site, Region: model.RegionName(region)})
		id := model.NodeID("gw-" + region)
		w.snap.Nodes = append(w.snap.Nodes, model.Node{ID: id, Site: site, Gateway: true})
		w.gates[id] = w.startGate(id, s)
		_ = i
	}
	w.apply()
	w.settle(s)
	t.Cleanup(w.stop)
	return w
}

// settle waits until the tunnels are up, and orders the regions as the spec has them.
func (w *world) settle(s spec) {
	w.t.Helper()
	rtt := map[model.NodeID]time.Duration{}
	for i, region := range s.gates {
		id := model.NodeID("gw-" + region)
		rtt[id] = time.Duration(10*(i+1)) * time.Millisecond
		w.eventually("tunnel to "+string(id), func() bool {
			p, _ := w.pool.Peer(id)
			return p.Up && (s.udpBlocked || p.UDP)
		})
	}
	w.mu.Lock()
	w.view.RTT = rtt
	w.mu.Unlock()
	w.pool.OnChange(w.steer)
	w.steer()
}

func (w *world) credentials(name string) *identity.Credentials {
	key, csr, err := identity.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := w.ca.Sign(csr, identity.Subject{Cluster: "test", Kind: identity.KindNode, Name: name}, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := identity.NewCredentials(der, key, []*x509.Certificate{w.ca.Certificate()})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) common(name string) backbone.Common {
	return backbone.Common{Credentials: w.credentials(name), PingInterval: 50 * time.Millisecond, DeadAfter: 30 * time.Second,
		PathWait: 3 * time.Second, LeaveHost: true, Log: logger(name)}
}

func (w *world) startGate(id model.NodeID, s spec) *gate {
	g := &gate{reg: prometheus.NewRegistry()}
	cfg := gateway.Config{Self: id, Log: logger(string(id)), Metrics: g.reg,
		SendDatagrams: func(peer model.NodeID, msgs [][]byte) int { return g.server.SendDatagrams(peer, msgs) },
		OnGroups:      func(m map[model.GroupID]bool) { g.server.AnnounceGroups(m) }}
	if s.gateway != nil {
		s.gateway(&cfg)
	}
	var err error
	if g.gateway, err = gateway.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	common := w.common(string(id))
	common.HandleDatagrams = g.gateway.HandleDatagrams
	var parts []func(context.Context) error
	if !s.udpBlocked {
		if common.Transport, err = datagram.New(datagram.Config{Listen: at}); err != nil {
			w.t.Fatal(err)
		}
		parts = append(parts, common.Transport.Run)
	}
	if g.server, err = backbone.NewServer(backbone.ServerConfig{Common: common, Listener: l, HandleStream: g.gateway.HandleStream}); err != nil {
		w.t.Fatal(err)
	}
	g.run(w.t, append(parts, g.server.Run, g.gateway.Run)...)
	w.snap.Nodes[len(w.snap.Nodes)-1].BackboneAddresses = []netip.AddrPort{at}
	return g
}

func (w *world) startEdge(s spec) {
	w.reg = prometheus.NewRegistry()
	common := w.common("edge")
	common.Memory = w.memory
	common.HandleDatagrams = func(peer model.NodeID, msgs [][]byte) { w.udp.HandleDatagrams(peer, msgs) }
	var err error
	var parts []func(context.Context) error
	if !s.udpBlocked {
		if common.Transport, err = datagram.New(datagram.Config{}); err != nil {
			w.t.Fatal(err)
		}
		parts = append(parts, common.Transport.Run)
	}
	if w.pool, err = backbone.NewPool(backbone.PoolConfig{Common: common, Self: "edge", Dial: w.cuts.dial}); err != nil {
		w.t.Fatal(err)
	}
	gc := gateway.Config{Self: "edge", Log: logger("edge"),
		LocalDatagrams: func(peer model.NodeID, msgs [][]byte) { w.udp.HandleDatagrams(peer, msgs) }}
	if s.gateway != nil {
		s.gateway(&gc)
	}
	if w.local, err = gateway.New(gc); err != nil {
		w.t.Fatal(err)
	}
	cfg := Config{Self: "edge", Pool: w.pool, Gateway: w.local, Memory: w.memory, Log: logger("edge"), Metrics: w.reg}
	if s.relay != nil {
		s.relay(&cfg)
	}
	if w.tcp, err = NewTCP(cfg); err != nil {
		w.t.Fatal(err)
	}
	if w.udp, err = NewUDP(cfg); err != nil {
		w.t.Fatal(err)
	}
	if w.doors, err = listen.New(listen.Config{HandleTCP: w.tcp.Handle, HandleUDP: w.udp.HandleUDP}); err != nil {
		w.t.Fatal(err)
	}
	w.edge.run(w.t, append(parts, w.pool.Run, w.local.Run, w.tcp.Run, w.udp.Run, w.doors.Run)...)
}

// apply has everybody serve by the snapshot as it is now.
func (w *world) apply() {
	w.t.Helper()
	s := *w.snap
	s.Revision++
	w.mu.Lock()
	w.snap = &s
	w.mu.Unlock()
	w.pool.SetPeers(s.Nodes)
	for _, g := range w.gates {
		g.server.SetPeers(s.Nodes)
		g.gateway.Apply(&s)
	}
	w.local.Apply(&s)
	w.steer()
	w.mu.Lock()
	bindings := Bindings(steer.Compile(w.snap, "edge", w.view), false)
	w.mu.Unlock()
	if err := w.doors.Apply(bindings); err != nil {
		w.t.Fatal(err)
	}
}

// steer compiles the table as a node does, but with distances that the test chose.
func (w *world) steer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := steer.View{RTT: map[model.NodeID]time.Duration{}, Groups: map[model.NodeID]map[model.GroupID]bool{"edge": w.local.Groups()}}
	for id, rtt := range w.view.RTT {
		if p, _ := w.pool.Peer(id); p.Up {
			v.RTT[id] = rtt
			v.Groups[id] = maps.Clone(w.pool.GroupState(id))
		}
	}
	t := steer.Compile(w.snap, "edge", v)
	w.tcp.SetTable(t)
	w.udp.SetTable(t)
}

func (w *world) stop() {
	w.edge.stop()
	for _, g := range w.gates {
		g.stop()
	}
	if n := w.tcp.Flows() + w.udp.Flows(); n != 0 {
		w.t.Errorf("%d flows are left", n)
	}
	for id, g := range w.gates {
		if tcp, udp := g.gateway.Flows(); tcp+udp != 0 {
			w.t.Errorf("%d + %d flows are left at %s", tcp, udp, id)
		}
	}
	if tcp, udp := w.local.Flows(); tcp+udp != 0 {
		w.t.Errorf("%d + %d flows are left at the local gateway", tcp, udp)
	}
	if n := w.memory.Used(); n != 0 {
		w.t.Errorf("%d bytes of stream memory are left", n)
	}
	leftSources(w.t, &w.tcp.admit)
	leftSources(w.t, &w.udp.admit)
}

func leftSources(t testing.TB, a *admission) {
	for i := range a.shards {
		if len(a.shards[i].n) > 0 {
			t.Errorf("sources are left: %v", a.shards[i].n)
		}
	}
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within a minute", what)
		}
	}
}

func (w *world) at() netip.AddrPort { return netip.AddrPortFrom(vip, w.port) }

// dial connects as a client does; the connection is closed with the test.
func (w *world) dial() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.at().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c.(*net.TCPConn)
}

// serve runs handle for every connection to 127.0.2.N at the listener's port.
func (w *world) serve(n int, handle func(*net.TCPConn)) (stop func()) {
	w.t.Helper()
	return serve(w.t, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 2, byte(n)}), w.port), handle)
}

func serve(t testing.TB, at netip.AddrPort, handle func(*net.TCPConn)) (stop func()) {
	t.Helper()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	conns, stopped := map[*net.TCPConn]bool{}, false
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tc := c.(*net.TCPConn)
			mu.Lock()
			conns[tc] = true
			late := stopped
			mu.Unlock()
			done.Go(func() {
				if !late {
					handle(tc)
				}
				tc.Close()
				mu.Lock()
				delete(conns, tc)
				mu.Unlock()
			})
		}
	})
	stop = sync.OnceFunc(func() {
		l.Close()
		mu.Lock()
		stopped = true
		for c := range conns {
			_ = c.SetLinger(0) // as when the process dies
			c.Close()
		}
		mu.Unlock()
		done.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// metric sums a metric's series whose labels hold all of want (name, value, …).
func metric(t testing.TB, r *prometheus.Registry, name string, want ...string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.Metric {
			for i := 0; i < len(want); i += 2 {
				found := false
				for _, l := range m.Label {
					found = found || l.GetName() == want[i] && l.GetValue() == want[i+1]
				}
				if !found {
					continue series
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
