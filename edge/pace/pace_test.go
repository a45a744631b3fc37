package pace

import (
	"testing"
	"time"
)

// Yield remembers when it was called last, and comes back whatever it is told.
func TestYield(t *testing.T) {
	var p Pace
	for i := range 1000 {
		before := time.Now()
		p.Yield(i%2 == 0)
		if p.last.Before(before) || p.last.After(time.Now()) {
			t.Fatalf("call %d: noted %v, called at %v", i, p.last, before)
		}
	}
	if n := testing.AllocsPerRun(100, func() { p.Yield(true) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
