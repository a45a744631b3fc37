package tune

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/wan"
)

var (
	clientAddr = netip.MustParseAddr("10.1.0.1")
	clientV6   = netip.MustParseAddr("2001:db8:1::1")
	edgeAddr   = netip.MustParseAddr("10.2.0.1")
	edgeV6     = netip.MustParseAddr("2001:db8:2::1")
)

// access is the client's line: 20 ms there and back, 100 Mbit/s down.
var access = wan.Params{Delay: 10 * time.Millisecond, Rate: 100e6}

type world struct {
	*wan.Fabric
	listener netip.AddrPort
}

// newWorld has an edge that is tuned by t, and a client. The edge sends as many bytes as the client asks for.
func newWorld(tb testing.TB, t *Tuner) *world {
	f, _ := wan.ForTest(tb, "sock_ops", wan.Spec{
		Hosts: []wan.Host{
			{Name: "client", Addrs: []netip.Addr{clientAddr, clientV6}},
			{Name: "edge", Addrs: []netip.Addr{edgeAddr, edgeV6}},
		},
		Links: []wan.Link{
			{From: "edge", To: "client", Params: access},
			{From: "client", To: "edge", Params: wan.Params{Delay: access.Delay}},
		},
	})
	w := &world{Fabric: f, listener: netip.AddrPortFrom(edgeAddr, 80)}
	l, err := f.NS("edge").Listen(context.Background(), "tcp", netip.MustParseAddrPort("[::]:80"))
	must(tb, err)
	tb.Cleanup(func() { l.Close() })
	if t != nil {
		must(tb, t.Mark(l.(*net.TCPListener), Client))
	}
	go serve(l)
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answer(c)
	}
}

// answer sends as many KB as the request's two bytes say.
func answer(c net.Conn) {
	defer c.Close()
	var ask [2]byte
	if _, err := io.ReadFull(c, ask[:]); err == nil {
		c.Write(make([]byte, 1000*(int(ask[0])<<8|int(ask[1]))))
	}
	io.Copy(io.Discard, c) // the client hangs up first, when it has all
}

// download returns how long it takes from the start of the connect to the last byte.
func (w *world) download(tb testing.TB, from netip.AddrPort, kilobytes int) time.Duration {
	tb.Helper()
	start := time.Now()
	c, err := w.NS("client").Dial(context.Background(), "tcp", netip.AddrPort{}, from)
	must(tb, err)
	defer c.Close()
	must(tb, c.SetDeadline(time.Now().Add(2*time.Minute)))
	c.Write([]byte{byte(kilobytes >> 8), byte(kilobytes)})
	if _, err := io.CopyN(io.Discard, c, int64(kilobytes)*1000); err != nil {
		tb.Fatal(err)
	}
	return time.Since(start)
}

func (w *world) setLine(tb testing.TB, p wan.Params) {
	tb.Helper()
	must(tb, w.Set("edge", "client", p))
}

// eventually waits for what another CPU is about to do.
func eventually(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("never: %s", what)
		}
	}
}
