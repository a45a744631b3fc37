package meter

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/proto/model"
)

// collector shows the cells as metrics, the accelerated addresses taken together.
type collector struct{ m *Meter }

var (
	labels = []string{"accelerator", "listener", "group", "protocol"}
	desc   = func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("nearcast_traffic_"+name, help, append(labels[:len(labels):len(labels)], more...), nil)
	}
	descNew     = desc("flows_total", "Flows that an endpoint took.")
	descActive  = desc("flows", "Flows that are open.")
	descBytes   = desc("bytes_total", "Bytes between clients and this node, with IP and TCP or UDP headers.", "direction")
	descPackets = desc("packets_total", "Packets between clients and this node.", "direction")
	descResets  = desc("resets_total", "TCP connections that were reset, by who did.", "by")
	descNone    = desc("unserved_total", "Flows for which there was no endpoint.")
	descFull    = prometheus.NewDesc("nearcast_traffic_uncounted_total",
		"Flows counted without their group, because there are too many groups to count apart.", nil, nil)
)

// Describe is prometheus.Collector's.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descNew, descActive, descBytes, descPackets, descResets, descNone, descFull} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	type series struct {
		listener *Listener
		group    model.GroupID
		protocol model.Protocol
	}
	sums := map[series]model.TrafficCounts{}
	c.m.mu.Lock()
	for _, l := range c.m.listeners {
		if p := l.cells.Load(); p != nil {
			for _, cell := range *p {
				s := series{l, cell.key.Group, cell.key.Protocol}
				sums[s] = sums[s].Plus(cell.counts())
			}
		}
	}
	c.m.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(descFull, prometheus.CounterValue, float64(c.m.full.Load()))
	for s, n := range sums {
		send := func(d *prometheus.Desc, t prometheus.ValueType, v uint64, more ...string) {
			values := append([]string{string(s.listener.accelerator), string(s.listener.id), string(s.group),
				strings.ToLower(s.protocol.String())}, more...)
			ch <- prometheus.MustNewConstMetric(d, t, float64(v), values...)
		}
		send(descNew, prometheus.CounterValue, n.NewFlows)
		send(descActive, prometheus.GaugeValue, n.ActiveFlows)
		send(descBytes, prometheus.CounterValue, n.BytesIn, "in")
		send(descBytes, prometheus.CounterValue, n.BytesOut, "out")
		send(descPackets, prometheus.CounterValue, n.PacketsIn, "in")
		send(descPackets, prometheus.CounterValue, n.PacketsOut, "out")
		send(descNone, prometheus.CounterValue, n.Unserved)
		if s.protocol == model.TCP {
			send(descResets, prometheus.CounterValue, n.ResetsClient, "client")
			send(descResets, prometheus.CounterValue, n.ResetsEndpoint, "endpoint")
			send(descResets, prometheus.CounterValue, n.ResetsNearcast, "nearcast")
		}
	}
}
