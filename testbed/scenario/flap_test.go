package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// setHealth switches what an endpoint answers to its health check.
func (d *deployment) setHealth(t *testing.T, p *world.Process, path string) {
	t.Helper()
	if _, err := p.Get(d.ctx, path); err != nil {
		t.Error(err)
	}
}

// flapping: an endpoint that changes its mind every second is not published as often: at most two
// changes of its verdict, and no new flow fails.
func (d *deployment) flapping(t *testing.T) {
	const transitions = "nearcast_fleet_verdict_transitions_total"
	if err := d.Settled(d.ctx); err != nil {
		t.Fatal(err)
	}
	victim := d.Endpoints["eu-fra-1-app-1"]
	before := metric(t, d.Controllers[0], transitions)
	changes, slow := 0, 0
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for ; changes < 24; changes++ {
			begin := time.Now()
			d.setHealth(t, victim, []string{"/unhealthy", "/healthy"}[changes%2])
			<-tick.C
			if time.Since(begin) > 3*time.Second/2 { // on a machine that stalls it is no flapping, but a change
				slow++
			}
		}
	})
	say(t, "an endpoint flapping at 0.5 Hz", as)
	// The endpoint is in two groups, the TCP and the UDP listener's: each has its verdict.
	published := metric(t, d.Controllers[0], transitions) - before
	t.Logf("%d changes of the endpoint, %d of which lasted too long, %v published changes of its two verdicts", changes, slow,
		published)
	if published > float64(4+4*slow) {
		t.Errorf("more than two changes a verdict were published")
	}
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
}

// limits: a listener takes as many flows as it says, and no more from one source than it says.
func (d *deployment) limits(t *testing.T) {
	const perSource, most, port = 5, 20, 7300
	var made struct {
		ID        string       `json:"id"`
		Addresses []netip.Addr `json:"addresses"`
	}
	d.run(t, &made, "accelerator", "create", "narrow")
	to := netip.AddrPortFrom(made.Addresses[0], port)
	d.run(t, &made, "listener", "create", "--accelerator", "narrow", "--protocol", "tcp", "--ports", fmt.Sprint(port),
		"--max-flows", fmt.Sprint(most), "--max-flows-per-source", fmt.Sprint(perSource))
	d.run(t, nil, "group", "create", "--listener", made.ID, "--region", "eu-fra-1", "--health-protocol", "http",
		"--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health", "--health-interval", "1s",
		"--port-override", fmt.Sprintf("%d:%d", port, load.PortEcho),
		"--endpoint", d.EndpointAddr("eu-fra-1", 0).String(), "--wait")
	served := func(source int) bool {
		local := netip.AddrPortFrom(nthAddr(d.CityClients("jakarta"), 1000+source), 0)
		ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
		defer cancel()
		c, err := d.NS("jakarta").Dial(ctx, "tcp", local, to)
		if err != nil {
			return false
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		if err != nil {
			c.Close() // it must not count beside those that are served
			return false
		}
		t.Cleanup(func() { c.Close() })
		return true
	}
	eventually(t, 60*time.Second, "the listener serves", func() error {
		if !served(0) {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	got := map[int]int{}
	total := 1
	for source := 1; source <= 6; source++ {
		for range perSource + 2 {
			if served(source) {
				got[source]++
				total++
			}
		}
	}
	t.Logf("%d flows of %d are served, of one source %d of %d", total, 1+6*(perSource+2), got[1], perSource+2)
	for source, n := range got {
		if n > perSource {
			t.Errorf("source %d has %d flows, more than %d", source, n, perSource)
		}
	}
	if got[1] != perSource || total != most {
		t.Errorf("%d flows of the first source, want %d; %d in all, want %d", got[1], perSource, total, most)
	}
	if _, err := d.fetchFrom("jakarta"); err != nil {
		t.Errorf("another listener suffers: %v", err)
	}
}
