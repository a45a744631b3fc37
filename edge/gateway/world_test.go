package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// world is a gateway of region x whose endpoints are at 127.0.2.N.
type world struct {
	t    testing.TB
	g    *Gateway
	snap model.Snapshot
	port uint16 // of the endpoints and the listener
	reg  *prometheus.Registry
	told chan map[model.GroupID]bool // what OnGroups was told
	msgs chan []byte                 // datagram messages for this node's own relay
}

func newWorld(t testing.TB, options ...func(*Config)) *world {
	t.Helper()
	w := idleWorld(t, options...)
	t.Cleanup(func() { // after it has ended
		if tcp, udp := w.g.Flows(); tcp+udp != 0 {
			t.Errorf("%d + %d flows are left", tcp, udp)
		}
	})
	leak.Run(t, w.g.Run)
	return w
}

// idleWorld is a world whose gateway does not run: it takes flows of TCP all the same.
func idleWorld(t testing.TB, options ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, port: netns.FreePort(t), reg: prometheus.NewRegistry(),
		told: make(chan map[model.GroupID]bool, 64), msgs: make(chan []byte, 1024)}
	cfg := Config{Self: "gw", Metrics: w.reg, OnGroups: func(m map[model.GroupID]bool) { w.told <- m },
		LocalDatagrams: func(_ model.NodeID, msgs [][]byte) {
			for _, m := range msgs {
				select {
				case w.msgs <- append([]byte(nil), m...):
				default: // nobody reads that many
				}
			}
		}}
	for _, o := range options {
		o(&cfg)
	}
	var err error
	if w.g, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	w.snap = model.Snapshot{
		Revision: 1, Cluster: "test",
		Accelerators: []model.Accelerator{{ID: "a", Enabled: true, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}},
		Listeners: []model.Listener{{ID: "l", Accelerator: "a", Protocol: model.TCPUDP, UDPIdleTimeout: time.Minute,
			PortRanges: []model.PortRange{{From: 1, To: 65535}}}},
		Sites:                 []model.Site{{Name: "here", Region: "x"}, {Name: "there", Region: "y"}},
		Nodes:                 []model.Node{{ID: "gw", Site: "here", Gateway: true}, {ID: "other", Site: "there", Gateway: true}},
		EndpointAllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.2.0/24")},
	}
	return w
}

// group has a group of a region with endpoints 127.0.2.N.
func (w *world) group(id, region string, hosts ...int) *model.EndpointGroup {
	g := model.EndpointGroup{ID: model.GroupID(id), Listener: "l", Region: model.RegionName(region), TrafficDial: 100}
	for _, n := range hosts {
		host := fmt.Sprintf("127.0.2.%d", n)
		g.Endpoints = append(g.Endpoints,
			model.Endpoint{ID: model.EndpointID(host), Host: host, Weight: 128, Health: model.HealthHealthy})
	}
	w.snap.Groups = append(w.snap.Groups, g)
	return &w.snap.Groups[len(w.snap.Groups)-1]
}

func (w *world) apply() {
	s := w.snap
	w.g.Apply(&s)
}

// open is what an edge asks for; n makes the flow another one.
func (w *world) open(group string, n int) *wire.Open {
	return &wire.Open{Listener: "l", Group: group, Proto: uint8(flow.TCP), HopsLeft: 1,
		Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), uint16(1024+n)),
		Dst: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), w.port)}
}

// dial connects a flow, and says which endpoint it got or why none.
func (w *world) dial(o *wire.Open) (string, wire.OpenCode) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, id, err := w.g.DialLocal(ctx, o)
	var refusal *OpenError
	if errors.As(err, &refusal) {
		return string(refusal.Endpoint), refusal.Code
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(); w.g.ReleaseLocal() })
	return string(id), wire.OpenOK
}

// serve accepts at 127.0.2.N and sends what a connection brings, to its end, on the channel.
func (w *world) serve(n int) <-chan string {
	w.t.Helper()
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.2.%d:%d", n, w.port))
	if err != nil {
		w.t.Fatal(err)
	}
	heard := make(chan string, 256)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				heard <- string(b)
			})
		}
	})
	w.t.Cleanup(func() { l.Close(); done.Wait() })
	return heard
}

// metric sums a metric's series, or those with a label's value.
func (w *world) metric(name string, label ...string) (sum float64) {
	w.t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "nearcast_gateway_"+name {
			continue
		}
		for _, m := range f.Metric {
			if len(label) == 0 || len(m.Label) > 0 && m.Label[0].GetValue() == label[0] {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
