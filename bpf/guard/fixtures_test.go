package guard

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/nearcast/nearcast/testbed/netns"
)

// The rules of these tests: 192.0.2.0/24 and 2001:db8:a::/48 belong to accelerators alone, but for
// 192.0.2.128/25, where something else of the machine lives, too. 192.0.2.9 takes no fragments.
func testRules() Rules {
	v4, v6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48")
	return Rules{
		Addresses: []Address{
			{Prefix: v4, Exclusive: true}, {Prefix: v6, Exclusive: true},
			{Prefix: netip.MustParsePrefix("192.0.2.128/25")},
			{Prefix: netip.MustParsePrefix("192.0.2.9/32"), Exclusive: true, NoFragments: true},
			{Prefix: netip.MustParsePrefix("2001:db8:a::9/128"), NoFragments: true},
		},
		Listeners: []Listener{
			{Name: "web", Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{80, 80}, {443, 8443}}, Proto: TCP, Deny: "bad"},
			{Name: "game", Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{1, 65535}}, Proto: UDP, NoFragments: true},
			{
				Name: "office", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), v6}, Proto: TCP,
				Ports: []Ports{{22, 22}}, Allow: "good", Deny: "bad",
			},
			{Name: "abroad", Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{9000, 9000}}, Proto: TCP, Deny: "bad",
				DenyCountries: []string{"XX"}},
			{Name: "home", Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{9001, 9001}}, Proto: TCP, Allow: "guests",
				Deny: "exiles", AllowCountries: []string{"HH", "II"}},
			{Name: "guests", Prefixes: []netip.Prefix{v4, v6}, Ports: []Ports{{9002, 9002}}, Proto: TCP,
				Allow: "guests", DenyCountries: []string{"XX"}},
		},
		Countries: map[string][]netip.Prefix{
			"XX": {netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("2001:db8:1000::/36")},
			"HH": {netip.MustParsePrefix("100.65.0.0/16"), netip.MustParsePrefix("2001:db8:2000::/36")},
			"II": {netip.MustParsePrefix("100.65.9.0/24")},
		},
		Lists: map[string][]netip.Prefix{
			"bad": {netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:bad::/48")},
			"good": {
				netip.MustParsePrefix("203.0.112.0/23"), netip.MustParsePrefix("198.51.100.3/32"),
				netip.MustParsePrefix("2001:db8::/32"),
			},
			"guests": {netip.MustParsePrefix("100.64.5.0/24"), netip.MustParsePrefix("2001:db8:1000:5::/64")},
			"exiles": {netip.MustParsePrefix("100.65.128.0/17"), netip.MustParsePrefix("2001:db8:2000:5::/64")},
		},
	}
}

// loaded is a guard with rules, on no interface.
func loaded(tb testing.TB, r Rules, cfg Config) *Guard {
	tb.Helper()
	netns.RequireRoot(tb, "XDP")
	g, err := Load(cfg)
	must(tb, err)
	tb.Cleanup(func() { g.Close() })
	must(tb, g.Update(r))
	return g
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// run gives the program one packet, and returns its verdict, the reason that was counted, and what is left
// of the packet.
func (g *Guard) run(tb testing.TB, frame []byte) (verdict uint32, why Reason, out []byte) {
	tb.Helper()
	before, err := g.Counts()
	must(tb, err)
	out = make([]byte, len(frame)+256)
	opts := runOptions(frame, &out)
	verdict, err = g.objs.Guard.Run(opts)
	must(tb, err)
	after, err := g.Counts()
	must(tb, err)
	why = reasons
	for r, n := range after {
		switch n.Packets - before[r].Packets {
		case 0:
		case 1:
			if why != reasons || n.Bytes-before[r].Bytes != uint64(len(frame)) {
				tb.Fatalf("counted as %v and %v, %d bytes", why, r, n.Bytes-before[r].Bytes)
			}
			why = r
		default:
			tb.Fatalf("counted %d packets", n.Packets-before[r].Packets)
		}
	}
	return verdict, why, opts.DataOut
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// fixture is a packet, and what becomes of it under testRules.
type fixture struct {
	name string
	packet
	want Reason
}

var fixtures = slices.Concat(plainFixtures, countryFixtures)

var plainFixtures = []fixture{
	{"SYN", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP}, PassListener},
	{"SYN with options", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:443"), proto: TCP,
		options: []byte{2, 4, 5, 0xb4, 4, 2, 1, 1}}, PassListener},
	{"SYN in IPv6", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP}, PassListener},
	{"SYN behind a VLAN tag", packet{tags: []uint16{5}, src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"),
		proto: TCP}, PassListener},
	{"SYN behind two VLAN tags in IPv6", packet{tags: []uint16{5, 6}, src: at("[2001:db8::1]:9"),
		dst: at("[2001:db8:a::7]:8443"), proto: TCP}, PassListener},
	{"three VLAN tags", packet{tags: []uint16{5, 6, 7}, src: at("198.51.100.1:9"), dst: at("192.0.2.7:81"),
		proto: TCP}, PassForeign},
	{"SYN with IPv4 options", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP,
		ipOptions: []byte{7, 4, 4, 0, 1, 1, 1, 0}}, PassListener},
	{"SYN behind extension headers", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP,
		extension: []extension{{0, make([]byte, 6)}, {60, make([]byte, 14)}, {43, make([]byte, 6)}}}, PassListener},
	{"seven extension headers", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP,
		extension: slices.Repeat([]extension{{60, make([]byte, 6)}}, 7)}, DropMalformed},
	{"another machine's", packet{src: at("198.51.100.1:9"), dst: at("192.0.3.7:80"), proto: TCP}, PassForeign},
	{"another machine's nonsense", packet{src: at("198.51.100.1:9"), dst: at("192.0.3.7:80"), proto: TCP,
		flags: syn | fin}, PassForeign},
	{"ARP", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP,
		mend: func(b []byte, l3, _ int) { be.PutUint16(b[l3-2:], 0x0806) }}, PassForeign},
	{"a port that nobody wants", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:81"), proto: TCP}, DropNobody},
	{"the same where the machine lives", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.130:81"),
		proto: TCP}, PassOther},
	{"an ACK of no flow", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:81"), proto: TCP,
		flags: ack}, DropNobody},
	{"GRE", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:0"), proto: 47, payload: make([]byte, 9)},
		DropNobody},
	{"GRE where the machine lives", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.130:0"), proto: 47,
		payload: make([]byte, 9)}, PassOther},
	{"ping", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:0"), proto: 1, payload: make([]byte, 9)}, PassOther},
	{"ping in IPv6", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:0"), proto: 58,
		payload: make([]byte, 9)}, PassOther},
	{"UDP", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP, payload: []byte("hello")},
		PassListener},
	{"empty UDP in IPv6", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:53"), proto: UDP}, PassListener},
	{"UDP from port 0", packet{src: at("198.51.100.1:0"), dst: at("192.0.2.7:53"), proto: UDP}, DropMalformed},
	{"TCP to port 0", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:0"), proto: TCP}, DropMalformed},
	{"UDP longer than its packet", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP,
		mend: func(b []byte, _, l4 int) { b[l4+5]++ }}, DropMalformed},
	{"UDP shorter than its header", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP,
		mend: func(b []byte, _, l4 int) { b[l4+5] = 7 }}, DropMalformed},
	{"IPv4 longer than its frame", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP,
		mend: func(b []byte, l3, _ int) { b[l3+3]++ }}, DropMalformed},
	{"IPv4 with a short header", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP,
		mend: func(b []byte, l3, _ int) { b[l3] = 0x44 }}, DropMalformed},
	{"IPv6 that says version 4", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::7]:53"), proto: UDP,
		mend: func(b []byte, l3, _ int) { b[l3] = 0x40 }}, DropMalformed},
	{"padded frame", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:53"), proto: UDP,
		payload: make([]byte, 18), mend: func(b []byte, l3, l4 int) { b[l3+3], b[l4+5] = 28, 8 }}, PassListener},
	{"no flags", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP,
		mend: func(b []byte, _, l4 int) { b[l4+13] = 0 }}, DropMalformed},
	{"SYN and FIN", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP, flags: syn | fin},
		DropMalformed},
	{"SYN and RST", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP, flags: syn | rst},
		DropMalformed},
	{"TCP header longer than its packet", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP,
		mend: func(b []byte, _, l4 int) { b[l4+12] = 0x60 }}, DropMalformed},
	{"from itself", packet{src: at("192.0.2.7:80"), dst: at("192.0.2.7:80"), proto: TCP}, DropSpoofed},
	{"from itself in IPv6", packet{src: at("[2001:db8:a::7]:80"), dst: at("[2001:db8:a::7]:80"), proto: TCP},
		DropSpoofed},
	{"from loopback", packet{src: at("127.0.0.1:9"), dst: at("192.0.2.7:80"), proto: TCP}, DropSpoofed},
	{"from multicast", packet{src: at("224.0.0.5:9"), dst: at("192.0.2.7:80"), proto: TCP}, DropSpoofed},
	{"from broadcast", packet{src: at("255.255.255.255:9"), dst: at("192.0.2.7:53"), proto: UDP}, DropSpoofed},
	{"from a mapped address", packet{src: at("[::ffff:198.51.100.1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP},
		DropSpoofed},
	{"from the loopback of IPv6", packet{src: at("[::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP}, DropSpoofed},
	{"first fragment", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP, more: true}, PassListener},
	{"later fragment", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: TCP, fragment: 3,
		payload: make([]byte, 9)}, PassOther},
	{"first fragment for a listener without", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.7:80"), proto: UDP,
		more: true, mend: func(b []byte, _, l4 int) { b[l4+4] = 4 }}, DropFragment},
	{"first fragment for an address without", packet{src: at("198.51.100.1:9"), dst: at("192.0.2.9:80"), proto: TCP,
		more: true}, DropFragment},
	{"later fragment for an address without in IPv6", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::9]:80"),
		proto: TCP, fragment: 3, payload: make([]byte, 9)}, DropFragment},
	{"atomic fragment", packet{src: at("[2001:db8::1]:9"), dst: at("[2001:db8:a::9]:80"), proto: TCP,
		extension: []extension{{44, make([]byte, 6)}}}, PassListener},
	{"from a denied network", packet{src: at("203.0.113.1:9"), dst: at("192.0.2.7:80"), proto: TCP}, DropDenied},
	{"an ACK from a denied network", packet{src: at("203.0.113.1:9"), dst: at("192.0.2.7:80"), proto: TCP, flags: ack},
		DropDenied},
	{"from a denied network in IPv6", packet{src: at("[2001:db8:bad::1]:9"), dst: at("[2001:db8:a::7]:80"), proto: TCP},
		DropDenied},
	{"from a network that another listener denies", packet{src: at("203.0.113.1:9"), dst: at("192.0.2.7:80"),
		proto: UDP}, PassListener},
	{"from an allowed network", packet{src: at("203.0.112.1:9"), dst: at("192.0.2.7:22"), proto: TCP}, PassListener},
	{"from an allowed address", packet{src: at("198.51.100.3:9"), dst: at("192.0.2.7:22"), proto: TCP}, PassListener},
	{"from beside an allowed address", packet{src: at("198.51.100.4:9"), dst: at("192.0.2.7:22"), proto: TCP},
		DropDenied},
	{"denied within allowed", packet{src: at("203.0.113.1:9"), dst: at("192.0.2.7:22"), proto: TCP}, DropDenied},
	{"denied within allowed in IPv6", packet{src: at("[2001:db8:bad::1]:9"), dst: at("[2001:db8:a::7]:22"),
		proto: TCP}, DropDenied},
}

// What passes is as it was, each packet is counted once, and the oracle agrees.
func TestFixtures(t *testing.T) {
	rules := testRules()
	g := loaded(t, rules, Config{})
	for _, f := range fixtures {
		frame := f.bytes()
		verdict, why, out := g.run(t, frame)
		if want := verdictOf(f.want); verdict != want || why != f.want {
			t.Errorf("%s: verdict %d, %v; want %d, %v", f.name, verdict, why, want, f.want)
		}
		if slow := judgeSlowly(&rules, frame); slow != f.want {
			t.Errorf("%s: the oracle says %v, not %v", f.name, slow, f.want)
		}
		if !slices.Equal(out, frame) {
			t.Errorf("%s: the packet was changed", f.name)
		}
	}
}

func verdictOf(r Reason) uint32 {
	if r.Dropped() {
		return xdpDrop
	}
	return xdpPass
}

// No prefix of a packet makes the program say what the oracle doesn't, be the frame cut, or the packet within.
func TestTruncatedAtEveryByte(t *testing.T) {
	rules := testRules()
	g := loaded(t, rules, Config{})
	for _, f := range fixtures {
		whole := f.bytes()
		for n := frameMin; n < len(whole); n++ {
			g.compare(t, &rules, whole[:n], fmt.Sprintf("%s, %d bytes", f.name, n))
			short := slices.Clone(whole[:n])
			if l3 := 14 + 4*len(f.tags); n >= l3+40 { // its own length says so, too
				if f.dst.Addr().Is6() {
					be.PutUint16(short[l3+4:], uint16(n-l3-40))
				} else {
					be.PutUint16(short[l3+2:], uint16(n-l3))
				}
				g.compare(t, &rules, short, fmt.Sprintf("%s, short by itself, %d bytes", f.name, n))
			}
		}
	}
}

func (g *Guard) compare(tb testing.TB, rules *Rules, frame []byte, what string) {
	tb.Helper()
	if _, why, _ := g.run(tb, frame); why != judgeSlowly(rules, frame) {
		tb.Errorf("%s: %v, and the oracle says %v: % x", what, why, judgeSlowly(rules, frame), frame)
	}
}

// Random damage to packets that mean something reaches more of the program than random bytes do.
func TestDamagedPackets(t *testing.T) {
	rules := testRules()
	g := loaded(t, rules, Config{})
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := map[Reason]int{}
	for range 20_000 {
		frame := damaged(rnd)
		_, why, _ := g.run(t, frame)
		seen[why]++
		if slow := judgeSlowly(&rules, frame); why != slow {
			t.Fatalf("%v, and the oracle says %v: % x", why, slow, frame)
		}
	}
	for _, r := range []Reason{PassForeign, PassListener, PassOther, DropMalformed, DropSpoofed, DropFragment,
		DropNobody, DropDenied, DropCountry} {
		if seen[r] < 20 {
			t.Errorf("only %d packets were %v", seen[r], r)
		}
	}
}

func damaged(rnd *rand.Rand) []byte {
	frame := fixtures[rnd.IntN(len(fixtures))].bytes()
	for range rnd.IntN(3) {
		i := 12 + rnd.IntN(len(frame)-12)
		if rnd.IntN(2) == 0 {
			frame[i] ^= 1 << rnd.IntN(8)
		} else {
			frame[i] = byte(rnd.Uint32())
		}
	}
	if rnd.IntN(4) == 0 {
		frame = frame[:frameMin+rnd.IntN(len(frame)-frameMin)]
	}
	return frame
}

func FuzzVerdict(f *testing.F) {
	for _, x := range fixtures {
		f.Add(x.bytes())
	}
	rules := testRules()
	g := loaded(f, rules, Config{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < frameMin || len(frame) > 3000 {
			t.Skip()
		}
		g.compare(t, &rules, frame, "fuzz")
	})
}
