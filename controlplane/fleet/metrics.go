package fleet

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/controlplane/gains"
)

type metrics struct {
	streams, revision, bytes, leading        prometheus.Gauge
	builds, buildErrors, sent, rejected, cut prometheus.Counter
	dropped, storeErrors, transitions        prometheus.Counter
	trafficRefused                           prometheus.Counter
	clients, clientsLeft                     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, rows func() []gains.Gain) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "nearcast_fleet_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "nearcast_fleet_" + name, Help: help})
	}
	m := &metrics{
		streams:     gauge("streams", "Nodes that have a Sync stream to this controller."),
		revision:    gauge("snapshot_revision", "Revision of the snapshot that nodes are told."),
		bytes:       gauge("snapshot_bytes", "Size of the snapshot that nodes are told."),
		leading:     gauge("leading", "1 while this controller makes the verdicts, else 0."),
		builds:      counter("builds_total", "Configurations compiled."),
		buildErrors: counter("build_errors_total", "Configurations not read or not compiled."),
		sent:        counter("snapshots_sent_total", "Snapshots sent to nodes."),
		rejected:    counter("snapshots_rejected_total", "Snapshots that nodes have refused."),
		cut: counter("streams_cut_total",
			"Streams ended by this controller: revoked, deleted or superseded nodes."),
		dropped:     counter("reports_dropped_total", "Entries of nodes' reports beyond the limits."),
		storeErrors: counter("store_errors_total", "Writes of what nodes say that did not succeed at once."),
		trafficRefused: counter("traffic_refused_total",
			"Traffic reports that could not be kept at once; nodes send them again."),
		clients: gauge("client_networks", "Client networks whose measured round trips nodes are told."),
		clientsLeft: gauge("client_networks_left_out",
			"Client networks that nodes measured and that are not told, since others are busier."),
		transitions: counter("verdict_transitions_total", "Changes of published verdicts, at the leader."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.streams, m.revision, m.bytes, m.leading, m.builds, m.buildErrors,
		m.sent, m.rejected, m.cut, m.dropped, m.storeErrors, m.transitions,
		m.trafficRefused, m.clients, m.clientsLeft, gainsCollector{rows}} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// gainsCollector shows what acceleration gives, by region; single networks are in ListGains.
type gainsCollector struct{ rows func() []gains.Gain }

var (
	gainFlows = prometheus.NewDesc("nearcast_gain_flows",
		"Flows that the gains speak of, by region: all; losing (the first byte does not come sooner); estimated (what "+
			"they would have without acceleration is an estimate).", []string{"region", "kind"}, nil)
	gainSaved = prometheus.NewDesc("nearcast_gain_first_byte_seconds",
		"By how much sooner the first byte comes than without acceleration: the median of flows, by region.",
		[]string{"region"}, nil)
)

// Describe names what Collect shows.
func (c gainsCollector) Describe(to chan<- *prometheus.Desc) {
	to <- gainFlows
	to <- gainSaved
}

// Collect works the gains out anew.
func (c gainsCollector) Collect(to chan<- prometheus.Metric) {
	for _, s := range gains.Summarize(c.rows()) {
		region := string(s.Region)
		for kind, n := range map[string]int{"all": s.Flows, "losing": s.Losing, "estimated": s.Guessed} {
			to <- prometheus.MustNewConstMetric(gainFlows, prometheus.GaugeValue, float64(n), region, kind)
		}
		to <- prometheus.MustNewConstMetric(gainSaved, prometheus.GaugeValue, s.Saved.Seconds(), region)
	}
}
