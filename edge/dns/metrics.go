package dns

import (
	"sync/atomic"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/geo"
)

// counters are one goroutine's own (TCP's are shared), so that counting costs no other CPU anything.
type counters struct {
	udp, tcp                                    atomic.Uint64
	malformed, truncated, limited, slipped      atomic.Uint64
	refused, unsent, panics, failed, failedOpen atomic.Uint64
	trials                                      atomic.Uint64
	rcodes                                      [24]atomic.Uint64
	steered                                     [geo.SourceDefault + 1]atomic.Uint64
	_                                           [64]byte
}

func (c *counters) answered(rcode int) {
	if rcode < len(c.rcodes) {
		c.rcodes[rcode].Add(1)
	}
}

func (s *Server) sum(read func(*counters) *atomic.Uint64) float64 {
	n := uint64(0)
	for _, c := range s.counts {
		n += read(c).Load()
	}
	return float64(n)
}

// register exposes the counters.
func (s *Server) register(r prometheus.Registerer) error {
	add := func(name, help string, labels prometheus.Labels, read func(*counters) *atomic.Uint64) error {
		return r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: name, Help: help, ConstLabels: labels,
		}, func() float64 { return s.sum(read) }))
	}
	var err error
	try := func(e error) {
		if err == nil {
			err = e
		}
	}
	const queries, queriesHelp = "nearcast_dns_queries_total", "DNS queries that arrived."
	try(add(queries, queriesHelp, prometheus.Labels{"transport": "udp"}, func(c *counters) *atomic.Uint64 { return &c.udp }))
	try(add(queries, queriesHelp, prometheus.Labels{"transport": "tcp"}, func(c *counters) *atomic.Uint64 { return &c.tcp }))
	for _, code := range []int{0, 1, 2, 3, 4, 5, 9, 16, 23} {
		name := dns.RcodeToString[code]
		if code == 16 {
			name = "BADVERS"
		}
		try(add("nearcast_dns_answers_total", "DNS answers by rcode.", prometheus.Labels{"rcode": name},
			func(c *counters) *atomic.Uint64 { return &c.rcodes[code] }))
	}
	for source := geo.SourceNetwork; source <= geo.SourceDefault; source++ {
		try(add("nearcast_dns_steered_total", "Answers chosen for a client, by what decided.",
			prometheus.Labels{"source": source.String()},
			func(c *counters) *atomic.Uint64 { return &c.steered[source] }))
	}
	for _, m := range []struct {
		name, help string
		read       func(*counters) *atomic.Uint64
	}{
		{"malformed_total", "Messages that got no answer because they are none to answer.",
			func(c *counters) *atomic.Uint64 { return &c.malformed }},
		{"truncated_total", "Answers that did not fit and said to come by TCP.",
			func(c *counters) *atomic.Uint64 { return &c.truncated }},
		{"limited_total", "Answers that the rate limit kept back.",
			func(c *counters) *atomic.Uint64 { return &c.limited }},
		{"slipped_total", "Answers that the rate limit made say to come by TCP.",
			func(c *counters) *atomic.Uint64 { return &c.slipped }},
		{"connections_refused_total", "TCP connections closed because their source has too many.",
			func(c *counters) *atomic.Uint64 { return &c.refused }},
		{"unsent_total", "Answers that the kernel did not take.",
			func(c *counters) *atomic.Uint64 { return &c.unsent }},
		{"panics_total", "Queries dropped because of a bug.",
			func(c *counters) *atomic.Uint64 { return &c.panics }},
		{"failed_total", "Queries answered SERVFAIL because nothing could be signed.",
			func(c *counters) *atomic.Uint64 { return &c.failed }},
		{"failed_open_total", "Answers that name nodes although none could take clients.",
			func(c *counters) *atomic.Uint64 { return &c.failedOpen }},
		{"trials_total", "Answers that name a site so that its round trip to the client gets measured.",
			func(c *counters) *atomic.Uint64 { return &c.trials }},
	} {
		try(add("nearcast_dns_"+m.name, m.help, nil, m.read))
	}
	try(r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_dns_connections", Help: "Open TCP and TLS connections.",
	}, func() float64 { return float64(s.conns.count()) })))
	return err
}
