package udpio

import (
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/testbed/netns"
)

// world is two namespaces joined by a link of MTU 1500.
func world(t *testing.T) (a, b *netns.NS) {
	t.Helper()
	set := netns.ForTest(t, "UDP across a device of MTU 1500")
	var err error
	if a, err = set.New("a"); err != nil {
		t.Fatal(err)
	}
	if b, err = set.New("b"); err != nil {
		t.Fatal(err)
	}
	if err := netns.Veth(netns.End{NS: a, Dev: "v"}, netns.End{NS: b, Dev: "v"}); err != nil {
		t.Fatal(err)
	}
	if err := a.AddAddr("v", netip.MustParsePrefix("10.9.0.1/24")); err != nil {
		t.Fatal(err)
	}
	if err := b.AddAddr("v", netip.MustParsePrefix("10.9.0.2/24")); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func in(t *testing.T, ns *netns.NS, open func() (*Conn, error)) *Conn {
	t.Helper()
	var c *Conn
	if err := ns.Do(func() (err error) { c, err = open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Trains that fit the MTU pass as such; those that do not go as single packets, in fragments.
func TestDeviceMTU(t *testing.T) {
	a, b := world(t)
	server := in(t, b, func() (*Conn, error) { return Listen(any4, Options{}) })
	to := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), server.LocalAddr().Port())
	client := in(t, a, func() (*Conn, error) { return Listen(any4, Options{}) })
	for _, size := range []int{1472, 1473, 9000, 1472, 100} {
		out := make([]Packet, 30)
		for i := range out {
			out[i] = Packet{Data: pattern(i, size), Remote: to, TOS: 0xb8}
		}
		writeAll(t, client, out)
		for i, p := range readN(t, server, len(out)) {
			check(t, i, p, out[i], to.Addr())
		}
	}
	if s := client.Stats(); s.TrainsRefused != 1 || !s.Trains || client.trainMax.Load() != 1472 {
		t.Errorf("after trains of 1473: %+v, up to %d", s, client.trainMax.Load())
	}
	whole := in(t, a, func() (*Conn, error) { return Listen(any4, Options{NoFragment: true}) })
	pkts := []Packet{{Data: pattern(0, 1472), Remote: to}, {Data: pattern(1, 1473), Remote: to}}
	if n, err := whole.WriteBatch(pkts); n != 1 || !tooLarge(err) {
		t.Errorf("without fragments: %d sent, %v", n, err)
	}
}

func tooLarge(err error) bool { return err != nil && !Full(err) && !Refused(err) }

// A gateway in transparent mode: the endpoint sees the client's own address, and the reply comes
// back to the socket though the address is not the gateway's.
func TestTransparent(t *testing.T) {
	a, b := world(t)
	client := netip.MustParsePrefix("192.0.2.7/32")
	if err := b.AddRoute(netns.Route{Dst: client, Dev: "v", Via: netip.MustParseAddr("10.9.0.1")}); err != nil {
		t.Fatal(err)
	}
	if err := a.AddRoute(netns.Route{Dst: client, Local: true}); err != nil {
		t.Fatal(err)
	}
	endpoint := in(t, b, func() (*Conn, error) { return Listen(any4, Options{}) })
	to := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), endpoint.LocalAddr().Port())
	from := netip.AddrPortFrom(client.Addr(), 5353)
	gateway := in(t, a, func() (*Conn, error) { return Dial(from, to, Options{Transparent: true}) })
	writeAll(t, gateway, []Packet{{Data: []byte("question")}})
	got := readN(t, endpoint, 1)
	if got[0].Remote != from {
		t.Fatalf("the endpoint sees %v, want %v", got[0].Remote, from)
	}
	writeAll(t, endpoint, []Packet{{Data: []byte("answer"), Remote: got[0].Remote}})
	if got := readN(t, gateway, 1); string(got[0].Data) != "answer" || got[0].Remote != to {
		t.Fatalf("got %q from %v", got[0].Data, got[0].Remote)
	}
}
