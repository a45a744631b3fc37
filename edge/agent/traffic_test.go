package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func trafficReports(first, n, rows int) (list []model.TrafficReport) {
	for i := range n {
		r := model.TrafficReport{Boot: "b", Sequence: uint64(first + i), Minute: time.Unix(60*int64(first+i), 0)}
		for j := range rows {
			r.Rows = append(r.Rows, model.TrafficRow{TrafficKey: model.TrafficKey{
				Accelerator: "a", Listener: model.ListenerID(fmt.Sprint("l", j)), Protocol: model.TCP,
				Address: netip.MustParseAddr("192.0.2.1")}})
		}
		list = append(list, r)
	}
	return list
}

// Reports are kept until they are acknowledged: they come again in a later session, also those that were
// made while no controller could be reached.
func TestTrafficUntilAcknowledged(t *testing.T) {
	c := newCluster(t)
	ctl := c.start()
	other := c.start()
	n := newAgent(t, c, t.TempDir(), nil, ctl.addr, other.addr)
	n.ReportTraffic(trafficReports(1, 2, 1)) // before anybody listens
	n.run(t)
	next := func() *pb.TrafficReport {
		return hear(c, func(m *pb.NodeMessage) *pb.TrafficReport { return m.GetTraffic() })
	}
	ack := func(stream pb.NodeService_SyncServer, sequence uint64) {
		m := &pb.ControllerMessage{Body: &pb.ControllerMessage_TrafficAck{
			TrafficAck: &pb.TrafficAck{Boot: "b", Sequence: sequence}}}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint64{1, 2} {
		if got := next(); got.GetSequence() != want || len(got.GetRows()) != 1 {
			t.Fatalf("got %v, want %d", got, want)
		}
	}
	ack(c.stream(1), 1)
	ack(c.stream(1), 99) // nobody's
	eventually(t, "1 is forgotten", func() bool {
		n.Agent.mu.Lock()
		defer n.Agent.mu.Unlock()
		return len(n.traffic.waiting) == 1
	})
	if n.Status().Controller == other.addr {
		ctl = other
	}
	ctl.server.Stop() // the node goes to the other one
	n.ReportTraffic(trafficReports(3, 1, 1))
	for _, want := range []uint64{2, 3} {
		if got := next(); got.GetSequence() != want {
			t.Fatalf("got %v, want %d", got, want)
		}
	}
	ack(c.stream(2), 2)
	ack(c.stream(2), 3)
	eventually(t, "all are forgotten", func() bool {
		n.Agent.mu.Lock()
		defer n.Agent.mu.Unlock()
		return len(n.traffic.waiting) == 0 && n.traffic.rows == 0
	})
}

func TestTrafficQueueIsBounded(t *testing.T) {
	a := &Agent{metrics: newMetrics(nil, nil), wake: make(chan struct{}, 1)}
	a.ReportTraffic(trafficReports(1, trafficReportsMax+10, 1))
	if q := a.traffic; len(q.waiting) != trafficReportsMax || q.waiting[0].Sequence != 11 {
		t.Errorf("%d wait, the oldest is %d", len(q.waiting), q.waiting[0].Sequence)
	}
	for i := range 200 {
		a.ReportTraffic(trafficReports(10_000+i, 1, model.TrafficRowsMax))
	}
	if q := a.traffic; q.rows > trafficRowsMax || q.waiting[len(q.waiting)-1].Sequence != 10_199 {
		t.Errorf("%d rows wait", q.rows)
	}
	now := time.Now()
	first := a.trafficToSend("s", now)
	second := a.trafficToSend("s", now)
	if len(first) != trafficAtOnce || len(second) != trafficAtOnce || first[0].Sequence == second[0].Sequence {
		t.Errorf("%d, then %d are sent", len(first), len(second))
	}
	if again := a.trafficToSend("s", now.Add(trafficAgain)); again[0].Sequence != first[0].Sequence {
		t.Errorf("%d is sent again", again[0].Sequence)
	}
}
