// Package meter answers: how much traffic did each accelerator have here, minute by minute?
//
//	flow ─ its own counts ─▶ Account.Fold ─▶ Cell (listener, group, address, protocol)
//	                          at the flow's end,                │
//	                          and each minute                   ▼
//	                                    Meter.Run ─▶ one row a cell that has moved ─▶ Config.Report
//
// The packet path adds to what belongs to the flow alone. Cells are atomics that flows add to once a
// minute and at their end, so nothing here is contended, locks or allocates for a packet; a new flow costs
// a scan of its listener's few cells.
package meter

import (
	"cmp"
	"context"
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// Config configures a Meter. Every zero value is the default.
type Config struct {
	// Fold makes all flows that are open fold what they have carried into their cells. It is called at
	// the end of every minute, and once when Run ends. nil: nothing is open.
	Fold func(at time.Time)

	// Report takes the reports of a minute. It must not block. nil: discarded.
	Report func([]model.TrafficReport)

	// Wanted reports whether the flows of an accelerator are wanted one by one; Window takes them then,
	// and those that were rejected. Neither may block. nil: none are.
	Wanted func(model.AcceleratorID) bool
	Window func(Window)

	Metrics prometheus.Registerer // nil: not registered
}

// Window is what one flow has carried in at most a minute, with all headers from IP on.
type Window struct {
	Accelerator model.AcceleratorID
	Listener    model.ListenerID
	Group       model.GroupID    // "": none took it
	Region      model.RegionName // the group's
	Protocol    model.Protocol
	Path
	Accelerated netip.AddrPort
	Carried
	Start, End time.Time
	Rejected   string // why, in one word; "": it was accepted
}

// Path is where a flow comes from and goes to.
type Path struct {
	Client   netip.AddrPort
	Endpoint netip.AddrPort // invalid: not known, or none
	Source   netip.AddrPort // whom the endpoint sees; the client itself where its address is kept
}

// Meter counts the traffic of a node. One a process; safe for concurrent use.
type Meter struct {
	cfg  Config
	boot string
	full atomic.Uint64 // cells that were wanted beyond cellsMax

	mu        sync.Mutex // guards what follows, and the making of cells
	listeners map[model.ListenerID]*Listener
	served    map[model.ListenerID]bool // by the present table; nil: no table yet
	cells     int
	sequence  uint64
}

// New returns a Meter. It counts from now on, and reports while Run runs.
func New(cfg Config) (*Meter, error) {
	m := &Meter{cfg: cfg, boot: rand.Text(), listeners: map[model.ListenerID]*Listener{}}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(&collector{m}); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Key says which traffic of a listener a cell counts.
type Key struct {
	Group    model.GroupID    // "": flows that no group took
	Region   model.RegionName // the group's
	Protocol model.Protocol
	Address  netip.Addr // the accelerated one
}

// Listener is the cells of one listener.
type Listener struct {
	m           *Meter
	id          model.ListenerID
	accelerator model.AcceleratorID
	cells       atomic.Pointer[[]*Cell] // immutable; replaced under m.mu
}

// Listener returns the cells of a listener. Who keeps them may count for as long as he has flows there.
func (m *Meter) Listener(l *model.Listener) *Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	got := m.listeners[l.ID]
	if got == nil {
		got = &Listener{m: m, id: l.ID, accelerator: l.Accelerator}
		m.listeners[l.ID] = got
	}
	return got
}

// SetTable says which listeners there are. The counts of others go once their last flow has ended and was
// reported.
func (m *Meter) SetTable(t *steer.Table) {
	served := make(map[model.ListenerID]bool, len(t.Listeners()))
	for _, l := range t.Listeners() {
		served[l.ID] = true
	}
	m.mu.Lock()
	m.served = served
	m.mu.Unlock()
}

// Cell returns the cell of a key. It allocates only for a key that is new.
func (l *Listener) Cell(k Key) *Cell {
	if c := l.find(k); c != nil {
		return c
	}
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if c := l.find(k); c != nil {
		return c
	}
	if l.m.cells >= cellsMax {
		l.m.full.Add(1)
		if k.Group == "" {
			return &Cell{} // that nobody reads
		}
		k.Group, k.Region = "", ""
		if c := l.find(k); c != nil {
			return c
		}
		return &Cell{}
	}
	l.m.cells++
	c := &Cell{key: k}
	var old []*Cell
	if p := l.cells.Load(); p != nil {
		old = *p
	}
	all := append(slices.Clone(old), c)
	l.cells.Store(&all)
	return c
}

func (l *Listener) find(k Key) *Cell {
	if p := l.cells.Load(); p != nil {
		for _, c := range *p {
			if c.key == k {
				return c
			}
		}
	}
	return nil
}

// Cell counts one kind of traffic. All but key are totals since it was made.
type Cell struct {
	key                   Key
	flows                 atomic.Uint64
	active                atomic.Int64
	bytesIn, bytesOut     atomic.Uint64
	packetsIn, packetsOut atomic.Uint64
	resets                [endings]atomic.Uint64
	unserved              atomic.Uint64

	reported model.TrafficCounts // up to the last report; guarded by Meter.mu
}

// counts returns the totals.
func (c *Cell) counts() model.TrafficCounts {
	return model.TrafficCounts{
		NewFlows: c.flows.Load(), ActiveFlows: uint64(max(0, c.active.Load())),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		PacketsIn: c.packetsIn.Load(), PacketsOut: c.packetsOut.Load(),
		ResetsClient: c.resets[ResetByClient].Load(), ResetsEndpoint: c.resets[ResetByEndpoint].Load(),
		ResetsNearcast: c.resets[ResetByNearcast].Load(), Unserved: c.unserved.Load(),
	}
}

// Run reports minute by minute until ctx ends; then it reports the minute that has begun.
func (m *Meter) Run(ctx context.Context) error {
	minute := time.Now().Truncate(period)
	for {
		timer := time.NewTimer(time.Until(minute.Add(period)))
		select {
		case <-ctx.Done():
			timer.Stop()
			m.end(minute)
			return nil
		case <-timer.C:
		}
		m.end(minute)
		minute = nextMinute(minute, time.Now())
	}
}

// nextMinute is the minute to count for, after one was reported. It is the next one, unless the clock was
// set or the process stood still. Two reports for one minute do no harm: they add up.
func nextMinute(last, now time.Time) time.Time {
	next := last.Add(period)
	if late := now.Sub(next); late < -lateMax || late > period {
		return now.Truncate(period)
	}
	return next
}

// end folds and reports a minute.
func (m *Meter) end(minute time.Time) {
	if m.cfg.Fold != nil {
		m.cfg.Fold(time.Now())
	}
	if reports := m.reports(minute); len(reports) > 0 && m.cfg.Report != nil {
		m.cfg.Report(reports)
	}
}

// reports returns what has been counted since the last time, and forgets the cells of listeners that are
// gone.
func (m *Meter) reports(minute time.Time) []model.TrafficReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rows []model.TrafficRow
	for id, l := range m.listeners {
		p := l.cells.Load()
		quiet := true
		if p != nil {
			for _, c := range *p {
				now := c.counts()
				d := now.Since(c.reported)
				c.reported = now
				if d == (model.TrafficCounts{}) {
					continue
				}
				quiet = false
				rows = append(rows, model.TrafficRow{TrafficKey: l.row(c), TrafficCounts: d})
			}
		}
		if quiet && m.served != nil && !m.served[id] {
			delete(m.listeners, id)
			if p != nil {
				m.cells -= len(*p)
			}
		}
	}
	slices.SortFunc(rows, func(a, b model.TrafficRow) int {
		return cmp.Or(cmp.Compare(a.Listener, b.Listener), cmp.Compare(a.Group, b.Group),
			cmp.Compare(a.Protocol, b.Protocol), a.Address.Compare(b.Address))
	})
	var reports []model.TrafficReport
	for part := range slices.Chunk(rows, model.TrafficRowsMax) {
		m.sequence++
		reports = append(reports, model.TrafficReport{
			Boot: m.boot, Sequence: m.sequence, Minute: minute.UTC(), Rows: part})
	}
	return reports
}

func (l *Listener) row(c *Cell) model.TrafficKey {
	return model.TrafficKey{
		Accelerator: l.accelerator, Listener: l.id, Group: c.key.Group, Region: c.key.Region,
		Protocol: c.key.Protocol, Address: c.key.Address,
	}
}
