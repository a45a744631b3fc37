package edge

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/edge/mesh"
	"github.com/nearcast/nearcast/proto/model"
)

func TestSheds(t *testing.T) {
	on := false
	for _, c := range []struct {
		flows int
		want  bool
	}{{0, false}, {899, false}, {900, true}, {850, true}, {800, true}, {799, false}, {899, false}, {1000, true}} {
		if on = sheds(on, c.flows, 1000); on != c.want {
			t.Errorf("with %d of 1000 flows: %v", c.flows, on)
		}
	}
}

// TestShedding: a node that is nearly full leaves the answers while another one is there, and a client of its
// site gets that one; if nobody is better off, it stays in.
func TestShedding(t *testing.T) {
	addr := netip.MustParseAddr
	s := &model.Snapshot{Pools: []model.Pool{{Name: "p", Kind: model.PoolNode}},
		Sites:    []model.Site{{Name: "fra"}, {Name: "sin"}},
		Steering: model.Steering{Networks: []model.SteeringNetwork{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Site: "fra"}}},
		Nodes: []model.Node{
			{ID: "n1", Name: "fra-1", Site: "fra", Edge: true, ServiceAddresses: []netip.Addr{addr("192.0.2.1")}},
			{ID: "n2", Name: "sin-1", Site: "sin", Edge: true, ServiceAddresses: []netip.Addr{addr("192.0.2.2")}},
		}}
	m, err := mesh.New(mesh.Config{Node: "n1", Cluster: "c", Listen: netip.MustParseAddrPort("127.0.0.1:7445"),
		Advertise: netip.MustParseAddrPort("127.0.0.1:7445")})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d := &names{n: &Node{self: "n1", mesh: m}, snapshot: s, alive: geo.NewLiveness(now)}
	known := geo.NewMap(s.Sites, s.Steering, nil, nil)
	answer := func() netip.Addr {
		why := d.judge(now)
		table := geo.Compile(known, s, func(n *model.Node) string { return why[n.ID] })
		c := table.Choose(table.Pool("p"), addr("10.1.2.3"), false, new(geo.Scratch))
		if len(c.Addrs) != 1 {
			t.Fatalf("%+v", c)
		}
		return c.Addrs[0]
	}
	if a := answer(); a != addr("192.0.2.1") {
		t.Errorf("at first %v", a)
	}
	d.shedding = true
	if a := answer(); a != addr("192.0.2.2") {
		t.Errorf("while it is nearly full %v", a)
	}
	s.Nodes[1].State = model.NodeDraining
	if a := answer(); a != addr("192.0.2.1") {
		t.Errorf("while it is nearly full and the other one drains %v", a)
	}
}
