package announce

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	changes   *prometheus.CounterVec
	bfdResets prometheus.Counter
}

func newMetrics(r prometheus.Registerer, a *Announcer) *metrics {
	m := &metrics{
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_announce_changes_total",
			Help: "Prefixes that became announced, draining or withdrawn, or were kept by the floor.",
		}, []string{"phase"}),
		bfdResets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_announce_bfd_resets_total",
			Help: "BGP sessions that were reset because BFD had the router for dead.",
		}),
	}
	gauge := func(name, help string, f func(*state) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(f(a.state.Load())) })
	}
	phase := func(p Phase) func(*state) int {
		return func(s *state) (n int) {
			for _, e := range s.plan.Entries {
				if e.Phase == p {
					n++
				}
			}
			return n
		}
	}
	if r != nil {
		r.MustRegister(m.changes, m.bfdResets,
			gauge("nearcast_announce_prefixes_announced", "Prefixes that this node announces.", phase(Announced)),
			gauge("nearcast_announce_prefixes_draining", "Prefixes announced as less wanted.", phase(Draining)),
			gauge("nearcast_announce_prefixes_withdrawn", "Prefixes that are not announced.", phase(Withdrawn)),
			gauge("nearcast_announce_prefixes_held", "Prefixes announced only because of the floor.",
				func(s *state) (n int) {
					for _, e := range s.plan.Entries {
						if e.Held {
							n++
						}
					}
					return n
				}),
			gauge("nearcast_announce_sessions_established", "BGP sessions that are up.",
				func(s *state) (n int) {
					for _, x := range s.sessions {
						if x.State == "established" {
							n++
						}
					}
					return n
				}),
			gauge("nearcast_announce_sessions", "BGP sessions that are configured and enabled.",
				func(s *state) (n int) {
					for _, x := range s.sessions {
						if !x.Peer.Disabled {
							n++
						}
					}
					return n
				}))
	}
	return m
}
