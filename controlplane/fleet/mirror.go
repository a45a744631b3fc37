package fleet

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// mirror follows what all nodes say, whichever controller they said it to. Values in it are immutable
// once they are there; a record that cannot be read is left out and logged.
type mirror struct {
	log   *slog.Logger
	ready chan struct{}
	kick  chan struct{} // capacity 1: something has changed

	mu          sync.Mutex
	nodes       map[model.NodeID]nodeRecord
	connections map[model.NodeID]map[string]bool // controllers that it is connected to
	gone        map[model.NodeID]time.Time       // when the last connection ended, as seen here
	controllers map[string]controllerRecord
	health      map[string]*proberHealth // by prober
	paths       map[model.NodeID]*v1.NodePaths
	clients     map[model.NodeID]clientsReport
	direct      map[string]model.DirectWay // by key
	clientsNews uint64                     // moves with every change of clients
	versions    uint64                     // the last one given to a proberHealth; never starts again
}

// proberHealth is all that one prober says.
type proberHealth struct {
	version uint64 // another one after each change
	groups  map[model.GroupID]*v1.HealthReport
}

func newMirror(log *slog.Logger) *mirror {
	m := &mirror{log: log, ready: make(chan struct{}), kick: make(chan struct{}, 1)}
	m.reset()
	return m
}

func (m *mirror) reset() {
	m.nodes = map[model.NodeID]nodeRecord{}
	m.connections = map[model.NodeID]map[string]bool{}
	m.gone = map[model.NodeID]time.Time{}
	m.controllers = map[string]controllerRecord{}
	m.health = map[string]*proberHealth{}
	m.paths = map[model.NodeID]*v1.NodePaths{}
	m.clients = map[model.NodeID]clientsReport{}
	m.direct = map[string]model.DirectWay{}
	m.clientsNews++
}

func (m *mirror) run(ctx context.Context, s *store.Store) error {
	return s.Watch(ctx, fleetPrefix, 0, func(u store.Update) error {
		m.update(u, time.Now())
		return nil
	})
}

func (m *mirror) update(u store.Update, now time.Time) {
	m.mu.Lock()
	if u.Reset {
		m.reset()
	}
	for _, kv := range u.Puts {
		if err := m.put(kv); err != nil {
			m.log.Error("a record of the fleet is left out", "key", kv.Key, "err", err)
		}
	}
	for _, key := range u.Deletes {
		m.delete(key, now)
	}
	m.mu.Unlock()
	select {
	case <-m.ready:
	default:
		close(m.ready)
	}
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// put takes one record over. Precondition: mu is held.
func (m *mirror) put(kv store.KV) error {
	kind, rest := splitKey(kv.Key)
	switch kind {
	case nodesPrefix:
		var r nodeRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return err
		}
		m.nodes[model.NodeID(rest)] = r
	case connectionsPrefix:
		node, controller, _ := strings.Cut(rest, "/")
		id := model.NodeID(node)
		if m.connections[id] == nil {
			m.connections[id] = map[string]bool{}
		}
		m.connections[id][controller] = true
		delete(m.gone, id)
	case controllersPrefix:
		var r controllerRecord
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			return err
		}
		m.controllers[rest] = r
	case healthPrefix:
		prober, group, _ := strings.Cut(rest, "/")
		report := new(v1.HealthReport)
		if err := proto.Unmarshal(kv.Value, report); err != nil {
			return err
		}
		if m.health[prober] == nil {
			m.health[prober] = &proberHealth{groups: map[model.GroupID]*v1.HealthReport{}}
		}
		m.health[prober].groups[model.GroupID(group)] = report
		m.versions++
		m.health[prober].version = m.versions
	case pathsPrefix:
		p := new(v1.NodePaths)
		if err := proto.Unmarshal(kv.Value, p); err != nil {
			return err
		}
		m.paths[model.NodeID(rest)] = p
	case clientsPrefix:
		return m.putClients(model.NodeID(rest), kv.Value)
	case directPrefix:
		return m.putDirect(rest, kv.Value)
	}
	return nil
}

// delete drops one record. Precondition: mu is held.
func (m *mirror) delete(key string, now time.Time) {
	kind, rest := splitKey(key)
	first, second, _ := strings.Cut(rest, "/")
	switch kind {
	case nodesPrefix:
		delete(m.nodes, model.NodeID(rest))
	case connectionsPrefix:
		id := model.NodeID(first)
		delete(m.connections[id], second)
		if len(m.connections[id]) == 0 {
			delete(m.connections, id)
			m.gone[id] = now
		}
	case controllersPrefix:
		delete(m.controllers, rest)
	case healthPrefix:
		if p := m.health[first]; p != nil {
			delete(p.groups, model.GroupID(second))
			m.versions++
			p.version = m.versions
		}
	case pathsPrefix:
		delete(m.paths, model.NodeID(rest))
	case clientsPrefix:
		delete(m.clients, model.NodeID(rest))
		m.clientsNews++
	case directPrefix:
		delete(m.direct, rest)
	}
}

// splitKey returns the prefix of a key that says what lies there, and the rest.
func splitKey(key string) (kind, rest string) {
	for _, p := range []string{nodesPrefix, connectionsPrefix, controllersPrefix, healthPrefix, pathsPrefix,
		clientsPrefix, directPrefix} {
		if rest, ok := strings.CutPrefix(key, p); ok {
			return p, rest
		}
	}
	return "", key
}

// node returns a node's record, and whether it is connected to some controller now.
func (m *mirror) node(id model.NodeID) (r nodeRecord, connected bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[id], len(m.connections[id]) > 0
}

// live reports whether what a node said still counts: it is connected, or was until just now.
func (m *mirror) live(id model.NodeID, now time.Time, grace time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.connections[id]) > 0 {
		return true
	}
	gone, ok := m.gone[id]
	return ok && now.Sub(gone) < grace
}

// healthOf returns what a prober says, if it has changed since version.
func (m *mirror) healthOf(prober string, version uint64) (groups map[model.GroupID]*v1.HealthReport,
	newVersion uint64, changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.health[prober]
	if p == nil {
		return nil, 0, version != 0
	}
	return maps.Clone(p.groups), p.version, p.version != version
}

// healthGroups returns the groups that a prober has records on.
func (m *mirror) healthGroups(prober string) []model.GroupID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.health[prober]; p != nil {
		return slices.Sorted(maps.Keys(p.groups))
	}
	return nil
}

// addresses returns where the controllers are, sorted.
func (m *mirror) addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for _, id := range slices.Sorted(maps.Keys(m.controllers)) {
		if len(list) < controllersMax {
			list = append(list, m.controllers[id].Address)
		}
	}
	return list
}
