package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// campaign seeks to lead, until ctx ends. The leader makes the verdicts.
func (f *Fleet) campaign(ctx context.Context) error {
	select { // a leader that has not read the records would take everybody for gone
	case <-f.mirror.ready:
	case <-ctx.Done():
		return nil
	}
	return f.cfg.Store.Elect(ctx, election, f.cfg.ID, f.lead)
}

// lead makes verdicts and probes what nobody else does, until ctx ends.
func (f *Fleet) lead(ctx context.Context, fence store.Fence) error {
	f.leading.Store(true)
	f.metrics.leading.Set(1)
	defer func() {
		f.leading.Store(false)
		f.metrics.leading.Set(0)
	}()
	prober := newProber(f)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return prober.run(ctx) })
	g.Go(func() error {
		return (&judge{f: f, fence: fence, prober: prober, board: health.New(health.Config{}),
			fed: map[string]uint64{}}).run(ctx)
	})
	return g.Wait()
}

// judge feeds the Board and publishes its verdicts. One goroutine owns it.
type judge struct {
	f      *Fleet
	fence  store.Fence
	board  *health.Board
	prober *prober

	state   uint64            // revision of the catalog's State that the Board knows
	fed     map[string]uint64 // version of each prober's reports that the Board has
	feedAll time.Time         // when to feed all of it again
	own     uint64            // version of the controller's own probes that the Board has
	records reports           // the same, as the other controllers can read it
	written map[model.GroupID][]byte
	dirty   bool      // the Board may say something else than written
	collect time.Time // when to look for records of what is gone
}

// run judges until ctx ends. An error of the store ends it too: the next leader, or this one again,
// begins with what is stored.
func (j *judge) run(ctx context.Context) error {
	if err := j.restore(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		if err := j.step(ctx, time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-j.f.mirror.kick:
		case <-j.prober.kick:
		case <-j.f.published.Load().next:
		}
	}
}

// restore continues where the last leader ended.
func (j *judge) restore(ctx context.Context) error {
	for j.f.published.Load().State == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-j.f.published.Load().next:
		}
	}
	page, err := j.f.cfg.Store.List(ctx, verdictsPrefix, store.ListOptions{})
	if err != nil {
		return fmt.Errorf("list verdicts: %w", err)
	}
	set, err := readVerdicts(page.Items)
	if err != nil {
		return err
	}
	j.written = map[model.GroupID][]byte{}
	for _, kv := range page.Items {
		if group, ok := strings.CutPrefix(kv.Key, verdictsGroups); ok {
			j.written[model.GroupID(group)] = kv.Value
		}
	}
	now := time.Now()
	j.know(now, j.f.published.Load())
	j.board.Restore(now, set.verdicts)
	j.dirty = true
	j.collect = now.Add(collectEvery)
	// What an earlier leader probed and this one does not is to be removed.
	j.records.merge(&v1.HealthReport{})
	for _, group := range j.f.mirror.healthGroups(health.ControllerProber) {
		j.records.dirty[group] = true
	}
	return nil
}

// know tells the Board of the configuration.
func (j *judge) know(now time.Time, p *Published) {
	if p.State.Revision == j.state {
		return
	}
	j.state = p.State.Revision
	j.board.SetGroups(now, p.State.Groups, p.State.Settings.MaxEjectionPercent)
	j.prober.set(p.State)
	j.feedAll = now // reports on endpoints that were unknown were ignored: say all again
	j.dirty = true
}

func (j *judge) step(ctx context.Context, now time.Time) error {
	p := j.f.published.Load()
	j.know(now, p)
	j.feed(now, p)
	if changed := j.board.Tick(now); len(changed) > 0 {
		j.dirty = true
		j.f.metrics.transitions.Add(float64(len(changed)))
		for _, t := range changed {
			j.f.log.Info("verdict", "group", t.Group, "endpoint", t.Endpoint, "from", stateName(t.From.State),
				"to", stateName(t.To.State), "reason", t.To.Reason)
		}
	}
	if err := j.publish(ctx); err != nil {
		return err
	}
	if err := j.recordOwn(ctx); err != nil {
		return err
	}
	if now.After(j.collect) {
		j.collect = now.Add(jitter(collectEvery))
		return j.f.collectGarbage(ctx, j.fence, p)
	}
	return nil
}

// feed gives the Board what probers say, and takes away what those said who may not say any more.
// Unchanged reports are fed again now and then, because the Board does not believe old ones for ever,
// and a node that is connected and says nothing new still stands by what it said.
func (j *judge) feed(now time.Time, p *Published) {
	if !now.Before(j.feedAll) {
		j.feedAll = now.Add(feedAllEvery)
		for prober := range j.fed {
			j.fed[prober] = 0
		}
		j.own = 0
	}
	for id, n := range p.nodes {
		prober := string(id)
		if !n.Gateway || n.State == model.NodeRevoked || !j.f.mirror.live(id, now, j.f.cfg.ProberGrace) {
			j.forget(prober)
			continue
		}
		groups, version, changed := j.f.mirror.healthOf(prober, j.fed[prober])
		if changed {
			j.fed[prober] = version
			j.board.Report(now, prober, toReports(groups), true)
		}
	}
	for prober := range j.fed {
		if p.nodes[model.NodeID(prober)] == nil {
			j.forget(prober)
		}
	}
	if reports, version := j.prober.reports(); version != j.own {
		j.own = version
		j.board.Report(now, health.ControllerProber, reports, true)
		j.records.merge(toMessage(reports))
	}
}

func (j *judge) forget(prober string) {
	if _, known := j.fed[prober]; known {
		delete(j.fed, prober)
		j.board.Forget(prober)
	}
}

// publish writes the groups' verdicts that are not what is stored. The fence keeps a leader that has
// been replaced without noticing from overwriting its successor's.
func (j *judge) publish(ctx context.Context) error {
	if !j.dirty {
		return nil
	}
	want, err := groupVerdicts(j.board.Verdicts())
	if err != nil {
		return err
	}
	var changed []model.GroupID
	for _, group := range slices.Sorted(maps.Keys(want)) {
		if !bytes.Equal(want[group], j.written[group]) {
			changed = append(changed, group)
		}
	}
	for group := range j.written {
		if want[group] == nil {
			changed = append(changed, group)
		}
	}
	for chunk := range slices.Chunk(changed, verdictOpsMax) {
		ops := []store.Op{store.Put(verdictsRevision, []byte(j.f.cfg.ID))}
		for _, group := range chunk {
			if want[group] == nil {
				ops = append(ops, store.Delete(verdictsGroups+string(group)))
			} else {
				ops = append(ops, store.Put(verdictsGroups+string(group), want[group]))
			}
		}
		if _, err := j.f.cfg.Store.Txn(ctx, []store.Cond{j.fence.Cond()}, ops...); err != nil {
			return fmt.Errorf("store verdicts: %w", err)
		}
		for _, group := range chunk {
			if want[group] == nil {
				delete(j.written, group)
			} else {
				j.written[group] = want[group]
			}
		}
	}
	j.dirty = false
	return nil
}

// recordOwn stores what the controller's own probes found, so that every controller can show it.
func (j *judge) recordOwn(ctx context.Context) error {
	ops, err := j.records.take(health.ControllerProber)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(slices.Collect(maps.Values(ops)), verdictOpsMax) {
		if _, err := j.f.cfg.Store.Txn(ctx, []store.Cond{j.fence.Cond()}, chunk...); err != nil {
			return fmt.Errorf("store the controller's own health reports: %w", err)
		}
	}
	return nil
}

// collectGarbage removes what was said by and about nodes that are gone, a bounded number at a time.
func (f *Fleet) collectGarbage(ctx context.Context, fence store.Fence, p *Published) error {
	var ops []store.Op
	f.mirror.mu.Lock()
	for id := range f.mirror.nodes {
		if p.nodes[id] == nil {
			ops = append(ops, store.Delete(nodesPrefix+string(id)))
		}
	}
	for id := range f.mirror.paths {
		if p.nodes[id] == nil {
			ops = append(ops, store.Delete(pathsPrefix+string(id)))
		}
	}
	for id := range f.mirror.clients {
		if p.nodes[id] == nil {
			ops = append(ops, store.Delete(clientsPrefix+string(id)))
		}
	}
	for prober, h := range f.mirror.health {
		if p.nodes[model.NodeID(prober)] != nil || prober == health.ControllerProber {
			continue
		}
		for group := range h.groups {
			ops = append(ops, store.Delete(healthPrefix+prober+"/"+string(group)))
		}
	}
	f.mirror.mu.Unlock()
	ops = ops[:min(len(ops), collectedAtOnce)]
	if len(ops) == 0 {
		return nil
	}
	// A node that was enrolled a moment ago and is not in p yet would lose its first record, and writes
	// it again with its next words; nothing depends on it.
	_, err := f.cfg.Store.Txn(ctx, []store.Cond{fence.Cond()}, ops...)
	if err != nil && !errors.Is(err, store.ErrTooLarge) {
		return fmt.Errorf("remove records of nodes that are gone: %w", err)
	}
	return nil
}

func toReports(groups map[model.GroupID]*v1.HealthReport) []health.Report {
	var list []health.Report
	for group, report := range groups {
		for _, e := range report.GetEndpoints() {
			state, err := model.HealthStateFromProto(e.GetState())
			if err != nil {
				continue // a newer node's state, which says nothing to this controller
			}
			list = append(list, health.Report{
				Key:   health.Key{Group: group, Endpoint: model.EndpointID(e.GetEndpointId())},
				State: state, Reason: e.GetReason(), Since: e.GetSince().AsTime(),
				Latency: e.GetLatency().AsDuration(),
			})
		}
	}
	return list
}

// toMessage is the inverse of toReports, as one complete report.
func toMessage(reports []health.Report) *v1.HealthReport {
	m := &v1.HealthReport{Complete: true}
	for _, r := range reports {
		e := &v1.EndpointHealth{
			GroupId: string(r.Group), EndpointId: string(r.Endpoint), State: model.HealthStateToProto(r.State),
			Reason: r.Reason, Since: timestamppb.New(r.Since),
		}
		if r.Latency > 0 {
			e.Latency = durationpb.New(r.Latency)
		}
		m.Endpoints = append(m.Endpoints, e)
	}
	return m
}

func stateName(s model.HealthState) string {
	switch s {
	case model.HealthHealthy:
		return "healthy"
	case model.HealthUnhealthy:
		return "unhealthy"
	}
	return "initial"
}
