package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errEnough = errors.New("enough")

// take returns the first n updates of a watch.
func take(t *testing.T, s *Store, prefix string, from uint64, n int) []Update {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var got []Update
	err := s.Watch(ctx, prefix, from, func(u Update) error {
		if got = append(got, u); len(got) == n {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("watch ended with %v after %v", err, got)
	}
	return got
}

func keys(u Update) (puts []string) {
	for _, kv := range u.Puts {
		puts = append(puts, kv.Key)
	}
	return puts
}

func TestWatchFromNothing(t *testing.T) {
	s, _ := start(t, Config{})
	got := take(t, s, "w/", 0, 1)[0]
	if !got.Reset || len(got.Puts) != 0 || got.Revision == 0 {
		t.Fatalf("watching nothing began with %+v", got)
	}
}

func TestWatchFromRevision(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	must[uint64](t)(s.Put(ctx, "w/old", nil))
	from := must[uint64](t)(s.Put(ctx, "w/gone", nil))
	must[uint64](t)(s.Put(ctx, "elsewhere", nil))
	last := must[uint64](t)(s.Txn(ctx, nil, Put("w/b", nil), Put("w/a", nil), Delete("w/gone")))

	got := take(t, s, "w/", from, 1)[0]
	if got.Reset || got.Revision != last || !slices.Equal(keys(got), []string{"w/a", "w/b"}) ||
		!slices.Equal(got.Deletes, []string{"w/gone"}) {
		t.Fatalf("one transaction arrived as %+v", got)
	}
}

// TestWatchCompacted: what the caller has is older than what the store remembers.
func TestWatchCompacted(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	from := must[uint64](t)(s.Put(ctx, "w/gone", nil))
	must[uint64](t)(s.Delete(ctx, "w/gone"))
	last := must[uint64](t)(s.Put(ctx, "w/new", nil))
	if _, err := s.client.Compact(ctx, int64(last)); err != nil {
		t.Fatal(err)
	}
	got := take(t, s, "w/", from, 1)[0]
	if !got.Reset || !slices.Equal(keys(got), []string{"w/new"}) {
		t.Fatalf("after compaction: %+v", got)
	}
	// Also while a watch is on its way: it told up to a revision that is gone when it continues.
	w := watch{s: s, prefix: "w/", known: map[string]uint64{"w/gone": from}, told: from}
	if err := w.follow(ctx); err == nil {
		t.Fatal("following a compacted revision worked")
	}
	w.fn = func(u Update) error { got = u; return nil }
	if err := w.relist(ctx); err != nil {
		t.Fatal(err)
	}
	if got.Reset || !slices.Equal(keys(got), []string{"w/new"}) || !slices.Equal(got.Deletes, []string{"w/gone"}) {
		t.Fatalf("the difference after compaction: %+v", got)
	}
}

// TestWatchFindsLostEvents: etcd has lost events; the listing on a timer finds what they were.
func TestWatchFindsLostEvents(t *testing.T) {
	ctx := t.Context()
	s, _ := start(t, Config{})
	kept := must[uint64](t)(s.Put(ctx, "w/kept", nil))
	changed := must[uint64](t)(s.Put(ctx, "w/changed", nil))
	now := must[uint64](t)(s.Put(ctx, "w/added", nil))
	var got []Update
	w := watch{
		s: s, prefix: "w/", told: now, fn: func(u Update) error { got = append(got, u); return nil },
		known: map[string]uint64{"w/kept": kept, "w/changed": changed - 1, "w/lost": 1},
	}
	if err := w.relist(ctx); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Reset || !slices.Equal(keys(got[0]), []string{"w/added", "w/changed"}) ||
		!slices.Equal(got[0].Deletes, []string{"w/lost"}) {
		t.Fatalf("told %+v", got)
	}
	if err := w.relist(ctx); err != nil || len(got) != 1 {
		t.Fatalf("listing without a difference told %+v (%v)", got[1:], err)
	}
	// A store restored from a backup: its revisions are behind what was told.
	w.told = now + 1000
	if err := w.relist(ctx); err != nil || len(got) != 2 || !got[1].Reset || len(got[1].Puts) != 3 {
		t.Fatalf("a store that went back was told as %+v (%v)", got[1:], err)
	}
}

// TestWatchAgainstList writes at random from several goroutines and checks after every update that what
// was told is exactly what the store held at that revision.
func TestWatchAgainstList(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, _ := start(t, Config{RelistInterval: 30 * time.Millisecond})
	const writers, writes, names = 3, 400, 12
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range writes {
				var ops []Op
				for _, k := range r.Perm(names)[:1+r.IntN(3)] {
					if key := fmt.Sprintf("w/%02d", k); r.IntN(3) == 0 {
						ops = append(ops, Delete(key))
					} else {
						ops = append(ops, Put(key, []byte(fmt.Sprint(i, n))))
					}
				}
				if _, err := s.Txn(ctx, nil, ops...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() {
		wg.Wait()
		defer close(written)
		if _, err := s.Put(ctx, "w/end", nil); err != nil {
			t.Error(err)
			cancel() // the watch would wait for it
		}
	}()

	state := map[string]KV{}
	checked, revision := 0, uint64(0)
	err := s.Watch(ctx, "w/", 0, func(u Update) error {
		if u.Revision <= revision {
			t.Errorf("revision %d after %d", u.Revision, revision)
		}
		revision = u.Revision
		if u.Reset {
			clear(state)
		}
		for _, kv := range u.Puts {
			state[kv.Key] = kv
		}
		for _, key := range u.Deletes {
			delete(state, key)
		}
		page, err := s.List(ctx, "w/", ListOptions{Revision: u.Revision})
		if err != nil {
			return err
		}
		want := map[string]KV{}
		for _, kv := range page.Items {
			want[kv.Key] = kv
		}
		if diff := cmp.Diff(want, state); diff != "" {
			return fmt.Errorf("at revision %d (reset %v): %s", u.Revision, u.Reset, diff)
		}
		checked++
		if _, end := state["w/end"]; end {
			return errEnough
		}
		return nil
	})
	<-written
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	if checked < 5 {
		t.Fatalf("only %d updates were checked", checked)
	}
	t.Logf("%d updates checked", checked)
}

func TestWatchEnds(t *testing.T) {
	s, stop := start(t, Config{Timeout: 100 * time.Millisecond})
	ready(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan struct{}, 10)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(ctx, "", 0, func(Update) error { told <- struct{}{}; return nil }) }()
	within(t, "the first update", told)
	stop() // the store goes away: the watch waits for it
	select {
	case err := <-ended:
		t.Fatalf("the watch ended with the store: %v", err)
	default:
	}
	cancel()
	wantErr(t, within(t, "the end of Watch", ended), context.Canceled)
}
