package series

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

const prefix = "traffic/"

// Config of a Series. Store is needed.
type Config struct {
	Store *store.Store
	// Health returns the counts of the groups of enabled accelerators, as they are now. nil: nobody knows.
	Health func() []HealthCount

	Now     func() time.Time      // nil: time.Now
	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: not registered
}

// Series is the traffic of the last 15 days. Its methods may be called from any goroutine.
type Series struct {
	cfg     Config
	log     *slog.Logger
	dropped prometheus.Counter

	mu      sync.RWMutex
	told    uint64                         // guarded by mu; revision up to which the watch has told
	reports map[string]report              // guarded by mu; by the store's key
	health  map[model.GroupID][]healthStep // guarded by mu; in the order of time
}

// report is what one node said of one minute.
type report struct {
	node     model.NodeID
	minute   time.Time
	rows     []model.TrafficRow
	revision uint64 // of the store, when it was written
}

// New makes a Series. Nothing is started before Run.
func New(cfg Config) (*Series, error) {
	if cfg.Store == nil {
		return nil, errors.New("series: a store is needed")
	}
	s := &Series{cfg: cfg, log: cfg.Log, reports: map[string]report{},
		health: map[model.GroupID][]healthStep{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Now == nil {
		s.cfg.Now = time.Now
	}
	s.dropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "nearcast_series_dropped_reports_total",
		Help: "Traffic reports younger than 15 days that were dropped because there were too many."})
	if cfg.Metrics == nil {
		return s, nil
	}
	for _, c := range []prometheus.Collector{s.dropped, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_series_reports", Help: "Traffic reports that are kept.",
	}, func() float64 {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return float64(len(s.reports))
	})} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// AddTraffic keeps a report. The same report again changes nothing.
func (s *Series) AddTraffic(ctx context.Context, node model.NodeID, r model.TrafficReport) error {
	value, err := proto.Marshal(model.TrafficReportToProto(r))
	if err != nil {
		return fmt.Errorf("encode a traffic report: %w", err)
	}
	key := fmt.Sprintf("%s%s/%s/%s-%d", prefix, r.Minute.UTC().Format(minuteForm), node, r.Boot, r.Sequence)
	revision, err := s.cfg.Store.Put(ctx, key, value)
	if err != nil {
		return fmt.Errorf("keep a traffic report: %w", err)
	}
	s.take(key, value, revision) // whoever asks here next should not have to wait for the watch
	return nil
}

// minuteForm sorts as time does.
const minuteForm = "200601021504"

// Run follows the store, and deletes what is too old while leading says that this controller is the one
// to do it, until ctx ends; then it returns nil.
func (s *Series) Run(ctx context.Context, leading func() bool) error {
	pruned := make(chan struct{})
	go func() {
		defer close(pruned)
		s.pruneAlways(ctx, leading)
	}()
	err := s.cfg.Store.Watch(ctx, prefix, 0, s.apply)
	<-pruned
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// apply takes over what the store tells. What this process has written since is newer, and stays.
func (s *Series) apply(u store.Update) error {
	s.mu.Lock()
	if u.Reset {
		known := max(u.Revision, s.told) // a store that was restored has gone back
		for key, r := range s.reports {
			if r.revision <= known {
				delete(s.reports, key)
			}
		}
		s.told = u.Revision
	}
	for _, key := range u.Deletes {
		if s.reports[key].revision <= u.Revision {
			delete(s.reports, key)
		}
	}
	s.told = max(s.told, u.Revision)
	s.mu.Unlock()
	for _, kv := range u.Puts {
		s.take(kv.Key, kv.Value, kv.Modified)
	}
	return nil
}

// take remembers a report. One that cannot be read is left alone: a later version may know it.
func (s *Series) take(key string, value []byte, revision uint64) {
	parts := strings.Split(strings.TrimPrefix(key, prefix), "/")
	p := &v1.TrafficReport{}
	err := proto.Unmarshal(value, p)
	if err == nil && len(parts) == 3 {
		var r model.TrafficReport
		if r, err = model.TrafficReportFromProto(p); err == nil {
			s.mu.Lock()
			s.reports[key] = report{model.NodeID(parts[1]), r.Minute, r.Rows, revision}
			s.mu.Unlock()
			return
		}
	}
	s.log.Warn("stored traffic report is not readable", "key", key, "err", err)
}

func (s *Series) pruneAlways(ctx context.Context, leading func() bool) {
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		if s.cfg.Health != nil {
			s.sample(s.cfg.Now(), s.cfg.Health())
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if !leading() {
				continue
			}
			if err := s.prune(ctx, reportsMax); err != nil && ctx.Err() == nil {
				s.log.Warn("old traffic reports are not deleted; tried again later", "err", err)
			}
		}
	}
}

// prune deletes the reports that are too old, and of the others the oldest beyond most.
func (s *Series) prune(ctx context.Context, most int) error {
	oldest := prefix + s.cfg.Now().Add(-keepFor).UTC().Format(minuteForm)
	s.mu.RLock()
	keys := make([]string, 0, len(s.reports))
	for key := range s.reports {
		keys = append(keys, key)
	}
	s.mu.RUnlock()
	slices.Sort(keys)
	old, _ := slices.BinarySearch(keys, oldest)
	if excess := len(keys) - most; excess > old {
		s.dropped.Add(float64(excess - old))
		old = excess
	}
	for gone := range slices.Chunk(keys[:old], deletesMax) {
		var ops []store.Op
		for _, key := range gone {
			ops = append(ops, store.Delete(key))
		}
		revision, err := s.cfg.Store.Txn(ctx, nil, ops...)
		if err != nil {
			return err
		}
		s.mu.Lock()
		for _, key := range gone {
			if s.reports[key].revision <= revision {
				delete(s.reports, key)
			}
		}
		s.mu.Unlock()
	}
	return nil
}
