package balance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/ports"
	"github.com/nearcast/nearcast/testbed/netns"
)

// While nodes come, drain, die and come back, and the router sends every packet to another node, each UDP flow stays
// at the node where it began, and only a dead node's flows begin anew.
func TestFlowsStay(t *testing.T) {
	const nodes, flows, changes = 5, 40, 14
	s := newSite(t, nodes, false)
	rnd := rand.New(rand.NewPCG(7, 8))
	s.nodes[4].owner, s.nodes[4].up = false, false // comes later
	s.update()
	where := make([]*node, flows)
	anybody := func() *node {
		for {
			if n := s.nodes[rnd.IntN(nodes)]; n.up {
				return n
			}
		}
	}
	moved, asked := 0, 0
	for change := range changes {
		for i := range where {
			for range 2 {
				got := s.enter(anybody(), flowOf(i, udp, i%2 == 0).frame())
				if where[i] == nil {
					where[i] = got.at
					if !got.at.owner {
						t.Fatalf("change %d: flow %d begins at %s, which takes nothing new", change, i, got.at.name)
					}
				}
				if got.at != where[i] || got.why.Verdict() != "local" {
					t.Fatalf("change %d: flow %d: %v at %s, and it began at %s", change, i, got.why, got.at.name, where[i].name)
				}
				if got.why == LocalAsked {
					asked++
				}
			}
			if rnd.IntN(10) == 0 { // ends, and another one begins
				where[i] = nil
				for _, n := range s.nodes {
					key := balanceFlow{Protocol: udp, Family: unix.AF_INET}
					p := flowOf(i, udp, i%2 == 0)
					if i%2 == 0 {
						key.Family = unix.AF_INET6
					}
					key.Client, key.Service = ports.Words(p.src.Addr()), ports.Words(p.dst.Addr())
					key.ClientPort, key.ServicePort = p.src.Port(), p.dst.Port()
					_ = n.objs.Flows.Delete(key)
				}
			}
		}
		moved += s.change(t, rnd, where)
	}
	if asked < 20 || moved < 5 {
		t.Errorf("%d packets were at another node than their row's owner, %d flows lost their node: too few to show anything",
			asked, moved)
	}
}

// change changes one node's state, and returns how many flows that ended.
func (s *site) change(t *testing.T, rnd *rand.Rand, where []*node) (ended int) {
	serving := 0
	for _, n := range s.nodes {
		if n.owner && n.up {
			serving++
		}
	}
	n := s.nodes[rnd.IntN(len(s.nodes))]
	switch {
	case !n.up: // comes (back), and remembers nothing
		b, err := Load(Config{FlowsMax: testFlowsMax})
		must(t, err)
		t.Cleanup(func() { b.Close() })
		must(t, b.SetAddresses([]netip.Prefix{
			netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48"),
		}))
		n.Balancer, n.owner, n.up = b, true, true
	case !n.owner:
		n.owner = true
	case serving <= 2:
		return 0
	case rnd.IntN(2) == 0:
		n.owner = false // drains
	default:
		n.owner, n.up = false, false // dies
		for i := range where {
			if where[i] == n {
				where[i] = nil
				ended++
			}
		}
	}
	s.update()
	return ended
}

// A node has a TCP flow if it has the socket. Segments find it wherever it is, SYNs go to their row's owner.
func TestSockets(t *testing.T) {
	s := newSite(t, 4, false)
	s.nodes[3].owner, s.nodes[3].up = false, false
	s.update()
	holder := s.nodes[0]
	for _, v6 := range []bool{false, true} {
		var flows []packet
		for i := range 12 {
			p := flowOf(i, tcp, v6)
			p.src = netip.AddrPortFrom(p.src.Addr(), holder.connect(t, p))
			flows = append(flows, p)
		}
		moved := 0
		for i, p := range flows {
			for _, at := range s.nodes[:3] {
				s.take(fmt.Sprintf("segment of flow %d", i), at, p, holder, LocalOwn, LocalForwarded, LocalAsked)
				s.take(fmt.Sprintf("another of flow %d", i), at, p, holder, LocalOwn, LocalForwarded, LocalAsked)
			}
			if owner := s.owner(t, p); owner != holder {
				moved++
				again := p
				again.flags = syn
				s.take("SYN", s.nodes[1], again, owner, LocalOwn, LocalForwarded)
				s.take("a segment after the SYN", s.nodes[1], p, holder, LocalAsked)
			}
			reply := p
			reply.src, reply.dst = p.dst, p.src
			e := icmpError(netip.MustParseAddr("203.0.113.9"), 3, 4, reply.ip(), false)
			if v6 {
				e = icmpError(netip.MustParseAddr("2001:db8:9::9"), 2, 0, reply.ip(), true)
			}
			s.take("an error", s.nodes[2], e, holder, LocalAsked, LocalForwarded, LocalOwn)
			lost := p
			lost.src = netip.AddrPortFrom(p.src.Addr(), p.src.Port()^1)
			if !slices.ContainsFunc(flows, func(q packet) bool { return q.src == lost.src }) {
				s.take("a segment of nothing", s.nodes[2], lost, s.owner(t, lost), LocalReturned, LocalOwn, LocalForwarded)
			}
		}
		if moved == 0 {
			t.Error("all flows are at their row's owner: nothing is shown")
		}
	}
	// For a moment without an answer, the holder is still asked; then it is given up.
	p := flowOf(50, tcp, false)
	p.src = netip.AddrPortFrom(p.src.Addr(), holder.connect(t, p))
	holder.up, holder.owner, holder.suspect = false, false, true
	s.update()
	if got := s.enter(s.nodes[1], p.frame()); got.at != holder {
		t.Errorf("a suspect's segment: %v at %s", got.why, got.at.name)
	}
	u := flowOf(51, udp, false)
	if got := s.enter(s.nodes[1], u.frame()); got.at == holder {
		t.Error("a suspect was asked for a UDP flow")
	}
	holder.suspect = false
	s.update()
	if got := s.enter(s.nodes[1], p.frame()); got.at == holder || got.why.Verdict() != "local" {
		t.Errorf("a dead node's segment: %v at %s", got.why, got.at.name)
	}
}

// connect makes a connection within the node's namespace whose ends are a flow's, and returns the client's port.
func (n *node) connect(t testing.TB, p packet) uint16 {
	t.Helper()
	must(t, n.ns.SetUp("lo"))
	for _, a := range []netip.Addr{p.src.Addr(), p.dst.Addr()} {
		if !n.local[a] {
			must(t, n.ns.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())))
			n.local[a] = true
		}
	}
	l, err := n.ns.Listen(context.Background(), "tcp", p.dst)
	must(t, err)
	defer l.Close()
	c, err := n.ns.Dial(context.Background(), "tcp", netip.AddrPortFrom(p.src.Addr(), 0), p.dst)
	must(t, err)
	must(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(30*time.Second)))
	accepted, err := l.Accept()
	must(t, err)
	t.Cleanup(func() { c.Close(); accepted.Close() })
	return c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
}

// A node whose daemon has been silent for seconds takes nothing new; what others own it still sends on.
func TestOrphan(t *testing.T) {
	s := newSite(t, 3, false)
	n := s.nodes[0]
	own := func() packet {
		for i := 0; ; i++ {
			p := flowOf(i, tcp, false)
			if p.flags = syn; s.owner(t, p) == n {
				return p
			}
		}
	}()
	s.take("with its daemon", n, own, n, LocalOwn)
	n.settings.AliveNs, n.silent = 1, true
	must(t, n.objs.Control.Put(uint32(0), n.settings))
	if got := s.enter(n, own.frame()); got.at == n || got.why != LocalForwarded {
		t.Errorf("without its daemon: %v at %s", got.why, got.at.name)
	}
	n.silent = false
	s.take("with its daemon again", n, own, n, LocalOwn)
}

// What a process pinned is the next one's: the table, the tables before, and where flows are.
func TestPins(t *testing.T) {
	netns.RequireRoot(t, "XDP")
	dir := filepath.Join(t.TempDir(), "bpf")
	must(t, os.Mkdir(dir, 0o700))
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := newSite(t, 3, false)
	n := s.nodes[0]
	restart := func(takesOver bool, prefixes ...netip.Prefix) {
		t.Helper()
		must(t, n.Close())
		b, err := Load(Config{PinDir: filepath.Join(dir, "nearcast"), TakesOver: takesOver, FlowsMax: testFlowsMax})
		must(t, err)
		n.Balancer = b
		if len(prefixes) > 0 {
			must(t, b.SetAddresses(prefixes))
		}
	}
	restart(false, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:a::/48"))
	s.nodes[2].owner = false
	s.update()
	s.nodes[2].owner = true
	s.update()
	var here []packet
	for i := range 40 {
		p := flowOf(i, udp, i%2 == 0)
		if got := s.enter(n, p.frame()); got.at == n {
			here = append(here, p)
		}
	}
	before := n.history.rows([]uint8{1, 2, 3})
	restart(true)
	for _, p := range here {
		s.take("before the next daemon says more than that it is there", n, p, n, LocalOwn)
	}
	if after := n.history.rows([]uint8{1, 2, 3}); !slices.Equal(before, after) || len(n.addresses) != 2 {
		t.Errorf("the tables are others, or the prefixes: %v", n.addresses)
	}
	n.owner = false
	s.update()
	for _, p := range here {
		s.take("once it drains", s.nodes[1], p, n, LocalAsked, LocalForwarded)
	}
	restart(false) // a daemon that begins anew has none of these flows, and is still drained
	s.update()
	for _, p := range here {
		if got := s.enter(n, p.frame()); got.at == n {
			t.Errorf("a flow of the daemon before: %v at %s", got.why, got.at.name)
		}
	}
	must(t, n.Close())
	must(t, Remove(filepath.Join(dir, "nearcast")))
	must(t, Remove(filepath.Join(dir, "nearcast")))
}

// The tables before are kept for an hour, each once, and read back from rows.
func TestHistory(t *testing.T) {
	var h history
	now := time.Now()
	a, b, c := make(owners, Rows), make(owners, Rows), make(owners, Rows)
	for i := range a {
		a[i], b[i], c[i] = 1, 2, uint8(1+i%3)
	}
	for i, o := range []owners{a, b, c, b, a} {
		h.change(o, now.Add(time.Duration(i)*time.Minute))
	}
	if len(h.before) != 3 {
		t.Errorf("%d tables before", len(h.before))
	}
	rows := h.rows([]uint8{1, 2, 3, 4})
	if want := (balanceRow{Members: [candidates]uint8{1, 2, 3, 4}, Recent: 2}); rows[2] != want {
		t.Errorf("row 2: %v, want %v", rows[2], want)
	}
	if want := (balanceRow{Members: [candidates]uint8{1, 2, 3, 4}, Recent: 1}); rows[0] != want {
		t.Errorf("row 0: %v, want %v", rows[0], want)
	}
	back := historyOf(rows, now)
	if again := back.rows([]uint8{1, 2, 3, 4}); !slices.Equal(again, rows) {
		t.Error("the rows that were read back are others")
	}
	h.expire(now.Add(HistoryKept + 3*time.Minute))
	if len(h.before) != 1 || &h.before[0].owners[0] != &b[0] {
		t.Errorf("%d tables after an hour", len(h.before))
	}
}

// What rows name is what a slow look at all tables of the last hour finds, the last owner first, as far as there is
// room; what there is no room for is told.
func TestHistoryIsWhole(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, changes := range []int{0, 3, historyMax, historyMax + 3} {
		for _, members := range []int{2, candidates, 20, MembersMax} {
			var h history
			now := time.Now()
			var tables []owners // newest first
			for range changes + 1 {
				o := make(owners, Rows)
				for i := range o {
					o[i] = uint8(1 + rnd.IntN(members))
				}
				now = now.Add(time.Minute)
				h.change(o, now)
				tables = slices.Insert(tables, 0, o)
			}
			var present []uint8
			for n := 1; n <= members; n++ {
				if n == 1 || rnd.IntN(4) > 0 {
					present = append(present, uint8(n))
				}
			}
			checkRows(t, fmt.Sprintf("%d members, %d changes", members, changes), &h, tables, present)
			if _, lost := h.beyond(now); lost != (changes > historyMax) {
				t.Errorf("%d changes: tables are lost: %v", changes, lost)
			}
			if _, lost := h.beyond(now.Add(HistoryKept)); lost {
				t.Errorf("%d changes: tables that are too old anyway are lost", changes)
			}
		}
	}
}

func checkRows(t *testing.T, what string, h *history, tables []owners, present []uint8) {
	t.Helper()
	rows, cut := h.rows(present), 0
	for i := 0; i < Rows; i += 1 + i%7 {
		want := []uint8{tables[0][i]}
		for _, o := range tables[1:min(len(tables), 1+historyMax)] {
			if !slices.Contains(want, o[i]) && slices.Contains(present, o[i]) {
				want = append(want, o[i])
			}
		}
		recent := min(len(want), candidates) - 1
		if len(want) <= candidates {
			for _, n := range present {
				if !slices.Contains(want, n) {
					want = append(want, n)
				}
			}
		}
		want = append(want, make([]uint8, candidates)...)[:candidates]
		if got := rows[i]; int(got.Recent) != recent || !slices.Equal(got.Members[:], want) {
			t.Fatalf("%s: row %d names %v, %d of before, and the tables say %v, %d", what, i, got.Members, got.Recent,
				want, recent)
		}
	}
	var here [membersSize]bool
	for _, n := range present {
		here[n] = true
	}
	for i := range Rows {
		var seen [membersSize]bool
		seen[tables[0][i]] = true
		n := 1
		for _, o := range tables[1:min(len(tables), 1+historyMax)] {
			if m := o[i]; here[m] && !seen[m] {
				seen[m] = true
				n++
			}
		}
		if n > candidates {
			cut++
		}
	}
	if got, _ := h.beyond(time.Now()); got != cut {
		t.Errorf("%s: %d rows are said to be cut, and it is %d", what, got, cut)
	}
}
