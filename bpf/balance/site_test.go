package balance

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nearcast/nearcast/bpf/ports"
	"github.com/nearcast/nearcast/testbed/netns"
)

// What the program returns (enum xdp_action of the kernel).
const (
	xdpAborted  = 0
	xdpDrop     = 1
	xdpPass     = 2
	xdpTx       = 3
	xdpRedirect = 4
)

const testKey = 0x1122334455667788

// testFlowsMax is room for all flows of a test. It is allocated at once, for each node of each site.
const testFlowsMax = 1 << 14

// site is nodes whose programs run on single packets, each in a network namespace of its own for its sockets.
// The test carries between them what they send each other.
type site struct {
	tb    testing.TB
	nodes []*node
	now   time.Time
	v6    bool // the network between the nodes

	direct bool // which has no router

	tables map[string][]string // slow ones, by their members
}

type node struct {
	*Balancer
	ns   *netns.NS
	name string
	at   netip.AddrPort
	mac  net.HardwareAddr

	owner, up, suspect bool
	silent             bool // its daemon says nothing any more

	local map[netip.Addr]bool // addresses that were given to its machine
}

// newSite makes a site of n nodes, all of which serve.
func newSite(tb testing.TB, n int, v6 bool) *site {
	tb.Helper()
	return newSiteOf(tb, n, v6, Config{FlowsMax: testFlowsMax})
}

func newSiteOf(tb testing.TB, n int, v6 bool, cfg Config) *site {
	tb.Helper()
	set := netns.ForTest(tb, "XDP")
	s := &site{tb: tb, now: time.Now(), v6: v6}
	for i := range n {
		ns, err := set.New(fmt.Sprintf("n%d", i))
		must(tb, err)
		b, err := Load(cfg)
		var verifier *ebpf.VerifierError
		if errors.As(err, &verifier) {
			tb.Logf("%+v", verifier)
		}
		must(tb, err)
		tb.Cleanup(func() { b.Close() })
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}), 6080)
		if v6 {
			at = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)}), 6080)
		}
		must(tb, b.SetAddresses([]netip.Prefix{
			netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48"),
		}))
		s.nodes = append(s.nodes, &node{
			Balancer: b, ns: ns, name: fmt.Sprintf("node-%d", i), at: at, mac: net.HardwareAddr{2, 0, 0, 0, 1, byte(i)},
			owner: true, up: true, local: map[netip.Addr]bool{},
		})
	}
	s.update()
	s.settle()
	return s
}

// settle lets the tables of before be forgotten, and the time after a change be over.
func (s *site) settle() {
	s.tb.Helper()
	s.now = s.now.Add(2 * HistoryKept)
	s.update()
	for _, n := range s.nodes {
		n.settings.UnsettledNs = 0
		must(s.tb, n.Alive())
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// update tells every node what the others are now. Those that are neither up nor suspect are gone.
func (s *site) update() {
	s.tb.Helper()
	s.now = s.now.Add(time.Minute)
	for _, n := range s.nodes {
		if n.up {
			must(s.tb, n.Update(s.seenBy(n), s.now))
		}
	}
}

func (s *site) seenBy(self *node) Site {
	out := Site{Keys: []uint64{testKey, 99}}
	for i, n := range s.nodes {
		if !n.up && !n.suspect {
			continue
		}
		m := Member{Name: n.name, Address: n.at, Weight: 100, Self: n == self, Owner: n.owner && n.up,
			Up: n.up && n != self, Suspect: n.suspect}
		if n != self {
			m.Route = Route{Interface: 1 + i%2, MTU: 1500, From: self.mac, To: n.mac, Direct: s.direct}
		}
		out.Members = append(out.Members, m)
	}
	slices.Reverse(out.Members) // the order must not matter
	return out
}

// run gives one node a frame.
func (n *node) run(tb testing.TB, frame []byte) (verdict uint32, why Reason, out []byte) {
	tb.Helper()
	if !n.silent {
		must(tb, n.Alive()) // however long the test takes
	}
	before, err := n.Counts()
	must(tb, err)
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Repeat: 1}
	must(tb, n.ns.Do(func() (err error) {
		verdict, err = n.objs.Balance.Run(opts)
		return err
	}))
	after, err := n.Counts()
	must(tb, err)
	why = reasons
	for r, c := range after {
		if d := c.Packets - before[r].Packets; d == 1 && why == reasons {
			why = r
			if c.Bytes-before[r].Bytes != uint64(len(frame)) {
				tb.Fatalf("%v: counted %d bytes of %d", r, c.Bytes-before[r].Bytes, len(frame))
			}
		} else if d != 0 {
			tb.Fatalf("counted as %v and %v", why, r)
		}
	}
	return verdict, why, opts.DataOut
}

// outcome is what became of a packet in the site.
type outcome struct {
	at   *node // who took it, or had it last
	why  Reason
	hops int
	out  []byte // as it was when it was taken
}

// hopsMax is what encap.h promises.
const hopsMax = 2 * (1 + 2*(1+candidates))

// enter has a packet come to the site at a node, and carries it until somebody takes or drops it.
func (s *site) enter(at *node, frame []byte) outcome {
	s.tb.Helper()
	step := byte(0)
	for hops := 0; ; hops++ {
		verdict, why, out := at.run(s.tb, frame)
		if verdict == xdpPass || verdict == xdpDrop {
			if (why.Verdict() == "local") != (verdict == xdpPass) {
				s.tb.Fatalf("verdict %d for %v", verdict, why)
			}
			return outcome{at, why, hops, out}
		}
		if why == AnsweredTooBig {
			return outcome{at, why, hops, out}
		}
		h, _, ok := unwrap(out)
		if !ok || why.Verdict() != "sent" {
			s.tb.Fatalf("verdict %d, %v: no packet for another node: % x", verdict, why, out)
		}
		to := slices.IndexFunc(s.nodes, func(n *node) bool { return n.at == h.to })
		if to < 0 || h.from.Addr() != at.at.Addr() || h.key != testKey || h.port < 49152 ||
			!bytes.Equal(out[:6], s.nodes[to].mac) || !bytes.Equal(out[6:12], at.mac) {
			s.tb.Fatalf("%s sent %+v, % x", at.name, h, out[:14])
		}
		if want := map[bool]uint32{true: xdpTx, false: xdpRedirect}[to%2 == 0]; verdict != want {
			s.tb.Fatalf("verdict %d, want %d", verdict, want)
		}
		if h.step < step || hops > hopsMax {
			s.tb.Fatalf("step %d after %d, %d hops", h.step, step, hops)
		}
		if !s.nodes[to].up { // into the void
			return outcome{s.nodes[to], why, hops, nil}
		}
		step, at, frame = h.step, s.nodes[to], out
	}
}

// owner is who the table of the nodes that serve gives a flow to, by the slow way.
func (s *site) owner(t testing.TB, p packet) *node {
	var all []Share
	for _, n := range s.nodes {
		if n.owner && n.up {
			all = append(all, Share{n.name, 100})
		}
	}
	key := fmt.Sprint(all)
	if s.tables == nil {
		s.tables = map[string][]string{}
	}
	if s.tables[key] == nil {
		s.tables[key] = slowTable(all)
	}
	name := s.tables[key][slowHash(p)%Rows]
	i := slices.IndexFunc(s.nodes, func(n *node) bool { return n.name == name })
	if i < 0 {
		t.Fatalf("no node %q", name)
	}
	return s.nodes[i]
}

// slowHash is the program's hash of a flow.
func slowHash(p packet) uint32 {
	mix := func(h uint32) uint32 {
		h ^= h >> 16
		h *= 0x85ebca6b
		h ^= h >> 13
		h *= 0xc2b2ae35
		return h ^ h>>16
	}
	client, service := ports.Words(p.src.Addr()), ports.Words(p.dst.Addr())
	h := uint32(p.proto)
	for i := range uint32(4) {
		h = mix(h^client[i]) ^ mix(service[i]+i)
	}
	return mix(h ^ uint32(p.src.Port())<<16 ^ uint32(p.dst.Port()))
}

// take asserts that a packet is taken by a node as it was sent.
func (s *site) take(what string, at *node, p packet, want *node, why ...Reason) {
	s.tb.Helper()
	got := s.enter(at, p.frame())
	if got.at != want || !slices.Contains(why, got.why) {
		s.tb.Errorf("%s at %s: %v at %s after %d hops, want %v at %s", what, at.name, got.why, got.at.name, got.hops, why,
			want.name)
		return
	}
	if want := p.frame(); !bytes.Equal(got.out[12:], want[12:]) && len(p.tags) == 0 {
		s.tb.Errorf("%s: the packet was changed:\n% x\n% x", what, got.out, want)
	}
}

var anyLocal = []Reason{LocalOwn, LocalForwarded, LocalAsked, LocalReturned}

func flowOf(i int, proto byte, v6 bool) packet {
	port := uint16(20000 + i)
	if v6 {
		return packet{proto: proto, src: netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), port),
			dst: netip.MustParseAddrPort("[2001:db8:a::7]:443"), payload: []byte("hello")}
	}
	return packet{proto: proto, src: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), port),
		dst: netip.MustParseAddrPort("192.0.2.7:443"), payload: []byte("hello")}
}
