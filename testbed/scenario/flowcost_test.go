package scenario

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestFlowLogCost measures what flow logs cost an edge: the CPU time of its process for new connections and
// for bytes, with flow logs and without, by turns in one run. It prints figures and asserts none, so it runs
// only when asked to: NEARCAST_FLOWLOG_COST=1.
func TestFlowLogCost(t *testing.T) {
	if os.Getenv("NEARCAST_FLOWLOG_COST") == "" {
		t.Skip("measures for two minutes: set NEARCAST_FLOWLOG_COST=1")
	}
	d := stand(t, "main", one("cost"), world.Options{NodeArgs: []string{"--flow-logs", t.TempDir()}})
	app, err := d.Accelerate(d.ctx, t.Logf)
	d.do(t, err)
	d.app = app
	const turns, connections, bytes = 4, 3000, 192 << 20
	costs := map[bool][2][]float64{} // by whether flows are logged: microseconds a connection, seconds a gigabyte
	d.fetches(t, 500, 100, 32)       // warm
	d.fetches(t, 4, 16<<20, 4)
	for range turns {
		for _, on := range []bool{false, true} {
			to := "off"
			if on {
				to = "logs/edge"
			}
			d.run(t, nil, "accelerator", "update", "shop", "--flow-logs", to, "--wait")
			before := metric(t, d.Nodes["sin-1"], "nearcast_flowlog_windows_total")
			of := costs[on]
			of[0] = append(of[0], d.cost(t, func() { d.fetches(t, connections, 100, 32) })*1e6/connections)
			of[1] = append(of[1], d.cost(t, func() { d.fetches(t, 4, bytes/4, 4) })*1e9/bytes)
			costs[on] = of
			if got := metric(t, d.Nodes["sin-1"], "nearcast_flowlog_windows_total") - before; (got >= connections) != on {
				t.Errorf("flow logs %s: %v windows were written for %d connections", to, got, connections)
			}
		}
	}
	for i, what := range []string{"µs of CPU a new connection", "s of CPU a GB"} {
		off, on := costs[false][i], costs[true][i]
		t.Logf("%s: %.4g without flow logs, %.4g with: %.3f times (medians of %.4g and %.4g)", what, middle(off), middle(on),
			middle(on)/middle(off), off, on)
	}
}

func middle(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return (of[(len(of)-1)/2] + of[len(of)/2]) / 2
}

// cost returns how many seconds of CPU the edge's process takes for f, and until what f began is written down.
func (d *deployment) cost(t *testing.T, f func()) float64 {
	before := metric(t, d.Nodes["sin-1"], "process_cpu_seconds_total")
	f()
	time.Sleep(1500 * time.Millisecond) // the writer's second
	return metric(t, d.Nodes["sin-1"], "process_cpu_seconds_total") - before
}

// fetches makes n fetches of a size, some at once.
func (d *deployment) fetches(t *testing.T, n int, size int64, atOnce int) {
	t.Helper()
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var running sync.WaitGroup
	for range atOnce {
		running.Go(func() {
			for range work {
				ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
				if _, err := load.Fetch(ctx, d.Dial("jakarta"), d.at(world.ListenHTTP), size); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	running.Wait()
}
