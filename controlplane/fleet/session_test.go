package fleet

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/gains"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func newSession(t testing.TB) *session {
	t.Helper()
	m, err := newMetrics(nil, func() []gains.Gain { return nil })
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	return &session{f: &Fleet{metrics: m, log: log}, log: log, id: "n1",
		again: make(chan []byte, 1), dirty: make(chan struct{}, 1)}
}

func TestAcknowledgements(t *testing.T) {
	x := newSession(t)
	ack := func(revision uint64, applied bool, rejections ...*v1.Rejection) {
		x.acknowledged(&v1.SnapshotAck{Revision: revision, Applied: applied, Rejections: rejections})
	}
	ack(5, true)
	if x.record.AppliedRevision != 5 || x.applied.Load() != 5 {
		t.Errorf("after 5: %+v", x.record)
	}
	ack(7, false) // without a reason: one is made up, or nobody would see it
	if x.record.AppliedRevision != 5 || x.record.RejectedRevision != 7 || len(x.record.Rejections) != 1 {
		t.Errorf("after 7 was refused: %+v", x.record)
	}
	ack(6, true) // an answer to what was sent before does not heal the newer refusal
	if x.record.AppliedRevision != 6 || len(x.record.Rejections) != 1 {
		t.Errorf("after 6: %+v", x.record)
	}
	ack(8, true)
	if x.record.AppliedRevision != 8 || len(x.record.Rejections) != 0 || x.record.RejectedRevision != 0 {
		t.Errorf("after 8: %+v", x.record)
	}
	many := make([]*v1.Rejection, 2*rejectionsMax)
	for i := range many {
		many[i] = &v1.Rejection{Field: strings.Repeat("f", 2*textMax), Message: strings.Repeat("m", 2*textMax)}
	}
	ack(9, false, many...)
	if r := x.record.Rejections; len(r) != rejectionsMax || len(r[0].GetMessage()) != textMax {
		t.Errorf("%d rejections kept, of %d bytes", len(r), len(r[0].GetMessage()))
	}
}

// Whatever a node says after Hello: no panic, and what is kept of it can be stored and is bounded.
func FuzzNodeMessage(f *testing.F) {
	for _, m := range []*v1.NodeMessage{
		{Body: &v1.NodeMessage_Ack{Ack: &v1.SnapshotAck{Revision: 1, Rejections: []*v1.Rejection{{}}}}},
		{Body: &v1.NodeMessage_Health{Health: &v1.HealthReport{Complete: true}}},
		{Body: &v1.NodeMessage_Paths{Paths: &v1.PathReport{Paths: []*v1.Path{{Peer: "x"}}}}},
		{Body: &v1.NodeMessage_Notes{Notes: &v1.NodeNotes{Notes: []string{"x"}}}}, {},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(v1.NodeMessage)
		if proto.Unmarshal(b, m) != nil || m.GetHello() != nil {
			return
		}
		x := newSession(t)
		if err := x.take(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(x.record); err != nil {
			t.Fatal(err)
		}
		if _, err := x.reports.take("n1"); err != nil {
			t.Fatal(err)
		}
		if x.paths != nil {
			if _, err := proto.Marshal(x.paths); err != nil {
				t.Fatal(err)
			}
		}
	})
}
