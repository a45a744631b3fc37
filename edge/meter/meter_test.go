package meter

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

var (
	v4    = netip.MustParseAddr("192.0.2.1")
	v6    = netip.MustParseAddr("2001:db8::1")
	web   = &model.Listener{ID: "web", Accelerator: "a"}
	paris = &model.EndpointGroup{ID: "g1", Listener: "web", Region: "paris"}
	tokyo = &model.EndpointGroup{ID: "g2", Listener: "web", Region: "tokyo"}
)

func newMeter(t testing.TB, c Config) *Meter {
	t.Helper()
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *Meter) account(p model.Protocol, addr netip.Addr) *Account {
	a := new(Account)
	a.Begin(m.Listener(web), p, netip.MustParseAddrPort("198.51.100.7:5000"), netip.AddrPortFrom(addr, 443))
	return a
}

// one returns the only row of the next report.
func (m *Meter) one(t testing.TB) model.TrafficRow {
	t.Helper()
	r := m.reports(time.Unix(0, 0))
	if len(r) != 1 || len(r[0].Rows) != 1 {
		t.Fatalf("reports: %+v", r)
	}
	return r[0].Rows[0]
}

func TestHeadersAreCounted(t *testing.T) {
	for _, c := range []struct {
		protocol model.Protocol
		addr     netip.Addr
		options  uint8
		in       uint64 // of 10 packets with 1,000 bytes
	}{
		{model.TCP, v4, 0, 1000 + 10*40}, {model.TCP, v4, 12, 1000 + 10*52}, {model.TCP, v6, 12, 1000 + 10*72},
		{model.UDP, v4, 0, 1000 + 10*28}, {model.UDP, v6, 0, 1000 + 10*48},
	} {
		m := newMeter(t, Config{})
		a := m.account(c.protocol, c.addr)
		a.Serve(paris)
		a.Fold(Sample{PacketsIn: 10, BytesIn: 1000, PacketsOut: 1, Options: c.options})
		got := m.one(t)
		want := model.TrafficCounts{NewFlows: 1, ActiveFlows: 1, PacketsIn: 10, BytesIn: c.in, PacketsOut: 1,
			BytesOut: (c.in - 1000) / 10}
		if got.TrafficCounts != want || got.Group != "g1" || got.Region != "paris" || got.Accelerator != "a" ||
			got.Address != c.addr || got.Protocol != c.protocol {
			t.Errorf("%v %v: got %+v, want %+v", c.protocol, c.addr, got, want)
		}
	}
}

func TestEndings(t *testing.T) {
	m := newMeter(t, Config{})
	for how, n := range map[Ending]int{Ended: 1, ResetByClient: 2, ResetByEndpoint: 3, ResetByNearcast: 4} {
		for range n {
			a := m.account(model.TCP, v4)
			a.Serve(paris)
			a.Close(Sample{}, how)
			a.Close(Sample{BytesIn: 5}, ResetByClient) // is over
			a.Serve(tokyo)
			a.Fold(Sample{BytesIn: 9})
		}
	}
	want := model.TrafficCounts{NewFlows: 10, ResetsClient: 2, ResetsEndpoint: 3, ResetsNearcast: 4}
	if got := m.one(t); got.TrafficCounts != want {
		t.Errorf("got %+v, want %+v", got.TrafficCounts, want)
	}
	m.account(model.TCP, v4).Close(Sample{BytesIn: 7}, Unserved)
	m.account(model.TCP, v4).Close(Sample{}, ResetByClient)
	m.Listener(web).Refuse(model.TCP, netip.AddrPort{}, netip.AddrPortFrom(v4, 443), ResetByNearcast, "node")
	want = model.TrafficCounts{BytesIn: 7, ResetsNearcast: 2, ResetsClient: 1, Unserved: 1}
	if got := m.one(t); got.TrafficCounts != want || got.Group != "" {
		t.Errorf("without a group: got %+v, want %+v", got, want)
	}
	new(Account).Close(Sample{}, ResetByClient) // was never begun
	if r := m.reports(time.Unix(0, 0)); len(r) != 0 {
		t.Errorf("a quiet minute is reported: %+v", r)
	}
}

// A flow that goes on to another group is one flow, active once, and its bytes are counted where they were
// carried.
func TestMoving(t *testing.T) {
	m := newMeter(t, Config{})
	a := m.account(model.UDP, v4)
	a.Serve(paris)
	a.Fold(Sample{PacketsIn: 1})
	a.Serve(tokyo)
	a.Serve(tokyo)
	a.Fold(Sample{PacketsIn: 3})
	rows := m.reports(time.Unix(0, 0))[0].Rows
	if len(rows) != 2 || rows[0].TrafficCounts != (model.TrafficCounts{NewFlows: 1, PacketsIn: 1, BytesIn: 28}) ||
		rows[1].TrafficCounts != (model.TrafficCounts{ActiveFlows: 1, PacketsIn: 2, BytesIn: 56}) {
		t.Errorf("got %+v", rows)
	}
}

// However folds of several goroutines interleave, the sum is what the last sample says, and packet counts
// may wrap around.
func TestFoldsAddUp(t *testing.T) {
	m := newMeter(t, Config{})
	a := m.account(model.UDP, v4)
	a.Serve(paris)
	start := uint32(1<<32 - 5_000)
	a.seen.PacketsIn = start
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			var n uint32
			for n < 10_000 {
				n = min(n+rand.Uint32N(100), 10_000)
				a.Fold(Sample{PacketsIn: start + n, BytesIn: uint64(n) * 7})
			}
		})
	}
	all.Wait()
	if got := m.one(t); got.PacketsIn != 10_000 || got.BytesIn != 10_000*(28+7) {
		t.Errorf("got %+v", got.TrafficCounts)
	}
}

func TestGoneListenersAreForgotten(t *testing.T) {
	m := newMeter(t, Config{})
	a := m.account(model.TCP, v4)
	a.Serve(paris)
	m.SetTable(steer.Compile(&model.Snapshot{}, "n", steer.View{}))
	for range 3 { // as long as there is a flow it is reported
		if got := m.one(t); got.ActiveFlows != 1 {
			t.Errorf("got %+v", got)
		}
	}
	a.Close(Sample{}, Ended)
	m.reports(time.Unix(0, 0))
	m.reports(time.Unix(0, 0))
	if len(m.listeners) != 0 || m.cells != 0 {
		t.Errorf("%d listeners and %d cells are left", len(m.listeners), m.cells)
	}
}

func TestReportsAreCut(t *testing.T) {
	m := newMeter(t, Config{})
	const n = 2*model.TrafficRowsMax + 1
	addr := v6
	for range n {
		addr = addr.Next()
		a := m.account(model.TCP, addr)
		a.Serve(paris)
	}
	seen := map[netip.Addr]bool{}
	for i, r := range m.reports(time.Unix(60, 0)) {
		if len(r.Rows) > model.TrafficRowsMax || r.Sequence != uint64(i+1) || r.Boot != m.boot {
			t.Errorf("report %d: %d rows, number %d of %q", i, len(r.Rows), r.Sequence, r.Boot)
		}
		for _, row := range r.Rows {
			seen[row.Address] = true
		}
		back, err := model.TrafficReportFromProto(model.TrafficReportToProto(r))
		if diff := cmp.Diff(r, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("report %d on the wire: %v\n%s", i, err, diff)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d rows are reported", len(seen), n)
	}
}

// Minutes are those of the clock, the last one is cut short, and open flows are folded into each.
func TestMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(13 * time.Second)
		var got []model.TrafficReport
		var a *Account
		carried := uint32(0)
		m := newMeter(t, Config{
			Fold:   func(time.Time) { carried += 5; a.Fold(Sample{PacketsIn: carried}) },
			Report: func(r []model.TrafficReport) { got = append(got, r...) },
		})
		a = m.account(model.TCP, v4)
		a.Serve(paris)
		ctx, cancel := context.WithCancel(t.Context())
		first := time.Now().UTC().Truncate(time.Minute)
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(2*time.Minute + 10*time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for i, r := range got {
			if !r.Minute.Equal(first.Add(time.Duration(i)*time.Minute)) || r.Rows[0].PacketsIn != 5 {
				t.Errorf("report %d: of %v, %+v", i, r.Minute, r.Rows)
			}
		}
		if len(got) != 3 {
			t.Errorf("%d reports", len(got))
		}
	})
}

func TestClockIsSet(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse("15:04:05", s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ last, now, want string }{
		{"10:00:00", "10:01:00", "10:01:00"}, {"10:00:00", "10:00:59", "10:01:00"}, // a timer that is early
		{"10:00:00", "10:01:30", "10:01:00"}, {"10:00:00", "12:34:56", "12:34:00"}, {"10:00:00", "09:00:10", "09:00:00"},
	} {
		if got := nextMinute(at(c.last), at(c.now)); !got.Equal(at(c.want)) {
			t.Errorf("after %s at %s: %v, want %s", c.last, c.now, got, c.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	m := newMeter(t, Config{Metrics: r})
	for _, addr := range []netip.Addr{v4, v6} {
		a := m.account(model.TCP, addr)
		a.Serve(paris)
		a.Close(Sample{PacketsIn: 1, BytesIn: 10}, ResetByEndpoint)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, x := range f.Metric {
			name := f.GetName()
			for _, l := range x.Label {
				name += " " + l.GetValue()
			}
			got[name] = x.GetCounter().GetValue() + x.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"nearcast_traffic_bytes_total a in g1 web tcp": 40 + 10 + 60 + 10, "nearcast_traffic_bytes_total a out g1 web tcp": 0,
		"nearcast_traffic_flows_total a g1 web tcp": 2, "nearcast_traffic_flows a g1 web tcp": 0,
		"nearcast_traffic_packets_total a in g1 web tcp": 2, "nearcast_traffic_unserved_total a g1 web tcp": 0,
		"nearcast_traffic_resets_total a endpoint g1 web tcp": 2, "nearcast_traffic_uncounted_total": 0,
	} {
		if n, ok := got[name]; !ok || n != want {
			t.Errorf("%s: %v, %v, want %v", name, n, ok, want)
		}
	}
}

func TestFullTable(t *testing.T) {
	m := newMeter(t, Config{})
	m.cells = cellsMax - 1
	a := m.account(model.TCP, v4)
	a.Close(Sample{}, Unserved) // makes the last cell, that without a group
	b := m.account(model.TCP, v4)
	b.Serve(paris)
	if got := m.one(t); got.Group != "" || got.NewFlows != 1 || m.full.Load() != 1 {
		t.Errorf("got %+v, %d", got, m.full.Load())
	}
	b.Close(Sample{}, Ended)
	m.account(model.UDP, v4).Close(Sample{BytesIn: 5}, Ended) // no cell at all: not counted, no harm
}

// A flow costs nothing that grows with traffic.
func TestNoAllocation(t *testing.T) {
	m := newMeter(t, Config{})
	a := m.account(model.UDP, v4)
	a.Serve(paris)
	var n uint32
	if got := testing.AllocsPerRun(100, func() {
		n++
		a.Fold(Sample{PacketsIn: n, BytesIn: uint64(n)})
		a.listener.Cell(a.key("g1", "paris"))
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}
