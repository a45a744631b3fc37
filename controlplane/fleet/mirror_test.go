package fleet

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestMirror(t *testing.T) {
	m := newMirror(slog.New(slog.DiscardHandler))
	report, err := proto.Marshal(&v1.HealthReport{
		Endpoints: []*v1.EndpointHealth{{GroupId: "g", EndpointId: "e"}}})
	if err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	m.update(store.Update{Reset: true, Puts: []store.KV{
		{Key: "fleet/connections/n1/c1"}, {Key: "fleet/connections/n1/c2"},
		{Key: "fleet/controllers/c1", Value: []byte(`{"address":"a:1"}`)},
		{Key: "fleet/health/n1/g", Value: report},
		{Key: "fleet/nodes/n1", Value: []byte(`{"applied_revision":7}`)},
		{Key: "fleet/nodes/n2", Value: []byte(`{`)}, // left out, and nothing else with it
		{Key: "fleet/future/x"},
	}}, t0)
	<-m.ready
	if r, connected := m.node("n1"); !connected || r.AppliedRevision != 7 {
		t.Errorf("n1: %+v, connected %v", r, connected)
	}
	if got := m.addresses(); !slices.Equal(got, []string{"a:1"}) {
		t.Errorf("controllers %v", got)
	}
	groups, version, changed := m.healthOf("n1", 0)
	if !changed || len(groups) != 1 {
		t.Errorf("health of n1: %v, changed %v", groups, changed)
	}
	if _, _, changed := m.healthOf("n1", version); changed {
		t.Error("unchanged health is told as changed")
	}

	// One of two connections ends: still there. The other one: gone, but believed for a while.
	m.update(store.Update{Deletes: []string{"fleet/connections/n1/c1"}}, t0)
	if _, connected := m.node("n1"); !connected {
		t.Error("n1 is not connected although c2 has it")
	}
	m.update(store.Update{Deletes: []string{"fleet/connections/n1/c2"}}, t0)
	if _, connected := m.node("n1"); connected {
		t.Error("n1 is connected although nobody has it")
	}
	if !m.live("n1", t0.Add(time.Second), time.Minute) || m.live("n1", t0.Add(time.Minute), time.Minute) {
		t.Error("n1's word counts too short or too long")
	}
	if m.live("n2", t0, time.Minute) {
		t.Error("the word of a node that was never connected counts")
	}

	// What goes and comes back has another version.
	m.update(store.Update{Deletes: []string{"fleet/health/n1/g"}}, t0)
	if groups, _, changed := m.healthOf("n1", version); !changed || len(groups) != 0 {
		t.Errorf("deleted health: %v, changed %v", groups, changed)
	}
	m.update(store.Update{Puts: []store.KV{{Key: "fleet/health/n1/g", Value: report}}}, t0)
	if _, again, changed := m.healthOf("n1", version); !changed || again == version {
		t.Error("health that came back is not told as changed")
	}
	// A reset forgets what it does not name.
	m.update(store.Update{Reset: true}, t0)
	if _, _, changed := m.healthOf("n1", version); !changed || len(m.addresses()) != 0 {
		t.Error("something has survived a reset")
	}
}
