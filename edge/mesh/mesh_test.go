package mesh

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// fast is a pace for tests; the protocol is the same.
func fast(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout = 50*time.Millisecond, 25*time.Millisecond
	c.GossipInterval = 10 * time.Millisecond
	c.SuspicionMult = 2
	c.PushPullInterval = 200 * time.Millisecond
	// At this pace a node that had no time for a moment is taken for dead, also one that is about to say farewell.
	c.DeadNodeReclaimTime = 100 * time.Millisecond
}

// peer is one mesh of a test, with what it has told.
type peer struct {
	*Mesh
	id    model.NodeID
	addr  netip.AddrPort
	alive chan model.NodeID
	stop  func()
}

// freeAddr returns an address on loopback whose port was free for TCP and UDP just now.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netns.FreePort(t))
}

func start(t *testing.T, id string, addr netip.AddrPort, s *model.Snapshot, change func(*Config)) *peer {
	t.Helper()
	p := &peer{id: model.NodeID(id), addr: addr, alive: make(chan model.NodeID, 100)}
	cfg := Config{
		Node: p.id, Cluster: "test", Listen: addr, profile: fast,
		Meta:    Meta{Edge: true, Site: "site-of-" + model.SiteName(id), Version: "v1"},
		OnAlive: func(n model.NodeID) { p.alive <- n },
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Mesh = m
	if s != nil {
		m.SetSnapshot(s)
	}
	p.stop = leak.Run(t, m.Run)
	return p
}

func (p *peer) wantAlive(t *testing.T, want model.NodeID) {
	t.Helper()
	select {
	case got := <-p.alive:
		if got != want {
			t.Fatalf("%s: %s is alive, want %s", p.id, got, want)
		}
	case <-time.After(patience):
		t.Fatalf("%s: %s is not alive", p.id, want)
	}
}

// eventually waits for a condition that others bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func count(t *testing.T, c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func key() []byte {
	k := make([]byte, 32)
	rand.Read(k)
	return k
}

func snapshot(keys [][]byte, nodes ...model.Node) *model.Snapshot {
	return &model.Snapshot{
		Cluster: "test", GossipKeys: keys, Nodes: nodes,
		Sites: []model.Site{{Name: "site-of-b", Region: "region-b"}},
	}
}

func node(id string, addr netip.AddrPort) model.Node {
	return model.Node{ID: model.NodeID(id), GossipAddress: addr}
}

func TestMembership(t *testing.T) {
	a, b := freeAddr(t), freeAddr(t)
	s := snapshot([][]byte{key()}, node("a", a), node("b", b))
	pa := start(t, "a", a, s, nil)
	pb := start(t, "b", b, s, nil)
	pa.wantAlive(t, "b")
	pb.wantAlive(t, "a")
	eventually(t, "a learns what b is", func() bool {
		m := pa.Members()
		return len(m) == 1 && m[0].Meta.Site == "site-of-b" && m[0].Meta.Region == "region-b" && m[0].Address == b
	})
	pb.SetDraining(true)
	eventually(t, "a learns that b drains", func() bool {
		m := pa.Members()
		return len(m) == 1 && m[0].Meta.Draining
	})
	pb.SetAnnouncing(true, true)
	eventually(t, "a learns what b announces", func() bool {
		m := pa.Members()
		return len(m) == 1 && m[0].Meta.Announcing && m[0].Meta.WantsOut
	})
	pb.stop()
	eventually(t, "a learns that b has left", func() bool { return len(pa.Members()) == 0 })

	// It comes back under another address, which only the snapshot tells.
	b = freeAddr(t)
	s = snapshot(s.GossipKeys, node("a", a), node("b", b))
	pa.SetSnapshot(s)
	start(t, "b", b, s, nil)
	pa.wantAlive(t, "b")
}

// TestStrangers: without the key, the label or a place in the snapshot nobody is a member, and a
// flood of such packets changes nothing.
func TestStrangers(t *testing.T) {
	a, b, c := freeAddr(t), freeAddr(t), freeAddr(t)
	k := key()
	pa := start(t, "a", a, snapshot([][]byte{k}, node("a", a), node("b", b)), nil)

	everyone := func(keys ...[]byte) *model.Snapshot {
		return snapshot(keys, node("a", a), node("b", b), node("c", c))
	}
	reg := prometheus.NewRegistry()
	wrongKey := start(t, "b", b, everyone(key()), func(c *Config) { c.Metrics = reg })
	eventually(t, "the wrong key was tried", func() bool {
		return count(t, wrongKey.metrics.joinsFailed) > 0
	})
	wrongKey.stop()
	wrongLabel := start(t, "b", freeAddr(t), everyone(k), func(c *Config) { c.Cluster = "other" })
	eventually(t, "the wrong label was tried", func() bool {
		return count(t, wrongLabel.metrics.joinsFailed) > 0
	})
	wrongLabel.stop()
	// This one has key and label, and is not in a's snapshot.
	revoked := start(t, "c", c, everyone(k), nil)
	revoked.wantAlive(t, "a")

	conn, err := net.Dial("udp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 2000 {
		fmt.Fprintf(conn, "%c garbage %d", i, i)
	}
	if m := pa.Members(); len(m) != 0 {
		t.Fatalf("a has %+v", m)
	}
	// And a still takes the right one.
	revoked.stop()
	start(t, "b", b, everyone(k), nil)
	pa.wantAlive(t, "b")
}

// TestNetworks: gossip from networks that are not allowed is not even decrypted.
func TestNetworks(t *testing.T) {
	a, b := freeAddr(t), freeAddr(t)
	s := snapshot([][]byte{key()}, node("a", a), node("b", b))
	// a does not know where b is, or it would ask b itself and believe the answer.
	lonely := snapshot(s.GossipKeys, node("a", a), node("b", netip.AddrPort{}))
	pa := start(t, "a", a, lonely, func(c *Config) {
		c.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	start(t, "b", b, s, nil)
	eventually(t, "b's gossip is dropped", func() bool {
		return count(t, pa.metrics.dropped.WithLabelValues("network")) > 0
	})
	if m := pa.Members(); len(m) != 0 {
		t.Fatalf("a has %+v", m)
	}
}

// TestKeyRotation: under each set of keys that a rotation goes through the nodes hear of each other's changes, and
// neither has the other for dead.
func TestKeyRotation(t *testing.T) {
	a, b := freeAddr(t), freeAddr(t)
	old, new := key(), key()
	with := func(keys ...[]byte) *model.Snapshot { return snapshot(keys, node("a", a), node("b", b)) }
	patient := func(c *Config) {
		c.profile = func(c *memberlist.Config) {
			fast(c)
			c.SuspicionMult = 1000 // a machine that has no time to answer is no dead one
		}
	}
	pa := start(t, "a", a, with(old), patient)
	pb := start(t, "b", b, with(old), patient)
	pa.wantAlive(t, "b")
	pb.wantAlive(t, "a")
	for i, s := range []*model.Snapshot{with(old, new), with(new, old), with(new)} {
		for j, p := range []*peer{pa, pb} {
			p.SetSnapshot(s)
			heard := []*peer{pb, pa}[j] // which may still have the keys of before
			for _, drains := range []bool{true, false} {
				p.SetDraining(drains)
				eventually(t, fmt.Sprintf("step %d: %s hears that %s drains: %v", i, heard.id, p.id, drains), func() bool {
					m := heard.Members()
					return len(m) == 1 && m[0].Meta.Draining == drains
				})
			}
		}
	}
	for _, p := range []*peer{pa, pb} {
		if len(p.Members()) != 1 {
			t.Errorf("%s has %+v", p.id, p.Members())
		}
		select {
		case id := <-p.alive:
			t.Errorf("%s: %s flapped", p.id, id)
		default:
		}
	}
}

func TestSetKeys(t *testing.T) {
	k := [][]byte{key(), key(), key(), key()}
	ring, err := memberlist.NewKeyring(nil, k[0])
	if err != nil {
		t.Fatal(err)
	}
	check := func(want ...[]byte) {
		t.Helper()
		before := ring.GetKeys()
		copied := make([][]byte, len(before))
		copy(copied, before)
		if err := setKeys(ring, want); err != nil {
			t.Fatal(err)
		}
		for i := range before {
			if &before[i][0] != &copied[i][0] {
				t.Error("an array that readers may walk has changed")
			}
		}
		got := ring.GetKeys()
		if len(got) != len(want) || string(got[0]) != string(want[0]) {
			t.Errorf("the ring has %d keys, want %d", len(got), len(want))
		}
	}
	check(k[0])
	check(k[0], k[1], k[2])
	check(k[2], k[0])
	check(k[3])
	check(k[1], k[3], k[0])
	check(k[0], k[1])
	if err := setKeys(ring, nil); err != nil || len(ring.GetKeys()) != 2 {
		t.Error("no keys: the ring has changed")
	}
	if err := setKeys(ring, [][]byte{[]byte("short")}); err == nil {
		t.Error("a short key was accepted")
	}
}

func TestWaitsForKeys(t *testing.T) {
	p := start(t, "a", freeAddr(t), nil, nil)
	p.SetSnapshot(snapshot(nil))
	p.stop()
}

func TestValidate(t *testing.T) {
	good := Config{Node: "a", Cluster: "c", Listen: netip.MustParseAddrPort("127.0.0.1:0")}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no node":       func(c *Config) { c.Node = "" },
		"no cluster":    func(c *Config) { c.Cluster = "" },
		"no address":    func(c *Config) { c.Listen = netip.AddrPort{} },
		"no advertised": func(c *Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:1") },
	} {
		c := good
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
