package backbone

import "github.com/prometheus/client_golang/prometheus"

// metrics are the figures of a Pool (side="pool") or Server (side="server").
type metrics struct {
	sent, received   prometheus.Counter
	opened           prometheus.Counter
	moves            prometheus.Counter
	reinjected       prometheus.Counter
	reneged          prometheus.Counter
	carriersBegun    prometheus.Counter
	carriersFailed   prometheus.Counter
	datagramsCarried prometheus.Counter
	datagramsDropped prometheus.Counter
	all              []prometheus.Collector
}

func newMetrics(side string, memory *Memory) *metrics {
	m := &metrics{}
	labels := prometheus.Labels{"side": side}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "nearcast", Subsystem: "backbone", Name: name, Help: help, ConstLabels: labels,
		})
		m.all = append(m.all, c)
		return c
	}
	m.sent = counter("sent_bytes_total", "Bytes written to carriers, frames and padding included.")
	m.received = counter("received_bytes_total", "Bytes read from carriers, frames and padding included.")
	m.opened = counter("streams_opened_total", "Streams begun.")
	m.moves = counter("stream_moves_total", "Times that a stream went to another carrier.")
	m.reinjected = counter("reinjected_bytes_total",
		"Bytes of short streams sent again because their carrier was repairing a loss.")
	m.reneged = counter("reneged_bytes_total",
		"Bytes that arrived, were not kept because memory was short, and have to be sent again.")
	m.carriersBegun = counter("carriers_total", "Carriers that were set up.")
	m.carriersFailed = counter("carrier_failures_total", "Carriers that could not be set up.")
	m.datagramsCarried = counter("datagrams_carried_total",
		"Datagram messages that went over a carrier because UDP does not pass.")
	m.datagramsDropped = counter("datagrams_dropped_total",
		"Datagram messages dropped because the queue of a carrier was full or no path was up.")
	m.gauge(labels, "memory_bytes", "Bytes that streams hold.", func() float64 { return float64(memory.Used()) })
	return m
}

// tunnels adds the figures that are counted where the tunnels are.
func (m *metrics) tunnels(side string, count func() (carriers, streams int)) {
	labels := prometheus.Labels{"side": side}
	m.gauge(labels, "carriers", "Carriers that are up.", func() float64 {
		carriers, _ := count()
		return float64(carriers)
	})
	m.gauge(labels, "streams", "Streams that are open.", func() float64 {
		_, streams := count()
		return float64(streams)
	})
}

// gauge adds a figure that is read when it is asked for.
func (m *metrics) gauge(labels prometheus.Labels, name, help string, f func() float64) {
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "nearcast", Subsystem: "backbone", Name: name, Help: help, ConstLabels: labels,
	}, f))
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}
