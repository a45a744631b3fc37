package scenario

import (
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
	changes := 0
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for ; changes < 24; changes++ {
			d.setHealth(t, victim, []string{"/unhealthy", "/healthy"}[changes%2])
			<-tick.C
		}
	})
	say(t, "an endpoint flapping at 0.5 Hz", as)
	// The endpoint is in two groups, the TCP and the UDP listener's: each has its verdict.
	published := metric(t, d.Controllers[0], transitions) - before
	t.Logf("%d changes of the endpoint, %v published changes of its two verdicts", changes, published)
	if published > 4 {
		t.Errorf("more than two changes a verdict were published")
	}
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
}
