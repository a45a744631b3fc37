package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/proto/wire"
)

// stream is one TCP flow that came over the backbone. What arrives before the endpoint is connected
// stays in the backbone's stream.
type stream struct {
	pump.Pair
	pump.Entry[*stream]
	g    *Gateway
	open wire.Open
	gate pump.Gate   // open when the endpoint is connected and the edge was told
	gone atomic.Bool // counted out

	entered time.Time
	ctx     context.Context
	cancel  context.CancelFunc // of dialling
}

// HandleStream takes a new stream; it is backbone.ServerConfig's.
func (g *Gateway) HandleStream(s *backbone.Stream, open *wire.Open) backbone.Sink {
	if !g.gate.Enter() { // before anything is spent on it: another gateway may have time
		g.metrics.refused.WithLabelValues(wire.OpenOverloaded.String()).Inc()
		s.OpenResult(wire.OpenResult{Code: wire.OpenOverloaded})
		return refused{}
	}
	f := &stream{g: g, open: *open, entered: time.Now()}
	f.ctx, f.cancel = context.WithCancel(g.ctx)
	f.Begin(f, &g.running)
	f.SetStream(s)
	g.streams.Add(&f.Entry, f)
	if g.flows.Add(1) > int64(g.cfg.MaxFlows) || !g.start(f.run) {
		g.gate.Leave()
		f.leave()
		g.metrics.refused.WithLabelValues(wire.OpenOverloaded.String()).Inc()
		s.OpenResult(wire.OpenResult{Code: wire.OpenOverloaded})
		return refused{}
	}
	return f
}

// run connects the flow and carries the endpoint's bytes.
func (f *stream) run() {
	s := f.Stream()
	began := time.Now()
	conn, endpoint, own, err := f.g.dial(f.ctx, &f.open, false)
	if err != nil {
		f.g.gate.Leave()
		f.refuse(s, err)
		return
	}
	// A new goroutine runs at once even where there is no time for what it does: the queue shows when the
	// endpoint has answered.
	now := time.Now()
	if !f.g.gate.BeginAfter(f.entered, now, now.Sub(began)-own) {
		pump.Abort(conn)
		f.refuse(s, &OpenError{Code: wire.OpenOverloaded})
		return
	}
	if !f.Attach(conn) {
		return // reset meanwhile
	}
	f.g.metrics.opened.Inc()
	s.OpenResult(wire.OpenResult{
		Code: wire.OpenOK, Endpoint: string(endpoint),
		EndpointAddr: addrPort(conn.RemoteAddr()), Source: addrPort(conn.LocalAddr()),
	})
	if f.gate.Open() {
		f.Pair.Deliver(nil, true)
	}
	s.Resume()
	f.Copy()
}

func (f *stream) refuse(s *backbone.Stream, err error) {
	refusal := &OpenError{Code: wire.OpenUnreachable}
	errors.As(err, &refusal)
	if f.Over() {
		return // the edge has given the flow up, and dialling with it
	}
	f.g.metrics.refused.WithLabelValues(refusal.Code.String()).Inc()
	s.OpenResult(wire.OpenResult{Code: refusal.Code, Endpoint: string(refusal.Endpoint)})
	f.leave()
}

// leave counts the flow out, once.
func (f *stream) leave() bool {
	if f.gone.Swap(true) {
		return false
	}
	f.cancel()
	f.g.streams.Remove(&f.Entry)
	f.g.flows.Add(-1)
	return true
}

// Opened is for the other side only.
func (f *stream) Opened(wire.OpenResult) {}

// Deliver writes to the endpoint.
func (f *stream) Deliver(p []byte, fin bool) int {
	if !f.gate.Pass(p, fin) {
		return 0
	}
	return f.Pair.Deliver(p, fin)
}

// Ended counts the end of the flow.
func (f *stream) Ended(end pump.End) {
	if f.leave() {
		f.g.metrics.ended.WithLabelValues(end.Cause.String(), end.Reason.String()).Inc()
	}
}

// refused is the sink of a stream that was answered with a refusal: it gets no calls.
type refused struct{}

func (refused) Opened(wire.OpenResult)       {}
func (refused) Deliver(p []byte, _ bool) int { return len(p) }
func (refused) Reset(wire.ResetReason)       {}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(t.AddrPort().Addr().Unmap().WithZone(""), t.AddrPort().Port())
	}
	return netip.AddrPort{}
}
