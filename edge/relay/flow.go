package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/clients"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/gateway"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/proxyproto"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// tcpFlow is one client connection. Its goroutine (run) reads the client and decides; the backbone's
// goroutines report to it through the attempt that is under way.
type tcpFlow struct {
	pump.Pair // client and stream
	pump.Entry[*tcpFlow]

	// Set before run starts, then run's own.
	t        *TCP
	tuple    flow.Tuple
	listener *steer.Listener
	pass     pass // changed under mu
	proxied  bool // the client is a proxy that says whom it speaks for
	eof      bool // the client has ended its direction
	asked    int  // gateways, in this round
	pathless bool // in this round a gateway could not be asked, or was lost
	entered  time.Time
	early    early
	account  meter.Account
	told     atomic.Bool // Config.Saw was

	mu          sync.Mutex // before Pair.mu; held briefly
	cond        sync.Cond  // the attempt has got an answer, or the flow is over
	now         *attempt   // under way, or the one that was served; nil: none
	splice      *pump.Splice
	interrupted bool             // reading is
	local       bool             // the Gateway counts it
	region      model.RegionName // that took it; "": none yet
	gateway     model.NodeID     // through which; "": this node
	open        time.Duration    // how long that took
	over        bool

	// The idle sweep's own.
	moved   uint64    // bytes, when last looked
	active  time.Time // when it was last seen moving
	nextSee time.Time
}

// run takes a flow from its first byte to where it is served, and then carries what the client sends.
func (f *tcpFlow) run() {
	f.cond.L = &f.mu
	if !f.t.gate.Begin(f.entered, time.Now()) {
		f.t.admit.refused("overload")
		f.end(wire.ResetOverload)
		return
	}
	if f.proxied && !f.readHeader() {
		return
	}
	for l := f.listener; l != nil; {
		changed := f.t.paths.next() // before it tries, so that no change is missed
		if f.place(l) {
			return
		}
		if !f.pathless && !l.CutOff(f.tuple) || !f.awaitPath(changed) {
			break
		}
		l = f.t.ruling.Load().ListenerByID(f.listener.ID) // nil: it was removed meanwhile
	}
	f.t.metrics.unserved.Inc()
	f.end(wire.ResetRefused)
}

// place asks whoever can serve the flow, best first; false: nobody took it.
func (f *tcpFlow) place(l *steer.Listener) bool {
	f.asked, f.pathless = 0, false
	r := f.t.ruling.Load()
	route := r.RouteVia(l, f.tuple)
	for {
		c, ok := route.Next()
		if !ok {
			return false
		}
		switch f.ask(r.Table, &route, &c) {
		case served, ended:
			return true
		case exhausted:
			return false
		}
	}
}

// readHeader reads the PROXY header of a client that must send one. What is behind it is kept.
func (f *tcpFlow) readHeader() bool {
	_ = f.Conn().SetReadDeadline(time.Now().Add(proxyTimeout))
	for {
		buf, err := f.Read(f.early.room, f.early.give)
		if err != nil {
			f.t.admit.refused("no PROXY header")
			f.end(wire.ResetProtocol)
			return false
		}
		f.early.keep(len(buf))
		h, n, err := proxyproto.Parse(*f.early.first)
		if err == nil && n == 0 && f.early.used < proxyproto.HeaderMax {
			continue
		}
		if err != nil || n == 0 {
			f.t.admit.refused("bad PROXY header")
			f.end(wire.ResetProtocol)
			return false
		}
		f.early.drop(n)
		f.Proceed()
		if h.Valid() {
			f.tuple.Src = unmap(h.Src)
			f.account.Via(meter.Path{Client: f.tuple.Src})
		}
		f.mu.Lock()
		ok := !f.over && f.t.admit.enterSource(&f.pass, sourceOf(f.listener.ID, f.tuple.Src.Addr()))
		f.mu.Unlock()
		if !ok {
			f.end(wire.ResetOverload)
		}
		return ok
	}
}

// outcome is what came of asking.
type outcome uint8

const (
	served      outcome = iota
	nextGateway         // this gateway can't, another one of the group may
	nextGroup           // the group's endpoints can't
	exhausted           // enough were asked
	ended               // the flow is over
)

// ask asks the gateways of a candidate.
func (f *tcpFlow) ask(t *steer.Table, route *steer.Route, c *steer.Candidate) outcome {
	if c.Direct {
		if f.serveHere(t, c) == served {
			return served
		}
		return nextGroup
	}
	for i := 0; ; i++ {
		gw, ok := c.Gateway(i)
		if !ok {
			return nextGroup
		}
		if f.asked++; f.asked > attemptsMax {
			return exhausted
		}
		var out outcome
		if gw == f.t.cfg.Self {
			out = f.serveHere(t, c)
		} else {
			out = f.askGateway(&attempt{f: f, gateway: gw, begun: time.Now(), route: *route, group: *c, at: i}, t)
		}
		if out != nextGateway {
			return out
		}
	}
}

// askGateway opens a stream to a gateway, and stays with it if the flow is served there.
func (f *tcpFlow) askGateway(a *attempt, t *steer.Table) outcome {
	f.mu.Lock()
	f.now = a
	if f.interrupted {
		f.interrupted = false
		f.Proceed()
	}
	f.mu.Unlock()
	f.t.opening.Add(&a.Entry, a)
	defer f.t.opening.Remove(&a.Entry)
	s, err := f.t.cfg.Pool.Open(a.gateway, openFor(t, f.tuple, &a.group), a)
	if err != nil {
		f.t.metrics.moved.WithLabelValues("no path").Inc()
		f.pathless = true
		f.forget()
		return nextGateway
	}
	f.t.paths.found()
	f.mu.Lock()
	a.stream = s
	f.mu.Unlock()
	if !f.SetStream(s) {
		s.Reset(wire.ResetCancelled)
		return ended
	}
	if a.gate.Open() {
		a.Deliver(nil, true)
	}
	s.Resume()
	return f.exchange(a, s)
}

// forget says that no attempt is under way.
func (f *tcpFlow) forget() {
	f.mu.Lock()
	f.now = nil
	f.mu.Unlock()
}

// exchange sends what the client says, keeping it until an endpoint has answered.
func (f *tcpFlow) exchange(a *attempt, s *backbone.Stream) outcome {
	// Errors of Write are no news: the attempt hears of them, too.
	f.early.each(func(b []byte) bool {
		_, err := s.Write(b)
		return err == nil
	})
	if f.eof {
		s.CloseWrite()
	}
	for {
		switch f.await(a, f.eof || f.early.full()) {
		case answerOpen:
			f.early.release()
			if f.eof {
				f.SourceEnded()
			} else {
				f.Copy()
			}
			return served
		case answerRefused, answerLost:
			return f.moveOn(a)
		case answerOver:
			f.early.release()
			return ended
		}
		buf, err := f.Read(f.early.room, f.early.give)
		switch {
		case err == nil:
			f.early.keep(len(buf))
			_, _ = s.Write(buf)
		case err == io.EOF:
			f.eof = true
			s.CloseWrite()
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			// There is an answer.
		default:
			f.Failed()
		}
	}
}

// await returns the answer to an attempt; answerNone if there is none yet, unless it shall wait.
func (f *tcpFlow) await(a *attempt, wait bool) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if f.over {
			return answerOver
		}
		if a.answer != answerNone || !wait {
			return a.answer
		}
		f.cond.Wait()
	}
}

// moveOn decides where a flow goes that was not taken.
func (f *tcpFlow) moveOn(a *attempt) outcome {
	f.mu.Lock()
	answer, code, reason := a.answer, a.code, a.reason
	f.now = nil
	f.mu.Unlock()
	if answer == answerRefused {
		f.t.metrics.moved.WithLabelValues(code.String()).Inc()
		return after(code)
	}
	f.t.metrics.moved.WithLabelValues(reason.String()).Inc()
	if f.t.cfg.AtMostOnce && f.early.used > 0 && reason != wire.ResetRefused {
		f.end(reason)
		return ended
	}
	f.pathless = f.pathless || reason == wire.ResetPathLost
	return nextGateway
}

// after says where to go after a refusal: to another gateway if it was the gateway that could not.
func after(code wire.OpenCode) outcome {
	switch code {
	case wire.OpenOverloaded, wire.OpenDraining, wire.OpenUnknown, wire.OpenHops:
		return nextGateway
	}
	return nextGroup
}

// serveHere connects the flow to an endpoint from this node, without the backbone.
func (f *tcpFlow) serveHere(t *steer.Table, c *steer.Candidate) outcome {
	o, begun := openFor(t, f.tuple, c), time.Now()
	conn, _, err := f.t.cfg.Gateway.DialLocal(f.t.ctx, &o)
	if err != nil {
		code := codeOf(err)
		f.t.metrics.moved.WithLabelValues(code.String()).Inc()
		return after(code)
	}
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		f.t.cfg.Gateway.ReleaseLocal()
		pump.Abort(conn)
		return ended
	}
	f.local = true // Ended gives it back
	f.region, f.open = c.Group.Region, time.Since(begun)
	f.account.Via(meter.Path{Endpoint: addrPort(conn.RemoteAddr()), Source: addrPort(conn.LocalAddr())})
	f.account.Serve(c.Group)
	if f.interrupted {
		f.interrupted = false
		f.Proceed()
	}
	f.mu.Unlock()
	if !f.sayAgain(conn) {
		pump.Abort(conn)
		f.end(wire.ResetByPeer)
		return ended
	}
	sp := &pump.Splice{}
	err = sp.Init(f.Conn(), conn, f, &f.t.pipes)
	f.mu.Lock()
	if f.over || err != nil {
		f.mu.Unlock()
		pump.Abort(conn)
		f.end(wire.ResetByPeer)
		return ended
	}
	f.splice = sp
	f.mu.Unlock()
	if !f.t.start(sp.CopyBA) {
		f.end(wire.ResetShutdown)
		return ended
	}
	sp.CopyAB()
	return served
}

// sayAgain sends an endpoint what the client sent while others were asked.
func (f *tcpFlow) sayAgain(conn *net.TCPConn) bool {
	if f.early.used == 0 {
		return true
	}
	_ = conn.SetWriteDeadline(time.Now().Add(f.t.cfg.OpenTimeout))
	ok := f.early.each(func(b []byte) bool {
		_, err := conn.Write(b)
		return err == nil
	})
	_ = conn.SetWriteDeadline(time.Time{})
	f.early.release()
	return ok
}

// codeOf is the code of an error of the Gateway's.
func codeOf(err error) wire.OpenCode {
	var e *gateway.OpenError
	if errors.As(err, &e) {
		return e.Code
	}
	return wire.OpenUnreachable
}

// end ends the flow, wherever it is.
func (f *tcpFlow) end(reason wire.ResetReason) {
	f.mu.Lock()
	sp := f.splice
	f.mu.Unlock()
	if sp != nil {
		sp.End(reason)
		return
	}
	f.End(reason)
}

// Ended is called when the flow is over: by its Pair, by its Splice, or by both if it was ended while it
// became a Splice.
func (f *tcpFlow) Ended(end pump.End) {
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return
	}
	f.over = true
	local, pass := f.local, f.pass
	f.cond.Broadcast()
	f.mu.Unlock()
	f.t.flows.Remove(&f.Entry)
	f.t.admit.leave(pass)
	if local {
		f.t.cfg.Gateway.ReleaseLocal()
	}
	f.t.metrics.ended.WithLabelValues(end.Cause.String(), end.Reason.String()).Inc()
	f.account.Close(sampleOf(end.Progress), endingOf(end))
	f.tell(end.Progress)
	f.t.metrics.in.Add(float64(end.Progress.In))
	f.t.metrics.out.Add(float64(end.Progress.Out))
}

// tell says what the flow saw, if nobody was told yet.
func (f *tcpFlow) tell(p pump.Progress) {
	if f.t.cfg.Saw == nil || f.proxied || p.RTT == 0 || f.told.Swap(true) {
		return
	}
	x := clients.Sight{Client: f.tuple.Src.Addr(), RTT: p.RTT, Sent: p.Out, Busy: p.Busy}
	f.mu.Lock()
	x.Region, x.Open = f.region, f.open
	gateway := f.gateway
	f.mu.Unlock()
	if gateway != "" {
		peer, _ := f.t.cfg.Pool.Peer(gateway)
		x.Backbone = peer.RTT
	}
	f.t.cfg.Saw(x)
}

// endingOf says in the words of the counts who ended a flow.
func endingOf(end pump.End) meter.Ending {
	switch {
	case end.Cause == pump.EndedWell, end.Reason == wire.ResetIdle: // a FIN
		return meter.Ended
	case end.Cause == pump.SocketFailed:
		return meter.ResetByClient
	case end.Cause == pump.StreamReset && end.Reason == wire.ResetByPeer:
		return meter.ResetByEndpoint
	case end.Cause == pump.OwnerEnded && end.Reason == wire.ResetRefused:
		return meter.Unserved
	}
	return meter.ResetByNearcast
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		return unmap(t.AddrPort())
	}
	return netip.AddrPort{}
}

// sampleOf counts what a connection has carried. The options of a handshake are taken for those of any
// other segment.
func sampleOf(p pump.Progress) meter.Sample {
	s := meter.Sample{PacketsIn: p.SegmentsIn, PacketsOut: p.SegmentsOut, BytesIn: p.In, BytesOut: p.Sent}
	if p.Stamped {
		s.Options = 12
	}
	return s
}

// checkIdle ends the flow if nothing has moved for as long as its listener allows, or if the kernel has
// given its connection up. Bytes count, and not keep-alive probes (as with AWS). pressed says that
// memory is short.
func (f *tcpFlow) checkIdle(now time.Time, pressed bool) {
	if now.Before(f.nextSee) && !pressed {
		return
	}
	idle := f.listener.TCPIdleTimeout
	if idle <= 0 {
		idle = model.DefaultTCPIdleTimeout
	}
	if pressed {
		idle = min(idle, memoryReapAge)
	}
	p, ok := f.Progress()
	switch moved := p.In + p.Out; {
	case !ok:
		return // just closed
	case p.Dead:
		f.end(wire.ResetByPeer)
		return
	case moved != f.moved || f.active.IsZero():
		f.moved, f.active = moved, now
	case now.Sub(f.active) >= idle:
		f.end(wire.ResetIdle)
		return
	}
	f.nextSee = now.Add(idle / idleChecks)
	if last := f.active.Add(idle); last.Before(f.nextSee) {
		f.nextSee = last
	}
}
