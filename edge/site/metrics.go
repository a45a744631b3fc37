package site

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	changes prometheus.Counter
	strays  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Site) *metrics {
	m := &metrics{
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_site_changes_total", Help: "Changes of the nodes among which the site's flows are balanced.",
		}),
		strays: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_site_strays_total", Help: "Heartbeats that are not of this site's nodes.",
		}),
	}
	members := memberCollector{s, prometheus.NewDesc("nearcast_site_members",
		"Nodes of this node's site, this one among them, by state (serving, draining, closed, suspect, gone).",
		[]string{"state"}, nil)}
	if r != nil {
		r.MustRegister(m.changes, m.strays, members)
	}
	return m
}

// memberCollector counts the site's nodes when it is asked.
type memberCollector struct {
	site *Site
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c memberCollector) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

// Collect implements prometheus.Collector.
func (c memberCollector) Collect(to chan<- prometheus.Metric) {
	counts := map[string]int{"serving": 0, "draining": 0, "closed": 0, "suspect": 0, "gone": 0}
	for _, m := range c.site.Status() {
		counts[m.State]++
	}
	for state, n := range counts {
		to <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), state)
	}
}
