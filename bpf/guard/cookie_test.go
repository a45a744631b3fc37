package guard

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/testbed/netns"
)

// With tcp_syncookies at 2 the kernel makes cookies also while the queue has room, so that each SYN beyond the
// threshold is answered here, and what comes back can be told from what doesn't.
func TestCookies(t *testing.T) {
	netns.RequireRoot(t, "XDP")
	set := netns.ForTest(t, "XDP")
	ns, err := set.New("host")
	must(t, err)
	must(t, ns.Sysctl("net.ipv4.tcp_syncookies", "2"))
	must(t, ns.Sysctl("net.ipv6.ip_nonlocal_bind", "1"))
	for _, c := range []struct {
		name             string
		client, listener netip.AddrPort
		tags             []uint16
		options          []byte
		segment          int    // --client-mss
		says             uint16 // the answer, of segments
	}{
		{"IPv4", at("198.51.100.1:9"), at("192.0.2.7:80"), nil, []byte{2, 4, 5, 0x64}, 0, 1460},
		{"IPv4, all options", at("198.51.100.1:9"), at("192.0.2.7:80"), nil, make([]byte, 40), 0, 1460},
		{"IPv4, tag", at("198.51.100.1:9"), at("192.0.2.7:80"), []uint16{7}, nil, 0, 1460},
		{"IPv4, smaller segments", at("198.51.100.1:9"), at("192.0.2.7:80"), nil, []byte{2, 4, 5, 0x64}, 1416, 1416},
		{"IPv4, larger segments", at("198.51.100.1:9"), at("192.0.2.7:80"), nil, nil, 9000, 1460},
		{"IPv6", at("[2001:db8::1]:9"), at("[2001:db8:a::7]:80"), nil, []byte{2, 4, 5, 0x64}, 0, 1440},
		{"IPv6, tags", at("[2001:db8::1]:9"), at("[2001:db8:a::7]:80"), []uint16{7, 8}, nil, 0, 1440},
		{"IPv6, smaller segments", at("[2001:db8::1]:9"), at("[2001:db8:a::7]:80"), nil, nil, 1396, 1396},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst := c.listener.Addr()
			must(t, ns.AddRoute(netns.Route{Dst: netip.PrefixFrom(dst, dst.BitLen()), Local: true}))
			defer ns.DelRoute(netns.Route{Dst: netip.PrefixFrom(dst, dst.BitLen()), Local: true})
			l, err := ns.Listen(context.Background(), "tcp", c.listener)
			must(t, err)
			defer l.Close()
			rules := testRules()
			rules.Listeners[0].Flood = Rate{PerSecond: 1, Burst: 1}
			g := loaded(t, rules, Config{MaxSegment: c.segment})
			p := packet{src: c.client, dst: c.listener, proto: TCP, tags: c.tags, options: c.options, seq: 77}
			must(t, ns.Do(func() error { cookieTrip(t, g, p, c.says); return nil }))
		})
	}
}

func cookieTrip(t *testing.T, g *Guard, p packet, segment uint16) {
	stray := packet{src: p.src, dst: p.dst, proto: TCP, tags: p.tags, flags: ack, seq: 78, ack: 5}
	if _, why, _ := g.run(t, stray.bytes()); why != PassListener {
		t.Errorf("a stray ACK while there is no flood: %v", why)
	}
	g.run(t, p.bytes())   // the token
	passedOn := p.bytes() // by another node of the site
	copy(passedOn[6:12], passedOn)
	if verdict, why, _ := g.run(t, passedOn); verdict != xdpPass || why != PassListener {
		t.Errorf("a SYN that can't be answered the way it came: verdict %d, %v", verdict, why)
	}
	verdict, why, out := g.run(t, p.bytes())
	for tries := 0; why != Answered && tries < 100; tries++ { // while so much time passes that there is another token
		verdict, why, out = g.run(t, p.bytes())
	}
	if verdict != xdpTx || why != Answered {
		t.Fatalf("verdict %d, %v", verdict, why)
	}
	l3 := 14 + 4*len(p.tags)
	want := packet{src: p.dst, dst: p.src, proto: TCP, tags: p.tags, flags: syn | ack, ack: 78,
		options: be.AppendUint16([]byte{2, 4}, segment)}
	l4 := l3 + 20
	if p.dst.Addr().Is6() {
		l4 += 20
	}
	want.seq = be.Uint32(out[l4+4:])
	want.mend = func(b []byte, l3, l4 int) { // what differs from what the builder makes
		copy(b[0:], []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
		if l4-l3 == 20 {
			b[l3+4], b[l3+5], b[l3+6], b[l3+8], b[l3+10], b[l3+11] = 0, 0, 0x40, 64, 0, 0
			be.PutUint16(b[l3+10:], ^sum16(0, b[l3:l4]))
		} else {
			b[l3+7] = 64
		}
	}
	if got := want.bytes(); string(out) != string(got) {
		t.Fatalf("answered\n% x, want\n% x", out, got)
	}
	back := packet{src: p.src, dst: p.dst, proto: TCP, tags: p.tags, flags: ack, seq: 78, ack: want.seq + 1}
	if _, why, _ := g.run(t, back.bytes()); why != PassListener {
		t.Errorf("the cookie came back: %v", why)
	}
	back.ack += 1000
	if _, why, _ := g.run(t, back.bytes()); why != DropCookie {
		t.Errorf("a wrong cookie: %v", why)
	}
	if _, why, _ := g.run(t, stray.bytes()); why != DropCookie {
		t.Errorf("a stray ACK in a flood: %v", why)
	}
}

// Flows outlive their listener, on an address where what nobody wants is dropped.
func TestFlowsOutliveTheirListener(t *testing.T) {
	set := netns.ForTest(t, "XDP")
	ns, err := set.New("host")
	must(t, err)
	g := loaded(t, Rules{Addresses: testRules().Addresses}, Config{})
	must(t, ns.AddRoute(netns.Route{Dst: netip.MustParsePrefix("192.0.2.7/32"), Local: true}))
	must(t, ns.AddRoute(netns.Route{Dst: netip.MustParsePrefix("198.51.100.1/32"), Local: true}))
	l, err := ns.Listen(context.Background(), "tcp", at("192.0.2.7:80"))
	must(t, err)
	defer l.Close()
	c, err := ns.Dial(context.Background(), "tcp", at("198.51.100.1:0"), at("192.0.2.7:80"))
	must(t, err)
	defer c.Close()
	p := packet{src: c.LocalAddr().(*net.TCPAddr).AddrPort(), dst: at("192.0.2.7:80"), proto: TCP, flags: ack}
	must(t, ns.Do(func() error {
		if _, why, _ := g.run(t, p.bytes()); why != PassOther {
			t.Errorf("a packet of the flow: %v", why)
		}
		p.src = at("198.51.100.1:1")
		if _, why, _ := g.run(t, p.bytes()); why != DropNobody {
			t.Errorf("a packet of no flow: %v", why)
		}
		return nil
	}))
}
