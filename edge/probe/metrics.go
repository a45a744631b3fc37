package probe

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	passed, failed, late prometheus.Counter
	targets              prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, p *Prober) *metrics {
	checks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nearcast_probe_checks_total",
		Help: "Health checks made, by result.",
	}, []string{"result"})
	m := &metrics{
		passed: checks.WithLabelValues("passed"),
		failed: checks.WithLabelValues("failed"),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_probe_late_total",
			Help: "Health checks that began more than a second late because too many were running.",
		}),
		targets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nearcast_probe_targets",
			Help: "Endpoints that this node checks, counted once a group.",
		}),
	}
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_probe_running",
		Help: "Health checks running now.",
	}, func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return float64(p.running)
	})
	if r != nil {
		r.MustRegister(checks, m.late, m.targets, running)
	}
	return m
}

func (m *metrics) count(passed bool) {
	if passed {
		m.passed.Inc()
	} else {
		m.failed.Inc()
	}
}
