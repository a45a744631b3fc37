package fleet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/countries"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/controlplane/snapshot"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// Published is what the fleet is told at one moment. It is immutable.
type Published struct {
	// State is the configuration; Snapshot and what follows belong to it unless Err says otherwise.
	State    *catalog.State
	Verdicts map[health.Key]health.Verdict
	Snapshot *model.Snapshot
	Bytes    []byte // the snapshot as it is sent
	Hash     [sha256.Size]byte
	// Err says why State could not be compiled: the snapshot is then the last good one. nil mostly.
	Err error
	// Since is when this controller came to tell this snapshot.
	Since time.Time

	verdictsRevision uint64
	countries        countries.Set
	nodes            map[model.NodeID]*model.Node
	next             chan struct{} // closed when there is a newer one
}

// Revision returns the snapshot's revision, or 0 before there is one.
func (p *Published) Revision() uint64 {
	if p.Snapshot == nil {
		return 0
	}
	return p.Snapshot.Revision
}

// compile keeps the published snapshot up to date until ctx ends: after each trigger, debounced, and
// on a timer, since a watch may have lost an event.
func (f *Fleet) compile(ctx context.Context) error {
	debounce, quietSince := f.cfg.DebounceMin, time.Now()
	for {
		changed, err := f.refresh(ctx)
		if err != nil && ctx.Err() == nil {
			f.metrics.buildErrors.Inc()
			f.log.Warn("the configuration is not read; what nodes have stays", "err", err)
		}
		timer := time.NewTimer(jitter(f.cfg.Resync))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-f.triggers:
			timer.Stop()
		case <-timer.C:
			continue
		}
		// Under constant change the wait grows, so that a busy control plane does not become a busy
		// fleet: each node is sent at most one snapshot a second then.
		if now := time.Now(); changed && now.Sub(quietSince) < debounceTry {
			debounce = min(2*debounce, f.cfg.DebounceMax)
		} else {
			debounce = f.cfg.DebounceMin
		}
		if !sleep(ctx, debounce) {
			return nil
		}
		quietSince = time.Now()
		select { // what came meanwhile is seen by the refresh that follows
		case <-f.triggers:
		default:
		}
	}
}

// trigger asks for a refresh soon.
func (f *Fleet) trigger() {
	select {
	case f.triggers <- struct{}{}:
	default:
	}
}

// watchCatalog and watchVerdicts turn changes into triggers. They carry nothing else: refresh reads
// both as of one moment, which two watches cannot give.
func (f *Fleet) watchCatalog(ctx context.Context) error {
	return f.cfg.Catalog.Watch(ctx, func(*catalog.State) error {
		f.trigger()
		return nil
	})
}

func (f *Fleet) watchVerdicts(ctx context.Context) error {
	return f.cfg.Store.Watch(ctx, verdictsPrefix, 0, func(store.Update) error {
		f.trigger()
		return nil
	})
}

// watchCountries is watchVerdicts for lists of countries.
func (f *Fleet) watchCountries(ctx context.Context) error {
	return f.cfg.Store.Watch(ctx, countries.RevisionKey, 0, func(store.Update) error {
		f.trigger()
		return nil
	})
}

// refresh reads the configuration and publishes it, if it has changed.
func (f *Fleet) refresh(ctx context.Context) (changed bool, err error) {
	old := f.published.Load()
	state, verdicts, lists, err := f.read(ctx, old.countries)
	if err != nil {
		return false, err
	}
	if old.State != nil && old.State.Revision == state.Revision && old.verdictsRevision == verdicts.revision &&
		old.countries.Revision == lists.Revision {
		return false, nil
	}
	p := &Published{
		State: state, Verdicts: verdicts.verdicts, verdictsRevision: verdicts.revision, countries: lists,
		Snapshot: old.Snapshot, Bytes: old.Bytes, Hash: old.Hash, Since: old.Since,
		nodes: make(map[model.NodeID]*model.Node, len(state.Nodes)),
		next:  make(chan struct{}),
	}
	for i := range state.Nodes {
		p.nodes[state.Nodes[i].ID] = &state.Nodes[i]
	}
	p.build(max(state.Revision, verdicts.revision, lists.Revision))
	if p.Err != nil {
		f.metrics.buildErrors.Inc()
		f.log.Error("the configuration makes no snapshot; nodes keep what they have",
			"revision", state.Revision, "err", p.Err)
	}
	f.published.Store(p)
	close(old.next)
	f.metrics.builds.Inc()
	f.metrics.revision.Set(float64(p.Revision()))
	f.metrics.bytes.Set(float64(len(p.Bytes)))
	return true, nil
}

// build compiles p.State, or leaves the snapshot that p has and says why.
func (p *Published) build(revision uint64) {
	snap, err := snapshot.Build(p.State, p.Verdicts, p.countries.Lists, revision)
	if err != nil {
		p.Err = err
		return
	}
	encoded, hash, err := model.EncodeSnapshot(snap)
	if err != nil {
		p.Err = err
		return
	}
	p.Snapshot, p.Bytes, p.Hash, p.Since = snap, encoded, hash, time.Now()
}

var errBusy = errors.New("the configuration changes faster than it can be read")

// read returns the configuration, the verdicts and the countries' lists as they were at one moment: the verdicts
// are read while the others stay as they are. Otherwise two controllers that see changes in different orders could
// give different contents the same number.
func (f *Fleet) read(ctx context.Context, lists countries.Set) (*catalog.State, verdictSet, countries.Set, error) {
	fail := func(what string, err error) (*catalog.State, verdictSet, countries.Set, error) {
		return nil, verdictSet{}, lists, fmt.Errorf("%s: %w", what, err)
	}
	before, err := f.cfg.Catalog.Load(ctx)
	if err != nil {
		return fail("load the catalog", err)
	}
	for range readTries {
		if lists, err = countries.Read(ctx, f.cfg.Store, lists); err != nil {
			return fail("read the lists of countries", err)
		}
		page, err := f.cfg.Store.List(ctx, verdictsPrefix, store.ListOptions{})
		if err != nil {
			return fail("list verdicts", err)
		}
		after, err := f.cfg.Catalog.Load(ctx)
		if err != nil {
			return fail("load the catalog", err)
		}
		revision, err := countries.Revision(ctx, f.cfg.Store)
		if err != nil {
			return fail("read the lists of countries", err)
		}
		if after.Revision == before.Revision && revision == lists.Revision {
			set, err := readVerdicts(page.Items)
			return after, set, lists, err
		}
		before = after
	}
	return fail("read", errBusy)
}

// Newest returns the revision of what the store has for nodes now: this controller may be about to tell it, and
// another one may have done so.
func (f *Fleet) Newest(ctx context.Context) (uint64, error) {
	state, verdicts, lists, err := f.read(ctx, f.published.Load().countries)
	if err != nil {
		return 0, err
	}
	return max(state.Revision, verdicts.revision, lists.Revision), nil
}

// jitter returns d moved by up to a part of itself, so that a fleet does not act in step.
func jitter(d time.Duration) time.Duration {
	spread := d / jitterPart
	return d - spread + rand.N(2*spread+1)
}

// sleep waits for d and reports whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
