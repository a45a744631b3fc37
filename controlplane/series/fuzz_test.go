package series

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// FuzzReports gives any bytes as a stored report: it is left alone, or everything that is asked of it has an answer.
func FuzzReports(f *testing.F) {
	st, err := store.New(store.Config{DataDir: f.TempDir(), NoSync: true})
	if err != nil {
		f.Fatal(err)
	}
	good, err := proto.Marshal(model.TrafficReportToProto(model.TrafficReport{Boot: "b", Sequence: 1, Minute: start,
		Rows: []model.TrafficRow{row("a1", "192.0.2.1", model.TCP, 3, 300)}}))
	if err != nil {
		f.Fatal(err)
	}
	key := prefix + start.Format(minuteForm) + "/n1/b-1"
	f.Add(key, good)
	f.Add(key, good[:len(good)-1])
	f.Add(prefix+"//", good)
	f.Add("x", []byte{0xff})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s, err := New(Config{Store: st, Now: func() time.Time { return start.Add(time.Hour) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.apply(store.Update{Puts: []store.KV{{Key: key, Value: value}}}); err != nil {
			t.Fatal(err)
		}
		for _, m := range s.Metrics(start.Add(-time.Hour), places, all) {
			if m.Name == "" || len(m.Dimensions) == 0 {
				t.Errorf("metric %+v", m)
			}
			for _, p := range s.Points(m, start.Add(-time.Hour), start.Add(time.Hour), time.Minute, places, all) {
				if p.Sum < 0 || p.Samples < 1 {
					t.Errorf("%v has %+v", m, p)
				}
			}
		}
	})
}
