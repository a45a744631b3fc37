package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// A ruling is steer's table, and how many flows each of its listeners has.
type ruling struct {
	*steer.Table
	counts map[model.ListenerID]*listenerCount
}

type listenerCount struct {
	meter        *meter.Listener
	flows        atomic.Int64
	max          int64
	maxPerSource int32
}

// newRuling goes over to another table. Listeners that stay keep their counts, unless their bounds
// changed.
func newRuling(t *steer.Table, old *ruling, cfg *Config) *ruling {
	r := &ruling{t, make(map[model.ListenerID]*listenerCount, len(t.Listeners()))}
	for _, l := range t.Listeners() {
		n := &listenerCount{
			meter: cfg.Meter.Listener(l.Listener),
			max:   int64(l.MaxFlows), maxPerSource: int32(min(l.MaxFlowsPerSource, 1<<30)),
		}
		if n.max == 0 || n.max > int64(cfg.MaxFlows) {
			n.max = int64(cfg.MaxFlows)
		}
		if n.maxPerSource == 0 {
			n.maxPerSource = int32(max(1, n.max/4))
		}
		if old != nil {
			if was := old.counts[l.ID]; was != nil && was.max == n.max && was.maxPerSource == n.maxPerSource {
				n = was
			} else if was != nil {
				n.flows.Store(was.flows.Load())
			}
		}
		r.counts[l.ID] = n
	}
	return r
}

// admission decides whether a flow may begin, and counts those that did.
type admission struct {
	max     int64
	memory  *backbone.Memory
	refused func(reason string)

	flows  atomic.Int64
	shards [admissionShards]struct {
		mu sync.Mutex
		n  map[source]int32
	}
}

// source is who is counted: a client's address (IPv6: its /64, which one client may use up) at one
// listener.
type source struct {
	listener model.ListenerID
	addr     netip.Addr
}

func sourceOf(l model.ListenerID, a netip.Addr) source {
	if a.Is6() {
		p, _ := a.Prefix(64)
		a = p.Addr()
	}
	return source{l, a}
}

// pass is what an admitted flow holds, and gives back at its end.
type pass struct {
	listener *listenerCount
	source   source
}

// enter counts a flow in, or counts why not and returns false.
func (a *admission) enter(n *listenerCount) (pass, bool) {
	switch {
	case a.memoryUsed() >= memoryShed:
		a.refused("memory")
		return pass{}, false
	case a.flows.Add(1) > a.max:
		a.flows.Add(-1)
		a.refused("node")
		return pass{}, false
	case n.flows.Add(1) > n.max:
		n.flows.Add(-1)
		a.flows.Add(-1)
		a.refused("listener")
		return pass{}, false
	}
	return pass{listener: n}, true
}

// enterSource counts a flow in at its source. The pass stays valid without it.
func (a *admission) enterSource(p *pass, s source) bool {
	shard := &a.shards[shardOfSource(s)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.n[s] >= p.listener.maxPerSource {
		a.refused("source")
		return false
	}
	if shard.n == nil {
		shard.n = map[source]int32{}
	}
	shard.n[s]++
	p.source = s
	return true
}

// leave counts a flow out.
func (a *admission) leave(p pass) {
	if p.listener == nil {
		return
	}
	a.flows.Add(-1)
	p.listener.flows.Add(-1)
	if !p.source.addr.IsValid() {
		return
	}
	shard := &a.shards[shardOfSource(p.source)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.n[p.source]--; shard.n[p.source] <= 0 {
		delete(shard.n, p.source)
	}
}

// memoryUsed returns how much of the streams' memory is in use, in percent.
func (a *admission) memoryUsed() int64 {
	if a.memory == nil || a.memory.Max() == 0 {
		return 0
	}
	return a.memory.Used() * 100 / a.memory.Max()
}

func shardOfSource(s source) int {
	b := s.addr.As16()
	h := uint32(2166136261)
	for _, x := range b {
		h = (h ^ uint32(x)) * 16777619 // FNV-1a
	}
	return int(h % admissionShards)
}
