package fleet

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func entry(group, endpoint int, state v1.HealthState) *v1.EndpointHealth {
	return &v1.EndpointHealth{GroupId: fmt.Sprintf("g%d", group), EndpointId: fmt.Sprintf("e%d", endpoint),
		State: state}
}

// Random reports, against a map of all that was said: what take writes makes the stored records equal
// to it.
func TestReportsAgainstOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var r reports
	oracle := map[string]v1.HealthState{} // "group/endpoint"
	stored := map[model.GroupID]bool{}
	for range 2000 {
		m := &v1.HealthReport{Complete: rng.IntN(4) == 0}
		said := map[string]v1.HealthState{}
		for range rng.IntN(6) {
			e := entry(rng.IntN(3), rng.IntN(3), v1.HealthState(1+rng.IntN(3)))
			m.Endpoints = append(m.Endpoints, e)
			said[e.GetGroupId()+"/"+e.GetEndpointId()] = e.GetState()
		}
		if m.GetComplete() {
			clear(oracle)
		}
		for k, s := range said {
			oracle[k] = s
		}
		if n := r.merge(m); n != 0 {
			t.Fatalf("%d entries dropped", n)
		}
		ops, err := r.take("n")
		if err != nil {
			t.Fatal(err)
		}
		for group := range ops {
			stored[group] = len(r.groups[group]) > 0
		}
		if r.count != len(oracle) {
			t.Fatalf("count %d, want %d", r.count, len(oracle))
		}
		groups := map[model.GroupID]bool{}
		for k, s := range oracle {
			g, e, _ := strings.Cut(k, "/")
			groups[model.GroupID(g)] = true
			if got := r.groups[model.GroupID(g)][e]; got.GetState() != s {
				t.Fatalf("%s is %v, want %v", k, got.GetState(), s)
			}
		}
		for g, there := range stored {
			if there != groups[g] {
				t.Fatalf("record of %s stored %v, want %v", g, there, groups[g])
			}
		}
	}
}

func TestReportsAreBoundedAndQuiet(t *testing.T) {
	var r reports
	m := &v1.HealthReport{Complete: true}
	for i := range reportsMax + 10 {
		m.Endpoints = append(m.Endpoints, entry(i/100, i%100, v1.HealthState_HEALTH_STATE_HEALTHY))
	}
	m.Endpoints = append(m.Endpoints, &v1.EndpointHealth{GroupId: strings.Repeat("x", idMax+1), EndpointId: "e"},
		&v1.EndpointHealth{GroupId: "g"}, &v1.EndpointHealth{})
	if n := r.merge(m); n != 13 || r.count != reportsMax {
		t.Errorf("%d dropped, %d kept; want 13 and %d", n, r.count, reportsMax)
	}
	r = reports{}
	e := entry(1, 1, v1.HealthState_HEALTH_STATE_HEALTHY)
	e.Since, e.Latency = timestamppb.Now(), durationpb.New(20*time.Millisecond)
	say := func(change func(*v1.EndpointHealth)) int {
		e := proto.CloneOf(e)
		change(e)
		r.merge(&v1.HealthReport{Endpoints: []*v1.EndpointHealth{e}})
		ops, err := r.take("n")
		if err != nil {
			t.Fatal(err)
		}
		return len(ops)
	}
	for name, tc := range map[string]struct {
		change func(*v1.EndpointHealth)
		writes int
	}{
		"the same":        {func(*v1.EndpointHealth) {}, 0},
		"a little slower": {func(e *v1.EndpointHealth) { e.Latency = durationpb.New(22 * time.Millisecond) }, 0},
		"much slower":     {func(e *v1.EndpointHealth) { e.Latency = durationpb.New(200 * time.Millisecond) }, 1},
		"another state":   {func(e *v1.EndpointHealth) { e.State = v1.HealthState_HEALTH_STATE_UNHEALTHY }, 1},
		"another reason":  {func(e *v1.EndpointHealth) { e.Reason = "x" }, 1},
		"a later change": {func(e *v1.EndpointHealth) {
			e.Since = timestamppb.New(time.Now().Add(time.Hour))
		}, 1},
		"a state to come":  {func(e *v1.EndpointHealth) { e.State = 77 }, 1},
		"reason in binary": {func(e *v1.EndpointHealth) { e.Reason = "\xff\xfe" }, 0},
	} {
		r = reports{}
		say(func(*v1.EndpointHealth) {})
		if got := say(tc.change); got != tc.writes {
			t.Errorf("%s: %d writes, want %d", name, got, tc.writes)
		}
	}
}

func FuzzReports(f *testing.F) {
	b, err := proto.Marshal(&v1.HealthReport{Complete: true, Endpoints: []*v1.EndpointHealth{
		entry(1, 2, v1.HealthState_HEALTH_STATE_HEALTHY)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, b)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var r reports
		for _, data := range [][]byte{a, b} {
			m := new(v1.HealthReport)
			if proto.Unmarshal(data, m) != nil {
				return
			}
			r.merge(m)
			ops, err := r.take("n")
			if err != nil {
				t.Fatal(err)
			}
			r.undo(ops)
			n := 0
			for _, g := range r.groups {
				n += len(g)
			}
			if n != r.count {
				t.Fatalf("%d entries, counted %d", n, r.count)
			}
		}
		groups := map[model.GroupID]*v1.HealthReport{"g": {}}
		toReports(groups)
	})
}

func TestVerdictRecords(t *testing.T) {
	since := time.Now().UTC().Truncate(time.Microsecond)
	verdicts := map[health.Key]health.Verdict{
		{Group: "g1", Endpoint: "a"}: {State: model.HealthHealthy, Since: since},
		{Group: "g1", Endpoint: "b"}: {State: model.HealthUnhealthy, Reason: "refused", Since: since},
		{Group: "g2", Endpoint: "a"}: {State: model.HealthInitial, Since: since},
	}
	records, err := groupVerdicts(verdicts)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v; want that of g1", len(records), err)
	}
	set, err := readVerdicts([]store.KV{
		{Key: verdictsGroups + "g1", Value: records["g1"], Modified: 5}, {Key: verdictsRevision, Modified: 7}})
	if err != nil || set.revision != 7 || len(set.verdicts) != 2 {
		t.Fatalf("%+v, %v", set, err)
	}
	for k, v := range set.verdicts {
		if v != verdicts[k] {
			t.Errorf("%v reads as %+v, want %+v", k, v, verdicts[k])
		}
	}
	again, err := groupVerdicts(set.verdicts)
	if err != nil || string(again["g1"]) != string(records["g1"]) {
		t.Error("equal verdicts have other bytes")
	}
	if _, err := readVerdicts([]store.KV{{Key: verdictsGroups + "g1", Value: []byte("{")}}); err == nil {
		t.Error("half a record is accepted")
	}
}
