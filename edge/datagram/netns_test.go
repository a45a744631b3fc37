package datagram

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// Two hosts with devices of MTU 1500, and a router between them whose far link has less. Over IPv4
// and IPv6 the search finds what the path carries and messages of every size pass.
func TestRealPathMTU(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		edge, gateway, r1, r2 string
		bits                  int
		mtu, want             int
	}{
		{"IPv4", "10.1.0.2", "10.2.0.2", "10.1.0.1", "10.2.0.1", 24, 1400, 1372},
		{"IPv6", "fd00:1::2", "fd00:2::2", "fd00:1::1", "fd00:2::1", 64, 1400, 1352},
		{"device", "10.1.0.2", "10.2.0.2", "10.1.0.1", "10.2.0.1", 24, 1500, 1472},
	} {
		t.Run(tc.name, func(t *testing.T) {
			edgeNS, gatewayNS := narrowWorld(t, tc.edge, tc.gateway, tc.r1, tc.r2, tc.bits, tc.mtu)
			edge := startIn(t, edgeNS, Config{Lanes: 2, KeepAlive: 200 * time.Millisecond})
			gateway := startIn(t, gatewayNS, Config{
				Listen: netip.MustParseAddrPort("[::]:7444"), KeepAlive: 200 * time.Millisecond, Lanes: 1,
			})
			var in inbox
			b, err := gateway.Open("edge", testSecret, 1, netip.AddrPort{}, false, in.recv)
			if err != nil {
				t.Fatal(err)
			}
			to := netip.AddrPortFrom(netip.MustParseAddr(tc.gateway), 7444)
			a, err := edge.Open("gateway", testSecret, 1, to, true, func([][]byte) {})
			if err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(patience)
			for a.Stats().PayloadMax != tc.want || b.Stats().PayloadMax != tc.want {
				if time.Now().After(deadline) {
					t.Fatalf("found %+v and %+v, want %d", a.Stats(), b.Stats(), tc.want)
				}
				time.Sleep(20 * time.Millisecond)
			}
			var msgs [][]byte
			for i, n := range []int{0, 1300, 1350, 1400, 1472, 1500, 9000, 65507} {
				msgs = append(msgs, message(uint64(i), i, n))
			}
			if n := a.Send(msgs); n != len(msgs) {
				t.Fatalf("sent %d of %d", n, len(msgs))
			}
			var came [][]byte
			for end := time.Now().Add(patience); len(came) < len(msgs) && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
				came = append(came, in.take()...)
			}
			expect(t, tc.name, inOrder(came, msgs), msgs...)
		})
	}
}

func startIn(t *testing.T, ns *netns.NS, cfg Config) (tr *Transport) {
	t.Helper()
	if err := ns.Do(func() error { tr = start(t, cfg); return nil }); err != nil {
		t.Fatal(err)
	}
	return tr
}

func narrowWorld(t *testing.T, edge, gateway, r1, r2 string, bits, mtu int) (e, g *netns.NS) {
	t.Helper()
	set := netns.ForTest(t, "a path narrower than its ends")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	made := map[string]*netns.NS{}
	for _, name := range []string{"e", "r", "g"} {
		ns, err := set.New(name)
		must(err)
		made[name] = ns
	}
	e, g = made["e"], made["g"]
	r := made["r"]
	must(netns.Veth(netns.End{NS: e, Dev: "v"}, netns.End{NS: r, Dev: "e"}))
	must(netns.Veth(netns.End{NS: r, Dev: "g"}, netns.End{NS: g, Dev: "v"}))
	must(r.SetMTU("g", mtu))
	for _, a := range []struct {
		ns        *netns.NS
		dev, addr string
	}{{e, "v", edge}, {r, "e", r1}, {r, "g", r2}, {g, "v", gateway}} {
		must(a.ns.AddAddr(a.dev, netip.PrefixFrom(netip.MustParseAddr(a.addr), bits)))
	}
	must(r.Sysctl("net.ipv4.ip_forward", "1"))
	must(r.Sysctl("net.ipv6.conf.all.forwarding", "1"))
	far := func(addr string) netip.Prefix {
		return netip.PrefixFrom(netip.MustParseAddr(addr), bits).Masked()
	}
	must(e.AddRoute(netns.Route{Dst: far(gateway), Dev: "v", Via: netip.MustParseAddr(r1)}))
	must(g.AddRoute(netns.Route{Dst: far(edge), Dev: "v", Via: netip.MustParseAddr(r2)}))
	return e, g
}
