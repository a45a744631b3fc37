package kernel

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/bpf/guard"
)

var (
	presentDesc = prometheus.NewDesc("nearcast_kernel_program",
		"Whether a kernel program is loaded (0, 1).", []string{"program"}, nil)
	dispatchedDesc = prometheus.NewDesc("nearcast_kernel_dispatch_total",
		"SYNs and datagrams for accelerated addresses, by what the program did with them: selected a socket, "+
			"held a flow for the process before this one, found no_socket, or an unfit one. Counted since the "+
			"program was first loaded, over all processes.", []string{"result"}, nil)
	dispatchRulesDesc = prometheus.NewDesc("nearcast_kernel_dispatch_rules",
		"Prefixes and port ranges in the program's maps.", []string{"kind"}, nil)
	dispatchRoomDesc = prometheus.NewDesc("nearcast_kernel_dispatch_rules_max",
		"Prefixes and port ranges that the program's maps have room for.", []string{"kind"}, nil)
)

var (
	guardPacketsDesc = prometheus.NewDesc("nearcast_kernel_guard_packets_total",
		"Packets that arrived on guarded interfaces, by what became of them (pass, answer, drop) and why.",
		[]string{"verdict", "reason"}, nil)
	guardListedDesc = prometheus.NewDesc("nearcast_kernel_guard_listed_prefixes",
		"Source prefixes of listeners' networks and countries in the guard.", nil, nil)
	guardListedMaxDesc = prometheus.NewDesc("nearcast_kernel_guard_listed_prefixes_max",
		"Source prefixes that the guard has room for.", nil, nil)
	guardBytesDesc = prometheus.NewDesc("nearcast_kernel_guard_bytes_total",
		"The same in bytes of frames.", []string{"verdict", "reason"}, nil)
)

var (
	balancePacketsDesc = prometheus.NewDesc("nearcast_kernel_balance_packets_total",
		"Packets that arrived on balanced interfaces, by what became of them (local, sent, drop) and why.",
		[]string{"verdict", "reason"}, nil)
	balanceBytesDesc = prometheus.NewDesc("nearcast_kernel_balance_bytes_total",
		"The same in bytes of frames as they arrived.", []string{"verdict", "reason"}, nil)
	flowsDesc = prometheus.NewDesc("nearcast_kernel_balance_flows",
		"Entries of balance's table of flows, by whether their flow was seen within five minutes (used, silent).",
		[]string{"state"}, nil)
	flowsMaxDesc = prometheus.NewDesc("nearcast_kernel_balance_flows_max",
		"Entries that the table has room for. A full one forgets those that were seen longest ago.", nil, nil)
	flowEntriesDesc = prometheus.NewDesc("nearcast_kernel_balance_flow_entries_total",
		"Entries that were made or refused (the kernel could not make them), by kind: forward and ask for other "+
			"nodes' flows, own for UDP flows of this node; and removed, because a SYN began the flow anew.",
		[]string{"result", "kind"}, nil)
	flowsForgottenDesc = prometheus.NewDesc("nearcast_kernel_balance_flows_forgotten_total",
		"Entries that the kernel evicted for want of room, silent ones first; at least so many.", nil, nil)
)

// collector reads the programs' counters when it is asked.
type collector struct{ p *Programs }

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	to <- presentDesc
	to <- dispatchedDesc
	to <- dispatchRulesDesc
	to <- dispatchRoomDesc
	to <- tunedDesc
	c.p.samples.rtt.Describe(to)
	c.p.samples.segments.Describe(to)
	c.p.samples.resent.Describe(to)
	c.p.samples.windows.Describe(to)
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	for _, s := range c.p.States() {
		v := 0.0
		if s.Present {
			v = 1
		}
		to <- prometheus.MustNewConstMetric(presentDesc, prometheus.GaugeValue, v, string(s.Program))
	}
	c.p.mu.Lock() // so that maps are not closed meanwhile
	defer c.p.mu.Unlock()
	if c.p.closed {
		return
	}
	c.dispatch(to)
	c.tune(to)
	c.balance(to)
	c.guard(to)
}

func (c collector) balance(to chan<- prometheus.Metric) {
	if c.p.balance == nil {
		return
	}
	counts, err := c.p.balance.Counts()
	if err != nil {
		to <- prometheus.NewInvalidMetric(balancePacketsDesc, err)
		return
	}
	for reason, n := range counts {
		to <- prometheus.MustNewConstMetric(balancePacketsDesc, prometheus.CounterValue, float64(n.Packets),
			reason.Verdict(), reason.String())
		to <- prometheus.MustNewConstMetric(balanceBytesDesc, prometheus.CounterValue, float64(n.Bytes),
			reason.Verdict(), reason.String())
	}
	c.flows(to)
}

func (c collector) flows(to chan<- prometheus.Metric) {
	f, err := c.p.balance.Flows()
	if err != nil {
		to <- prometheus.NewInvalidMetric(flowsDesc, err)
		return
	}
	to <- prometheus.MustNewConstMetric(flowsDesc, prometheus.GaugeValue, float64(f.Used), "used")
	to <- prometheus.MustNewConstMetric(flowsDesc, prometheus.GaugeValue, float64(f.Silent), "silent")
	to <- prometheus.MustNewConstMetric(flowsMaxDesc, prometheus.GaugeValue, float64(f.Room))
	to <- prometheus.MustNewConstMetric(flowsForgottenDesc, prometheus.CounterValue, float64(f.Forgotten))
	for result, kinds := range map[string]map[balance.EntryKind]uint64{"made": f.Made, "refused": f.Refused} {
		for kind, n := range kinds {
			to <- prometheus.MustNewConstMetric(flowEntriesDesc, prometheus.CounterValue, float64(n), result, kind.String())
		}
	}
	to <- prometheus.MustNewConstMetric(flowEntriesDesc, prometheus.CounterValue, float64(f.Removed), "removed", "")
}

func (c collector) guard(to chan<- prometheus.Metric) {
	if c.p.guard == nil {
		return
	}
	counts, err := c.p.guard.Counts()
	if err != nil {
		to <- prometheus.NewInvalidMetric(guardPacketsDesc, err)
		return
	}
	listed, room := c.p.guard.Listed()
	to <- prometheus.MustNewConstMetric(guardListedDesc, prometheus.GaugeValue, float64(listed))
	to <- prometheus.MustNewConstMetric(guardListedMaxDesc, prometheus.GaugeValue, float64(room))
	for reason, n := range counts {
		verdict := "pass"
		switch {
		case reason.Dropped():
			verdict = "drop"
		case reason == guard.Answered:
			verdict = "answer"
		}
		to <- prometheus.MustNewConstMetric(guardPacketsDesc, prometheus.CounterValue, float64(n.Packets),
			verdict, reason.String())
		to <- prometheus.MustNewConstMetric(guardBytesDesc, prometheus.CounterValue, float64(n.Bytes),
			verdict, reason.String())
	}
}

func (c collector) dispatch(to chan<- prometheus.Metric) {
	if c.p.dispatch == nil {
		return
	}
	s, err := c.p.dispatch.Stats()
	if err != nil {
		to <- prometheus.NewInvalidMetric(dispatchedDesc, err)
		return
	}
	for result, n := range map[string]uint64{
		"selected": s.Selected, "held": s.Held, "no_socket": s.NoSocket, "unfit": s.Unfit,
	} {
		to <- prometheus.MustNewConstMetric(dispatchedDesc, prometheus.CounterValue, float64(n), result)
	}
	for kind, n := range map[string][2]int{
		"prefixes": {s.Prefixes, s.PrefixesMax}, "ranges": {s.Ranges, s.RangesMax},
	} {
		to <- prometheus.MustNewConstMetric(dispatchRulesDesc, prometheus.GaugeValue, float64(n[0]), kind)
		to <- prometheus.MustNewConstMetric(dispatchRoomDesc, prometheus.GaugeValue, float64(n[1]), kind)
	}
}
