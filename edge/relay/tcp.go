package relay

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/overload"
	"github.com/nearcast/nearcast/edge/pump"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// TCP relays connections. One a process; safe for concurrent use.
type TCP struct {
	cfg     Config
	metrics *tcpMetrics
	ruling  atomic.Pointer[ruling]
	admit   admission
	flows   pump.Registry[*tcpFlow]
	opening pump.Registry[*attempt]
	pipes   pump.Pipes
	gate    overload.Gate
	paths   paths

	mu      sync.Mutex // guards closed, and running against it
	closed  bool
	running sync.WaitGroup
	ctx     context.Context // of dialling
	cancel  context.CancelFunc
}

// NewTCP returns a TCP that refuses everything until SetTable.
func NewTCP(cfg Config) (*TCP, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	t := &TCP{cfg: cfg}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.metrics = newTCPMetrics(t)
	t.admit.max, t.admit.memory = int64(cfg.MaxFlows), cfg.Memory
	t.admit.refused = func(reason string) { t.metrics.shed.WithLabelValues(reason).Inc() }
	t.gate.OnChange = cfg.OnOverload
	cfg.Pool.OnChange(t.paths.change)
	return t, t.metrics.register(cfg.Metrics)
}

// SetTable has new flows go by a table. Flows whose listener is not in it are reset; all others stay
// where they are.
func (t *TCP) SetTable(table *steer.Table) {
	old := t.ruling.Load()
	r := newRuling(table, old, &t.cfg)
	t.ruling.Store(r)
	t.paths.change()
	if old == nil || !lost(old, r) {
		return
	}
	t.flows.Each(func(f *tcpFlow) {
		if f.listener != nil && table.ListenerByID(f.listener.ID) == nil {
			f.end(wire.ResetRemoved)
		}
	})
}

// lost reports whether a listener of old is not in r.
func lost(old, r *ruling) bool {
	for id := range old.counts {
		if r.counts[id] == nil {
			return true
		}
	}
	return false
}

// Flows returns the number of flows.
func (t *TCP) Flows() int { return t.flows.Len() }

// Fold has the flows that are open counted up to now.
func (t *TCP) Fold() {
	t.flows.Each(func(f *tcpFlow) {
		if p, ok := f.Progress(); ok {
			f.account.Fold(sampleOf(p))
			if time.Since(f.entered) > tellAfter {
				f.tell(p)
			}
		}
	})
}

// Handle takes a connection of a client; it is listen.Config's HandleTCP.
func (t *TCP) Handle(conn *net.TCPConn) {
	if !t.gate.Enter() { // before anything is spent on it
		t.admit.refused("overload")
		pump.Abort(conn)
		return
	}
	if !t.take(conn) {
		t.gate.Leave()
	}
}

// take begins the flow of a connection, and reports whether its goroutine will run.
func (t *TCP) take(conn *net.TCPConn) bool {
	remote, ok1 := conn.RemoteAddr().(*net.TCPAddr)
	local, ok2 := conn.LocalAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		pump.Abort(conn)
		return false
	}
	f := &tcpFlow{t: t, entered: time.Now()}
	f.tuple = flow.Tuple{Src: unmap(remote.AddrPort()), Dst: unmap(local.AddrPort()), Proto: flow.TCP}
	if !t.begin(f) {
		pump.Abort(conn)
		return false
	}
	f.Begin(f, &t.running)
	if !f.Attach(conn) {
		t.admit.leave(f.pass)
		return false
	}
	t.flows.Add(&f.Entry, f)
	if !t.start(f.run) {
		f.end(wire.ResetShutdown)
		return false
	}
	return true
}

// begin finds the listener of a flow and admits it there.
func (t *TCP) begin(f *tcpFlow) bool {
	r := t.ruling.Load()
	if r == nil {
		t.admit.refused("no listener")
		return false
	}
	f.listener = r.Listener(f.tuple.Dst, flow.TCP)
	if f.listener == nil { // its socket is being closed
		t.admit.refused("no listener")
		return false
	}
	var ok bool
	counts := r.counts[f.listener.ID]
	if !f.listener.Takes(f.tuple.Dst.Port(), flow.TCP) {
		t.admit.refused(notMapped)
		counts.meter.Refuse(model.TCP, f.tuple.Src, f.tuple.Dst, meter.ResetByNearcast, "denied")
		return false
	}
	f.pass, ok = t.admit.enter(counts)
	if !ok {
		counts.meter.Refuse(model.TCP, f.tuple.Src, f.tuple.Dst, meter.ResetByNearcast, "limit")
		return false
	}
	src := f.tuple.Src.Addr()
	f.proxied = slices.ContainsFunc(f.listener.ProxyProtocolFrom, func(n netip.Prefix) bool { return n.Contains(src) })
	if !f.proxied && !t.admit.enterSource(&f.pass, sourceOf(f.listener.ID, f.tuple.Src.Addr())) {
		t.admit.leave(f.pass)
		counts.meter.Refuse(model.TCP, f.tuple.Src, f.tuple.Dst, meter.ResetByNearcast, "limit")
		return false
	}
	f.account.Begin(counts.meter, model.TCP, f.tuple.Src, f.tuple.Dst)
	return true
}

// start runs a flow in a goroutine of its own, unless the TCP has ended.
func (t *TCP) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.running.Go(f)
	return true
}

// sweepOpening gives up attempts whose answer is late. While the process was frozen (stopped, or its
// machine paused) no answer could come: that time is not held against them.
func (t *TCP) sweepOpening(now, last time.Time) {
	if t.opening.Len() == 0 {
		return
	}
	asleep := now.Sub(last)
	if asleep < frozenAfter {
		asleep = 0
	}
	t.opening.Each(func(a *attempt) {
		if a.begun.Before(last) {
			a.asleep += asleep
		}
		a.check(now)
	})
}

// Run watches over the flows until ctx ends; then it resets those that are left, and returns when all
// have ended.
func (t *TCP) Run(ctx context.Context) error {
	opens := time.NewTicker(openSweepEvery)
	defer opens.Stop()
	idles := time.NewTicker(idleSweepEvery)
	defer idles.Stop()
	for swept := time.Now(); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case now := <-opens.C:
			t.sweepOpening(now, swept)
			swept = now
		case now := <-idles.C:
			pressed := t.admit.memoryUsed() >= memoryReap
			t.flows.Each(func(f *tcpFlow) { f.checkIdle(now, pressed) })
		}
	}
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.flows.Each(func(f *tcpFlow) { f.end(wire.ResetShutdown) })
	t.running.Wait()
	t.pipes.Close()
	return nil
}
