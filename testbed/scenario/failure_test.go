package scenario

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestFailures kills one thing after another and says what new and old flows saw.
func TestFailures(t *testing.T) {
	d := raise(t, "main", nil, world.Options{})
	t.Run("endpoint killed", d.endpointKilled)
	t.Run("region killed and back", d.regionKilled)
	t.Run("gateway killed", d.gatewayKilled)
	t.Run("endpoint flapping", d.flapping)
	t.Run("edge frozen", d.edgeFrozen)
	t.Run("every controller killed", d.controllersKilled)
}

// say prints what a scenario's clients saw.
func say(t *testing.T, what string, as []load.Attempt) {
	t.Helper()
	var took []time.Duration
	for _, a := range as {
		if a.Err == nil {
			took = append(took, a.Times.Total)
		}
	}
	t.Logf("%s: %d new flows, %d failed; median %v, p99 %v, slowest %v; by %v", what, len(as), len(load.Failed(as)),
		load.Median(took).Round(time.Millisecond), load.Quantile(took, 0.99).Round(time.Millisecond),
		load.Quantile(took, 1).Round(time.Millisecond), load.By(as))
}

func (d *deployment) start(t *testing.T, ps ...*world.Process) {
	t.Helper()
	for _, p := range ps {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range ps {
		if err := p.Ready(d.ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func kill(t *testing.T, ps ...*world.Process) {
	t.Helper()
	for _, p := range ps {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// endpointKilled: no new flow fails, because a refused connection is tried at another endpoint
// before the client notices, and the health check then takes the dead one out.
func (d *deployment) endpointKilled(t *testing.T) {
	victim := d.Endpoints["eu-fra-1-app-1"]
	var killed time.Time
	as := d.steadyRate("jakarta", 10*time.Millisecond, func() {
		time.Sleep(time.Second)
		kill(t, victim)
		killed = time.Now()
		time.Sleep(5 * time.Second)
	})
	say(t, "one of three endpoints killed", as)
	// Attempts that were talking to the endpoint when it died may fail: they were established.
	for _, a := range load.Failed(load.Since(as, killed)) {
		t.Errorf("a new flow failed that began %v after the endpoint's death: %v", a.At.Sub(killed), a.Err)
	}
	d.start(t, victim)
	eventually(t, 60*time.Second, "the endpoint gets traffic again", func() error {
		return d.answers("jakarta", victim.Name, 30)
	})
}

// answers asks up to n times until the named endpoint answers.
func (d *deployment) answers(city, name string, n int) error {
	for range n {
		got, err := d.fetchFrom(city)
		if err != nil {
			return err
		}
		if got.Server == name {
			return nil
		}
	}
	return fmt.Errorf("%s did not answer in %d attempts", name, n)
}

// failover is how soon new flows are promised to work after a region or a gateway has died.
const failover = 2 * time.Second

func (d *deployment) regionKilled(t *testing.T) {
	var victims []*world.Process
	for name, p := range d.Endpoints {
		if strings.HasPrefix(name, "eu-fra-1") {
			victims = append(victims, p)
		}
	}
	var killed time.Time
	beside := d.direct("jakarta", "us-iad-1", 20*time.Millisecond)
	defer beside.end()
	as := d.steadyRate("jakarta", 20*time.Millisecond, func() {
		time.Sleep(time.Second)
		kill(t, victims...)
		killed = time.Now()
		time.Sleep(5 * time.Second)
	})
	limit := beside.allow(t, failover)
	say(t, "every endpoint of the region killed", as)
	recovered := firstGood(load.Since(as, killed))
	t.Logf("the next region answered new flows %v after the last endpoint died", recovered.Sub(killed).Round(time.Millisecond))
	if late := load.Failed(load.Since(as, killed.Add(limit))); len(late) != 0 {
		t.Errorf("%d new flows failed more than %v after, the first: %v", len(late), limit, late[0].Err)
	}
	d.start(t, victims...)
	took := eventually(t, 60*time.Second, "the region comes back", func() error {
		got, err := d.fetchFrom("jakarta")
		if err == nil && !strings.HasPrefix(got.Server, "eu-fra-1") {
			err = fmt.Errorf("%s answers", got.Server)
		}
		return err
	})
	t.Logf("the region took its traffic back %v after its endpoints were ready", took.Round(time.Millisecond))
}

// firstGood returns when the first attempt after which none failed has ended.
func firstGood(as []load.Attempt) time.Time {
	i := len(as)
	for i > 0 && as[i-1].Err == nil {
		i--
	}
	if i == len(as) {
		return time.Time{}
	}
	return as[i].At.Add(as[i].Times.Total)
}

func (d *deployment) gatewayKilled(t *testing.T) {
	victim := d.Nodes["fra-1"]
	var killed time.Time
	beside := d.direct("jakarta", "us-iad-1", 20*time.Millisecond)
	defer beside.end()
	as := d.steadyRate("jakarta", 20*time.Millisecond, func() {
		time.Sleep(time.Second)
		kill(t, victim)
		killed = time.Now()
		time.Sleep(6 * time.Second)
	})
	limit := beside.allow(t, failover)
	say(t, "one of two gateways killed", as)
	if late := load.Failed(load.Since(as, killed.Add(limit))); len(late) != 0 {
		t.Errorf("%d new flows failed more than %v after the gateway died, the first: %v", len(late), limit, late[0].Err)
	}
	t.Logf("%d of the %d new flows of the first two seconds failed",
		len(load.Failed(load.Since(as, killed))), len(load.Since(as, killed))-len(load.Since(as, killed.Add(failover))))
	d.start(t, victim)
}

// controllersKilled: flows stay whole, new flows work, an endpoint's death is still noticed, and an
// edge that restarts serves from its disk.
func (d *deployment) controllersKilled(t *testing.T) {
	long, stop := d.openLong(t, 50, 200*time.Millisecond)
	as := d.steadyRate("jakarta", 20*time.Millisecond, func() {
		time.Sleep(500 * time.Millisecond)
		kill(t, d.Controllers...)
		time.Sleep(5 * time.Second)
	})
	say(t, "every controller dead", as)
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed without controllers, the first: %v", len(f), f[0].Err)
	}
	stop()
	t.Logf("%d long connections, %d broken, longest silence %v",
		long.Count, long.Broken.Load(), long.Silence().Round(time.Millisecond))
	if long.Broken.Load() != 0 {
		t.Errorf("established flows broke: %v", long.Errors())
	}
	victim := d.Endpoints["eu-fra-1-app-2"]
	kill(t, victim)
	as = d.steadyRate("jakarta", 20*time.Millisecond, func() { time.Sleep(4 * time.Second) })
	say(t, "and an endpoint too", as)
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
	edge := d.Nodes["sin-1"]
	kill(t, edge)
	begin := time.Now()
	if err := edge.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the edge serves from its disk", func() error {
		_, err := d.fetchFrom("jakarta")
		return err
	})
	t.Logf("the edge restarted with every controller dead and served a client after %v", time.Since(begin).Round(time.Millisecond))
	d.start(t, victim)
	d.start(t, d.Controllers...)
}
