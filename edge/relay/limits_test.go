package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/proxyproto"
	"github.com/nearcast/nearcast/proto/model"
)

// from dials from another source address.
func (w *world) from(addr string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := d.Dial("tcp", w.at().String())
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c.(*net.TCPConn), nil
}

// served reports whether a new connection gets to an echoing endpoint.
func (w *world) served(addr string) bool {
	c, err := w.from(addr)
	if err != nil {
		return false
	}
	if _, err := c.Write([]byte("a")); err != nil {
		return false
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err == nil
}

func TestLimits(t *testing.T) {
	shed := func(w *world, reason string) float64 {
		return metric(t, w.reg, "nearcast_relay_tcp_shed_total", "reason", reason)
	}
	t.Run("source", func(t *testing.T) {
		w := newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)},
			listener: func(l *model.Listener) { l.MaxFlows, l.MaxFlowsPerSource = 10, 3 }})
		w.serve(1, echo)
		for i := range 5 {
			if got, want := w.served("127.0.9.1"), i < 3; got != want {
				t.Errorf("flow %d served: %v", i, got)
			}
		}
		if !w.served("127.0.9.2") {
			t.Error("another source suffers")
		}
		if n := shed(w, "source"); n != 2 {
			t.Errorf("%v counted", n)
		}
	})
	t.Run("listener", func(t *testing.T) {
		w := newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)},
			listener: func(l *model.Listener) { l.MaxFlows = 8 }})
		w.serve(1, echo)
		n := 0
		for i := range 20 {
			if w.served(fmt.Sprintf("127.0.9.%d", i+1)) {
				n++
			}
		}
		if n != 8 || shed(w, "listener") != 12 {
			t.Errorf("%d flows are served, %v were shed", n, shed(w, "listener"))
		}
		for range 3 { // a quarter of the listener's is the bound for a source
			w.served("127.0.8.1")
		}
	})
	t.Run("node", func(t *testing.T) {
		w := newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)}, relay: func(c *Config) { c.MaxFlows = 4 }})
		w.serve(1, echo)
		n := 0
		for i := range 10 {
			if w.served(fmt.Sprintf("127.0.9.%d", i+1)) {
				n++
			}
		}
		if n != 4 || shed(w, "node")+shed(w, "listener") != 6 {
			t.Errorf("%d flows are served", n)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		w := newWorld(t, spec{gates: []string{"x", "y"}, groups: []model.EndpointGroup{group("x", 1), group("y", 1)}})
		w.serve(1, echo)
		w.gates["gw-x"].stop()
		if !w.served("127.0.9.1") {
			t.Error("not served by the other gateway")
		}
	})
}

func TestIdle(t *testing.T) {
	const timeout = 2 * time.Second
	idle := func(l *model.Listener) { l.TCPIdleTimeout = timeout }
	for name, s := range map[string]spec{
		"backbone": {gates: []string{"x"}, listener: idle, groups: []model.EndpointGroup{group("x", 1)}},
		"local":    {listener: idle, groups: []model.EndpointGroup{group("x", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, s)
			w.serve(1, echo)
			silent, busy := w.dial(), w.dial()
			begin := time.Now()
			longest := make(chan time.Duration, 1) // that the busy one was silent
			go func() {
				pause := time.Duration(0)
				for i, last := 0, begin; i < 8; i++ { // longer than the timeout, but never silent for as long
					_, _ = busy.Write([]byte{byte(i)})
					time.Sleep(timeout / 4)
					pause, last = max(pause, time.Since(last)), time.Now()
				}
				_ = busy.CloseWrite()
				longest <- pause
			}()
			if _, err := io.ReadAll(silent); err != nil {
				t.Errorf("the silent flow ended with %v, want an end in good order", err)
			}
			if took := time.Since(begin); took < timeout {
				t.Errorf("it ended after %v", took)
			}
			b, err := io.ReadAll(busy)
			if pause := <-longest; pause < timeout/2 && (err != nil || len(b) != 8) { // else the machine stood still
				t.Errorf("the busy flow has got %d bytes, %v, and was silent for %v at most", len(b), err, pause)
			}
			w.eventually("both ended", func() bool { return w.tcp.Flows() == 0 })
		})
	}
}

// TestRemoved: the flows of a listener that goes are reset, by whatever way they went.
func TestRemoved(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		w.serve(1, echo)
		c := w.dial()
		if _, err := c.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.snap.Accelerators[0].Enabled = false
		w.mu.Unlock()
		w.apply()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client sees %v, want a reset", err)
		}
		if err := refusal(w.at()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a new flow sees %v, want a refusal", err)
		}
	})
}

func TestProxyHeaderIn(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)},
		listener: func(l *model.Listener) {
			l.ProxyProtocolFrom = []netip.Prefix{netip.MustParsePrefix("127.0.9.0/24")}
			l.MaxFlowsPerSource, l.MaxFlows = 2, 100
		}})
	w.mu.Lock()
	w.snap.Groups[0].Endpoints[0].ClientAddress = model.ClientAddressProxyV1
	w.mu.Unlock()
	w.apply()
	w.serve(1, named("one"))
	client := netip.MustParseAddrPort("203.0.113.7:5555")
	line := "PROXY TCP4 203.0.113.7 127.0.1.1 5555 " + fmt.Sprint(w.port) + "\r\n"
	for version, header := range map[string][]byte{
		"v1": proxyproto.AppendV1(nil, client, w.at()), "v2": proxyproto.AppendV2(nil, client, w.at(), false),
	} {
		for _, step := range []int{len(header) + 100, 7, 1} { // whole, and in pieces
			c, err := w.from("127.0.9.1")
			if err != nil {
				t.Fatal(err)
			}
			for b := append(header, "hello"...); len(b) > 0; b = b[min(step, len(b)):] {
				if _, err := c.Write(b[:min(step, len(b))]); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "one:"+line+"hello" {
				t.Errorf("%s in steps of %d: %q, %v", version, step, got, err)
			}
		}
	}
	t.Run("missing", func(t *testing.T) {
		c, err := w.from("127.0.9.1")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(c, "GET / HTTP/1.1\r\n"); err == nil {
			t.Errorf("a proxy without a header was served: %q", got)
		}
	})
	t.Run("untrusted", func(t *testing.T) { // it is payload, and the endpoint sees the true address first
		c, err := w.from("127.0.8.1")
		if err != nil {
			t.Fatal(err)
		}
		got, err := ask(c, line+"hello")
		if err != nil || !strings.HasPrefix(got, "one:PROXY TCP4 127.0.8.1 ") || !strings.HasSuffix(got, line+"hello") {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("counted by client", func(t *testing.T) {
		for i := range 4 {
			c, err := w.from("127.0.9.1")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(header203(i/2, w.at())); err != nil {
				t.Fatal(err)
			}
		}
		w.eventually("four flows from two clients", func() bool { return w.tcp.Flows() == 4 })
		c, err := w.from("127.0.9.1")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(header203(0, w.at()))
		if _, err := io.ReadAll(c); err == nil {
			t.Error("a third flow of a client was served")
		}
	})
}

func header203(n int, to netip.AddrPort) []byte {
	src := netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
	return proxyproto.AppendV2(nil, netip.AddrPortFrom(src, 1000), to, false)
}

func TestProxyHeaderOut(t *testing.T) {
	for _, mode := range []model.ClientAddressMode{model.ClientAddressProxyV1, model.ClientAddressProxyV2} {
		for _, gates := range [][]string{{"x"}, nil} {
			g := group("x", 1)
			g.Endpoints[0].ClientAddress = mode
			w := newWorld(t, spec{gates: gates, groups: []model.EndpointGroup{g}})
			seen := make(chan proxyproto.Header, 1)
			w.serve(1, func(c *net.TCPConn) {
				b, _ := io.ReadAll(c)
				h, n, err := proxyproto.Parse(b)
				if err != nil || string(b[n:]) != "hello" {
					t.Errorf("endpoint sees %q, %v", b, err)
				}
				seen <- h
			})
			c := w.dial()
			if _, err := ask(c, "hello"); err != nil {
				t.Fatal(err)
			}
			var h proxyproto.Header
			select {
			case h = <-seen:
			case <-time.After(time.Minute):
				t.Fatal("the endpoint has read no header")
			}
			if want := c.LocalAddr().(*net.TCPAddr).AddrPort(); h.Src != want || h.Dst != w.at() {
				t.Errorf("mode %v: header says %v, want %v to %v", mode, h, want, w.at())
			}
		}
	}
}

// TestNeverRead: clients that ask for endless data and read none of it hold what fits into their share
// of the memory, and others are served as before.
func TestNeverRead(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1), group("x", 2)}[:1]})
	w.serve(1, func(c *net.TCPConn) {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] == 'e' {
			_, _ = c.Write(first)
			return
		}
		for b := make([]byte, 64<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	conns := make([]*net.TCPConn, 100)
	for i := range conns {
		conns[i] = w.dial()
		_ = conns[i].SetReadBuffer(128 << 10)
		if _, err := conns[i].Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	// Full is when what is held does not change any more.
	last, same := int64(-1), 0
	w.eventually("the pipes fill", func() bool {
		time.Sleep(20 * time.Millisecond)
		used := w.memory.Used()
		if same++; used != last {
			last, same = used, 0
		}
		return same > 10
	})
	t.Logf("100 clients that never read: %d KiB of stream memory at the edge, of %d", w.memory.Used()>>10, w.memory.Max()>>10)
	if used := w.memory.Used(); used > w.memory.Max()*memoryShed/100 {
		t.Errorf("%d bytes are held", used)
	}
	c := w.dial()
	if _, err := c.Write([]byte("e")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("others are not served: %v", err)
	}
	// One of them begins to read: its bytes flow again, though little by little while memory is short.
	for got, b := 0, make([]byte, 64<<10); got < 10<<20; {
		_ = conns[0].SetDeadline(time.Now().Add(time.Minute)) // for anything at all
		n, err := conns[0].Read(b)
		if got += n; err != nil {
			t.Fatalf("a client that reads again gets nothing after %d bytes: %v", got, err)
		}
	}
}

// kinds says what the open files are.
func kinds() map[string]int {
	n := map[string]int{}
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		kind, _, _ := strings.Cut(to, ":[")
		n[kind]++
	}
	return n
}

// TestNothingLeft: after a thousand flows of every kind of end, no descriptor and no goroutine is left.
func TestNothingLeft(t *testing.T) {
	worlds(t, func(t *testing.T, w *world) {
		w.serve(1, echo)
		if !w.served("127.0.9.1") {
			t.Fatal("not served")
		}
		w.eventually("the first flow ends", func() bool { return w.tcp.Flows() <= 1 })
		files, routines := kinds(), flowRoutines()
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for j := range 125 {
					c, err := w.from(fmt.Sprintf("127.0.9.%d", i+1))
					if err != nil {
						t.Error(err)
						return
					}
					if j%3 != 0 {
						_, _ = c.Write(pattern(100*j, 1))
					}
					switch j % 4 {
					case 0:
						_ = c.SetLinger(0)
					case 1:
						_ = c.CloseWrite()
						_, _ = io.Copy(io.Discard, c)
					case 2:
						_ = c.CloseWrite()
					}
					c.Close()
				}
			})
		}
		all.Wait()
		w.eventually("all flows end", func() bool { return w.tcp.Flows() <= 1 })
		// Pipes may be kept for later, and the tunnel may have got carriers. The endpoint's io.Copy has
		// pipes of the runtime's, which the collector closes.
		end := time.Now().Add(time.Minute)
		for kinds()["socket"] > files["socket"]+2*16 || kinds()["pipe"] > 2*64 {
			if time.Now().After(end) {
				t.Fatalf("open files were %v, and are %v", files, kinds())
			}
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		}
		w.eventually("goroutines of flows end", func() bool { return flowRoutines() <= routines })
	})
}

// flowRoutines counts the goroutines that work for a flow.
func flowRoutines() (n int) {
	buf := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, of := range []string{"pump.(", "relay.(*tcpFlow)", "gateway.(*stream)"} {
			if strings.Contains(stack, of) {
				n++
				break
			}
		}
	}
	return n
}

// TestIdleFlowsAreSmall: an open flow in which nothing happens costs at most 10 KB a node, goroutine
// stacks included. Both nodes, both ends of the client's and the endpoint's connection and the endpoint
// are in this process; what they cost besides is measured by itself.
func TestIdleFlowsAreSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	const flows = 1000
	measure := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}})
	w.serve(1, echo)
	client := func(to netip.AddrPort) float64 {
		before := measure()
		conns := make([]net.Conn, flows)
		for i := range conns {
			c, err := net.Dial("tcp", to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("a")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			conns[i] = c
		}
		return (measure() - before) / flows
	}
	direct := client(netip.AddrPortFrom(netip.MustParseAddr("127.0.2.1"), w.port))
	through := client(w.at())
	perNode := (through - direct) / 2
	t.Logf("an idle flow: %.1f KB a node (clients and endpoint: %.1f KB)", perNode/1000, direct/1000)
	if perNode > 10_000 {
		t.Errorf("an idle flow costs %.0f bytes a node", perNode)
	}
}

// TestDatagramOverload: while more datagrams come than the node can do, new flows are dropped and counted, and
// those that are there go on.
func TestDatagramOverload(t *testing.T) {
	var behind atomic.Bool
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)},
		relay: func(c *Config) { c.Behind = behind.Load }})
	w.answerUDP(1, udpEcho)
	old := w.dialUDP()
	if err := echoed(old, []byte("before")); err != nil {
		t.Fatal(err)
	}
	behind.Store(true)
	late := w.dialUDP()
	w.eventually("it is dropped and counted", func() bool {
		_, err := late.Write([]byte("late"))
		return err == nil && metric(t, w.reg, "nearcast_relay_udp_dropped_total", "reason", "overload") > 0
	})
	if err := echoed(old, []byte("meanwhile")); err != nil {
		t.Error(err)
	}
	if n := w.udp.Flows(); n != 1 {
		t.Errorf("%d flows, want the old one", n)
	}
	behind.Store(false)
	if err := echoed(late, []byte("after")); err != nil {
		t.Error(err)
	}
}
