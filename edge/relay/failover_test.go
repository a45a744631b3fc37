package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/gateway"
	"github.com/nearcast/nearcast/proto/model"
)

// ask sends a line and returns the answer.
func ask(c *net.TCPConn, line string) (string, error) {
	if _, err := io.WriteString(c, line); err != nil {
		return "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// named answers with its name and what was asked.
func named(name string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = io.WriteString(c, name+":"+string(b))
	}
}

// TestRefusedMovesOn: the client's bytes reach the next group, and the client notices nothing.
func TestRefusedMovesOn(t *testing.T) {
	for _, self := range []string{"", "x"} { // the next group is far away, or right here
		gates := []string{"near", "mid", "far"}
		far := "far"
		if self != "" {
			gates, far = gates[:2], self
		}
		s := spec{gates: gates, selfGateway: self,
			groups: []model.EndpointGroup{group("near", 1), group("mid", 2, 3), group(far, 4)}}
		w := newWorld(t, s)
		if self != "" {
			w.mu.Lock()
			w.snap.Groups[2].TrafficDial = 0 // the nearest now, but only good enough when others fail
			w.mu.Unlock()
			w.apply()
		}
		w.serve(4, named("four"))
		for _, request := range []string{"", "hello", string(pattern(5000, 1)), string(pattern(60_000, 2)), string(pattern(700_000, 3))} {
			got, err := ask(w.dial(), request)
			if err != nil || got != "four:"+request {
				t.Errorf("self %q: %d bytes asked: %d answered, %v", self, len(request), len(got), err)
			}
		}
		if n := metric(t, w.reg, "nearcast_relay_tcp_moved_total", "why", "refused"); n < 4 {
			t.Errorf("%v refusals counted", n)
		}
	}
}

// TestOtherEndpoint: a gateway tries another endpoint before it refuses.
func TestOtherEndpoint(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1, 2, 3)}})
	w.serve(3, named("three"))
	for range 30 {
		if got, err := ask(w.dial(), "hi"); err != nil || got != "three:hi" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if n := metric(t, w.reg, "nearcast_relay_tcp_moved_total"); n != 0 {
		t.Errorf("%v flows moved to another gateway", n)
	}
}

// blackhole listens and never accepts, with a backlog that is full: connects are not answered.
func blackhole(t *testing.T, at netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		d := net.Dialer{Timeout: 100 * time.Millisecond}
		if c, err := d.Dial("tcp", at.String()); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
}

func TestSilentEndpointMovesOn(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 2)},
		gateway: func(c *gateway.Config) {
			if c.Self == "gw-x" {
				c.DialTimeout, c.OpenBudget = 300*time.Millisecond, 500*time.Millisecond
			}
		}})
	blackhole(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.2.1"), w.port))
	w.serve(2, named("two"))
	if got, err := ask(w.dial(), "hi"); err != nil || got != "two:hi" {
		t.Fatalf("%q, %v", got, err)
	}
	// (A busy machine may be late at the other one, too.)
	if n := metric(t, w.reg, "nearcast_relay_tcp_moved_total", "why", "timeout"); n < 1 {
		t.Errorf("%v timeouts counted", n)
	}
}

func TestNobodyTakesIt(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 2)}})
	if err := refusal(w.at()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v, want a reset", err)
	}
	w.eventually("flow ends", func() bool { return w.tcp.Flows() == 0 })
}

// TestFailOpen: with nothing healthy anywhere, the nearest group is served all the same.
func TestFailOpen(t *testing.T) {
	groups := []model.EndpointGroup{group("x", 1), group("y", 2)}
	for i := range groups {
		groups[i].Endpoints[0].Health = model.HealthUnhealthy
	}
	w := newWorld(t, spec{gates: []string{"x", "y"}, groups: groups})
	w.serve(1, named("one"))
	if got, err := ask(w.dial(), "hi"); err != nil || got != "one:hi" {
		t.Fatalf("%q, %v", got, err)
	}
}

// TestGatewaysWord: a gateway's own verdict moves new flows at once, and those that are there stay.
func TestGatewaysWord(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 2)}})
	w.serve(1, echo)
	w.serve(2, named("two"))
	old := w.dial()
	byteEcho := func() {
		t.Helper()
		if _, err := old.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
			t.Fatalf("an established flow was touched: %v", err)
		}
	}
	byteEcho()
	w.gates["gw-x"].gateway.SetVerdict("g-x", "127.0.2.1", model.HealthUnhealthy)
	// From the moment of the verdict the gateway refuses, whether or not the edge has heard of it.
	if got, err := ask(w.dial(), "hi"); err != nil || got != "two:hi" {
		t.Fatalf("%q, %v", got, err)
	}
	w.eventually("the edge hears of it", func() bool {
		word, spoken := w.pool.GroupState("gw-x")["g-x"]
		return spoken && !word
	})
	byteEcho()
	w.gates["gw-x"].gateway.SetVerdict("g-x", "127.0.2.1", model.HealthHealthy)
	w.eventually("flows come back", func() bool {
		got, err := ask(w.dial(), "hi")
		return err == nil && got == "hi"
	})
}

// requests is how many flows have read something besides the client's end.
func (w *world) requests() (n int) {
	w.tcp.flows.Each(func(f *tcpFlow) {
		p, ok := f.Progress()
		raw, err := f.Conn().SyscallConn()
		if !ok || err != nil {
			return
		}
		waiting := -1
		_ = raw.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		if p.In > 1 && waiting == 0 { // an end is a byte
			n++
		}
	})
	return n
}

// TestGatewayKilled: flows that were being opened when their gateway died go elsewhere as soon as the
// edge knows; flows that come later do at once.
func TestGatewayKilled(t *testing.T) {
	for _, atMostOnce := range []bool{false, true} {
		w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 2)},
			relay:   func(c *Config) { c.AtMostOnce = atMostOnce },
			gateway: func(c *gateway.Config) { c.DialTimeout, c.OpenBudget = time.Minute, time.Minute }})
		// The endpoint of x does not answer, so that flows are in the middle of being opened.
		blackhole(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.2.1"), w.port))
		w.serve(2, named("two"))
		const flows = 20
		conns := make([]*net.TCPConn, flows)
		for i := range conns {
			conns[i] = w.dial()
		}
		w.eventually("flows are opened", func() bool { n, _ := w.gates["gw-x"].gateway.Flows(); return n == flows })
		var all sync.WaitGroup
		for i, c := range conns {
			all.Go(func() {
				request := ""
				if i%2 == 0 {
					request = "hi"
				}
				got, err := ask(c, request)
				if atMostOnce && request != "" {
					if !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("a flow that had sent something: %q, %v, want a reset", got, err)
					}
				} else if err != nil || got != "two:"+request {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		w.eventually("the requests are read", func() bool { return w.requests() == flows/2 })
		w.cut("gw-x")
		all.Wait()
		if got, err := ask(w.dial(), "hi"); err != nil || got != "two:hi" {
			t.Errorf("a later flow: %q, %v", got, err)
		}
		w.stop()
	}
}

// TestTunnelLost: a flow that was served when its gateway died is reset.
func TestTunnelLost(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}})
	w.serve(1, echo)
	c := w.dial()
	if _, err := c.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	w.gates["gw-x"].stop()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v, want a reset", err)
	}
}

// TestTunnelComesBack: a connection that finds every tunnel down waits for one; one that waited in vain is
// reset, and those after it at once, until a tunnel is back.
func TestTunnelComesBack(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}})
	w.serve(1, named("one"))
	down := func() bool { p, _ := w.pool.Peer("gw-x"); return !p.Up }
	awaited := func() float64 { return metric(t, w.reg, "nearcast_relay_tcp_awaited_total") }
	served := func() bool {
		c, err := net.Dial("tcp", w.at().String())
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		got, err := ask(c.(*net.TCPConn), "hi")
		return err == nil && got == "one:hi"
	}
	for tries := 0; ; tries++ {
		w.cut("gw-x")
		w.eventually("the tunnel is down", down)
		before, begin := awaited(), time.Now()
		c := w.dial()
		w.eventually("the connection waits", func() bool { return awaited() > before })
		w.mend("gw-x")
		got, err := ask(c, "hi")
		if err == nil && got == "one:hi" {
			break
		}
		if time.Since(begin) < pathWait || tries == 10 { // else it was this machine that had no time
			t.Fatalf("%q, %v", got, err)
		}
		w.eventually("it serves again", served)
	}

	unservedBefore := metric(t, w.reg, "nearcast_relay_tcp_unserved_total")
	w.cut("gw-x")
	w.eventually("the tunnel is down again", down)
	unserved := func() float64 { return metric(t, w.reg, "nearcast_relay_tcp_unserved_total") }
	if err := refusal(w.at()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("in vain: %v, want a reset", err)
	}
	waits := metric(t, w.reg, "nearcast_relay_tcp_awaited_total")
	if err := refusal(w.at()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after one in vain: %v, want a reset", err)
	}
	if n := awaited(); n != waits || unserved()-unservedBefore != 2 {
		t.Errorf("%v waits, had been %v; %v unserved, want 2", n, waits, unserved()-unservedBefore)
	}
	w.mend("gw-x")
	w.eventually("it serves again", served)
}

// TestDrainingGateway: a gateway that takes no new flows sends them on, and keeps those it has.
func TestDrainingGateway(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 2)}})
	w.serve(1, echo)
	w.serve(2, named("two"))
	old := w.dial()
	if _, err := old.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	w.gates["gw-x"].gateway.SetDraining(true)
	if got, err := ask(w.dial(), "hi"); err != nil || got != "two:hi" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := old.Write([]byte("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
		t.Errorf("an established flow was touched: %v", err)
	}
	// With everything draining, draining is better than nothing.
	w.gates["gw-y"].gateway.SetDraining(true)
	if _, err := ask(w.dial(), "hi"); err != nil {
		t.Errorf("the last resort: %v", err)
	}
}

// refusal connects and returns what becomes of it. (On loopback a reset may be quicker than connect.)
func refusal(at netip.AddrPort) error {
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, err = io.ReadAll(c)
	return err
}

// TestForbidden: an endpoint at an address that nobody allowed is not dialled.
func TestForbidden(t *testing.T) {
	for _, gates := range [][]string{{"x"}, nil} {
		g := group("x", 1)
		w := newWorld(t, spec{gates: gates, groups: []model.EndpointGroup{g}})
		w.serve(1, named("one"))
		w.mu.Lock()
		w.snap.EndpointAllowNetworks = nil
		w.mu.Unlock()
		w.apply()
		if err := refusal(w.at()); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client sees %v, want a reset", err)
		}
		if n := metric(t, w.reg, "nearcast_relay_tcp_moved_total", "why", "forbidden"); n == 0 {
			t.Error("the refusal was not counted")
		}
	}
}
