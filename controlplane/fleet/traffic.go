package fleet

import (
	"context"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TrafficSink keeps what nodes have carried, minute by minute.
type TrafficSink interface {
	// AddTraffic keeps one report of a node. It may be called for several nodes at once, and more than
	// once with the same report, also by another controller: node, boot and sequence name it, and what
	// has been kept must not be counted again. Reports of one minute add up: there is one a process of a
	// node and 1,000 rows. They may come late, after an hour without controllers for instance, and out
	// of order. After an error the node sends the report again later.
	AddTraffic(ctx context.Context, node model.NodeID, r model.TrafficReport) error
}

// tookTraffic queues a report for the sink. If it does not fit, the node will send it again.
func (x *session) tookTraffic(p *v1.TrafficReport) {
	r, err := model.TrafficReportFromProto(p)
	if err != nil {
		x.f.metrics.dropped.Inc()
		x.log.Warn("node reports traffic that cannot be understood", "err", err)
		x.ackTraffic(p.GetBoot(), p.GetSequence()) // it would say the same again
		return
	}
	select {
	case x.traffic <- r:
	default:
		x.f.metrics.trafficRefused.Inc()
	}
}

// keepTraffic hands reports to the sink until the stream ends, one after the other.
func (x *session) keepTraffic(ctx context.Context) {
	defer x.f.streams.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-x.traffic:
			if x.f.keepTraffic(ctx, x.id, r) == nil {
				x.ackTraffic(r.Boot, r.Sequence)
			}
		}
	}
}

func (f *Fleet) keepTraffic(ctx context.Context, node model.NodeID, r model.TrafficReport) error {
	if f.cfg.Traffic == nil {
		return nil
	}
	if age := time.Since(r.Minute); age < -trafficAhead || age > trafficAge {
		f.metrics.dropped.Inc()
		f.log.Warn("node reports traffic of another time; is its clock right?", "node", node, "minute", r.Minute)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, trafficTimeout)
	defer cancel()
	err := f.cfg.Traffic.AddTraffic(ctx, node, r)
	if err != nil && ctx.Err() == nil {
		f.metrics.trafficRefused.Inc()
		f.log.Warn("traffic report is not kept; the node will send it again", "node", node, "err", err)
	}
	return err
}

// ackTraffic tells the node that a report is kept. Without room nothing is told: it sends the report again.
func (x *session) ackTraffic(boot string, sequence uint64) {
	select {
	case x.acks <- &v1.TrafficAck{Boot: clip(boot, idMax), Sequence: sequence}:
	default:
	}
}
