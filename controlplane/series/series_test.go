package series

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

var places = Places{
	EdgeArea:   func(n model.NodeID) string { return map[model.NodeID]string{"n1": "EU", "n2": "NA"}[n] },
	RegionArea: func(r model.RegionName) string { return Area(r, 0, 0) },
}

func all(model.AcceleratorID) bool { return true }

func running(t *testing.T, s *store.Store, now func() time.Time) *Series {
	t.Helper()
	x, err := New(Config{Store: s, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx, func() bool { return true }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return x
}

func row(a model.AcceleratorID, addr string, p model.Protocol, flows, in uint64) model.TrafficRow {
	return model.TrafficRow{TrafficKey: model.TrafficKey{Accelerator: a, Listener: "l1", Group: "g1", Region: "us-east-1",
		Protocol: p, Address: netip.MustParseAddr(addr)}, TrafficCounts: model.TrafficCounts{NewFlows: flows, BytesIn: in}}
}

func TestSeries(t *testing.T) {
	st, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stored := make(chan error, 1)
	go func() { stored <- st.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-stored })
	var passed atomic.Int64
	passed.Store(int64(10 * time.Minute))
	now := func() time.Time { return start.Add(time.Duration(passed.Load())) }
	x := running(t, st, now)
	other := running(t, st, now)
	reports := []struct {
		node model.NodeID
		r    model.TrafficReport
	}{
		{"n1", model.TrafficReport{Boot: "b", Sequence: 1, Minute: start, Rows: []model.TrafficRow{
			row("a1", "192.0.2.1", model.TCP, 3, 300), row("a1", "2001:db8::1", model.UDP, 1, 50)}}},
		{"n1", model.TrafficReport{Boot: "b", Sequence: 1, Minute: start, Rows: []model.TrafficRow{
			row("a1", "192.0.2.1", model.TCP, 3, 300), row("a1", "2001:db8::1", model.UDP, 1, 50)}}}, // again
		{"n2", model.TrafficReport{Boot: "c", Sequence: 1, Minute: start.Add(time.Minute), Rows: []model.TrafficRow{
			row("a1", "192.0.2.1", model.TCP, 10, 1000), row("a2", "192.0.2.2", model.TCP, 7, 7)}}},
	}
	for _, r := range reports {
		if err := x.AddTraffic(t.Context(), r.node, r.r); err != nil {
			t.Fatal(err)
		}
	}
	sum := func(s *Series, name string, dims ...Dimension) (total float64, points int) {
		p := s.Points(Metric{name, dims}, start, start.Add(time.Hour), time.Minute, places, all)
		for _, p := range p {
			total += p.Sum
		}
		return total, len(p)
	}
	acc, last := Dimension{"Accelerator", "a1"}, Dimension{"Accelerator", "a3"}
	if n, _ := sum(x, "NewFlowCount", acc); n != 14 {
		t.Errorf("who was told knows of %v flows", n)
	}
	// Once both know what the other one was told, their watches have told all that came before.
	if err := other.AddTraffic(t.Context(), "n0", model.TrafficReport{Boot: "z", Sequence: 1, Minute: start,
		Rows: []model.TrafficRow{row("a3", "192.0.2.3", model.TCP, 1, 1)}}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		theirs, _ := sum(other, "NewFlowCount", acc)
		mine, _ := sum(x, "NewFlowCount", last)
		if theirs == 14 && mine == 1 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the other controller knows of %v flows, this one of %v", theirs, mine)
		}
	}
	for _, c := range []struct {
		name   string
		dims   []Dimension
		sum    float64
		points int
	}{
		{"NewFlowCount", []Dimension{acc}, 14, 2},
		{"ProcessedBytesIn", []Dimension{acc}, 1350, 2},
		{"NewFlowCount", []Dimension{acc, {"Listener", "l1"}, {"EndpointGroup", "us-east-1"}}, 14, 2},
		{"NewFlowCount", []Dimension{acc, {"DestinationEdge", "EU"}}, 4, 1},
		{"NewFlowCount", []Dimension{acc, {"SourceRegion", "NA"}}, 14, 2},
		{"NewFlowCount", []Dimension{acc, {"TransportProtocol", "UDP"}}, 1, 1},
		{"NewFlowCount", []Dimension{acc, {"NetworkProtocol", "IPv6"}}, 1, 1},
		{"NewFlowCount", []Dimension{acc, {"AcceleratorIPAddress", "192.0.2.1"}}, 13, 2},
		{"NewFlowCount", []Dimension{acc, {"EndpointGroup", "us-east-1"}}, 0, 0}, // no such combination
		{"NewFlowCount", nil, 0, 0},
		{"PacketsProcessed", []Dimension{acc}, 0, 0}, // only what is not zero
		{"Nonsense", []Dimension{acc}, 0, 0},
	} {
		if got, n := sum(x, c.name, c.dims...); got != c.sum || n != c.points {
			t.Errorf("%s %v: %v in %d points, want %v in %d", c.name, c.dims, got, n, c.sum, c.points)
		}
	}
	hour := x.Points(Metric{"NewFlowCount", []Dimension{acc}}, start, start.Add(time.Hour), time.Hour, places, all)
	if len(hour) != 1 || hour[0] != (Point{start, 14, 4, 10, 2}) {
		t.Errorf("the hour: %+v", hour)
	}
	mine := x.Metrics(start, places, func(a model.AcceleratorID) bool { return a == "a2" })
	if len(mine) != 2*8 { // NewFlowCount and ProcessedBytesIn, each with all its combinations
		t.Errorf("%d metrics: %v", len(mine), mine)
	}
	if err := x.prune(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got, n := sum(x, "NewFlowCount", acc); got != 10 || n != 1 {
		t.Errorf("after the oldest was dropped: %v in %d points", got, n)
	}
	passed.Store(int64(16 * 24 * time.Hour))
	if err := x.prune(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if got, _ := sum(x, "NewFlowCount", acc); got != 0 {
		t.Errorf("after 16 days: %v", got)
	}
}

// TestOwnReportsStay: what was written here is known here, however late the watch tells of older things; and
// what is gone from the store goes.
func TestOwnReportsStay(t *testing.T) {
	s := &Series{reports: map[string]report{}}
	value, err := proto.Marshal(model.TrafficReportToProto(model.TrafficReport{Boot: "b", Sequence: 1, Minute: start,
		Rows: []model.TrafficRow{row("a1", "192.0.2.1", model.TCP, 3, 300)}}))
	if err != nil {
		t.Fatal(err)
	}
	key := func(node string) string { return prefix + start.Format(minuteForm) + "/" + node + "/b-1" }
	kept := func(what string, want ...string) {
		t.Helper()
		for _, node := range want {
			if _, there := s.reports[key(node)]; !there {
				t.Errorf("%s: the report of %s is gone", what, node)
			}
		}
		if len(s.reports) != len(want) {
			t.Errorf("%s: %d reports, want those of %v", what, len(s.reports), want)
		}
	}
	tell := func(u store.Update, puts ...string) {
		t.Helper()
		for i, node := range puts {
			u.Puts = append(u.Puts, store.KV{Key: key(node), Value: value, Modified: u.Revision - uint64(len(puts)-1-i)})
		}
		if err := s.apply(u); err != nil {
			t.Fatal(err)
		}
	}
	s.take(key("mine"), value, 12)
	tell(store.Update{Reset: true, Revision: 10}, "old", "older")
	kept("a listing from before", "mine", "old", "older")
	tell(store.Update{Revision: 11, Deletes: []string{key("mine"), key("old")}})
	kept("a deletion from before", "mine", "older")
	tell(store.Update{Revision: 13, Deletes: []string{key("mine")}})
	kept("its own deletion", "older")
	s.take(key("lost"), value, 14)
	tell(store.Update{Revision: 15}, "x")
	tell(store.Update{Reset: true, Revision: 11}, "restored")
	kept("a store restored from a backup", "restored")
}

func TestHealthCounts(t *testing.T) {
	x := &Series{cfg: Config{Now: func() time.Time { return start.Add(10 * time.Minute) }},
		health: map[model.GroupID][]healthStep{}}
	c := HealthCount{Accelerator: "a1", Listener: "l1", Group: "g1", Region: "r1", Healthy: 2}
	for minute := range 10 {
		if minute == 5 {
			c.Healthy, c.Unhealthy = 1, 1
		}
		counts := []HealthCount{c}
		if minute == 8 {
			counts = nil // disabled
		}
		x.sample(start.Add(time.Duration(minute)*time.Minute), counts)
	}
	if n := len(x.health["g1"]); n != 4 {
		t.Errorf("%d steps", n)
	}
	got := x.Points(Metric{Healthy, []Dimension{{"Accelerator", "a1"}}}, start, start.Add(time.Hour), time.Hour, places, all)
	if len(got) != 1 || got[0] != (Point{start, 2*5 + 3 + 1, 1, 2, 9}) {
		t.Errorf("healthy: %+v", got)
	}
	got = x.Points(Metric{Unhealthy, []Dimension{{"Accelerator", "a1"}, {"Listener", "l1"}}}, start,
		start.Add(6*time.Minute), time.Minute, places, all)
	if len(got) != 6 || got[5].Sum != 1 || got[4].Sum != 0 {
		t.Errorf("unhealthy: %+v", got)
	}
}

func TestAreas(t *testing.T) {
	for region, want := range map[model.RegionName]string{"us-east-1": "NA", "eu-ams-1": "EU", "ap-northeast-2": "KR",
		"ap-northeast-1": "AP", "ap-south-1": "IN", "ap-southeast-2": "AU", "sa-east-1": "SA", "me-south-1": "ME",
		"af-south-1": "ZA"} {
		if got := Area(region, 0, 0); got != want {
			t.Errorf("%s is in %s, want %s", region, got, want)
		}
	}
	if got := Area("home", 52.4, 4.9); got != "EU" {
		t.Errorf("Amsterdam is in %s", got)
	}
}
