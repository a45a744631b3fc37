package edge

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	compileSeconds prometheus.Histogram
	compilePanics  prometheus.Counter
}

func newMetrics(n *Node) *metrics {
	m := &metrics{
		compileSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nearcast_steer_compile_seconds",
			Help:    "Time to compile the steering table after something that it depends on has changed.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 4, 8),
		}),
		compilePanics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_steer_compile_panics_total",
			Help: "Compilations of the steering table that panicked; the table before stayed in use.",
		}),
	}
	ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_node_ready",
		Help: "Whether this node serves: a snapshot is applied and its listeners are open (0, 1).",
	}, func() float64 {
		if len(n.missing()) > 0 {
			return 0
		}
		return 1
	})
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nearcast_node_info",
		Help: "Always 1; the labels say what this node is.",
		ConstLabels: prometheus.Labels{
			"name": n.cfg.Name, "site": n.cfg.Site, "version": n.cfg.Version,
		},
	})
	info.Set(1)
	n.registry.MustRegister(m.compileSeconds, m.compilePanics, ready, info)
	return m
}

// registerMetrics exposes what names counts beside the server's own.
func (d *names) registerMetrics() {
	counter := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read)
	}
	d.n.registry.MustRegister(
		counter("nearcast_dnssec_signed_total", "Signatures made.",
			func() float64 { return float64(d.stats.Signed.Load()) }),
		counter("nearcast_dnssec_hits_total", "Signatures that were there already.",
			func() float64 { return float64(d.stats.Hits.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nearcast_dns_nodes_out", Help: "Edges that answers do not name now.",
		}, func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			out := 0
			for _, reason := range d.why {
				if reason != "" {
					out++
				}
			}
			return float64(out)
		}))
}
