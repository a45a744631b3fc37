package catalog

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// randomOps makes one random change after another, mostly to what is there.
type randomOps struct {
	c *Catalog
	r *rand.Rand
}

func pick[T any](r *rand.Rand, from []T) (v T) {
	if len(from) > 0 {
		v = from[r.IntN(len(from))]
	}
	return v
}

func (o *randomOps) one(t *testing.T) (string, error) {
	ctx, r, c := t.Context(), o.r, o.c
	s, err := c.Load(ctx)
	if err != nil {
		return "load", err
	}
	acc, lis, grp := pick(r, s.Accelerators).ID, pick(r, s.Listeners).ID, pick(r, s.Groups).ID
	site := model.SiteName(fmt.Sprint("s", r.IntN(3)))
	region := model.RegionName(fmt.Sprint("r", r.IntN(3)))
	anycastPool := func() model.Pool {
		i := r.IntN(4)
		p := anycast(fmt.Sprint("a", i), fmt.Sprint("z", i%2), fmt.Sprintf("10.%d.0.%d/30", i, 4*r.IntN(3)))
		if r.IntN(2) == 0 {
			p.Prefixes = append(p.Prefixes, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::/64", r.IntN(4))))
		}
		return p
	}
	nodePool := func() model.Pool {
		p := model.Pool{Name: model.PoolName(fmt.Sprint("n", r.IntN(3))), Kind: model.PoolNode}
		if r.IntN(3) > 0 {
			p.Sites = []model.SiteName{site}
		}
		return p
	}
	endpoint := func() string {
		return pick(r, []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "app.example.com", "t0", "t1", "10.0.0.5", "10.1.0.1"})
	}
	ports := func() []model.PortRange {
		from := uint16(1 + r.IntN(12))
		all := []model.PortRange{{From: from, To: from + uint16(r.IntN(3))}}
		if r.IntN(3) == 0 {
			all = append(all, model.PortRange{From: 20, To: 20 + uint16(r.IntN(2))})
		}
		return all
	}
	type op struct {
		name string
		do   func() error
	}
	ops := []op{
		{"create anycast pool", func() error { _, err := c.CreatePool(ctx, anycastPool(), Options{}); return err }},
		{"create node pool", func() error { _, err := c.CreatePool(ctx, nodePool(), Options{}); return err }},
		{"update pool", func() error {
			_, err := c.UpdatePool(ctx, pick(r, s.Pools).Name, Options{}, func(p *model.Pool) error {
				if p.Kind == model.PoolNode {
					p.Sites = nodePool().Sites
				} else {
					p.Prefixes = anycastPool().Prefixes
				}
				return nil
			})
			return err
		}},
		{"delete pool", func() error { return c.DeletePool(ctx, pick(r, s.Pools).Name, Options{}) }},
		{"create accelerator", func() error {
			a := accelerator("x")
			a.Enabled = r.IntN(2) == 0
			if r.IntN(3) == 0 {
				a.IPAddressType = model.DualStack
			}
			if r.IntN(2) == 0 {
				a.Pools = []model.PoolName{nodePool().Name}
			}
			_, err := c.CreateAccelerator(ctx, a, Options{})
			return err
		}},
		{"update accelerator", func() error {
			_, err := c.UpdateAccelerator(ctx, acc, Options{}, func(a *model.Accelerator) error {
				a.Enabled, a.IPAddressType = r.IntN(2) == 0, model.IPAddressType(r.IntN(2))
				return nil
			})
			return err
		}},
		{"delete accelerator", func() error {
			if r.IntN(2) == 0 { // with all that is below it
				for _, l := range s.Listeners {
					for _, g := range s.Groups {
						if l.Accelerator == acc && g.Listener == l.ID {
							_ = c.DeleteGroup(ctx, g.ID, Options{})
						}
					}
					if l.Accelerator == acc {
						_ = c.DeleteListener(ctx, l.ID, Options{})
					}
				}
				_, _ = c.UpdateAccelerator(ctx, acc, Options{}, func(a *model.Accelerator) error {
					a.Enabled = false
					return nil
				})
			}
			return c.DeleteAccelerator(ctx, acc, Options{})
		}},
		{"create listener", func() error {
			l := listener(acc, model.Protocol(1+r.IntN(3)))
			l.PortRanges = ports()
			_, err := c.CreateListener(ctx, l, Options{})
			return err
		}},
		{"update listener", func() error {
			_, err := c.UpdateListener(ctx, lis, Options{}, func(l *model.Listener) error {
				if l.PortRanges = ports(); r.IntN(3) == 0 {
					l.Protocol = model.Protocol(1 + r.IntN(3))
				}
				return nil
			})
			return err
		}},
		{"delete listener", func() error { return c.DeleteListener(ctx, lis, Options{}) }},
		{"create group", func() error {
			g := group(lis, region, endpoint())
			_, err := c.CreateGroup(ctx, g, Options{})
			return err
		}},
		{"update group", func() error {
			_, err := c.UpdateGroup(ctx, grp, Options{Force: true}, func(g *model.EndpointGroup) error {
				g.PortOverrides = nil
				for range r.IntN(3) {
					g.PortOverrides = append(g.PortOverrides, overrides(uint16(1+r.IntN(14)), uint16(10+r.IntN(8)))...)
				}
				if g.HealthCheck.Port = uint16(r.IntN(8)); g.HealthCheck.Port == 7 {
					g.HealthCheck.Port = 7444
				}
				if len(g.Endpoints) > 0 {
					g.Endpoints[0].ClientAddress = model.ClientAddressMode(r.IntN(3))
				}
				return nil
			})
			return err
		}},
		{"delete group", func() error { return c.DeleteGroup(ctx, grp, Options{}) }},
		{"add endpoint", func() error {
			_, err := c.AddEndpoints(ctx, grp, group("", "", endpoint()).Endpoints, Options{})
			return err
		}},
		{"remove endpoint", func() error {
			_, err := c.RemoveEndpoints(ctx, grp, []model.EndpointID{model.EndpointID(endpoint())}, Options{})
			return err
		}},
		{"create target", func() error {
			t := model.Target{Name: fmt.Sprint("t", r.IntN(2)), Host: pick(r, []string{"192.0.2.1", "192.0.2.9", "10.0.0.5"})}
			if r.IntN(2) == 0 {
				t.Region = region
			}
			_, err := c.CreateTarget(ctx, t, Options{})
			return err
		}},
		{"update target", func() error {
			_, err := c.UpdateTarget(ctx, fmt.Sprint("t", r.IntN(2)), Options{}, func(t *model.Target) error {
				t.Host, t.Region = endpoint(), region
				return nil
			})
			return err
		}},
		{"delete target", func() error { return c.DeleteTarget(ctx, fmt.Sprint("t", r.IntN(2)), Options{}) }},
		{"register node", func() error {
			_, err := c.RegisterNode(ctx, node(fmt.Sprint("m", r.IntN(4)), site, fmt.Sprint("192.0.2.", 1+r.IntN(4))))
			return err
		}},
		{"move node", func() error {
			_, err := c.UpdateNode(ctx, pick(r, s.Nodes).ID, Options{Force: true}, func(n *model.Node) error {
				addr := pick(r, addrs("192.0.2.1", "192.0.2.2", "192.0.2.8", "10.1.0.1"))
				n.ServiceAddresses, n.GossipAddress = []netip.Addr{addr}, netip.AddrPortFrom(addr, uint16(1+r.IntN(14)))
				return nil
			})
			return err
		}},
		{"delete node", func() error { return c.DeleteNode(ctx, pick(r, s.Nodes).ID, Options{Force: true}) }},
		{"create region", func() error {
			_, err := c.CreateRegion(ctx, model.Region{Name: model.RegionName(fmt.Sprint("r", r.IntN(5)))}, Options{})
			return err
		}},
		{"delete region", func() error { return c.DeleteRegion(ctx, pick(r, s.Regions).Name, Options{}) }},
		{"delete site", func() error { return c.DeleteSite(ctx, site, Options{}) }},
		{"create site", func() error {
			_, err := c.CreateSite(ctx, model.Site{Name: site, Region: region}, Options{})
			return err
		}},
	}
	weights := map[string]int{"delete accelerator": 1, "delete listener": 1, "delete group": 1, "delete pool": 1,
		"delete site": 1, "delete node": 1}
	for {
		x := pick(r, ops)
		if w, rare := weights[x.name]; rare && r.IntN(3) >= w {
			continue
		}
		return x.name, x.do()
	}
}
