package relay

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// collectors makes metrics with a common prefix and registers them together.
type collectors struct {
	prefix string
	all    []prometheus.Collector
}

func (c *collectors) counter(name, help string) prometheus.Counter {
	m := prometheus.NewCounter(prometheus.CounterOpts{Name: c.prefix + name, Help: help})
	c.all = append(c.all, m)
	return m
}

func (c *collectors) vector(name, help string, labels ...string) *prometheus.CounterVec {
	m := prometheus.NewCounterVec(prometheus.CounterOpts{Name: c.prefix + name, Help: help}, labels)
	c.all = append(c.all, m)
	return m
}

func (c *collectors) gauge(name, help string, f func() float64) {
	opts := prometheus.GaugeOpts{Name: c.prefix + name, Help: help}
	c.all = append(c.all, prometheus.NewGaugeFunc(opts, f))
}

func (c *collectors) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, m := range c.all {
		if err := r.Register(m); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// tcpMetrics count what a TCP does.
type tcpMetrics struct {
	collectors
	shed     *prometheus.CounterVec // reason
	moved    *prometheus.CounterVec // why
	ended    *prometheus.CounterVec // cause, reason
	unserved prometheus.Counter
	awaited  prometheus.Counter
	opened   prometheus.Histogram // seconds
	in, out  prometheus.Counter
}

func newTCPMetrics(t *TCP) *tcpMetrics {
	m := &tcpMetrics{collectors: collectors{prefix: "nearcast_relay_tcp_"}}
	m.gauge("flows", "Client connections that are open.", func() float64 { return float64(t.flows.Len()) })
	m.gauge("starting", "Client connections that were accepted and wait for processor time.",
		func() float64 { return float64(t.gate.Waiting()) })
	m.gauge("overloaded", "1 while new connections are turned away because they would wait too long, else 0.",
		func() float64 {
			if t.gate.Overloaded() {
				return 1
			}
			return 0
		})
	m.shed = m.vector("shed_total", "Client connections refused at accept, by what was full or wrong.", "reason")
	m.moved = m.vector("moved_total",
		"Times that a connection went on to another gateway before an endpoint took it, by why.", "why")
	m.ended = m.vector("ended_total", "Client connections that ended, by who ended them and why.", "cause", "reason")
	m.unserved = m.counter("unserved_total", "Client connections reset because no gateway and no endpoint took them.")
	m.awaited = m.counter("awaited_total", "Times that a connection waited because every tunnel was down.")
	m.opened = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: m.prefix + "open_seconds", Help: "Time from a connection's Open to a remote endpoint's having taken it.",
		Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .15, .2, .3, .5, 1, 2, 5},
	})
	m.all = append(m.all, m.opened)
	m.in = m.counter("in_bytes_total", "Bytes from clients, counted when their connections end.")
	m.out = m.counter("out_bytes_total", "Bytes to clients, counted when their connections end.")
	return m
}

// udpMetrics count what a UDP does.
type udpMetrics struct {
	collectors
	opened  prometheus.Counter
	ended   *prometheus.CounterVec // reason
	moved   *prometheus.CounterVec // why
	dropped *prometheus.CounterVec // reason
	in, out prometheus.Counter
}

func newUDPMetrics(u *UDP) *udpMetrics {
	m := &udpMetrics{collectors: collectors{prefix: "nearcast_relay_udp_"}}
	m.gauge("flows", "UDP flows that are open.", func() float64 { return float64(u.Flows()) })
	m.opened = m.counter("opened_total", "UDP flows begun.")
	m.ended = m.vector("ended_total", "UDP flows that ended, by why.", "reason")
	m.moved = m.vector("moved_total", "Times that a UDP flow went on to another gateway, by why.", "why")
	m.dropped = m.vector("dropped_total", "Datagrams dropped, by why.", "reason")
	m.in = m.counter("in_datagrams_total", "Datagrams from clients that were handed on.")
	m.out = m.counter("out_datagrams_total", "Datagrams sent to clients.")
	return m
}
