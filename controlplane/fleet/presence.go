package fleet

import (
	"context"
	"encoding/json"
	"maps"
	"sync"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
)

// presence tells the other controllers, by keys that go when this one dies, that it is there and
// which nodes it has streams to.
type presence struct {
	f    *Fleet
	kick chan struct{} // capacity 1

	mu   sync.Mutex
	want map[model.NodeID]bool
}

func newPresence(f *Fleet) *presence {
	return &presence{f: f, kick: make(chan struct{}, 1), want: map[model.NodeID]bool{}}
}

// set says whether this controller has a stream to a node.
func (p *presence) set(id model.NodeID, connected bool) {
	p.mu.Lock()
	if connected {
		p.want[id] = true
	} else {
		delete(p.want, id)
	}
	p.mu.Unlock()
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// run keeps the keys as they should be until ctx ends; then they go at once.
func (p *presence) run(ctx context.Context) error {
	for {
		err := p.f.cfg.Store.Session(ctx, p.f.cfg.LeaseTTL, p.keep)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			p.f.metrics.storeErrors.Inc()
			p.f.log.Warn("the store does not know that this controller is here", "err", err)
		}
		if !sleep(ctx, jitter(presenceRetry)) {
			return nil
		}
	}
}

// keep makes the store say what want says, with keys of one lease.
func (p *presence) keep(ctx context.Context, lease store.LeaseID) error {
	record, err := json.Marshal(controllerRecord{Address: p.f.cfg.Address, Version: p.f.cfg.Version})
	if err != nil {
		return err
	}
	s := p.f.cfg.Store
	if _, err := s.Txn(ctx, nil, store.PutLeased(controllersPrefix+p.f.cfg.ID, record, lease)); err != nil {
		return err
	}
	have := map[model.NodeID]bool{}
	for {
		for _, change := range p.changes(have) {
			key := connectionsPrefix + string(change.id) + "/" + p.f.cfg.ID
			op := store.Delete(key)
			if change.connected {
				op = store.PutLeased(key, nil, lease)
			}
			if _, err := s.Txn(ctx, nil, op); err != nil {
				return err // a new session writes all of them again
			}
			if change.connected {
				have[change.id] = true
			} else {
				delete(have, change.id)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.kick:
		}
	}
}

type presenceChange struct {
	id        model.NodeID
	connected bool
}

func (p *presence) changes(have map[model.NodeID]bool) []presenceChange {
	p.mu.Lock()
	want := maps.Clone(p.want)
	p.mu.Unlock()
	var list []presenceChange
	for id := range want {
		if !have[id] {
			list = append(list, presenceChange{id, true})
		}
	}
	for id := range have {
		if !want[id] {
			list = append(list, presenceChange{id, false})
		}
	}
	return list
}
