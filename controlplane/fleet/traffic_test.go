package fleet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// fakeSink fails as often as it is told, then keeps.
type fakeSink struct {
	fail int
	got  []model.TrafficReport
}

func (s *fakeSink) AddTraffic(_ context.Context, node model.NodeID, r model.TrafficReport) error {
	if node != "n1" {
		return errors.New("another node")
	}
	if s.fail > 0 {
		s.fail--
		return errors.New("the store is away")
	}
	s.got = append(s.got, r)
	return nil
}

func report(sequence uint64, minute time.Time) *v1.TrafficReport {
	return model.TrafficReportToProto(model.TrafficReport{
		Boot: "b", Sequence: sequence, Minute: minute.Truncate(time.Minute)})
}

// What is kept is acknowledged, what is not comes again, and what never can be kept is acknowledged, too.
func TestTrafficIsAcknowledged(t *testing.T) {
	sink := &fakeSink{fail: 1}
	x := newSession(t)
	x.f.cfg.Traffic = sink
	x.traffic, x.acks = make(chan model.TrafficReport, 2), make(chan *v1.TrafficAck, trafficMax)
	ctx, cancel := context.WithCancel(t.Context())
	x.f.streams.Add(1)
	go x.keepTraffic(ctx)
	say := func(r *v1.TrafficReport) {
		t.Helper()
		if err := x.take(ctx, &v1.NodeMessage{Body: &v1.NodeMessage_Traffic{Traffic: r}}); err != nil {
			t.Fatal(err)
		}
	}
	acked := func(want uint64) {
		t.Helper()
		select {
		case a := <-x.acks:
			if a.GetBoot() != "b" || a.GetSequence() != want {
				t.Errorf("acknowledged: %v, want %d", a, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%d is not acknowledged", want)
		}
	}
	now := time.Now()
	say(report(1, now)) // fails
	say(report(2, now))
	acked(2)
	say(report(1, now))
	acked(1)
	say(report(3, now.Add(-2*trafficAge))) // nobody would ever ask for it
	acked(3)
	bad := report(4, now)
	bad.Minute.Seconds++
	say(bad)
	acked(4)
	cancel()
	x.f.streams.Wait()
	if len(sink.got) != 2 || sink.got[0].Sequence != 2 || sink.got[1].Sequence != 1 {
		t.Errorf("kept: %+v", sink.got)
	}
	for range 5 { // nobody takes them any more: no blocking
		say(report(5, now))
	}
}
