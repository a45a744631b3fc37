package balance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/nearcast/nearcast/testbed/netns"
)

// Wherever a packet of a flow enters, the owner of the flow's row takes it, as it was sent.
func TestOwnerTakes(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		s := newSite(t, 3, v6)
		var took [3]int
		for i := range 60 {
			p := flowOf(i, []byte{tcp, udp}[i%2], i%4 < 2)
			if i%3 == 0 && p.proto == tcp {
				p.flags = syn
			}
			if i%5 == 0 {
				p.options = make([]byte, 8)
			}
			owner := s.owner(t, p)
			took[slices.Index(s.nodes, owner)]++
			for _, at := range s.nodes {
				want := LocalForwarded
				if at == owner {
					want = LocalOwn
				}
				s.take(fmt.Sprintf("flow %d", i), at, p, owner, want)
			}
		}
		for i, n := range took {
			if n < 8 {
				t.Errorf("node %d has %d of 60 flows", i, n)
			}
		}
	}
}

// What is no flow's, and what can't be read, is taken where it comes.
func TestNoFlow(t *testing.T) {
	s := newSite(t, 3, false)
	ping := packet{src: netip.MustParseAddrPort("198.51.100.1:0"), dst: netip.MustParseAddrPort("192.0.2.7:0"), proto: icmp,
		payload: []byte{8, 0, 0, 0, 0, 0, 0, 1}}
	foreign := flowOf(1, tcp, false)
	foreign.dst = netip.MustParseAddrPort("192.0.3.7:443")
	gre := ping
	gre.proto = 47
	arp := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6}, make([]byte, 28)...)
	for _, f := range []struct {
		name  string
		frame []byte
		want  Reason
	}{
		{"ping", ping.frame(), LocalOther}, {"foreign", foreign.frame(), LocalForeign}, {"GRE", gre.frame(), LocalOther},
		{"ARP", arp, LocalForeign},
	} {
		for _, n := range s.nodes {
			if _, why, out := n.run(t, f.frame); why != f.want || !bytes.Equal(out, f.frame) {
				t.Errorf("%s: %v, want %v", f.name, why, f.want)
			}
		}
	}
}

// notOwned is a flow that a node does not own, and its owner.
func (s *site) notOwned(t *testing.T, n *node, proto byte, v6 bool) (packet, *node) {
	for i := 100; ; i++ {
		p := flowOf(i, proto, v6)
		if owner := s.owner(t, p); owner != n {
			return p, owner
		}
	}
}

// A packet behind VLAN tags leaves without them, and one that comes behind them keeps them.
func TestVLAN(t *testing.T) {
	s := newSite(t, 3, false)
	p, owner := s.notOwned(t, s.nodes[0], udp, false)
	p.tags = []uint16{5, 6}
	s.take("tagged", s.nodes[0], p, owner, LocalForwarded)
	inner := flowOf(0, udp, true)
	for i := 1; s.owner(t, inner) != s.nodes[1]; i++ {
		inner = flowOf(i, udp, true)
	}
	h := hop{from: s.nodes[0].at, to: s.nodes[1].at, kind: kindForward, key: 99, port: 50000}
	frame := h.wrap(inner.ip())
	tagged := slices.Concat(frame[:12], []byte{0x81, 0, 0, 5, 0x81, 0, 0, 6}, frame[12:])
	_, why, out := s.nodes[1].run(t, tagged)
	want := slices.Concat(frame[:12], []byte{0x81, 0, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd}, inner.ip())
	if why != LocalForwarded || !bytes.Equal(out, want) {
		t.Errorf("%v:\n% x\n% x", why, out, want)
	}
}

// An error about a flow's packet goes where the flow is, by what it quotes.
func TestErrors(t *testing.T) {
	s := newSite(t, 3, false)
	router4, router6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")
	for _, v6 := range []bool{false, true} {
		p, owner := s.notOwned(t, s.nodes[0], udp, v6)
		s.take("the flow", s.nodes[0], p, owner, LocalForwarded)
		reply := p
		reply.src, reply.dst = p.dst, p.src
		e := icmpError(router4, 3, 4, reply.ip(), false)
		if v6 {
			e = icmpError(router6, 2, 0, reply.ip(), true)
		}
		s.take("an error", s.nodes[0], e, owner, LocalForwarded)
		if !v6 {
			e.payload[0] = 0 // an echo reply is about nothing
			s.take("an echo reply", s.nodes[0], e, s.nodes[0], LocalOther)
		}
	}
}

// Later fragments go where the first one went.
func TestFragments(t *testing.T) {
	s := newSite(t, 3, false)
	for _, v6 := range []bool{false, true} {
		p, owner := s.notOwned(t, s.nodes[0], udp, v6)
		p.more, p.size, p.id = true, 64, 7
		first := p
		s.take("first", s.nodes[0], first, owner, LocalForwarded)
		later := p
		later.fragment = 9
		s.take("later", s.nodes[0], later, owner, LocalForwarded)
		later.id = 8
		if got := s.enter(s.nodes[0], later.frame()); got.why != DropFragment {
			t.Errorf("a fragment of nothing: %v", got.why)
		}
	}
}

// What does not fit between the nodes is not sent, and its sender hears how much does.
func TestTooBig(t *testing.T) {
	for _, lan6 := range []bool{false, true} {
		s := newSite(t, 3, lan6)
		room := 1500 - OverheadIPv4
		if lan6 {
			room = 1500 - OverheadIPv6
		}
		for _, v6 := range []bool{false, true} {
			p, owner := s.notOwned(t, s.nodes[0], udp, v6)
			headers := 28
			if v6 {
				headers = 48
			}
			p.size = room - headers
			s.take("just fits", s.nodes[0], p, owner, LocalForwarded)
			p.size++
			got := s.enter(s.nodes[0], p.frame())
			if got.why != AnsweredTooBig {
				t.Fatalf("too big: %v", got.why)
			}
			checkTooBig(t, p, got.out, room)
		}
	}
}

func checkTooBig(t *testing.T, p packet, out []byte, room int) {
	t.Helper()
	f := p.frame()
	if !bytes.Equal(out[:6], f[6:12]) || !bytes.Equal(out[6:12], f[:6]) {
		t.Errorf("goes to % x", out[:12])
	}
	ip := out[14:]
	if p.dst.Addr().Is6() {
		want := packet{src: netip.AddrPortFrom(p.dst.Addr(), 0), dst: netip.AddrPortFrom(p.src.Addr(), 0), proto: icmpv6,
			payload: append([]byte{2, 0, 0, 0, 0, 0, byte(room >> 8), byte(room)}, f[14:14+48]...)}
		w := want.ip()
		w[7] = 64
		be.PutUint16(w[42:], ^sum16(pseudo(want.src.Addr(), want.dst.Addr(), icmpv6, len(w)-40), w[40:]))
		if !bytes.Equal(ip, w) {
			t.Errorf("\n% x\n% x", ip, w)
		}
		return
	}
	want := packet{src: netip.AddrPortFrom(p.dst.Addr(), 0), dst: netip.AddrPortFrom(p.src.Addr(), 0), proto: icmp,
		payload: append([]byte{3, 4, 0, 0, 0, 0, byte(room >> 8), byte(room)}, f[14:14+28]...)}
	w := want.ip()
	w[8], w[10], w[11] = 64, 0, 0
	be.PutUint16(w[10:], ^sum16(0, w[:20]))
	be.PutUint16(w[22:], ^sum16(0, w[20:]))
	if !bytes.Equal(ip, w) {
		t.Errorf("\n% x\n% x", ip, w)
	}
}

// Encapsulated packets are taken from nodes of the site alone, with a key of the site; heartbeats pass.
func TestStrays(t *testing.T) {
	s := newSite(t, 3, false)
	n := s.nodes[1]
	inner := flowOf(3, udp, false)
	for i := 4; s.owner(t, inner) != n; i++ {
		inner = flowOf(i, udp, false)
	}
	good := hop{from: s.nodes[0].at, to: n.at, kind: kindForward, key: testKey, port: 50000}
	if _, why, _ := n.run(t, good.wrap(inner.ip())); why != LocalForwarded {
		t.Fatalf("a good one: %v", why)
	}
	foreign := inner
	foreign.dst = netip.MustParseAddrPort("192.0.3.7:443")
	change := func(f func(*hop)) hop { h := good; f(&h); return h }
	for name, frame := range map[string][]byte{
		"wrong key":       change(func(h *hop) { h.key++ }).wrap(inner.ip()),
		"key 0":           change(func(h *hop) { h.key = 0 }).wrap(inner.ip()),
		"from outside":    change(func(h *hop) { h.from = netip.MustParseAddrPort("10.1.1.77:0") }).wrap(inner.ip()),
		"kind 0":          change(func(h *hop) { h.kind = 0 }).wrap(inner.ip()),
		"kind 4":          change(func(h *hop) { h.kind = 4 }).wrap(inner.ip()),
		"another address": good.wrap(foreign.ip()),
		"no packet":       good.wrap([]byte{0x45}),
	} {
		if verdict, why, _ := n.run(t, frame); why != DropStray || verdict != xdpDrop {
			t.Errorf("%s: %v", name, why)
		}
	}
	frame := good.wrap(inner.ip())
	frame[14+28] |= 0x20
	if verdict, why, out := n.run(t, frame); why != LocalHeartbeat || verdict != xdpPass || !bytes.Equal(out, frame) {
		t.Errorf("heartbeat: %v", why)
	}
	other := change(func(h *hop) { h.to = netip.AddrPortFrom(n.at.Addr(), 6081) })
	if _, why, _ := n.run(t, other.wrap(inner.ip())); why != LocalForeign {
		t.Errorf("another port: %v", why)
	}
}

// However a packet is cut, the site does not take it for what it isn't, and nothing goes round.
func TestTruncatedAtEveryByte(t *testing.T) {
	s := newSite(t, 3, false)
	for _, v6 := range []bool{false, true} {
		for _, proto := range []byte{tcp, udp} {
			p, _ := s.notOwned(t, s.nodes[0], proto, v6)
			p.options = make([]byte, 8)
			whole := p.frame()
			for n := 14; n < len(whole); n++ {
				if got := s.enter(s.nodes[0], whole[:n]); got.at != s.nodes[0] || (got.why != LocalForeign && got.why != LocalOther) {
					t.Errorf("%d of %d bytes: %v at %s", n, len(whole), got.why, got.at.name)
				}
			}
			h := hop{from: s.nodes[1].at, to: s.nodes[0].at, kind: kindForward, key: testKey, port: 50000}
			wrapped := h.wrap(p.ip())
			for n := 14; n < len(wrapped); n++ {
				cut := slices.Clone(wrapped[:n])
				if got := s.enter(s.nodes[0], cut); got.why != LocalForeign {
					t.Errorf("wrapped, %d of %d bytes: %v", n, len(wrapped), got.why)
				}
				if n < 14+28 {
					continue
				}
				be.PutUint16(cut[14+2:], uint16(n-14)) // the outer header says so, too
				be.PutUint16(cut[14+24:], uint16(n-34))
				if got := s.enter(s.nodes[0], cut); got.why != DropStray {
					t.Errorf("wrapped and short by itself, %d of %d bytes: %v", n, len(wrapped), got.why)
				}
			}
		}
	}
}

// Damage of any kind leads to an ending, and what leaves is for a node of the site.
func TestDamagedPackets(t *testing.T) {
	s := newSite(t, 3, false)
	rnd := rand.New(rand.NewPCG(3, 4))
	seen := map[Reason]int{}
	for range 4000 {
		seen[s.enter(s.nodes[0], damaged(rnd, s)).why]++
	}
	for _, r := range []Reason{LocalForeign, LocalOther, LocalForwarded, LocalOwn, DropStray} {
		if seen[r] < 10 {
			t.Errorf("only %d packets were %v: %v", seen[r], r, seen)
		}
	}
}

func damaged(rnd *rand.Rand, s *site) []byte {
	p := flowOf(rnd.IntN(50), []byte{tcp, udp}[rnd.IntN(2)], rnd.IntN(2) == 0)
	p.more = rnd.IntN(8) == 0
	if rnd.IntN(4) == 0 {
		p.options = make([]byte, 8)
	}
	frame := p.frame()
	if rnd.IntN(2) == 0 {
		h := hop{from: s.nodes[1].at, to: s.nodes[0].at, kind: byte(1 + rnd.IntN(3)), step: byte(rnd.IntN(12)), key: testKey}
		frame = h.wrap(p.ip())
	}
	for range rnd.IntN(3) {
		frame[12+rnd.IntN(len(frame)-12)] ^= 1 << rnd.IntN(8)
	}
	if rnd.IntN(6) == 0 {
		frame = frame[:14+rnd.IntN(len(frame)-14)]
	}
	return frame
}

func FuzzPacket(f *testing.F) {
	netns.RequireRoot(f, "XDP")
	s := newSite(f, 2, false)
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		f.Add(damaged(rnd, s))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 3000 {
			t.Skip()
		}
		s.tb = t
		s.enter(s.nodes[0], frame)
	})
}

// What a node takes goes on to the program behind, as its sender sent it; what it sends on does not.
func TestChain(t *testing.T) {
	s := newSite(t, 2, false)
	behind, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpAborted), asm.Return()}})
	must(t, err)
	defer behind.Close()
	n := s.nodes[0]
	must(t, n.Chain(behind))
	p := flowOf(0, udp, false)
	for i := 1; s.owner(t, p) != n; i++ {
		p = flowOf(i, udp, false)
	}
	h := hop{from: s.nodes[1].at, to: n.at, kind: kindForward, key: testKey}
	if verdict, why, out := n.run(t, h.wrap(p.ip())); verdict != xdpAborted || why != LocalForwarded ||
		!bytes.Equal(out[14:], p.ip()) {
		t.Errorf("taken: verdict %d, %v", verdict, why)
	}
	if verdict, why, _ := n.run(t, s.another(t, n).frame()); verdict == xdpAborted || why != SentForward {
		t.Errorf("sent on: verdict %d, %v", verdict, why)
	}
	must(t, n.Chain(nil))
	must(t, n.Chain(nil))
	if verdict, _, _ := n.run(t, h.wrap(p.ip())); verdict != xdpPass {
		t.Errorf("without one: verdict %d", verdict)
	}
}

// A packet of a node on the same network reaches the program behind as if its receiver had sent it: there is no
// answering it the way it came. Of one that a router brought there is.
func TestHiddenSender(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, direct := range []bool{false, true} {
			s := newSite(t, 2, v6)
			n := s.nodes[0]
			s.direct = direct
			s.update()
			p := flowOf(0, tcp, v6)
			p.flags = syn
			for i := 1; s.owner(t, p) != n; i++ {
				p = flowOf(i, tcp, v6)
				p.flags = syn
			}
			h := hop{from: s.nodes[1].at, to: n.at, kind: kindForward, key: testKey}
			frame := h.wrap(p.ip())
			verdict, why, out := n.run(t, frame)
			if verdict != xdpPass || why != LocalForwarded || !bytes.Equal(out[14:], p.ip()) {
				t.Fatalf("verdict %d, %v", verdict, why)
			}
			from := frame[6:12]
			if direct {
				from = frame[:6]
			}
			if !bytes.Equal(out[:6], frame[:6]) || !bytes.Equal(out[6:12], from) || bytes.Equal(frame[:6], frame[6:12]) {
				t.Errorf("direct %v: it came as % x and is passed on as % x", direct, frame[:12], out[:12])
			}
		}
	}
}

// another is a flow that a node does not own and has not seen.
func (s *site) another(t *testing.T, n *node) packet {
	for i := 5000; ; i++ {
		if p := flowOf(i, udp, false); s.owner(t, p) != n {
			return p
		}
	}
}

// Bad sites are refused.
func TestSiteValidate(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	good := func() Site {
		return Site{Keys: []uint64{1}, Members: []Member{
			{Name: "a", Address: netip.MustParseAddrPort("10.0.0.1:6080"), Weight: 1, Self: true, Owner: true},
			{Name: "b", Address: netip.MustParseAddrPort("10.0.0.2:6080"), Weight: 1, Owner: true, Up: true,
				Route: Route{Interface: 2, MTU: 1500, From: mac, To: mac}},
		}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Site){
		"no weight":    func(s *Site) { s.Members[1].Weight = 0 },
		"no address":   func(s *Site) { s.Members[1].Address = netip.AddrPort{} },
		"same address": func(s *Site) { s.Members[1].Address = s.Members[0].Address },
		"two selves":   func(s *Site) { s.Members[1].Self = true },
		"no self":      func(s *Site) { s.Members[0].Self = false },
		"mixed":        func(s *Site) { s.Members[1].Address = netip.MustParseAddrPort("[fd00::2]:6080") },
		"no way":       func(s *Site) { s.Members[1].Route = Route{} },
		"no keys":      func(s *Site) { s.Keys = nil },
		"too many":     func(s *Site) { s.Members = manyMembers(MembersMax + 1) },
	} {
		s := good()
		spoil(&s)
		if s.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func manyMembers(n int) []Member {
	all := make([]Member, n)
	for i := range all {
		all[i] = Member{Name: fmt.Sprint(i), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 6080),
			Weight: 1, Self: i == 0}
	}
	return all
}
