package bfd

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	dropped *prometheus.CounterVec
	changes prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_bfd_dropped_total",
			Help: "BFD packets not used or not sent: TTL below 255, malformed, of a stranger, inbox full, send, read.",
		}, []string{"reason"}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_bfd_changes_total",
			Help: "Changes of the state of BFD sessions.",
		}),
	}
	up := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_bfd_sessions_up",
		Help: "BFD sessions that are up.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0.0
		for _, h := range s.sessions {
			h.mu.Lock()
			if h.state == Up {
				n++
			}
			h.mu.Unlock()
		}
		return n
	})
	if r != nil {
		r.MustRegister(m.dropped, m.changes, up)
	}
	return m
}
