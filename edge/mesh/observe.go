package mesh

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

type metrics struct {
	dropped     *prometheus.CounterVec
	joinsFailed prometheus.Counter
	logsDropped prometheus.Counter
}

func newMetrics(r prometheus.Registerer, mesh *Mesh) *metrics {
	m := &metrics{
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nearcast_mesh_dropped_total",
			Help: "Gossip not taken: of a network that is not allowed, queue full, too many streams.",
		}, []string{"reason"}),
		joinsFailed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_mesh_joins_failed_total",
			Help: "Rounds of joining in which no node answered.",
		}),
		logsDropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nearcast_mesh_logs_dropped_total",
			Help: "Messages of the gossip library not logged because there were too many.",
		}),
	}
	members := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_mesh_members",
		Help: "Other nodes that gossip has for alive.",
	}, func() float64 {
		mesh.mu.Lock()
		defer mesh.mu.Unlock()
		return float64(len(mesh.members))
	})
	if r != nil {
		r.MustRegister(m.dropped, m.joinsFailed, m.logsDropped, members)
	}
	return m
}

// logWriter passes memberlist's lines to slog. On a wide network most of what memberlist calls errors
// is ordinary loss, and most of its warnings are ordinary restarts: each is one level less here.
type logWriter struct {
	log     *slog.Logger
	limit   *rate.Limiter
	dropped prometheus.Counter
	stopped func() bool // then nothing is worth saying
}

func newLogWriter(mesh *Mesh) *logWriter {
	return &logWriter{
		log: mesh.cfg.Log, limit: rate.NewLimiter(logsPerSecond, logsBurst), dropped: mesh.metrics.logsDropped,
		stopped: mesh.left.Load,
	}
}

// Write implements io.Writer for one line.
func (w *logWriter) Write(line []byte) (int, error) {
	level, text := logLevel(string(line))
	switch {
	case w.stopped() || !w.log.Enabled(context.Background(), level):
	case !w.limit.Allow():
		w.dropped.Inc()
	default:
		w.log.Log(context.Background(), level, text)
	}
	return len(line), nil
}

func logLevel(line string) (slog.Level, string) {
	line = strings.TrimSpace(line)
	level := slog.LevelInfo
	if rest, ok := strings.CutPrefix(line, "["); ok {
		name, text, _ := strings.Cut(rest, "] ")
		line = text
		switch name {
		case "DEBUG":
			level = slog.LevelDebug
		case "ERR":
			level = slog.LevelWarn
		}
	}
	return level, "gossip: " + strings.TrimPrefix(line, "memberlist: ")
}

// mark finds the goroutines that a library started and does not let its caller wait for: they inherit
// the profiler label of the one that started them.
type mark string

const markKey = "nearcast-mesh"

// newMark returns the mark of one mesh of this process.
func newMark(m *Mesh) mark { return mark(fmt.Sprintf("%p", m)) }

func (k mark) do(ctx context.Context, f func()) {
	pprof.Do(ctx, pprof.Labels(markKey, string(k)), func(context.Context) { f() })
}

// wait returns when no goroutine has the mark, or after a while.
func (k mark) wait(atMost time.Duration) {
	label := []byte(strconv.Quote(markKey) + ":" + strconv.Quote(string(k)))
	for end := time.Now().Add(atMost); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var buf bytes.Buffer
		if pprof.Lookup("goroutine").WriteTo(&buf, 1) != nil || !bytes.Contains(buf.Bytes(), label) {
			return
		}
	}
}
