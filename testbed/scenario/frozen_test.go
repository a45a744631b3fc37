package scenario

import (
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// edgeFrozen: a frozen edge takes its own site's clients with it and nobody else's; what they had goes
// on when it wakes.
func (d *deployment) edgeFrozen(t *testing.T) {
	// Flows that nobody has answered yet are new ones: those may be refused while every tunnel is down.
	long, stop := d.openLong(t, 30, 100*time.Millisecond)
	edge := d.Nodes["sin-1"]
	var woke time.Duration
	as := d.steadyRate("london", 25*time.Millisecond, func() {
		d.do(t, edge.Signal(syscall.SIGSTOP))
		time.Sleep(8 * time.Second) // that long is what is tested
		d.do(t, edge.Signal(syscall.SIGCONT))
		woke = eventually(t, 60*time.Second, "new flows at the edge that woke", func() error {
			_, err := d.fetchFrom("jakarta")
			return err
		})
	})
	stop()
	say(t, "clients of another site while an edge is frozen for 8 s", as)
	t.Logf("a new flow %v after it woke; old flows: %d of %d broken, longest silence %v", woke.Round(time.Millisecond),
		long.Broken.Load(), long.Count, long.Silence().Round(time.Millisecond))
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows of another site failed, the first: %v", len(f), f[0].Err)
	}
	if long.Broken.Load() != 0 {
		t.Errorf("old flows broke: %v", long.Errors())
	}
}
