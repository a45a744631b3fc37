package relay

import (
	"time"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// attempt is one stream to one gateway: the stream's sink. What it hears after the flow has gone on to
// another one is ignored.
type attempt struct {
	pump.Entry[*attempt]
	f       *tcpFlow
	gateway model.NodeID
	begun   time.Time
	asleep  time.Duration // of the time since, this process was frozen; Run's own

	// Where the flow could go otherwise.
	route steer.Route
	group steer.Candidate
	at    int

	gate pump.Gate // open when the flow knows the stream
	down time.Time // since when the gateway was seen down; the sweep's own

	// Guarded by f.mu.
	stream *backbone.Stream // nil until it has been opened
	answer answer
	code   wire.OpenCode
	reason wire.ResetReason
}

// answer is what came of an attempt.
type answer uint8

const (
	answerNone    answer = iota
	answerOpen           // an endpoint has taken the flow
	answerRefused        // it was not taken: code says why
	answerLost           // the stream was lost before an answer: reason says why
	answerOver           // the flow itself is over
)

// Opened takes the gateway's answer.
func (a *attempt) Opened(r wire.OpenResult) {
	f := a.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now != a || a.answer != answerNone {
		return
	}
	if r.Code == wire.OpenOK {
		a.answer = answerOpen
		f.account.Via(meter.Path{Endpoint: r.EndpointAddr, Source: r.Source})
		f.account.Serve(a.group.Group)
		f.region, f.gateway, f.open = a.group.Group.Region, a.gateway, time.Since(a.begun)
		f.cond.Broadcast()
		f.t.opening.Remove(&a.Entry)
		f.t.metrics.opened.Observe(time.Since(a.begun).Seconds())
		return
	}
	a.answer, a.code = answerRefused, r.Code
	f.interrupt()
}

// interrupt has the flow's goroutine look at the answer. The caller holds mu, so that no interruption
// comes late, when the flow is elsewhere.
func (f *tcpFlow) interrupt() {
	f.interrupted = true
	f.Interrupt()
	f.cond.Broadcast()
}

// Deliver writes to the client.
func (a *attempt) Deliver(p []byte, fin bool) int {
	if !a.gate.Pass(p, fin) {
		return 0
	}
	return a.f.Deliver(p, fin)
}

// Reset takes note of the stream's end: before an answer the flow can go elsewhere.
func (a *attempt) Reset(reason wire.ResetReason) {
	f := a.f
	f.mu.Lock()
	switch {
	case f.now != a:
		f.mu.Unlock()
	case a.answer == answerNone:
		a.answer, a.reason = answerLost, reason
		f.interrupt()
		f.mu.Unlock()
	default:
		f.mu.Unlock()
		f.Pair.Reset(reason)
	}
}

// check gives the attempt up if the answer is late, or if the gateway went down and there is another
// way. (If there is none, the tunnel may still come back.)
func (a *attempt) check(now time.Time) {
	f := a.f
	peer, _ := f.t.cfg.Pool.Peer(a.gateway)
	switch {
	case peer.Up:
		a.down = time.Time{}
	case a.down.IsZero():
		a.down = now
	}
	late := now.Sub(a.begun)-a.asleep > f.t.cfg.OpenTimeout
	gone := !peer.Up && now.Sub(a.down) > openSilence && a.othersUp()
	if !late && !gone {
		return
	}
	f.mu.Lock()
	s := a.stream
	if f.now != a || a.answer != answerNone || s == nil {
		f.mu.Unlock()
		return
	}
	a.answer, a.reason = answerLost, wire.ResetPathLost
	f.interrupt()
	f.mu.Unlock()
	s.Reset(wire.ResetCancelled)
}

// othersUp reports whether the flow could go elsewhere at once.
func (a *attempt) othersUp() bool {
	if a.group.Direct {
		return false
	}
	for c, from, route := a.group, a.at+1, a.route; ; from = 0 {
		for i := from; ; i++ {
			gw, ok := c.Gateway(i)
			if !ok {
				break
			}
			if peer, _ := a.f.t.cfg.Pool.Peer(gw); peer.Up || gw == a.f.t.cfg.Self {
				return true
			}
		}
		var ok bool
		if c, ok = route.Next(); !ok {
			return false
		}
		if c.Direct {
			return true
		}
	}
}
