package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// Sizes of the overload scenario. The node under load gets a small share of a CPU, so that it is the
// bottleneck, and its clients, the other node and the application have time to spare.
const (
	overloadShare    = 0.15
	overloadSize     = 2_000
	overloadPatience = 2 * time.Second // of a client
	overloadTries    = 3               // the machine is shared: a figure that others spoiled is taken again
)

// TestOverload asks an edge and a gateway for twice what they can do. What gets done must not become
// less, memory must stand still, and afterwards all must be as before within five seconds.
func TestOverload(t *testing.T) {
	d := raise(t, "raw", nil, world.Options{})
	for _, name := range []string{"client", "near-1", "fra-1", "eu-fra-1-app-1"} {
		for key, value := range map[string]string{
			"net.ipv4.ip_local_port_range": "10240 65535", "net.ipv4.tcp_tw_reuse": "1",
		} {
			if err := d.NS(name).Sysctl(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("twice what an edge can do", func(t *testing.T) { d.overload(t, "near-1") })
	t.Run("twice what a gateway can do", func(t *testing.T) { d.overload(t, "fra-1") })
}

// resident returns the memory of a process, which need not be asked for it.
func resident(t *testing.T, p *world.Process) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var total, pages float64
	if _, err := fmt.Sscan(string(text), &total, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * float64(os.Getpagesize())
}

func (d *deployment) overload(t *testing.T, name string) {
	node := d.Nodes[name]
	limit, err := netns.LimitCPU(fmt.Sprintf("nearcast-%s-%d", name, os.Getpid()), overloadShare, node.PID())
	if err != nil {
		t.Skipf("this machine cannot give a node less than a CPU: %v", err)
	}
	defer func() {
		if err := limit.Close(); err != nil {
			t.Error(err)
		}
	}()
	best := 0.0
	for try := 0; try < overloadTries && best < 0.9; try++ {
		best = max(best, d.overloadOnce(t, node))
	}
	if best < 0.9 {
		t.Errorf("goodput fell to %.0f %% of the peak", 100*best)
	}
}

// overloadOnce returns goodput at twice the peak, as a share of the peak. The peak is taken before and after, and the
// lower counts: a machine that became slower meanwhile says nothing of the node.
func (d *deployment) overloadOnce(t *testing.T, node *world.Process) (share float64) {
	clients := load.Arrivals{
		Enter: d.NS("client").Do, Addr: netip.AddrPortFrom(d.app.Addresses[0], world.ListenHTTP),
		Size: overloadSize, Timeout: overloadPatience,
	}
	run := func(what string, lasts time.Duration) load.Arrived {
		t.Helper()
		a, err := clients.Run(d.ctx, lasts)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d came, %.0f/s served, %d refused, %d gave up; median %v, p99 %v", what, a.Came, a.Goodput(), a.Refused,
			a.TimedOut, a.Took(0.5).Round(time.Millisecond), a.Took(0.99).Round(time.Millisecond))
		return a
	}
	clients.Waiting = 32
	run("warming up, 32 at a time", time.Second)
	peak := 0.0
	for range 2 {
		a := run("32 at a time", 3*time.Second)
		peak = max(peak, a.Goodput())
	}
	before := resident(t, node)
	clients.Rate = 2 * peak
	twice := run(fmt.Sprintf("%.0f a second", clients.Rate), 8*time.Second)
	after := resident(t, node)
	t.Logf("%s: peak %.0f/s; at twice that %.0f/s, %.0f %%; memory %s before, %s after", node.Name, peak, twice.Goodput(),
		100*twice.Goodput()/peak, mib(before), mib(after))
	if after > before+64<<20 {
		t.Errorf("memory of %s grew from %s to %s", node.Name, mib(before), mib(after))
	}
	took := eventually(t, 30*time.Second, "it recovers", func() error {
		got, err := d.fetchFrom("client")
		if err == nil && got.Total > time.Second {
			err = fmt.Errorf("a download takes %v", got.Total)
		}
		return err
	})
	t.Logf("recovered %v after", took.Round(time.Millisecond))
	clients.Rate = 0
	again := run("32 at a time again", 3*time.Second)
	share = twice.Goodput() / min(peak, again.Goodput())
	t.Logf("%s: %.0f %% of the lower peak, %.0f/s before and %.0f/s after", node.Name, 100*share, peak, again.Goodput())
	return share
}
