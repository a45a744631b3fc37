package agent

import (
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// trafficQueue holds reports until a controller has acknowledged them: for an hour and more while all are
// away. When it is full, the oldest goes. Agent.mu guards it.
type trafficQueue struct {
	waiting []trafficReport // oldest first
	rows    int
}

type trafficReport struct {
	model.TrafficReport
	session string    // that it was sent in last
	sent    time.Time // then
}

// ReportTraffic passes reports on to the controllers; it never blocks.
func (a *Agent) ReportTraffic(reports []model.TrafficReport) {
	a.mu.Lock()
	q := &a.traffic
	for _, r := range reports {
		q.waiting = append(q.waiting, trafficReport{TrafficReport: r})
		q.rows += len(r.Rows)
	}
	dropped := 0
	for len(q.waiting) > trafficReportsMax || q.rows > trafficRowsMax && len(q.waiting) > 1 {
		q.rows -= len(q.waiting[0].Rows)
		q.waiting = slices.Delete(q.waiting, 0, 1)
		dropped++
	}
	a.mu.Unlock()
	a.metrics.trafficDropped.Add(float64(dropped))
	a.poke()
}

// trafficAcked forgets a report that a controller has.
func (a *Agent) trafficAcked(ack *pb.TrafficAck) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := &a.traffic
	q.waiting = slices.DeleteFunc(q.waiting, func(r trafficReport) bool {
		if r.Boot != ack.GetBoot() || r.Sequence != ack.GetSequence() {
			return false
		}
		q.rows -= len(r.Rows)
		return true
	})
}

// trafficToSend returns the reports that were not sent in this session yet, or so long ago that its
// answer, or the report, must have got lost.
func (a *Agent) trafficToSend(session string, now time.Time) []model.TrafficReport {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []model.TrafficReport
	for i := range a.traffic.waiting {
		r := &a.traffic.waiting[i]
		if r.session == session && now.Sub(r.sent) < trafficAgain {
			continue
		}
		r.session, r.sent = session, now
		if list = append(list, r.TrafficReport); len(list) == trafficAtOnce {
			break
		}
	}
	return list
}

// sendTraffic sends what there is to say about traffic. What is left for the next round comes soon.
func (s *session) sendTraffic() error {
	list := s.trafficToSend(s.id, time.Now())
	for _, r := range list {
		m := &pb.NodeMessage{Body: &pb.NodeMessage_Traffic{Traffic: model.TrafficReportToProto(r)}}
		if err := s.stream.Send(m); err != nil {
			return err
		}
	}
	if len(list) == trafficAtOnce {
		s.poke()
	}
	return nil
}
