package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/bpf/tune"
)

// How many closed connections a sample is taken of. Clients have thousands a second, carriers a few a day.
const (
	sampleClients  = 8
	sampleCarriers = 1
)

func (p *Programs) loadTune() error {
	t, err := tune.Load(tune.Config{PinDir: p.cfg.PinDir, Log: p.log})
	if err != nil {
		return err
	}
	congestion := p.cfg.ClientCongestion
	if congestion == "" && hasCongestion("bbr") {
		// On a lossless line it is as good as CUBIC with learned windows; on a lossy one much better.
		congestion = "bbr"
	}
	err = errors.Join(
		t.SetPolicy(tune.Client, tune.Policy{
			CongestionControl: congestion, WindowMax: tune.DefaultWindowMax, SampleEvery: sampleClients,
		}),
		// A carrier's own settings are backbone's: they follow what it measures.
		t.SetPolicy(tune.Carrier, tune.Policy{SampleEvery: sampleCarriers}),
	)
	if err == nil {
		err = t.Attach()
	}
	if err != nil {
		return errors.Join(err, t.Close())
	}
	p.tune = t
	return nil
}

// congestionsFile lists the kernel's congestion controls.
const congestionsFile = "/proc/sys/net/ipv4/tcp_available_congestion_control"

// hasCongestion reports whether the kernel has a congestion control loaded.
func hasCongestion(name string) bool {
	text, err := os.ReadFile(congestionsFile)
	return err == nil && slices.Contains(strings.Fields(string(text)), name)
}

// MarkClient returns what marks listening sockets for clients, or nil if nobody looks at marks.
func (p *Programs) MarkClient() func(syscall.RawConn) error {
	if p.tune == nil {
		return nil
	}
	mark := p.tune.Control(tune.Client)
	return func(c syscall.RawConn) error { return mark("", "", c) }
}

// DialCarrier dials a carrier of the backbone, marked as one.
func (p *Programs) DialCarrier(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if p.tune != nil {
		d.Control = p.tune.Control(tune.Carrier)
	}
	d.SetMultipathTCP(false) // Multipath TCP has no NOTSENT_LOWAT, no BBR and other TCP_INFO
	return d.DialContext(ctx, "tcp", to.String())
}

// samples are what closed connections saw.
type samples struct {
	rtt      *prometheus.HistogramVec
	segments *prometheus.CounterVec
	resent   *prometheus.CounterVec
	windows  prometheus.Histogram
}

var legNames = map[tune.Leg]string{tune.Client: "client", tune.Carrier: "carrier"}

func newSamples() *samples {
	return &samples{
		rtt: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "nearcast_kernel_tune_rtt_seconds",
			Help:    "Smallest round trip of connections that ended, by leg; of clients' every eighth one.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 11),
		}, []string{"leg"}),
		segments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_kernel_tune_sampled_segments_total",
			Help: "Segments that arrived of the same connections.",
		}, []string{"leg"}),
		resent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_kernel_tune_sampled_retransmits_total",
			Help: "Segments that were sent again of the same connections.",
		}, []string{"leg"}),
		windows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "nearcast_kernel_tune_initial_window_segments",
			Help:    "Initial windows of sampled client connections; 10 is the kernel's.",
			Buckets: prometheus.ExponentialBuckets(10, 2, 7),
		}),
	}
}

// take counts a sample.
func (s *samples) take(x tune.Sample) {
	leg := legNames[x.Leg]
	if leg == "" {
		return
	}
	s.rtt.WithLabelValues(leg).Observe(x.RTT.Seconds())
	s.segments.WithLabelValues(leg).Add(float64(x.Delivered))
	s.resent.WithLabelValues(leg).Add(float64(x.Retransmitted))
	if x.Leg == tune.Client {
		s.windows.Observe(float64(max(x.Window, 10)))
	}
}

var tunedDesc = prometheus.NewDesc("nearcast_kernel_tune_connections_total",
	"Connections by what the program did: all; raised (began with a learned window) or why not: unknown network, "+
		"path_changed, crowded; overshot (lost much of a raised first flight); samples_lost.",
	[]string{"result"}, nil)

func (c collector) tune(to chan<- prometheus.Metric) {
	if c.p.tune == nil {
		return
	}
	s, err := c.p.tune.Stats()
	if err != nil {
		to <- prometheus.NewInvalidMetric(tunedDesc, err)
		return
	}
	for result, n := range map[string]uint64{
		"all": s.Connections, "raised": s.Raised, "unknown": s.Unknown, "path_changed": s.PathChanged,
		"crowded": s.Crowded, "overshot": s.Overshot, "samples_lost": s.SamplesLost,
	} {
		to <- prometheus.MustNewConstMetric(tunedDesc, prometheus.CounterValue, float64(n), result)
	}
	c.p.samples.rtt.Collect(to)
	c.p.samples.segments.Collect(to)
	c.p.samples.resent.Collect(to)
	c.p.samples.windows.Collect(to)
}
