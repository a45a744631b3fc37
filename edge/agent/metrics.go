package agent

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	snapshots                 *prometheus.CounterVec
	sessionsEnded, diskErrors prometheus.Counter
	trafficDropped            prometheus.Counter
}

func newMetrics(r prometheus.Registerer, a *Agent) *metrics {
	m := &metrics{
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_agent_snapshots_total",
			Help: "Snapshots received from controllers, by what became of them.",
		}, []string{"result"}),
		sessionsEnded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_agent_sessions_ended_total",
			Help: "Sessions with controllers that failed or broke.",
		}),
		diskErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_agent_disk_errors_total",
			Help: "Snapshots that could not be written to the data directory.",
		}),
		trafficDropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_agent_traffic_reports_dropped_total",
			Help: "Traffic reports that no controller took for so long that newer ones needed the room.",
		}),
	}
	if r == nil {
		return m
	}
	gauge := func(name, help string, value func(Status) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(a.Status()) }))
	}
	gauge("nearcast_agent_connected", "Whether this node has a session with a controller (0, 1).",
		func(s Status) float64 {
			if s.Controller == "" {
				return 0
			}
			return 1
		})
	gauge("nearcast_agent_applied_revision", "Revision of the snapshot in use; 0 without one.",
		func(s Status) float64 { return float64(s.Revision) })
	gauge("nearcast_agent_certificate_seconds", "Seconds until this node's certificate ends.",
		func(s Status) float64 {
			if s.CertificateExpires.IsZero() {
				return 0
			}
			return time.Until(s.CertificateExpires).Seconds()
		})
	r.MustRegister(m.snapshots, m.sessionsEnded, m.diskErrors, m.trafficDropped)
	return m
}

func (m *metrics) snapshot(err error) {
	switch {
	case err == nil:
		m.snapshots.WithLabelValues("applied").Inc()
	case errors.Is(err, errOlder):
		m.snapshots.WithLabelValues("older").Inc()
	default:
		m.snapshots.WithLabelValues("rejected").Inc()
	}
}
