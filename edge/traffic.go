package edge

import (
	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/probe"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

type traffic struct{ n *Node }
type trafficPlan struct{}

// TrafficStatus is.
type TrafficStatus struct{}

func (n *Node) buildTraffic(common backbone.Common) error {
	n.traffic = &traffic{n}
	var err error
	if n.cfg.Edge {
		n.pool, err = backbone.NewPool(backbone.PoolConfig{Common: common, Self: n.self})
		if err != nil {
			return err
		}
		n.pool.OnChange(n.changed)
	}
	if n.cfg.Gateway {
		n.server, err = backbone.NewServer(backbone.ServerConfig{
			Common: common, Listen: n.cfg.BackboneListen,
			HandleStream: func(s *backbone.Stream, open *wire.Open) backbone.Sink { return nil },
		})
	}
	return err
}
func (t *traffic) start(parts *rooms)                                                {}
func (t *traffic) verdict(v probe.Verdict)                                           {}
func (t *traffic) announce()                                                         {}
func (t *traffic) groups() map[model.GroupID]bool                                    { return nil }
func (t *traffic) plan(*model.Snapshot, *steer.Table, bool) (p trafficPlan, e error) { return }
func (t *traffic) take(p plan)                                                       {}
func (t *traffic) close()                                                            {}
func (t *traffic) flows() int                                                        { return 0 }
func (t *traffic) status() TrafficStatus                                             { return TrafficStatus{} }
func (t *traffic) missing() []string                                                 { return nil }
func (t *traffic) notes() []string                                                   { return nil }
