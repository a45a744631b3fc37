package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// reports are what one prober says of all endpoints, and which groups' records are to be stored. The
// zero value is empty.
type reports struct {
	groups map[model.GroupID]map[string]*v1.EndpointHealth // by endpoint id
	count  int
	dirty  map[model.GroupID]bool
}

// merge takes a report over and returns how many entries were beyond the limits.
func (r *reports) merge(report *v1.HealthReport) (dropped int) {
	if r.groups == nil {
		r.groups, r.dirty = map[model.GroupID]map[string]*v1.EndpointHealth{}, map[model.GroupID]bool{}
	}
	type key struct {
		group    model.GroupID
		endpoint string
	}
	seen := make(map[key]bool, len(report.GetEndpoints()))
	for _, e := range report.GetEndpoints() {
		k := key{model.GroupID(e.GetGroupId()), e.GetEndpointId()}
		if k.group == "" || k.endpoint == "" || len(k.group) > idMax || len(k.endpoint) > idMax {
			dropped++
			continue
		}
		seen[k] = true
		old := r.groups[k.group][k.endpoint]
		if old == nil && r.count >= reportsMax {
			dropped++
			continue
		}
		e.Reason = clip(e.GetReason(), textMax)
		if old == nil {
			r.count++
		}
		if r.groups[k.group] == nil {
			r.groups[k.group] = map[string]*v1.EndpointHealth{}
		}
		r.groups[k.group][k.endpoint] = e
		if old == nil || worthStoring(old, e) {
			r.dirty[k.group] = true
		}
	}
	if report.GetComplete() {
		for group, endpoints := range r.groups {
			for id := range endpoints {
				if !seen[key{group, id}] {
					delete(endpoints, id)
					r.count--
					r.dirty[group] = true
				}
			}
		}
	}
	return dropped
}

// worthStoring reports whether a new report says more than the stored one. Latency changes with every
// probe: only a change by a quarter is news.
func worthStoring(old, e *v1.EndpointHealth) bool {
	if old.GetState() != e.GetState() || old.GetReason() != e.GetReason() ||
		!old.GetSince().AsTime().Equal(e.GetSince().AsTime()) {
		return true
	}
	a, b := old.GetLatency().AsDuration(), e.GetLatency().AsDuration()
	return (a - b).Abs() > max(a/4, time.Millisecond)
}

// take returns the writes that make the store say what r says, for the groups that changed. Groups in
// have that r does not know any more are removed if all is known (a complete report came).
func (r *reports) take(prober string) (ops map[model.GroupID]store.Op, err error) {
	ops = make(map[model.GroupID]store.Op, len(r.dirty))
	for group := range r.dirty {
		key := healthPrefix + prober + "/" + string(group)
		endpoints := r.groups[group]
		if len(endpoints) == 0 {
			delete(r.groups, group)
			ops[group] = store.Delete(key)
			continue
		}
		report := &v1.HealthReport{}
		for _, id := range slices.Sorted(maps.Keys(endpoints)) {
			report.Endpoints = append(report.Endpoints, endpoints[id])
		}
		value, err := proto.Marshal(report)
		if err != nil {
			return nil, fmt.Errorf("encode a health report: %w", err)
		}
		ops[group] = store.Put(key, value)
	}
	r.dirty = map[model.GroupID]bool{}
	return ops, nil
}

// undo marks groups whose writes did not succeed.
func (r *reports) undo(ops map[model.GroupID]store.Op) {
	for group := range ops {
		r.dirty[group] = true
	}
}

// store writes what the node says until the stream ends, soon after it was said and many words at a
// time, and tries again while the store is away. Nothing queues: there is only the newest of each.
func (x *session) store(ctx context.Context) {
	defer x.f.streams.Done()
	defer close(x.stored)
	seen := time.NewTicker(jitter(lastSeenEvery))
	defer seen.Stop()
	for {
		select {
		case <-ctx.Done():
			x.goodbye(ctx)
			return
		case <-seen.C:
			x.change(func(*nodeRecord) {}) // last_seen
		case <-x.dirty:
		}
		if !sleep(ctx, flushDelay) {
			continue
		}
		if err := x.flush(ctx); err != nil && ctx.Err() == nil {
			x.f.metrics.storeErrors.Inc()
			x.log.Warn("what the node says is not stored; trying again", "err", err)
			sleep(ctx, jitter(flushRetry))
			x.poke()
		}
	}
}

// goodbye stores what is left, unless a newer session of the node has taken over.
func (x *session) goodbye(ctx context.Context) {
	if errors.Is(context.Cause(ctx), errSuperseded) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalFlush)
	defer cancel()
	x.change(func(*nodeRecord) {})
	if err := x.flush(ctx); err != nil {
		x.log.Warn("the node's last words are not stored", "err", err)
	}
}

// flush writes what has changed.
func (x *session) flush(ctx context.Context) error {
	return errors.Join(x.flushRecord(ctx), x.flushHealth(ctx), x.flushPaths(ctx), x.flushClients(ctx))
}

// flushRecord writes the node's record. The first write of a session takes the record over; later ones
// hold only while no other session has done so.
func (x *session) flushRecord(ctx context.Context) error {
	x.mu.Lock()
	if !x.changed {
		x.mu.Unlock()
		return nil
	}
	x.changed = false
	x.record.LastSeen = time.Now().UTC()
	value, err := json.Marshal(x.record)
	x.mu.Unlock()
	if err != nil {
		return fmt.Errorf("encode the node's record: %w", err)
	}
	key := nodesPrefix + string(x.id)
	var conds []store.Cond
	if x.wrote != 0 {
		conds = append(conds, store.Unchanged(key, x.wrote))
	}
	revision, err := x.f.cfg.Store.Txn(ctx, conds, store.Put(key, value))
	if errors.Is(err, store.ErrConflict) {
		return x.lostRecord(ctx, key)
	}
	if err != nil {
		x.mu.Lock()
		x.changed = true
		x.mu.Unlock()
		return fmt.Errorf("store the node's record: %w", err)
	}
	x.wrote = revision
	return nil
}

// lostRecord looks why the record is not as this session wrote it. A write whose answer was lost is
// this session's own, or another controller has noted a new certificate in it; anything else is a newer
// session, whose word counts now.
func (x *session) lostRecord(ctx context.Context, key string) error {
	kv, err := x.f.cfg.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	var r nodeRecord
	if err == nil && json.Unmarshal(kv.Value, &r) == nil && r.Session == x.key {
		x.wrote = kv.Modified
		x.change(func(own *nodeRecord) {
			if r.CertificateExpires.After(own.CertificateExpires) {
				own.CertificateExpires = r.CertificateExpires
			}
		})
		return nil
	}
	if err != nil {
		return nil // the node was deleted: its record is gone and stays so
	}
	x.cancel(errSuperseded)
	return nil
}

func (x *session) flushHealth(ctx context.Context) error {
	x.mu.Lock()
	// A record of a group that this node reported in an earlier session and does not report now.
	if x.reports.groups != nil && !x.swept {
		for _, group := range x.f.mirror.healthGroups(string(x.id)) {
			if x.reports.groups[group] == nil {
				x.reports.dirty[group] = true
			}
		}
		x.swept = true
	}
	ops, err := x.reports.take(string(x.id))
	x.mu.Unlock()
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Values(ops)), verdictOpsMax) {
		if _, err := x.f.cfg.Store.Txn(ctx, nil, chunk...); err != nil {
			x.mu.Lock()
			x.reports.undo(ops)
			x.mu.Unlock()
			return fmt.Errorf("store the node's health reports: %w", err)
		}
	}
	return nil
}

func (x *session) flushPaths(ctx context.Context) error {
	x.mu.Lock()
	paths := x.paths
	if paths == nil || time.Since(x.pathsStored) < pathsEvery {
		x.mu.Unlock()
		return nil // the next report, or last_seen, brings it along
	}
	x.paths = nil
	x.mu.Unlock()
	value, err := proto.Marshal(paths)
	if err != nil {
		return fmt.Errorf("encode the node's paths: %w", err)
	}
	if _, err := x.f.cfg.Store.Put(ctx, pathsPrefix+string(x.id), value); err != nil {
		return fmt.Errorf("store the node's paths: %w", err)
	}
	x.pathsStored = time.Now()
	return nil
}

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }
