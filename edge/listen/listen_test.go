package listen

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

// fixture runs a Set that greets TCP clients with the address they connected to, and echoes datagrams
// behind it.
type fixture struct {
	*Set
	stop func()
}

func start(t testing.TB, cfg Config) *fixture {
	t.Helper()
	cfg.HandleTCP = func(c *net.TCPConn) {
		_, _ = io.WriteString(c, c.LocalAddr().String()+"\n")
		c.Close()
	}
	cfg.HandleUDP = func(c *udpio.Conn, pkts []udpio.Packet) {
		for i := range pkts {
			at := netip.AddrPortFrom(pkts[i].Local, c.LocalAddr().Port())
			pkts[i].Data = append([]byte(at.String()+" "), pkts[i].Data...)
		}
		if _, err := c.WriteBatch(pkts); err != nil {
			t.Error(err)
		}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	f := &fixture{Set: s, stop: sync.OnceFunc(func() { cancel(); done.Wait() })}
	t.Cleanup(f.stop)
	return f
}

// patience bounds waits that end at once unless something is broken.
const patience = 30 * time.Second

// freePorts returns a range of n ports that nobody has, or is given, for both protocols.
func freePorts(t testing.TB, n uint16) model.PortRange {
	t.Helper()
	first := netns.FreePorts(t, int(n))
	return model.PortRange{From: first, To: first + n - 1}
}

// TestMaxSegment: clients are told to send no larger segments than the configuration says.
func TestMaxSegment(t *testing.T) {
	s := &Set{cfg: Config{MaxSegment: 1416}}
	l, err := s.listenTCP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var size int
	if e := raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); e != nil {
		t.Fatal(e)
	}
	if err != nil || size < 1300 || size > 1416 { // time stamps may be taken off
		t.Errorf("the client sends segments of %d bytes, %v", size, err)
	}
}

func greet(at netip.AddrPort) (string, error) {
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

func echo(at netip.AddrPort, payload string) (string, error) {
	c, err := net.Dial("udp", at.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, payload); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	n, err := c.Read(b)
	return string(b[:n]), err
}

var (
	lo4 = netip.MustParseAddr("127.0.0.1")
	lo6 = netip.MustParseAddr("::1")
	far = netip.MustParseAddr("127.0.0.77")
)

func TestApply(t *testing.T) {
	f := start(t, Config{})
	ports := freePorts(t, 20)
	bind := func(addr netip.Addr, p flow.Proto, from, to uint16) Binding {
		return Binding{Listener: "l", Proto: p, Addr: addr, Ports: model.PortRange{From: ports.From + from, To: ports.From + to}}
	}
	at := func(addr netip.Addr, n uint16) netip.AddrPort { return netip.AddrPortFrom(addr, ports.From+n) }
	if err := f.Apply([]Binding{
		bind(lo4, flow.TCP, 0, 9), bind(lo6, flow.TCP, 0, 0), bind(far, flow.TCP, 0, 0), bind(lo4, flow.UDP, 0, 9), bind(lo6, flow.UDP, 3, 3),
		bind(lo4, flow.TCP, 5, 6), // there already
	}); err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.AddrPort{at(lo4, 0), at(lo4, 9), at(lo6, 0), at(far, 0)} {
		if got, err := greet(to); err != nil || got != to.String() {
			t.Errorf("tcp %v says %q, %v", to, got, err)
		}
	}
	for _, to := range []netip.AddrPort{at(lo4, 0), at(lo4, 9), at(lo6, 3)} {
		if got, err := echo(to, "hello"); err != nil || got != to.String()+" hello" {
			t.Errorf("udp %v says %q, %v", to, got, err)
		}
	}
	kept := f.sockets[socketKey{flow.TCP, at(lo4, 4)}]
	if err := f.Apply([]Binding{bind(lo4, flow.TCP, 4, 4), bind(lo4, flow.TCP, 12, 12)}); err != nil {
		t.Fatal(err)
	}
	if f.sockets[socketKey{flow.TCP, at(lo4, 4)}] != kept {
		t.Error("a socket that stayed was touched")
	}
	for _, n := range []uint16{4, 12} {
		if _, err := greet(at(lo4, n)); err != nil {
			t.Error(err)
		}
	}
	if _, err := greet(at(lo4, 0)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port answers: %v", err)
	}
	if _, err := echo(at(lo4, 0), "x"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed UDP port answers: %v", err)
	}
	f.stop()
	if _, err := greet(at(lo4, 4)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a stopped Set answers: %v", err)
	}
	if f.Apply(nil) == nil {
		t.Error("a stopped Set can be applied to")
	}
}

func TestTooManyPorts(t *testing.T) {
	f := start(t, Config{PortsMax: 10})
	ports := freePorts(t, 4)
	bindings := []Binding{
		{Listener: "small", Proto: flow.TCP, Addr: lo4, Ports: ports},
		{Listener: "large", Proto: flow.TCP, Addr: far, Ports: model.PortRange{From: 1, To: 65535}},
	}
	err := f.Check(bindings)
	if err == nil || !strings.Contains(err.Error(), "listener large") || !strings.Contains(err.Error(), "10 sockets") {
		t.Errorf("error is %v", err)
	}
	if f.Check(bindings[:1]) != nil {
		t.Error("few ports are too many")
	}
	if len(f.sockets) != 0 {
		t.Error("Check has opened sockets")
	}
}

// Spare ports get what room there is; the others stay closed and are told of.
func TestSparePorts(t *testing.T) {
	f := start(t, Config{PortsMax: 6})
	ports := freePorts(t, 4)
	spare := []Binding{
		{Listener: "many", Proto: flow.TCP, Addr: far, Ports: model.PortRange{From: ports.From, To: ports.From + 3}, Spare: true},
		{Listener: "many", Proto: flow.TCP, Addr: lo4, Ports: model.PortRange{From: 1, To: 10000}, Spare: true},
	}
	all := append(spare[:2:2], Binding{Listener: "must", Proto: flow.TCP, Addr: lo4, Ports: model.PortRange{From: ports.From, To: ports.From + 1}})
	if err := f.Check(all); err != nil {
		t.Error(err)
	}
	if err := f.Apply(all); err != nil {
		t.Error(err)
	}
	if n, room := f.Short(); n != 10_000 || room != 6 || f.Missing() != 0 {
		t.Errorf("%d ports beyond %d, %d missing", n, room, f.Missing())
	}
	if d := f.Doors()[lo4]; d.Open != 2 || d.Missing != 10_000 {
		t.Errorf("doors of an address that is short: %+v", d)
	}
	if d := f.Doors()[far]; d.Open != 4 || d.Missing != 0 {
		t.Errorf("doors of an address that is not: %+v", d)
	}
	if err := f.Apply(spare[:1]); err != nil {
		t.Error(err)
	}
	if n, _ := f.Short(); n != 0 {
		t.Errorf("%d ports have no room", n)
	}
}

func TestPortTaken(t *testing.T) {
	f := start(t, Config{})
	ports := freePorts(t, 3)
	other, err := net.Listen("tcp4", netip.AddrPortFrom(lo4, ports.From+1).String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = f.Apply([]Binding{{Listener: "busy", Proto: flow.TCP, Addr: lo4, Ports: ports}})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "listener busy") {
		t.Errorf("error is %v", err)
	}
	if n := f.Missing(); n != 1 {
		t.Errorf("%d sockets are missing, want 1", n)
	}
	for _, n := range []uint16{0, 2} {
		if _, err := greet(netip.AddrPortFrom(lo4, ports.From+n)); err != nil {
			t.Errorf("a neighbour does not serve: %v", err)
		}
	}
	other.Close()
	f.mu.Lock()
	err = f.settle() // what the timer does
	f.mu.Unlock()
	if err != nil || f.Missing() != 0 {
		t.Errorf("still %d missing, %v", f.Missing(), err)
	}
}

// TestForeignAddress binds to an address that this machine does not have (yet).
func TestForeignAddress(t *testing.T) {
	f := start(t, Config{})
	addr := netip.MustParseAddr("192.0.2.55")
	ports := freePorts(t, 1)
	if err := f.Apply([]Binding{{Listener: "l", Proto: flow.TCP, Addr: addr, Ports: ports}, {Listener: "l", Proto: flow.UDP, Addr: addr, Ports: ports}}); err != nil {
		t.Fatal(err)
	}
}

// TestBacklog: connections that were established when a socket was closed are served.
func TestBacklog(t *testing.T) {
	ports := freePorts(t, 1)
	at := netip.AddrPortFrom(lo4, ports.From)
	for range 20 {
		f := start(t, Config{})
		if err := f.Apply([]Binding{{Listener: "l", Proto: flow.TCP, Addr: lo4, Ports: ports}}); err != nil {
			t.Fatal(err)
		}
		conns := make([]net.Conn, 20)
		for i := range conns {
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			conns[i] = c
		}
		f.stop()
		for _, c := range conns {
			_ = c.SetDeadline(time.Now().Add(patience))
			if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
				t.Fatalf("a connection in the backlog was lost: %q, %v", b, err)
			}
			c.Close()
		}
	}
}

// managed are the addresses that TestManageAddresses plays with.
var managed = []string{"192.0.2.1", "198.51.100.1", "198.51.100.2", "203.0.113.9", "2001:db8::1", "2001:db8::2",
	"2001:db8:1::9"}

func TestManageAddresses(t *testing.T) {
	set := netns.ForTest(t, "give addresses to the loopback interface")
	ns, err := set.New("edge")
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr("192.0.2.1")
	if err := ns.AddAddr("lo", netip.PrefixFrom(own, 24)); err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		present := func() string { // those that are this machine's own
			all := []string{}
			for _, a := range managed {
				if routedHere(h, netip.MustParseAddr(a)) {
					all = append(all, a)
				}
			}
			return strings.Join(all, " ")
		}
		used := func(s ...string) map[netip.Addr]bool {
			m := map[netip.Addr]bool{}
			for _, a := range s {
				m[netip.MustParseAddr(a)] = true
			}
			return m
		}
		step := func(a *addresses, want string, addrs ...string) {
			t.Helper()
			if err := errors.Join(a.add(used(addrs...)), a.removeOthers(used(addrs...))); err != nil {
				t.Error(err)
			}
			if got := present(); got != want {
				t.Errorf("addresses are %q, want %q", got, want)
			}
		}
		var a, b addresses
		step(&a, "192.0.2.1 198.51.100.1 2001:db8::1", "192.0.2.1", "198.51.100.1", "2001:db8::1")
		step(&a, "192.0.2.1 198.51.100.1", "192.0.2.1", "198.51.100.1")
		// After a crash another process finds what was given, and takes away what it does not want.
		step(&b, "192.0.2.1 198.51.100.2 2001:db8::2", "198.51.100.2", "2001:db8::2")
		step(&a, "192.0.2.1 2001:db8::1", "2001:db8::1")
		step(&a, "192.0.2.1")
		// Of prefixes that the operator gave to the machine nothing needs to be given, or is taken away.
		for _, p := range []string{"203.0.113.0/24", "2001:db8:1::/64"} {
			if err := ns.AddRoute(netns.Route{Dst: netip.MustParsePrefix(p), Local: true}); err != nil {
				t.Error(err)
			}
		}
		step(&b, "192.0.2.1 203.0.113.9 2001:db8:1::9", "203.0.113.9", "2001:db8:1::9")
		if given, err := givenRoutes(); err != nil || len(given) != 0 {
			t.Errorf("routes were given beside whole prefixes: %v, %v", given, err)
		}
		step(&b, "192.0.2.1 203.0.113.9 2001:db8:1::9")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
