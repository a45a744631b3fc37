package flowlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/proto/model"
)

// Config configures a Log. Zero values are the defaults, except where noted.
type Config struct {
	Dir         string        // of the spool; needed with a Destination
	Destination Destination   // nil: records are for live readers only
	Format      Format        // AWS
	Account     string        // of accelerators whose project is no account; "000000000000"
	Node        string        // this node's id: keeps the files of nodes apart
	Socket      string        // path of the socket for live readers; "": none
	SpoolMax    int64         // bytes on disk, 1 GiB; what is more is dropped
	Interval    time.Duration // how much one file covers, 5 min

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Log writes down flows. One a process; safe for concurrent use.
type Log struct {
	cfg     Config
	queue   chan meter.Window
	dropped *prometheus.CounterVec
	written prometheus.Counter
	files   *prometheus.CounterVec
	spooled atomic.Int64
	wanted  atomic.Pointer[map[model.AcceleratorID]target]
	tails   tails
	lost    atomic.Bool // the queue was full

	mu    sync.Mutex // guards spool
	spool *spool
}

// What becomes of files.
const (
	fileDelivered = "delivered"
	fileFailed    = "failed" // and is tried again
	fileDamaged   = "empty or damaged"
)

// target is an accelerator whose flows are logged.
type target struct {
	origin
	header header
	on     bool // into files
}

// New returns a Log that takes records at once, and writes them down while Run runs.
func New(cfg Config) (*Log, error) {
	if cfg.Format == "" {
		cfg.Format = AWS
	}
	if cfg.Format != AWS && cfg.Format != JSON {
		return nil, fmt.Errorf("format %q is not known; formats are aws and json", cfg.Format)
	}
	if cfg.Account == "" {
		cfg.Account = "000000000000"
	}
	if cfg.SpoolMax <= 0 {
		cfg.SpoolMax = spoolDefault
	}
	if cfg.Interval <= 0 {
		cfg.Interval = segmentEvery
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{cfg: cfg, queue: make(chan meter.Window, queueMax)}
	l.wanted.Store(&map[model.AcceleratorID]target{})
	l.newMetrics()
	if cfg.Destination != nil {
		var err error
		if l.spool, err = openSpool(cfg.Dir, rand.Text()[:12], cfg.SpoolMax); err != nil {
			return nil, fmt.Errorf("spool of flow logs: %w", err)
		}
		l.spooled.Store(l.spool.used)
	}
	return l, nil
}

func (l *Log) newMetrics() {
	l.dropped = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nearcast_flowlog_dropped_total", Help: "Windows of flows that were not written down, by why."}, []string{"reason"})
	l.written = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "nearcast_flowlog_windows_total", Help: "Windows of flows that were written to the spool."})
	l.files = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nearcast_flowlog_files_total", Help: "Files of flow logs, by what became of them."}, []string{"result"})
	for _, result := range []string{fileDelivered, fileFailed, fileDamaged} { // rates need a beginning
		l.files.WithLabelValues(result)
	}
	spooled := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_flowlog_spool_bytes", Help: "Bytes on disk that are not delivered yet.",
	}, func() float64 { return float64(l.spooled.Load()) })
	if l.cfg.Metrics != nil {
		l.cfg.Metrics.MustRegister(l.dropped, l.written, l.files, spooled)
	}
}

// Apply says which accelerators are logged, and where to, by a snapshot. region and site are this node's.
func (l *Log) Apply(s *model.Snapshot, region model.RegionName, site model.SiteName) {
	wanted := make(map[model.AcceleratorID]target, len(s.Accelerators))
	for i := range s.Accelerators {
		a := &s.Accelerators[i]
		account := l.cfg.Account
		if isAccount(a.Project) {
			account = a.Project
		}
		wanted[a.ID] = target{
			origin: origin{Account: account, Accelerator: a.ID, Site: site},
			header: header{Account: account, Accelerator: a.ID, Bucket: a.FlowLogs.Bucket, Prefix: a.FlowLogs.Prefix,
				Region: region, Node: l.cfg.Node},
			on: a.FlowLogs.Enabled && l.spool != nil,
		}
	}
	l.wanted.Store(&wanted)
}

func isAccount(s string) bool {
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return len(s) == 12
}

// Wanted reports whether somebody wants to know of the flows of an accelerator.
func (l *Log) Wanted(id model.AcceleratorID) bool {
	return l.tails.count.Load() > 0 || (*l.wanted.Load())[id].on
}

// Record takes a window of a flow; it is meter.Config's Window and never blocks.
func (l *Log) Record(w meter.Window) {
	select {
	case l.queue <- w:
	default:
		l.lost.Store(true)
		l.dropped.WithLabelValues("queue full").Inc()
	}
}

// Run writes and delivers until ctx ends; what was taken by then is written to the spool, and delivered
// when the process comes back.
func (l *Log) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.write(ctx) })
	if l.spool != nil {
		g.Go(func() error { return l.deliverAll(ctx) })
	}
	if l.cfg.Socket != "" {
		g.Go(func() error { return l.tails.serve(ctx, l.cfg.Socket, l.cfg.Log) })
	}
	return g.Wait()
}

// batch is what is in memory of one accelerator.
type batch struct {
	target
	records []byte
	windows int
	since   time.Time
	skipped time.Time // since when records are missing; zero: none are
}

func (l *Log) write(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	batches := map[model.AcceleratorID]*batch{}
	for {
		select {
		case w := <-l.queue:
			l.take(batches, &w)
		case <-tick.C:
			l.flush(batches)
		case <-ctx.Done():
			for {
				select {
				case w := <-l.queue:
					l.take(batches, &w)
					continue
				default:
				}
				l.flush(batches)
				return nil
			}
		}
	}
}

func (l *Log) take(batches map[model.AcceleratorID]*batch, w *meter.Window) {
	t, known := (*l.wanted.Load())[w.Accelerator]
	if !known {
		t.origin = origin{Account: l.cfg.Account, Accelerator: w.Accelerator}
	}
	if l.tails.count.Load() > 0 {
		l.tails.send(appendWindow(nil, JSON, t.origin, w))
	}
	if !t.on {
		return
	}
	b := batches[w.Accelerator]
	if b == nil {
		b = &batch{since: time.Now()}
		batches[w.Accelerator] = b
	}
	b.target = t
	b.records = appendWindow(b.records, l.cfg.Format, t.origin, w)
	if b.windows++; len(b.records) >= flushBytes {
		l.flushOne(b)
	}
}

func (l *Log) flush(batches map[model.AcceleratorID]*batch) {
	if l.lost.Swap(false) { // whose they were is not known
		for _, b := range batches {
			if b.skipped.IsZero() {
				b.skipped = b.since
			}
		}
	}
	for id, b := range batches {
		l.flushOne(b)
		if b.windows == 0 && b.skipped.IsZero() && time.Since(b.since) > time.Minute {
			delete(batches, id)
		}
	}
}

// flushOne writes a batch to the spool. What the disk does not take is lost, and the log will say so.
func (l *Log) flushOne(b *batch) {
	if b.windows == 0 && b.skipped.IsZero() {
		return
	}
	now := time.Now()
	records := b.records
	if !b.skipped.IsZero() {
		records = appendSkipped(records, l.cfg.Format, b.origin, b.skipped, now)
	}
	l.mu.Lock()
	err := l.spool.append(b.header, now.Truncate(l.cfg.Interval), records)
	l.spooled.Store(l.spool.used)
	l.mu.Unlock()
	switch {
	case err == nil:
		l.written.Add(float64(b.windows))
		b.skipped = time.Time{}
	case errors.Is(err, errFull):
		l.dropped.WithLabelValues("spool full").Add(float64(b.windows))
	default:
		l.dropped.WithLabelValues("disk").Add(float64(b.windows))
	}
	if err != nil && b.skipped.IsZero() {
		b.skipped = b.since
		l.cfg.Log.Warn("flow logs are dropped", "accelerator", b.Accelerator, "error", err)
	}
	b.records, b.windows, b.since = b.records[:0], 0, now
}

// deliverAll delivers segments as they are sealed.
func (l *Log) deliverAll(ctx context.Context) error {
	pause := deliverEvery
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if l.Deliver(ctx, time.Now()) {
			pause = deliverEvery
		} else {
			pause = min(2*pause, deliverWait)
		}
	}
}

// Deliver delivers what is sealed at a moment, and reports whether all of it is.
func (l *Log) Deliver(ctx context.Context, now time.Time) (all bool) {
	names, err := l.spool.sealed(now.Truncate(l.cfg.Interval))
	if err != nil {
		l.cfg.Log.Warn("spool of flow logs", "error", err)
		return false
	}
	for _, name := range names {
		err := l.deliver(ctx, name)
		if ctx.Err() != nil {
			return false
		}
		if err != nil {
			l.files.WithLabelValues(fileFailed).Inc()
			l.cfg.Log.Warn("file of flow logs is not delivered; trying on", "file", name, "error", err)
			return false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(names) > 0 && l.spool.measure() == nil {
		l.spooled.Store(l.spool.used)
	}
	return true
}

func (l *Log) deliver(ctx context.Context, name string) error {
	h, records, err := l.spool.read(name)
	if errors.Is(err, errBroken) || err == nil && len(records) == 0 {
		l.files.WithLabelValues(fileDamaged).Inc()
		return l.spool.remove(name)
	}
	if err != nil {
		return err
	}
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	if _, err := z.Write(records); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	if err := l.cfg.Destination.Put(ctx, h.Bucket, objectKey(h, name), body.Bytes()); err != nil {
		return err
	}
	l.files.WithLabelValues(fileDelivered).Inc()
	return l.spool.remove(name)
}
