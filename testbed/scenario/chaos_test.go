package scenario

import (
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/wan"
	"github.com/nearcast/nearcast/testbed/world"
)

// episode is one thing that goes wrong for a while. What new and old flows from jakarta saw is
// printed; the limits are what the product promises.
type episode struct {
	name       string
	breakIt    func(t *testing.T, d *deployment)
	heal       func(t *testing.T, d *deployment)
	lasts      time.Duration
	recovered  time.Duration // new flows work again this long after the break; 0: they never stop
	oldFlows   bool          // every established flow survives
	newFlows   float64       // share of new flows, after the recovery, that may fail
	afterwards time.Duration // watched after healing
}

const (
	settle = time.Second // before the break, so that there is something to compare with
	never  = 0
)

func (d *deployment) link(t *testing.T, a, b string, change func(*wan.Params)) {
	t.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		if err := d.Fabric.Update(ends[0], ends[1], change); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *deployment) do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freeze(name string) func(*testing.T, *deployment) {
	return func(t *testing.T, d *deployment) { d.do(t, find(d, name).Signal(syscall.SIGSTOP)) }
}

func thaw(name string) func(*testing.T, *deployment) {
	return func(t *testing.T, d *deployment) { d.do(t, find(d, name).Signal(syscall.SIGCONT)) }
}

func find(d *deployment, name string) *world.Process {
	if p := d.Nodes[name]; p != nil {
		return p
	}
	return d.Endpoints[name]
}

// cut blackholes everything to and from a machine or place.
func cut(from, to string) func(*testing.T, *deployment) {
	return func(t *testing.T, d *deployment) {
		d.do(t, d.Fabric.Change(func(c *wan.Change) error {
			if err := c.Cut(from, to); err != nil {
				return err
			}
			return c.Cut(to, from)
		}))
	}
}

func restore(from, to string) func(*testing.T, *deployment) {
	return func(t *testing.T, d *deployment) {
		d.do(t, d.Fabric.Change(func(c *wan.Change) error {
			if err := c.Restore(from, to); err != nil {
				return err
			}
			return c.Restore(to, from)
		}))
	}
}

// episodes are the promises about things that break while traffic flows.
var episodes = []episode{
	{
		name:    "gateway frozen",
		breakIt: freeze("fra-1"), heal: thaw("fra-1"),
		lasts: 8 * time.Second, recovered: 5 * time.Second, oldFlows: true, afterwards: 3 * time.Second,
	},
	{
		name:    "gateway blackholed",
		breakIt: cut("fra-1", "*"), heal: restore("fra-1", "*"),
		lasts: 8 * time.Second, recovered: 5 * time.Second, oldFlows: true, afterwards: 3 * time.Second,
	},
	{
		name:    "endpoint frozen",
		breakIt: freeze("eu-fra-1-app-1"), heal: thaw("eu-fra-1-app-1"),
		lasts: 10 * time.Second, recovered: 8 * time.Second, oldFlows: true, afterwards: 3 * time.Second,
	},
	{
		name:    "endpoint blackholed",
		breakIt: cut("eu-fra-1-app-1", "*"), heal: restore("eu-fra-1-app-1", "*"),
		lasts: 10 * time.Second, recovered: 8 * time.Second, oldFlows: true, afterwards: 3 * time.Second,
	},
	{
		name:    "backbone link cut for 5 s",
		breakIt: cut("sin", "fra"), heal: restore("sin", "fra"),
		lasts: 5 * time.Second, recovered: 4 * time.Second, oldFlows: true, afterwards: 4 * time.Second,
	},
	{
		name:    "backbone link cut one way for 5 s",
		breakIt: func(t *testing.T, d *deployment) { d.do(t, d.Fabric.Cut("fra", "sin")) },
		heal:    func(t *testing.T, d *deployment) { d.do(t, d.Fabric.Restore("fra", "sin")) },
		lasts:   5 * time.Second, recovered: 4 * time.Second, oldFlows: true, afterwards: 4 * time.Second,
	},
	{
		name: "20 % loss on the backbone",
		breakIt: func(t *testing.T, d *deployment) {
			d.link(t, "sin", "fra", func(p *wan.Params) { p.Loss = 0.2 })
		},
		heal: func(t *testing.T, d *deployment) {
			d.link(t, "sin", "fra", func(p *wan.Params) { p.Loss = 0 })
		},
		lasts: 8 * time.Second, recovered: never, oldFlows: true, newFlows: 0.02, afterwards: 2 * time.Second,
	},
	{
		name: "500 ms on the backbone",
		breakIt: func(t *testing.T, d *deployment) {
			d.link(t, "sin", "fra", func(p *wan.Params) { p.Delay += 500 * time.Millisecond })
		},
		heal: func(t *testing.T, d *deployment) {
			d.link(t, "sin", "fra", func(p *wan.Params) { p.Delay -= 500 * time.Millisecond })
		},
		lasts: 6 * time.Second, recovered: never, oldFlows: true, afterwards: 3 * time.Second,
	},
	{
		name: "endpoint slowed to 5 s",
		breakIt: func(t *testing.T, d *deployment) {
			d.do(t, d.Fabric.Update("*", "eu-fra-1-app-1", func(p *wan.Params) { p.Delay += 2500 * time.Millisecond }))
			d.do(t, d.Fabric.Update("eu-fra-1-app-1", "*", func(p *wan.Params) { p.Delay += 2500 * time.Millisecond }))
		},
		heal: func(t *testing.T, d *deployment) {
			d.do(t, d.Fabric.Update("*", "eu-fra-1-app-1", func(p *wan.Params) { p.Delay -= 2500 * time.Millisecond }))
			d.do(t, d.Fabric.Update("eu-fra-1-app-1", "*", func(p *wan.Params) { p.Delay -= 2500 * time.Millisecond }))
		},
		lasts: 10 * time.Second, recovered: 9 * time.Second, oldFlows: true, afterwards: 6 * time.Second,
	},
}

// TestEpisodes breaks one thing at a time while new connections are made and old ones talk.
func TestEpisodes(t *testing.T) {
	d := raise(t, "main", nil, world.Options{})
	if len(episodes) == 0 {
		t.Fatal("no episodes")
	}
	for _, e := range episodes {
		t.Run(e.name, func(t *testing.T) { d.play(t, e) })
	}
}

func (d *deployment) play(t *testing.T, e episode) {
	if err := d.Settled(d.ctx); err != nil {
		t.Fatal(err)
	}
	long, stop := d.openLong(t, 30, 100*time.Millisecond)
	beside := d.direct("jakarta", "us-iad-1", 20*time.Millisecond)
	defer beside.end()
	var broke, healed time.Time
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		time.Sleep(settle)
		broke = time.Now()
		e.breakIt(t, d)
		time.Sleep(e.lasts)
		e.heal(t, d)
		healed = time.Now()
		time.Sleep(e.afterwards)
	})
	stop()
	if e.recovered != never {
		e.recovered = beside.allow(t, e.recovered)
	}
	d.report(t, e, as, long, broke, healed)
}

func (d *deployment) report(t *testing.T, e episode, as []load.Attempt, long *load.Long, broke, healed time.Time) {
	t.Helper()
	say(t, e.name, as)
	during := load.Since(as, broke)
	lastFailure := time.Duration(0)
	for _, a := range load.Failed(during) {
		lastFailure = max(lastFailure, a.At.Sub(broke))
	}
	t.Logf("the last new flow that failed began %v after the break; healed after %v; old flows: %d of %d broken, longest silence %v",
		lastFailure.Round(time.Millisecond), healed.Sub(broke).Round(time.Millisecond),
		long.Broken.Load(), long.Count, long.Silence().Round(time.Millisecond))
	later := load.Since(as, broke.Add(e.recovered))
	if failed := load.Failed(later); float64(len(failed)) > e.newFlows*float64(len(later)) {
		t.Errorf("%d of %d new flows failed that began %v or more after the break, the first: %v", len(failed), len(later),
			e.recovered, failed[0].Err)
	}
	if e.oldFlows && long.Broken.Load() != 0 {
		t.Errorf("old flows broke: %v", long.Errors())
	}
}
