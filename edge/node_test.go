package edge

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nearcast/nearcast/edge/kernel"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/leak"
)

// A probe of the gossip library may outlast its Shutdown by one timer.
func TestMain(m *testing.M) {
	leak.Main(m, goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// echo is an endpoint that sends back what comes, by TCP and UDP on the same port.
type echo struct {
	addr netip.AddrPort
	stop func()
}

func startEcho(t *testing.T) *echo {
	t.Helper()
	addr := freeAddr(t)
	ln, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(buf[:n], from)
		}
	})
	e := &echo{addr: addr}
	var once sync.Once
	e.stop = func() { once.Do(func() { ln.Close(); pc.Close() }) }
	t.Cleanup(func() { e.stop(); wg.Wait() })
	return e
}

const (
	acceleratorID = "12345678-1234-1234-1234-123456789abc"
	listenerID    = "0a0b0c0d"
	groupID       = "0a0b0c0d0e0f"
)

// configuration is one accelerator whose listener serves TCP and UDP at client's port and whose
// endpoints are in the region of the node "gate".
func configuration(revision uint64, client netip.AddrPort, endpoints ...netip.AddrPort) *model.Snapshot {
	s := &model.Snapshot{
		Revision: revision, Cluster: "test",
		Accelerators: []model.Accelerator{{
			ID: acceleratorID, Name: "web", Enabled: true, Pools: []model.PoolName{"nodes"},
			DNSName: "a0123456789abcdef.nearcast.internal", Project: "default",
		}},
		Listeners: []model.Listener{{
			ID: listenerID, Accelerator: acceleratorID, Protocol: model.TCPUDP,
			PortRanges:     []model.PortRange{{From: client.Port(), To: client.Port()}},
			TCPIdleTimeout: time.Minute, UDPIdleTimeout: 2 * time.Second, // drains wait for it
		}},
		Pools:   []model.Pool{{Name: "nodes", Kind: model.PoolNode}},
		Regions: []model.Region{{Name: "near"}, {Name: "far"}},
		Sites: []model.Site{
			{Name: "site-door", Region: "near"}, {Name: "site-gate", Region: "far"},
		},
		GossipKeys:            [][]byte{bytes.Repeat([]byte{7}, 32)},
		EndpointAllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}
	group := model.EndpointGroup{
		ID: groupID, Listener: listenerID, Region: "far", TrafficDial: 100,
		HealthCheck: model.HealthCheck{
			Port: endpoints[0].Port(), Path: "/", Interval: time.Second, Timeout: time.Second,
			HealthyThreshold: 3, UnhealthyThreshold: 2, ExpectedCodes: model.DefaultExpectedCodes,
		},
		PortOverrides: []model.PortOverride{{ListenerPort: client.Port(), EndpointPort: endpoints[0].Port()}},
	}
	for _, e := range endpoints {
		group.Endpoints = append(group.Endpoints, model.Endpoint{
			ID: model.EndpointID(e.Addr().String()), Host: e.Addr().String(), Weight: 128,
		})
	}
	s.Groups = []model.EndpointGroup{group}
	return s
}

// fleet is an edge ("door") and a gateway ("gate") that serve one accelerator.
type fleet struct {
	*controller
	kill       func() // the controller
	door, gate *machine
	client     netip.AddrPort // where clients connect to
	echo       *echo
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return newFleetWith(t, func(*Config) {})
}

// newFleetWith makes a fleet whose door is configured otherwise.
func newFleetWith(t *testing.T, change func(*Config)) *fleet {
	t.Helper()
	f := &fleet{controller: newController(t), echo: startEcho(t)}
	f.kill = f.controller.start()
	free := freeAddr(t)
	f.client = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), free.Port())
	f.gate = newMachine(t, f.controller, "gate", func(c *Config) { c.Gateway = true }).start()
	f.door = newMachine(t, f.controller, "door", func(c *Config) {
		c.Edge = true
		c.ServiceAddresses = []netip.Addr{f.client.Addr()}
		change(c)
	}).start()
	for _, name := range []string{"door", "gate"} {
		eventually(t, name+" enrols", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.nodes[name].ID != ""
		})
	}
	f.set(configuration(10, f.client, f.echo.addr))
	for _, name := range []string{"door", "gate"} {
		if ack := f.applied(name, 10); !ack.GetApplied() {
			t.Fatalf("%s: %v", name, ack)
		}
	}
	f.door.ready()
	f.gate.ready()
	f.serves(t)
	return f
}

// serves waits until flows of both protocols go through.
func (f *fleet) serves(t *testing.T) {
	t.Helper()
	eventually(t, "TCP and UDP go through", func() bool { // each time by new flows
		return f.tcp(1000, 5*time.Second) == nil && f.udp(1000, time.Second) == nil
	})
}

// tcp sends n bytes in a flow of its own and compares what comes back.
func (f *fleet) tcp(n int, within time.Duration) error {
	conn, err := net.DialTimeout("tcp", f.client.String(), within)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(within))
	data := random(n)
	go func() {
		conn.Write(data)
		conn.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if sha256.Sum256(back) != sha256.Sum256(data) {
		return fmt.Errorf("%d bytes came back of %d, or others", len(back), n)
	}
	return nil
}

// udp sends datagrams of a flow of its own, each again after a second, and compares what comes back.
func (f *fleet) udp(n int, within time.Duration) error {
	conn, err := net.Dial("udp", f.client.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	data, buf := random(n), make([]byte, 64<<10)
	end := time.Now().Add(within)
	for range 3 {
		got, err := 0, error(nil)
		for {
			if _, err := conn.Write(data); err != nil {
				return err
			}
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if got, err = conn.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:got], data) {
			return errors.New("another datagram came back")
		}
	}
	return nil
}

func random(n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, n)
	r.Read(b)
	return b
}

func TestTrafficWithAndWithoutControllers(t *testing.T) {
	f := newFleet(t)
	if err := f.tcp(8<<20, patience); err != nil {
		t.Errorf("8 MiB by TCP: %v", err)
	}
	for _, n := range []int{0, 1, 1400, 9000} {
		if err := f.udp(n, patience); err != nil {
			t.Errorf("%d bytes by UDP: %v", n, err)
		}
	}
	eventually(t, "the controller hears the verdict", func() bool {
		return f.verdict("gate", groupID, "127.0.0.1") == pb.HealthState_HEALTH_STATE_HEALTHY
	})

	old, err := net.Dial("tcp", f.client.String())
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	roundTrip(t, old)

	f.kill() // no controller from here on
	if err := f.tcp(100<<10, patience); err != nil {
		t.Errorf("a new flow without controllers: %v", err)
	}
	if err := f.udp(100, patience); err != nil {
		t.Errorf("a new UDP flow without controllers: %v", err)
	}
	roundTrip(t, old)

	f.door.kill()
	began := time.Now()
	f.door.start().ready()
	f.serves(t)
	t.Logf("restart without controllers served after %v", time.Since(began))
	if s := f.door.node.Status(); !s.Agent.FromDisk || s.Agent.Revision != 10 {
		t.Errorf("%+v", s.Agent)
	}
	f.gate.kill()
	f.gate.start().ready()
	f.serves(t)

	f.controller.start()
	eventually(t, "the nodes come back to the controller", func() bool {
		return f.door.node.Status().Agent.Controller != "" && f.gate.node.Status().Agent.Controller != ""
	})
}

// roundTrip sends a few bytes on a flow that exists.
func roundTrip(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}

// TestVerdictsActLocally: a gateway stops using an endpoint on its own word, with no controller.
func TestVerdictsActLocally(t *testing.T) {
	f := newFleet(t)
	groups := func(servable bool) func() bool {
		return func() bool {
			s := f.gate.node.Status()
			return len(s.Groups) == 1 && s.Groups[0].Servable == servable
		}
	}
	eventually(t, "the group is servable", groups(true))
	f.kill()
	f.echo.stop()
	eventually(t, "the group is not servable", groups(false))
	if s := f.gate.node.Status().Endpoints; len(s) != 1 || s[0].State != "unhealthy" || s[0].Reason == "" {
		t.Errorf("%+v", s)
	}
	eventually(t, "the edge hears it", func() bool {
		v := f.door.node.view()
		servable, known := v.Groups["n-gate"][groupID]
		return known && !servable
	})
}

// TestDrain: a node that is asked to stop takes no new flows and finishes the old ones.
func TestDrain(t *testing.T) {
	f := newFleet(t)
	conn, err := net.Dial("tcp", f.client.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	roundTrip(t, conn)
	f.door.stop()
	eventually(t, "the door is closed", func() bool {
		c, err := net.Dial("tcp", f.client.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if s := f.door.node.Status(); s.Ready || !s.Draining {
		t.Errorf("ready %v, draining %v", s.Ready, s.Draining)
	}
	roundTrip(t, conn)
	conn.Close()
	f.door.wait()

	// And one that does not want to wait.
	f.door.start().ready()
	f.serves(t)
	if conn, err = net.Dial("tcp", f.client.String()); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	roundTrip(t, conn)
	f.door.stop()
	roundTrip(t, conn)
	f.door.node.Abort()
	f.door.wait()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the flow lives on")
	}
}

// TestBadSnapshotLeavesNoTrace: what cannot be applied is refused whole, and the old one serves.
func TestBadSnapshotLeavesNoTrace(t *testing.T) {
	f := newFleet(t)
	bad := configuration(11, f.client, f.echo.addr)
	bad.Listeners[0].Accelerator = "nowhere"
	f.set(bad)
	for _, name := range []string{"door", "gate"} {
		if ack := f.applied(name, 11); ack.GetApplied() || len(ack.GetRejections()) == 0 {
			t.Errorf("%s: %v", name, ack)
		}
	}
	if err := f.tcp(1000, patience); err != nil {
		t.Error(err)
	}
	// The listener moves to another port: the old one closes.
	was := f.client
	f.client = netip.AddrPortFrom(f.client.Addr(), freeAddr(t).Port())
	f.set(configuration(12, f.client, f.echo.addr))
	if ack := f.applied("door", 12); !ack.GetApplied() {
		t.Fatal(ack)
	}
	f.serves(t)
	if c, err := net.Dial("tcp", was.String()); err == nil {
		c.Close()
		t.Error("the old port is still open")
	}
}

// TestBusyPort: a port that another process holds is said, kept being tried, and harms nothing else.
func TestBusyPort(t *testing.T) {
	f := newFleetWith(t, func(c *Config) { c.KernelModes = map[kernel.Name]kernel.Mode{kernel.Dispatch: kernel.Off} })
	busy := netip.AddrPortFrom(f.client.Addr(), freeAddr(t).Port())
	ln, err := net.Listen("tcp", busy.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := configuration(11, f.client, f.echo.addr)
	s.Listeners[0].PortRanges = append(s.Listeners[0].PortRanges, model.PortRange{From: busy.Port(), To: busy.Port()})
	f.set(s)
	f.applied("door", 11)
	eventually(t, "it is said", func() bool {
		return strings.Contains(strings.Join(f.door.node.Status().Missing, "\n"), fmt.Sprint(busy.Port()))
	})
	if err := f.tcp(1000, patience); err != nil {
		t.Errorf("the other port: %v", err)
	}
	ln.Close()
	f.door.ready()
}

func TestHTTP(t *testing.T) {
	f := newFleet(t)
	ask := func(m *machine, serve string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", serve, nil)
		switch serve {
		case "/readyz":
			m.node.serveReadyz(w, r)
		case "/status":
			m.node.serveStatus(w, r)
		}
		return w
	}
	if w := ask(f.door, "/readyz"); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var s Status
	if err := json.Unmarshal(ask(f.door, "/status").Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	if s.ID != "n-door" || len(s.Tunnels) != 1 || !s.Tunnels[0].Up || s.Tunnels[0].Name != "gate" {
		t.Errorf("%+v", s)
	}
	fresh, err := New(f.door.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if missing := fresh.missing(); len(missing) != 1 {
		t.Errorf("%v", missing)
	}
}

func TestValidate(t *testing.T) {
	err := (&Config{}).Validate()
	for _, flag := range []string{
		"--data-dir", "--controllers", "--name", "--site", "--roles", "--backbone-listen", "--gossip-listen",
	} {
		if err == nil || !strings.Contains(err.Error(), flag+": ") {
			t.Errorf("%s is not named in %v", flag, err)
		}
	}
}
