package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestDNS: without anycast, DNS answers bring each city to its nearest edge, by client subnet and by
// resolver address; a dead edge leaves the answers, which are never empty.
func TestDNS(t *testing.T) {
	d := raise(t, "dns", func(s *world.Spec) { s.Cities[0].Site = "fra" }, world.Options{}) // a lie about jakarta
	t.Run("measured", d.dnsMeasured)
	t.Run("nearest", d.dnsNearest)
	t.Run("explained", d.dnsExplained)
	t.Run("gains", d.dnsGains)
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

// dnsMeasured: a city is taken to be near Frankfurt and is not. Some answers try other sites; where its clients
// come they are measured; and answers follow what is measured. At the end the truth is told to the fleet.
func (d *deployment) dnsMeasured(t *testing.T) {
	if _, err := d.CLI(d.ctx, "steer", "update", "--network=", "--default-site", "fra", "--explore", "50"); err != nil {
		t.Fatal(err)
	}
	type explained struct {
		Edge, Source string
		Sites        []struct {
			Site  string
			RttMs float64
		}
	}
	city, came := d.Spec.Cities[0].Name, map[netip.Addr]int{}
	if l, err := d.Resolve(d.ctx, city, "fra-1", d.app.Name, d.CityNetwork(city)); err != nil ||
		!slices.Contains(l.Addrs, d.near("fra")) {
		t.Errorf("before anything is known of it %s goes to %v, %v", city, l.Addrs, err)
	}
	var last explained
	beside := d.direct(city, d.app.Home, 200*time.Millisecond)
	defer beside.end()
	took := eventually(t, 5*time.Minute, city+" to be brought where it is measured to be near", func() error {
		time.Sleep(300 * time.Millisecond) // a client now and then, not as fast as it can
		l, err := d.Resolve(d.ctx, city, "fra-1", d.app.Name, d.CityNetwork(city))
		if err != nil || len(l.Addrs) == 0 {
			return fmt.Errorf("%+v, %v", l, err)
		}
		ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
		defer cancel()
		if _, err := load.Fetch(ctx, d.Dial(city), netip.AddrPortFrom(l.Addrs[0], world.ListenHTTP), 1000); err != nil {
			return err
		}
		came[l.Addrs[0]]++
		last = explained{}
		if err := d.CLIJSON(d.ctx, &last, "steer", "explain", "--client", d.Host(city).V4.String(), "--node", "fra-1",
			"-o", "json"); err != nil {
			return err
		}
		if last.Source != "rtt" || last.Edge != "sin-1" {
			return fmt.Errorf("%+v", last)
		}
		return nil
	})
	rtt := map[string]float64{}
	for _, s := range last.Sites {
		rtt[s.Site] = s.RttMs
	}
	if most := 100 + float64(beside.slower(t))/1e6; rtt["sin"] < 15 || rtt["sin"] > most || rtt["fra"] < 150 {
		t.Errorf("measured: %v, the world has 20 ms to sin and 200 ms to fra", rtt)
	}
	t.Logf("%s: after %v and %v connections by site it goes to sin; round trips %v", city, took.Round(time.Second), came, rtt)
	d.Spec.Cities[0].Site = "sin"
	if err := d.ConfigureSteering(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.app.ByCity[city] = d.near("sin")
	for node := range d.Nodes {
		eventually(t, 30*time.Second, "steering by networks at "+node, func() error {
			err := d.CLIJSON(d.ctx, &last, "steer", "explain", "--client", d.Host(city).V4.String(), "--node", node, "-o", "json")
			if err == nil && last.Source != "network" {
				err = fmt.Errorf("%+v", last)
			}
			return err
		})
	}
}

// dnsGains: a probe in a city measures what acceleration gives there, the edges say what they see of real flows,
// and both agree with the world's distances.
func (d *deployment) dnsGains(t *testing.T) {
	city, network := "jakarta", d.CityNetwork("jakarta").String()
	url := fmt.Sprintf("http://%v/bytes/300000", netip.AddrPortFrom(d.app.Address(city), world.ListenHTTP))
	direct := netip.AddrPortFrom(d.EndpointAddr(d.app.Home, 0), load.PortHTTP).String()
	beside := d.direct(city, "us-iad-1", 100*time.Millisecond)
	defer beside.end()
	text, err := d.CLIFrom(d.ctx, city, "probe", url, "--direct", direct, "--rounds", "3", "-o", "json",
		"--report", "--region", string(d.app.Home), "--network", network)
	if err != nil {
		t.Fatal(err)
	}
	type way struct {
		Connect   time.Duration `json:"connect_ns"`
		FirstByte time.Duration `json:"first_byte_ns"`
		Down      float64       `json:"down_bytes_per_second"`
	}
	var p struct {
		Direct, Accelerated way
		Pays                bool
		Verdict             string
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if p.Direct.Connect < 190*time.Millisecond || p.Accelerated.Connect > p.Direct.Connect || !p.Pays {
		t.Errorf("probed from %s: %+v", city, p)
	}
	t.Logf("%s: first byte %v direct, %v accelerated: %s", city, p.Direct.FirstByte.Round(time.Millisecond),
		p.Accelerated.FirstByte.Round(time.Millisecond), p.Verdict)

	type gain struct {
		Network, Region, Site, DirectSource string
		Client, Backbone, Direct, FirstByte string
		Pays                                bool
	}
	var found gain
	took := eventually(t, 90*time.Second, "a gain of "+city, func() error {
		time.Sleep(500 * time.Millisecond)
		var all []gain
		if err := d.CLIJSON(d.ctx, &all, "gains", "--network", network, "--region", string(d.app.Home), "-o", "json"); err != nil {
			return err
		}
		for _, g := range all {
			if g.Site == "sin" && g.DirectSource == "DIRECT_SOURCE_PROBE" {
				found = g
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	})
	slower := beside.slower(t)
	within := func(what, text string, least, most time.Duration) {
		most += slower
		if v, err := time.ParseDuration(text); err != nil || v < least || v > most {
			t.Errorf("%s is %s, want %v to %v", what, text, least, most)
		}
	}
	within("client", found.Client, 15*time.Millisecond, 120*time.Millisecond)
	within("backbone", found.Backbone, 175*time.Millisecond, 300*time.Millisecond)
	within("direct", found.Direct, 190*time.Millisecond, 400*time.Millisecond)
	if !found.Pays {
		t.Errorf("it does not pay: %+v", found)
	}
	dir := filepath.Join(t.TempDir(), "report")
	if _, err := d.CLI(d.ctx, "gains", "report", "--dir", dir); err != nil {
		t.Fatal(err)
	}
	if svg, err := os.ReadFile(filepath.Join(dir, "gains.svg")); err != nil || !strings.Contains(string(svg), network) {
		t.Errorf("the report's picture lacks %s: %v", network, err)
	}
	table, err := d.CLI(d.ctx, "gains")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after %v:\n%s", took.Round(time.Second), table)
}
