package store

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Watch calls fn for every change under prefix, in order, until ctx ends or fn returns an error, which
// it returns (the context's when ctx ends). With from 0 the first Update is a Reset with everything
// there is, even if that is nothing; otherwise the first one tells what changed after revision from.
//
// Each Update holds whole transactions. The watch survives reconnects and compaction, and does not trust
// the stream of events alone (etcd has lost some: issues 15271, 17529, 18089): on a timer it lists the
// prefix again and tells the difference, if there is one. A Reset comes later only if the store's
// history does not hold what was told any more, as after a restore from a backup.
//
// fn runs on the caller's goroutine; while it runs, changes wait.
func (s *Store) Watch(ctx context.Context, prefix string, from uint64, fn func(Update) error) error {
	w := watch{s: s, prefix: prefix, fn: fn}
	learn := w.relist
	if from != 0 {
		learn = func(ctx context.Context) error { return w.begin(ctx, from) }
	}
	backoff := newBackoff()
	for {
		err := learn(ctx)
		if err == nil || errors.Is(err, ErrCompacted) {
			learn = w.relist
		}
		if err == nil {
			before := w.told
			err = w.follow(ctx)
			if w.told > before {
				backoff = newBackoff()
			}
		}
		switch {
		case w.failed != nil:
			return w.failed
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.cfg.Log.Warn("store watch broke, listing again", "prefix", prefix, "error", err)
			if err := backoff.wait(ctx); err != nil {
				return err
			}
		}
	}
}

// watch is the state of one Watch.
type watch struct {
	s      *Store
	prefix string
	fn     func(Update) error
	known  map[string]uint64 // key to KV.Modified, of all that fn was told; nil: nothing yet
	told   uint64            // revision up to which fn was told
	failed error             // what fn returned
}

// begin learns the state at revision from, which the caller has, without telling it.
func (w *watch) begin(ctx context.Context, from uint64) error {
	page, err := w.s.List(ctx, w.prefix, ListOptions{Revision: from, KeysOnly: true})
	if err != nil {
		return err
	}
	w.known, w.told = make(map[string]uint64, len(page.Items)), from
	for _, kv := range page.Items {
		w.known[kv.Key] = kv.Modified
	}
	return nil
}

// relist reads everything and tells how it differs from what was told.
func (w *watch) relist(ctx context.Context) error {
	page, err := w.s.List(ctx, w.prefix, ListOptions{})
	if err != nil {
		return err
	}
	u := Update{Revision: page.Revision}
	now := make(map[string]uint64, len(page.Items))
	// A store that went back in time has other contents under the same revisions.
	u.Reset = w.known == nil || page.Revision < w.told
	for _, kv := range page.Items {
		now[kv.Key] = kv.Modified
		if u.Reset || w.known[kv.Key] != kv.Modified {
			u.Puts = append(u.Puts, kv)
		}
	}
	if !u.Reset {
		for key := range w.known {
			if _, there := now[key]; !there {
				u.Deletes = append(u.Deletes, key)
			}
		}
		slices.Sort(u.Deletes)
	}
	if w.known != nil {
		w.s.metrics.relists.Inc()
	}
	w.known, w.told = now, page.Revision
	if !u.Reset && len(u.Puts)+len(u.Deletes) == 0 {
		return nil
	}
	return w.tell(u)
}

func (w *watch) tell(u Update) error {
	w.failed = w.fn(u)
	return w.failed
}

// follow tells events until the timer for the next listing fires (nil) or the stream breaks.
func (w *watch) follow(ctx context.Context) error {
	interval := w.s.cfg.RelistInterval
	interval += time.Duration((rand.Float64() - 0.5) / 5 * float64(interval))
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), interval)
	defer cancel()
	client, _, done, err := w.s.operation(ctx)
	if err != nil {
		return err
	}
	done()
	events := client.Watch(ctx, w.s.cfg.Prefix+w.prefix, clientv3.WithPrefix(),
		clientv3.WithRev(int64(w.told+1)))
	for {
		var r clientv3.WatchResponse
		open := false
		select {
		case r, open = <-events:
		case <-w.s.stopped:
		}
		if ctx.Err() != nil {
			return nil
		}
		if !open {
			return ErrUnavailable
		}
		if err := r.Err(); err != nil {
			return err
		}
		if len(r.Events) == 0 {
			continue
		}
		if err := w.tell(w.update(r.Events)); err != nil {
			return err
		}
	}
}

// update folds events into what is there after them.
func (w *watch) update(events []*clientv3.Event) Update {
	puts, deletes := map[string]KV{}, map[string]bool{}
	for _, e := range events {
		kv := w.s.kv(e.Kv)
		if e.Type == clientv3.EventTypeDelete {
			delete(puts, kv.Key)
			deletes[kv.Key] = true
			delete(w.known, kv.Key)
		} else {
			delete(deletes, kv.Key)
			puts[kv.Key] = kv
			w.known[kv.Key] = kv.Modified
		}
		// The header's revision may be ahead of events that are still to come; the events' own are not.
		w.told = max(w.told, kv.Modified)
	}
	u := Update{Revision: w.told, Deletes: slices.Sorted(maps.Keys(deletes))}
	for _, key := range slices.Sorted(maps.Keys(puts)) {
		u.Puts = append(u.Puts, puts[key])
	}
	return u
}
