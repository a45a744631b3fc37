package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fill writes at keys that name makes of a number until the store is full and stays says that it stays so: at
// first it makes room of what fragments it has.
func fill(t *testing.T, s *Store, name func(i int) string, stays func() bool) {
	t.Helper()
	for i, end := 0, time.Now().Add(time.Minute); time.Now().Before(end); {
		_, err := s.Put(t.Context(), name(i), make([]byte, 400<<10))
		switch {
		case err == nil:
			i++
		case !errors.Is(err, ErrNoSpace):
			t.Fatal(err)
		case stays():
			return
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Fatal("it is not full within a minute")
}

// said is a log that remembers whether something was said.
type said struct {
	slog.Handler
	what string
	yes  *atomic.Bool
}

func listenFor(what string) (*slog.Logger, *atomic.Bool) {
	s := said{slog.DiscardHandler, what, new(atomic.Bool)}
	return slog.New(s), s.yes
}

func (said) Enabled(context.Context, slog.Level) bool { return true }
func (s said) WithAttrs([]slog.Attr) slog.Handler     { return s }
func (s said) WithGroup(string) slog.Handler          { return s }
func (s said) Handle(_ context.Context, r slog.Record) error {
	if r.Message == s.what {
		s.yes.Store(true)
	}
	return nil
}

// writes waits until the store takes a write.
func writes(t *testing.T, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		_, err := s.Put(ctx, "small", nil)
		if err == nil {
			return
		}
		if !errors.Is(err, ErrNoSpace) || ctx.Err() != nil {
			t.Fatalf("no write within a minute: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func gauge(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// freed waits until a metric says that room was made so many times: it is counted after writes are let in.
func freed(t *testing.T, reg *prometheus.Registry, want float64) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := gauge(t, reg, "nearcast_store_freed_total")
		if got == want {
			return
		}
		if got > want || time.Now().After(end) {
			t.Fatalf("freed %v times, want %v", got, want)
		}
	}
}

// TestNoSpace: a full store answers and says so; a larger quota opens it again, without anybody's help.
func TestNoSpace(t *testing.T) {
	ctx, dir, reg := t.Context(), t.TempDir(), prometheus.NewRegistry()
	log, stays := listenFor("the store is full and refuses changes")
	s, stop := start(t, Config{DataDir: dir, QuotaBytes: QuotaBytesMin, Metrics: reg, Log: log})
	fill(t, s, func(i int) string { return fmt.Sprint("fill", i) }, stays.Load)
	err := s.Health(ctx)
	wantErr(t, err, ErrNoSpace)
	if !strings.Contains(err.Error(), "--store-quota") {
		t.Errorf("%v does not say what to do", err)
	}
	must[KV](t)(s.Get(ctx, "fill0")) // reads go on
	if v := gauge(t, reg, "nearcast_store_full"); v != 1 {
		t.Errorf("nearcast_store_full is %v", v)
	}
	stop()

	// A store that is full from the start grants no leases, which is no reason to give up.
	reg = prometheus.NewRegistry()
	s, stop = start(t, Config{DataDir: dir, QuotaBytes: QuotaBytesMin, Metrics: reg})
	ready(t, s)
	wantErr(t, s.Session(ctx, time.Second, func(context.Context, LeaseID) error { return nil }), ErrNoSpace)
	short, cancel := context.WithTimeout(ctx, time.Second)
	wantErr(t, s.Elect(short, "any", "me", func(context.Context, Fence) error { return nil }),
		context.DeadlineExceeded)
	cancel()
	stop()

	reg = prometheus.NewRegistry()
	s, _ = start(t, Config{DataDir: dir, QuotaBytes: 2 * QuotaBytesMin, Metrics: reg})
	writes(t, s)
	if err := s.Health(ctx); err != nil {
		t.Error(err)
	}
	freed(t, reg, 1)
	if v := gauge(t, reg, "nearcast_store_full"); v != 0 {
		t.Errorf("nearcast_store_full is %v", v)
	}
}

// TestHistoryMakesRoom: a store that is full of old revisions drops them by itself; what is current stays.
func TestHistoryMakesRoom(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, _ := start(t, Config{QuotaBytes: QuotaBytesMin, Metrics: reg})
	must[uint64](t)(s.Put(t.Context(), "kept", []byte("x")))
	for round := range 2 {
		fill(t, s, func(int) string { return "again" }, func() bool { return true })
		writes(t, s)
		freed(t, reg, float64(round+1))
	}
	if v := gauge(t, reg, "nearcast_store_used_bytes"); v > QuotaBytesMin/2 {
		t.Errorf("%v bytes are in use", v)
	}
	if kv := must[KV](t)(s.Get(t.Context(), "kept")); string(kv.Value) != "x" {
		t.Errorf("kept is %q", kv.Value)
	}
}
