package scenario

import (
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestClocks has machines whose wall clock is an hour off, ahead or behind: nodes, two of them two hours apart,
// from their enrolment on; then the controller.
func TestClocks(t *testing.T) {
	wrong := map[string]time.Duration{"sin-1": time.Hour, "fra-1": -time.Hour, "iad-1": time.Hour}
	d := raise(t, "main", func(s *world.Spec) { s.Name = "clocks" }, world.Options{ClockOff: wrong})
	t.Run("nodes", func(t *testing.T) {
		for node, off := range wrong {
			clockIs(t, d.Nodes[node], off)
		}
		d.unaffected(t, "nodes an hour off")
		edge := d.Nodes["sin-1"]
		kill(t, d.Controllers...)
		kill(t, edge)
		d.do(t, edge.Start())
		eventually(t, 20*time.Second, "the edge serves from its disk", func() error {
			_, err := d.fetchFrom("jakarta")
			return err
		})
		edge.ClockOff = -time.Hour // two hours back
		kill(t, edge)
		d.start(t, d.Controllers...)
		d.start(t, edge)
		clockIs(t, edge, -time.Hour)
		d.unaffected(t, "the edge's clock set back by two hours")
	})
	t.Run("controller", func(t *testing.T) {
		for node := range wrong {
			kill(t, d.Nodes[node])
			d.Nodes[node].ClockOff = 0
			d.start(t, d.Nodes[node])
		}
		for _, off := range []time.Duration{time.Hour, -time.Hour} {
			kill(t, d.Controllers...)
			d.Controllers[0].ClockOff = off
			d.start(t, d.Controllers...)
			clockIs(t, d.Controllers[0], off)
			d.unaffected(t, fmt.Sprintf("the controller's clock %v off", off))
		}
	})
}

// unaffected asserts that clients are served by TCP and UDP while a change reaches every node.
func (d *deployment) unaffected(t *testing.T, what string) {
	t.Helper()
	if err := d.Settled(d.ctx); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("clock-%d", time.Now().UnixNano())
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		if _, err := d.CLI(d.ctx, "accelerator", "create", name, "--wait"); err != nil {
			t.Error(err)
		}
		if _, err := load.EchoDatagram(d.ctx, d.Dial("jakarta"), d.at(load.PortUDP), []byte(name), 2*time.Second); err != nil {
			t.Error(err)
		}
	})
	d.noneFailed(t, what, as)
}

// noneFailed says what clients saw, and asserts that they were served.
func (d *deployment) noneFailed(t *testing.T, what string, as []load.Attempt) {
	t.Helper()
	say(t, what, as)
	if f := load.Failed(as); len(as) == 0 || len(f) != 0 {
		t.Errorf("%s: %d of %d new flows failed, the first: %+v", what, len(f), len(as), f[:min(1, len(f))])
	}
}

var logTime = regexp.MustCompile(`(?m)^time=(\S+) `)

// clockIs asserts that the program itself believes in a time that is so far off: what it logs now says so.
func clockIs(t *testing.T, p *world.Process, off time.Duration) {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	lines := logTime.FindAllSubmatch(text, -1)
	if len(lines) == 0 {
		t.Fatalf("%s has logged nothing", p.Name)
	}
	last, err := time.Parse(time.RFC3339, string(lines[len(lines)-1][1]))
	if got := time.Until(last); err != nil || (got-off).Abs() > 10*time.Minute {
		t.Errorf("%s last logged at %v, its clock is %v off, want %v (%v)", p.Name, last, got, off, err)
	}
}
