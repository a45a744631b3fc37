package dispatch

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// The world of these tests: a client and a server on a wire. The accelerated prefixes are routed to the
// server and are local there, but on no interface.
var (
	accelerated4 = netip.MustParsePrefix("198.51.100.0/24")
	accelerated6 = netip.MustParsePrefix("2001:db8:acce::/64")
	v4           = netip.MustParseAddr("198.51.100.7")
	v6           = netip.MustParseAddr("2001:db8:acce::7")
	loopback4    = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6    = netip.MustParseAddrPort("[::1]:0")
)

type world struct {
	client, server *netns.NS
	measured       *ebpf.Program // by a benchmark; nil: nothing to measure
}

func newWorld(t testing.TB) *world {
	t.Helper()
	set := netns.ForTest(t, "sk_lookup")
	w := &world{}
	for name, ns := range map[string]**netns.NS{"client": &w.client, "server": &w.server} {
		var err error
		if *ns, err = set.New(name); err != nil {
			t.Fatal(err)
		}
	}
	must(t, netns.Veth(netns.End{NS: w.client, Dev: "wire"}, netns.End{NS: w.server, Dev: "wire"}))
	must(t, w.client.AddAddr("wire", netip.MustParsePrefix("10.9.0.1/24")))
	must(t, w.server.AddAddr("wire", netip.MustParsePrefix("10.9.0.2/24")))
	must(t, w.client.AddAddr("wire", netip.MustParsePrefix("fd09::1/64")))
	must(t, w.server.AddAddr("wire", netip.MustParsePrefix("fd09::2/64")))
	must(t, w.client.AddRoute(routeVia(accelerated4)))
	must(t, w.client.AddRoute(netns.Route{Dst: accelerated6, Dev: "wire", Via: netip.MustParseAddr("fd09::2")}))
	must(t, w.server.AddRoute(routeLocal(accelerated4)))
	must(t, w.server.AddRoute(routeLocal(accelerated6)))
	return w
}

func routeVia(p netip.Prefix) netns.Route {
	return netns.Route{Dst: p, Dev: "wire", Via: netip.MustParseAddr("10.9.0.2")}
}

func routeLocal(p netip.Prefix) netns.Route { return netns.Route{Dst: p, Local: true} }

// patience bounds waits that end at once unless something is broken.
const patience = 30 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// load makes an attached Dispatcher that ends with the test.
func (w *world) load(t testing.TB, cfg Config) *Dispatcher {
	t.Helper()
	cfg.NetNS = w.server.Path()
	d, err := Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	must(t, d.Attach())
	return d
}

// pinDir mounts a BPF file system for the test.
func pinDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		netns.Require(t, "pins", fmt.Errorf("CAP_SYS_ADMIN (mount a BPF file system: %w)", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "nearcast")
}

// tcp listens in the server and answers every connection with "name local-address" before it hangs up.
func (w *world) tcp(t testing.TB, name string, addr netip.AddrPort) net.Listener {
	t.Helper()
	l, err := w.server.Listen(context.Background(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveTCP(l, name)
	return l
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s %v", name, c.LocalAddr())
		c.Close()
	}
}

// udp opens a socket in the server that answers every datagram with "name", from whatever it is bound to.
func (w *world) udp(t testing.TB, name string, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := w.server.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask connects and returns what the server says, or the error's short name.
func (w *world) ask(t testing.TB, addr netip.AddrPort) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := w.client.Dial(ctx, "tcp", netip.AddrPort{}, addr)
	if err != nil {
		if ctx.Err() != nil {
			return "timeout"
		}
		if strings.Contains(err.Error(), "refused") {
			return "refused"
		}
		return err.Error()
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	said, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(said)
}

func (w *world) wantAnswer(t testing.TB, addr netip.AddrPort, name string) {
	t.Helper()
	want := name
	if name != "refused" && name != "timeout" {
		want = fmt.Sprintf("%s %v", name, addr)
	}
	if got := w.ask(t, addr); got != want {
		t.Errorf("%v: got %q, want %q", addr, got, want)
	}
}

// send sends one datagram to addr from a new socket.
func (w *world) send(t testing.TB, addr netip.AddrPort, what string) {
	t.Helper()
	c, err := w.client.Dial(context.Background(), "udp", netip.AddrPort{}, addr)
	must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, what)
	must(t, err)
}

func wantDatagram(t testing.TB, c *net.UDPConn, want string) netip.AddrPort {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("waiting for %q: %v", want, err)
	}
	if got := string(b[:n]); got != want {
		t.Errorf("got datagram %q, want %q", got, want)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// conns is for Group.Sockets.
func conns(t testing.TB, sockets ...any) []syscall.Conn {
	t.Helper()
	out := make([]syscall.Conn, len(sockets))
	for i, s := range sockets {
		c, ok := s.(syscall.Conn)
		if !ok {
			t.Fatalf("%T is no socket", s)
		}
		out[i] = c
	}
	return out
}

// A synWatch tells whether SYNs were sent again that need not have been. Those that the wire lost do not count: each
// CPU has one backlog for all wires of the machine, which somebody else's packets may fill. And while the machine
// stands still for as long as a SYN is waited for, nobody can answer it.
type synWatch struct {
	w       *world
	before  int
	dropped uint64
	stop    context.CancelFunc
	watched chan struct{}
	still   time.Duration // the longest that a goroutine which sleeps for a moment was away
}

// synTimeout is after how long the kernel sends a SYN again.
const synTimeout = time.Second

func (w *world) watchSYNs(t testing.TB) *synWatch {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	s := &synWatch{w: w, before: w.retransmitted(t), dropped: w.dropped(), stop: stop, watched: make(chan struct{})}
	go func() {
		defer close(s.watched)
		for last := time.Now(); ctx.Err() == nil; {
			time.Sleep(5 * time.Millisecond)
			s.still = max(s.still, time.Since(last))
			last = time.Now()
		}
	}()
	t.Cleanup(stop)
	return s
}

func (s *synWatch) check(t testing.TB) {
	t.Helper()
	s.stop()
	<-s.watched
	again, dropped := s.w.retransmitted(t)-s.before, int(s.w.dropped()-s.dropped)
	if again > dropped && s.still < synTimeout/2 {
		t.Errorf("%d SYNs were sent again; the wire lost %d packets", again, dropped)
	} else if again > 0 {
		t.Logf("%d SYNs were sent again; the wire lost %d packets, the machine stood still for %v", again, dropped, s.still)
	}
}

// dropped is how many packets neither end of the wire could receive.
func (w *world) dropped() uint64 { return w.client.Drops()["wire"].Rx + w.server.Drops()["wire"].Rx }

// retransmitted is the client's count of SYNs sent again. (Other segments are repeated now and then when the
// machine stands still for a moment.)
func (w *world) retransmitted(t testing.TB) int {
	t.Helper()
	var text []byte
	err := w.client.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	must(t, err)
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "TCPSynRetrans" {
				n, err := strconv.Atoi(fields[i])
				must(t, err)
				return n
			}
		}
	}
	t.Fatal("no TCPSynRetrans in /proc/net/netstat")
	return 0
}
