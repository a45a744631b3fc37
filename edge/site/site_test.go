package site

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/proto/model"
)

// fakeBalancer takes what it is told.
type fakeBalancer struct {
	site   balance.Site
	rows   int
	tables bool
}

// Update implements Balancer.
func (f *fakeBalancer) Update(s balance.Site, _ time.Time) error {
	f.site = s
	return s.Validate()
}

// Alive implements Balancer.
func (f *fakeBalancer) Alive() error { return nil }

// Beyond implements Balancer.
func (f *fakeBalancer) Beyond() (rows int, tables bool) { return f.rows, f.tables }

// member is one node of a test's site.
type member struct {
	*Site
	balancer *fakeBalancer
	state    State
	at       netip.AddrPort
	deaf     bool // hears and says nothing
}

var gossipKey = bytes.Repeat([]byte{7}, 32)

func snapshotOf(n int) *model.Snapshot {
	s := &model.Snapshot{GossipKeys: [][]byte{gossipKey, bytes.Repeat([]byte{8}, 32)}}
	for i := range n {
		s.Nodes = append(s.Nodes, model.Node{ID: model.NodeID(fmt.Sprint("n", i)), Name: fmt.Sprint("node-", i), Site: "fra",
			Edge: true, BalanceAddress: addressOf(i), BalanceWeight: 50 * (i % 2)})
	}
	return s
}

func addressOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 6080)
}

func newMembers(t *testing.T, s *model.Snapshot) []*member {
	t.Helper()
	var all []*member
	for i := range s.Nodes {
		m := &member{balancer: &fakeBalancer{}, state: Serving, at: s.Nodes[i].BalanceAddress}
		var err error
		m.Site, err = New(Config{Self: s.Nodes[i].ID, Site: "fra", Balancer: m.balancer, State: func() State { return m.state },
			routes: func(addrs []netip.Addr) map[netip.Addr]balance.Route {
				ways := map[netip.Addr]balance.Route{}
				for _, a := range addrs {
					mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
					ways[a] = balance.Route{Interface: 2, MTU: 1500, From: mac, To: mac}
				}
				return ways
			}})
		if err != nil {
			t.Fatal(err)
		}
		m.SetSnapshot(s)
		all = append(all, m)
	}
	return all
}

// talk lets everybody ask everybody, and settle.
func talk(all []*member, now time.Time) {
	for _, m := range all {
		for _, q := range m.questions(now) {
			to := slices.IndexFunc(all, func(o *member) bool { return o.at == q.to })
			if to < 0 || m.deaf || all[to].deaf {
				continue
			}
			if answer := all[to].take(q.b, m.at, now); answer != nil {
				m.take(answer, q.to, now)
			}
		}
	}
	for _, m := range all {
		m.settle(now)
	}
}

// owners lists who owns flows, as a member has it.
func (m *member) owners() string {
	var out []string
	for _, x := range m.balancer.site.Members {
		switch {
		case x.Owner:
			out = append(out, x.Name)
		case x.Suspect:
			out = append(out, x.Name+"?")
		case x.Up || x.Self:
			out = append(out, "("+x.Name+")")
		}
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

func want(t *testing.T, what string, all []*member, owners string) {
	t.Helper()
	for _, m := range all {
		if got := m.owners(); !m.deaf && got != owners {
			t.Errorf("%s: %s has %s, want %s", what, m.cfg.Self, got, owners)
		}
	}
}

// All nodes agree on who owns flows: who answers and says that it serves, and whom no operator drains.
func TestMembers(t *testing.T) {
	s := snapshotOf(3)
	all := newMembers(t, s)
	now := time.Now()
	for _, m := range all {
		m.settle(now)
		if got := m.owners(); got != fmt.Sprintf("[%s]", m.cfg.Self) {
			t.Errorf("before anybody has answered: %s", got)
		}
	}
	talk(all, now)
	want(t, "all serve", all, "[n0 n1 n2]")
	if w := all[0].balancer.site.Members[1].Weight; w != 50 {
		t.Errorf("weight %d", w)
	}
	if a, b := all[0].balancer.site.Keys, all[2].balancer.site.Keys; len(a) != 2 || !slices.Equal(a, b) {
		t.Errorf("keys %v and %v", a, b)
	}

	all[1].state = Closed
	talk(all, now)
	want(t, "one is not open yet", all, "[(n1) n0 n2]")
	all[1].state = Draining
	talk(all, now)
	want(t, "one drains", all, "[(n1) n0 n2]")
	all[0].state, all[2].state = Draining, Draining
	talk(all, now)
	want(t, "all drain", all, "[n0 n1 n2]")
	for _, m := range all {
		m.state = Serving
	}
	drained := snapshotOf(3)
	drained.Nodes[2].State = model.NodeDraining
	for _, m := range all[:2] { // the third does not know it yet
		m.SetSnapshot(drained)
	}
	talk(all, now)
	want(t, "an operator drains one", all[:2], "[(n2) n0 n1]")
	gone := snapshotOf(3)
	gone.Nodes[2].State = model.NodeRevoked
	for _, m := range all[:2] {
		m.SetSnapshot(gone)
	}
	talk(all, now)
	want(t, "one is revoked", all[:2], "[n0 n1]")
}

// Who falls silent owns nothing after a while, and is gone after another one; who speaks again is back at once.
func TestSilence(t *testing.T) {
	all := newMembers(t, snapshotOf(3))
	now := time.Now()
	talk(all, now)
	all[1].deaf = true
	for _, step := range []struct {
		after time.Duration
		want  string
	}{
		{suspectAfter - time.Millisecond, "[n0 n1 n2]"}, {suspectAfter, "[n0 n1? n2]"},
		{goneAfter - time.Millisecond, "[n0 n1? n2]"}, {goneAfter, "[n0 n2]"},
	} {
		talk(all, now.Add(step.after))
		want(t, step.after.String(), all, step.want)
	}
	all[1].deaf = false
	talk(all, now.Add(goneAfter+time.Second))
	want(t, "back", all, "[n0 n1 n2]")
}

// An answer to another question, or of somebody else, is none.
func TestForgedAnswers(t *testing.T) {
	all := newMembers(t, snapshotOf(2))
	now := time.Now()
	q := all[0].questions(now)[0]
	answer := all[1].take(q.b, all[0].at, now)
	if len(answer) != beatBytes {
		t.Fatalf("answer of %d bytes", len(answer))
	}
	answers := func(b []byte, from netip.AddrPort, at time.Time) bool {
		all[0].peers["n1"].answered = time.Time{}
		all[0].take(b, from, at)
		return !all[0].peers["n1"].answered.IsZero()
	}
	if !answers(answer, all[1].at, now) {
		t.Fatal("the right answer is refused")
	}
	for i := range answer {
		bad := slices.Clone(answer)
		bad[i] ^= 1
		if answers(bad, all[1].at, now) {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
	if answers(answer, netip.MustParseAddrPort("10.0.0.9:6080"), now) {
		t.Error("from elsewhere: accepted")
	}
	if answers(q.b, all[1].at, now) {
		t.Error("the question itself: accepted")
	}
	all[0].questions(now.Add(nonceEvery))
	if !answers(answer, all[1].at, now) {
		t.Error("a late answer is refused")
	}
	all[0].questions(now.Add(2 * nonceEvery))
	if answers(answer, all[1].at, now) {
		t.Error("an old answer: accepted")
	}
}

// Misconfigured nodes are left out, and the others go on.
func TestMisconfigured(t *testing.T) {
	s := snapshotOf(5)
	s.Nodes[2].BalanceAddress = addressOf(1)
	s.Nodes[3].BalanceAddress = netip.MustParseAddrPort("[fd00::4]:6080")
	s.Nodes[4].BalanceAddress = netip.MustParseAddrPort("10.0.0.5:6081")
	all := newMembers(t, s)
	talk(all[:2], time.Now())
	if got := all[0].owners(); got != "[n0 n1]" {
		t.Errorf("members %s", got)
	}
	noted(t, all[0], "node-2 has the balance address of node-1", "node-3 has a balance address of the other IP version",
		"node-4 has another balance port", "MTU of 1500")
	noted(t, all[1], "node-2 has this node's balance address", "node-3 has", "node-4 has", "MTU")
	noted(t, all[2], "node-1 has this node's balance address", "node-3 has", "node-4 has")
	all[0].balancer.rows, all[0].balancer.tables = 7, true
	noted(t, all[0], "node-2", "node-3", "node-4", "MTU", "7 of 65537 rows", "too often")
	alone := newMembers(t, s)[0]
	alone.SetSnapshot(&model.Snapshot{})
	alone.settle(time.Now())
	if notes := alone.Notes(); len(notes) != 1 || alone.Status() != nil {
		t.Errorf("without an address: %q", notes)
	}
}

// noted asserts that a node's notes are these, in any order.
func noted(t *testing.T, m *member, want ...string) {
	t.Helper()
	notes := m.Notes()
	for _, w := range want {
		if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, w) }) {
			t.Errorf("%s does not note %q: %q", m.cfg.Self, w, notes)
		}
	}
	if len(notes) != len(want) {
		t.Errorf("%s notes %q, want %d", m.cfg.Self, notes, len(want))
	}
}

// With more nodes than there is room for all agree on who is left out, and say so.
func TestTooMany(t *testing.T) {
	if balance.MembersMax != model.BalanceNodesMax {
		t.Errorf("the control plane lets %d nodes share flows, and the program %d", model.BalanceNodesMax, balance.MembersMax)
	}
	s := &model.Snapshot{GossipKeys: [][]byte{gossipKey}}
	for i := range balance.MembersMax + 2 {
		s.Nodes = append(s.Nodes, model.Node{ID: model.NodeID(fmt.Sprintf("n%02d", i)), Name: fmt.Sprint("node-", i), Site: "fra",
			Edge: true, BalanceAddress: addressOf(i)})
	}
	all := newMembers(t, s)
	slices.Reverse(s.Nodes)
	for _, m := range all[:5] {
		m.SetSnapshot(s)
	}
	now := time.Now()
	talk(all, now)
	in, out := all[:balance.MembersMax], all[balance.MembersMax:]
	want(t, "31 nodes", in, in[0].owners())
	for _, m := range in {
		if n := len(m.balancer.site.Members); n != balance.MembersMax {
			t.Errorf("%s has %d members", m.cfg.Self, n)
		}
		noted(t, m, "no room for node-31, node-32", "MTU")
	}
	for _, m := range out {
		if len(m.balancer.site.Members) != 0 || m.Status() != nil {
			t.Errorf("%s has members: %s", m.cfg.Self, m.owners())
		}
		noted(t, m, "this is one more")
	}
}

func FuzzBeat(f *testing.F) {
	key, to := gossipKey, addressOf(1)
	f.Add(appendBeat(nil, key, beat{kind: beatAsk, nonce: 5}, to))
	f.Add(appendBeat(nil, key, beat{kind: beatAnswer, state: Draining, nonce: 1 << 60}, to))
	f.Add(make([]byte, beatBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseBeat(b, [][]byte{key}, to)
		if err == nil && !bytes.Equal(appendBeat(nil, key, h, to), b) {
			t.Errorf("% x is not what it was read as: %+v", b, h)
		}
	})
}
