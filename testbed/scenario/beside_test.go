package scenario

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// What a promise says in seconds or as a ratio is measured beside a control in the same seconds: connections of the
// same city's clients straight to an endpoint that the test leaves alone. They cross the same emulated network and
// need the same machine, but nothing of Nearcast's. By how much they are late tells how slow the machine was.

// beside is such a control.
type beside struct{ *running }

// stepsBeside is how many processes wake up one after the other for a flow through an edge and a gateway, to the
// endpoint and back, beside the one of a flow straight to it; noticing that something has died takes no more.
const stepsBeside = 5

// direct begins connections straight to the first endpoint of a region.
func (d *deployment) direct(city, region string, every time.Duration) *beside {
	return &beside{d.rate(city, netip.AddrPortFrom(d.EndpointAddr(region, 0), load.PortHTTP), every, 0)}
}

// took returns what each took; one that failed, as long as a client waits.
func (b *beside) took() (all []time.Duration) {
	for _, a := range b.end() {
		if a.Err != nil {
			a.Times.Total = attemptTimeout
		}
		all = append(all, a.Times.Total)
	}
	return all
}

// slower ends the control and returns what the machine may have added to what Nearcast did meanwhile: at each step as
// much as the slowest of the control was late.
func (b *beside) slower(t *testing.T) time.Duration {
	t.Helper()
	took := b.took()
	late := load.Quantile(took, 1) - load.Quantile(took, 0)
	t.Logf("%d connections past Nearcast were up to %v late in the same seconds", len(took), late.Round(time.Millisecond))
	return stepsBeside * late
}

// allow ends the control and returns a promise's time with what the machine may have added.
func (b *beside) allow(t *testing.T, promise time.Duration) time.Duration {
	t.Helper()
	limit := promise + b.slower(t)
	t.Logf("promised: %v; allowed here: %v", promise, limit.Round(time.Millisecond))
	return limit
}
