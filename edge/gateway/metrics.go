package gateway

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what the Gateway does.
type metrics struct {
	all []prometheus.Collector

	opened      prometheus.Counter
	refused     *prometheus.CounterVec // code
	ended       *prometheus.CounterVec // cause, reason
	dialsFailed *prometheus.CounterVec // code

	sessionsOpened                   prometheus.Counter
	sessionsRefused                  *prometheus.CounterVec // code
	sessionsRetold, sessionsReplaced prometheus.Counter

	toEndpoint prometheus.Counter
	toEdge     prometheus.Counter
	dropped    *prometheus.CounterVec // reason
}

func newMetrics(g *Gateway) *metrics {
	m := &metrics{}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "nearcast_gateway_" + name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nearcast_gateway_" + name, Help: help}, labels)
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		opts := prometheus.GaugeOpts{Name: "nearcast_gateway_" + name, Help: help}
		m.all = append(m.all, prometheus.NewGaugeFunc(opts, f))
	}
	gauge("tcp_flows", "TCP flows that are open to endpoints, or being opened.",
		func() float64 { return float64(g.flows.Load()) })
	gauge("udp_sessions", "UDP sessions that are open to endpoints.",
		func() float64 { return float64(g.sessions.len()) })
	gauge("tcp_overloaded", "1 while new flows are refused because they would wait too long for processor time, else 0.",
		func() float64 {
			if g.gate.Overloaded() {
				return 1
			}
			return 0
		})
	m.opened = counter("tcp_opened_total", "TCP flows from edges that an endpoint took.")
	m.refused = vector("tcp_refused_total", "TCP flows from edges that were refused, by the code told to the edge.", "code")
	m.ended = vector("tcp_ended_total", "TCP flows from edges that ended, by who ended them and why.", "cause", "reason")
	m.dialsFailed = vector("dials_failed_total", "Connections that an endpoint did not take, by what happened.", "code")
	m.sessionsOpened = counter("udp_opened_total", "UDP sessions opened.")
	m.sessionsRefused = vector("udp_refused_total", "UDP sessions that were refused, by why.", "code")
	m.sessionsRetold = counter("udp_retold_total",
		"UDP sessions ended because their endpoint is to be told of clients in another way.")
	m.sessionsReplaced = counter("udp_replaced_total",
		"UDP sessions ended because the same client address and port came anew to the same endpoint, transparently.")
	m.toEndpoint = counter("udp_to_endpoint_total", "Datagrams sent to endpoints.")
	m.toEdge = counter("udp_to_edge_total", "Datagrams sent to edges.")
	m.dropped = vector("udp_dropped_total", "Datagrams dropped, by why.", "reason")
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
