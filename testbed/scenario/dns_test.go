package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestDNS: without anycast, DNS answers bring each city to its nearest edge, by client subnet and by
// resolver address; a dead edge leaves the answers, which are never empty.
func TestDNS(t *testing.T) {
	d := raise(t, "dns", nil, world.Options{})
	t.Run("nearest", d.dnsNearest)
	t.Run("explained", d.dnsExplained)
	t.Run("node killed and back", d.dnsNodeKilled)
}

// near is the address of the node at a site.
func (d *deployment) near(site string) netip.Addr { return d.Host(site + "-1").V4 }

func (d *deployment) dnsNearest(t *testing.T) {
	asked := 0
	for _, c := range d.Spec.Cities {
		for node := range d.Nodes {
			for _, subnet := range []netip.Prefix{{}, d.CityNetwork(c.Name)} {
				l, err := d.Resolve(d.ctx, c.Name, node, d.app.Name, subnet)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(l.Addrs, []netip.Addr{d.near(c.Site)}) || l.TTL != 5*time.Second {
					t.Errorf("%s at %s with subnet %v: %+v, want %v", c.Name, node, subnet, l, d.near(c.Site))
				}
				if subnet.IsValid() && l.Scope < 24 {
					t.Errorf("%s at %s: scope %d is wider than the network that was used", c.Name, node, l.Scope)
				}
				asked++
			}
		}
		ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
		times, err := load.Fetch(ctx, d.Dial(c.Name), netip.AddrPortFrom(d.app.Address(c.Name), world.ListenHTTP), 1000)
		cancel()
		if err != nil {
			t.Fatalf("%s through its edge: %v", c.Name, err)
		}
		t.Logf("%s: nearest edge %v, 1 KB in %v", c.Name, d.app.Address(c.Name), times.Total.Round(time.Millisecond))
	}
	if asked != 18 {
		t.Errorf("%d answers were looked at", asked)
	}
}

// dnsExplained: the fleet says why, in agreement with what it does.
func (d *deployment) dnsExplained(t *testing.T) {
	for _, c := range d.Spec.Cities {
		var r struct {
			Edge, Source, Scope string
			Addresses           []string
			Regions             []struct {
				Region     string
				DistanceMs float64
				Servable   bool
			}
		}
		if err := d.CLIJSON(d.ctx, &r, "steer", "explain", "--client", d.Host(c.Name).V4.String(), "-o", "json"); err != nil {
			t.Fatal(err)
		}
		if r.Edge != c.Site+"-1" || r.Source != "network" || !slices.Equal(r.Addresses, []string{d.near(c.Site).String()}) ||
			len(r.Regions) != 2 || !r.Regions[0].Servable {
			t.Errorf("%s: %+v", c.Name, r)
		}
	}
	text, err := d.CLI(d.ctx, "steer", "explain", "--client", d.Host("jakarta").V4.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("steer explain says of jakarta:\n%s", text)
}

func (d *deployment) dnsNodeKilled(t *testing.T) {
	city, site := "jakarta", "sin"
	answer := func() ([]netip.Addr, error) {
		l, err := d.Resolve(d.ctx, "madrid", "fra-1", d.app.Name, d.CityNetwork(city))
		if err == nil && len(l.Addrs) == 0 {
			t.Error("an answer without an address")
		}
		return l.Addrs, err
	}
	kill(t, d.Nodes[site+"-1"])
	took := eventually(t, 30*time.Second, "answers without the dead node", func() error {
		addrs, err := answer()
		if err == nil && slices.Contains(addrs, d.near(site)) {
			err = fmt.Errorf("still %v", addrs)
		}
		return err
	})
	t.Logf("the dead node left the answers after %v", took.Round(time.Millisecond))
	addrs, err := answer()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
	defer cancel()
	if _, err := load.Fetch(ctx, d.Dial(city), netip.AddrPortFrom(addrs[0], world.ListenHTTP), 1000); err != nil {
		t.Errorf("%s through the edge that is left: %v", city, err)
	}
	d.start(t, d.Nodes[site+"-1"])
	took = eventually(t, 60*time.Second, "answers with the node that came back", func() error {
		addrs, err := answer()
		if err == nil && !slices.Contains(addrs, d.near(site)) {
			err = fmt.Errorf("still %v", addrs)
		}
		return err
	})
	t.Logf("the node was back in the answers %v after it was ready", took.Round(time.Millisecond))
}
