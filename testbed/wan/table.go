package wan

import (
	"cmp"
	"net/netip"
	"slices"
)

// table is what the engine follows: compiled from a plan, never changed, swapped as a whole.
type table struct {
	stages []*stageConf // by stage number; nil where a number has no stage now
	paths  []path       // from*hosts + to
	routes [][]hop      // by ingress host, in order of preference
	hosts  int
}

// path is what lies between two hosts, one way.
type path struct {
	stages  []int // numbers, in the order a packet meets them
	link    int   // the stage that counts blocked packets
	blocked Protocols
	exists  bool
	quantum int64 // ns: how far the dues of segments may lie apart that travel as one superpacket
}

// hop is one route as seen from one host.
type hop struct {
	prefix netip.Prefix
	to     []int
	rank   int
}

func (t *table) path(from, to int) *path { return &t.paths[from*t.hosts+to] }

// lookup returns the index of the best route for dst from a host, or -1.
func (t *table) lookup(from int, dst netip.Addr) int {
	return slices.IndexFunc(t.routes[from], func(h hop) bool { return h.prefix.Contains(dst) })
}

// compile makes the table of a plan. It gives stage numbers to new stages.
func (p *plan) compile() *table {
	t := &table{hosts: len(p.hosts)}
	for _, from := range p.hosts {
		for _, to := range p.hosts {
			t.paths = append(t.paths, p.compilePath(t, from, to))
		}
		t.routes = append(t.routes, p.compileRoutes(from))
	}
	// Stages that no pair uses now keep their number: they may be used again.
	for len(t.stages) < len(p.book.counts) {
		t.stages = append(t.stages, nil)
	}
	return t
}

func (p *plan) compilePath(t *table, from, to planHost) path {
	l, ok := p.linkOf(from, to)
	samePlace := from.place == to.place
	if !ok && !samePlace {
		return path{}
	}
	out := path{exists: true, quantum: int64(tick)}
	add := func(kind stageKind, ends pair, params Params) int {
		id := p.stage(t, kind, ends, params)
		out.stages = append(out.stages, id)
		out.quantum = min(out.quantum, t.stages[id].quantum)
		return id
	}
	addAccess := func(at string, kind stageKind) {
		if a, ok := p.access[at]; ok && kind == kindUp {
			add(kind, pair{from: at}, a.Up)
		} else if ok {
			add(kind, pair{from: at}, a.Down)
		}
	}
	addAccess(from.name, kindUp)
	if !samePlace && from.place != from.name {
		addAccess(from.place, kindUp)
	}
	if ok {
		for _, via := range l.Via {
			add(kindShaper, pair{from: via}, p.shapers[via])
		}
		out.link = add(kindLink, pair{l.From, l.To}, l.Params)
	} else {
		out.link = add(kindLocal, pair{from: from.place}, p.local)
	}
	if !samePlace && to.place != to.name {
		addAccess(to.place, kindDown)
	}
	addAccess(to.name, kindDown)
	for ends, mask := range p.faults {
		if from.covers(ends.from) >= 0 && to.covers(ends.to) >= 0 {
			out.blocked |= mask
		}
	}
	return out
}

// stage returns the number of a stage, and sees to it that the table has its parameters.
func (p *plan) stage(t *table, kind stageKind, ends pair, params Params) int {
	id := p.book.number(stageKey{kind, ends})
	for len(t.stages) <= id {
		t.stages = append(t.stages, nil)
	}
	if t.stages[id] == nil {
		t.stages[id] = newStageConf(params, p.book.counts[id])
	}
	return id
}

func (b *stageBook) number(key stageKey) int {
	id, ok := b.id[key]
	if !ok {
		id = len(b.keys)
		b.id[key] = id
		b.keys = append(b.keys, key)
		b.counts = append(b.counts, &counters{})
	}
	return id
}

func (p *plan) compileRoutes(from planHost) []hop {
	var hops []hop
	add := func(prefix netip.Prefix, to []string, rank int) {
		h := hop{prefix: prefix, rank: rank}
		for _, name := range to {
			h.to = append(h.to, p.byName[name])
		}
		hops = append(hops, h)
	}
	for key, to := range p.routes {
		if s := from.covers(key.from); s >= 0 {
			add(key.prefix, to, s)
		}
	}
	for _, r := range p.base {
		add(r.Prefix, r.To, -1)
	}
	slices.SortStableFunc(hops, func(a, b hop) int {
		return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), cmp.Compare(b.rank, a.rank))
	})
	return hops
}
