package geo

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Table is a Map with the nodes that can take clients now. It is immutable.
type Table struct {
	m            *Map
	pools        map[model.PoolName]*Pool
	ttl          time.Duration
	addressesMax int
	ignoreECS    bool
	explore      uint64 // trials in 1,000 stretches of time of a network
}

// Pool is a node pool as answers see it.
type Pool struct {
	Name model.PoolName
	// by family (0: IPv4, 1: IPv6) and site: addresses of nodes that can take clients, and of all.
	usable, all [2][][]netip.Addr
	nodes       [][]poolNode // by site
}

type poolNode struct {
	id     model.NodeID
	name   string
	why    string // not usable; "": usable
	addrs  []netip.Addr
	family [2]bool
}

// Compile works out who can be in answers. why says why a node cannot take clients, or "".
func Compile(m *Map, s *model.Snapshot, why func(*model.Node) string) *Table {
	steering := s.Steering.OrDefault()
	t := &Table{m: m, pools: map[model.PoolName]*Pool{}, ttl: steering.TTL,
		addressesMax: steering.AddressesMax, ignoreECS: steering.IgnoreECS}
	if !steering.ExploreOff && !steering.IgnoreRTT {
		t.explore = uint64(steering.ExplorePercent) * 10
	}
	reasons := make(map[model.NodeID]string, len(s.Nodes))
	for i := range s.Nodes {
		reasons[s.Nodes[i].ID] = why(&s.Nodes[i])
	}
	for i := range s.Pools {
		p := &s.Pools[i]
		if p.Kind != model.PoolNode {
			continue
		}
		pool := &Pool{Name: p.Name, nodes: make([][]poolNode, len(m.sites))}
		for f := range 2 {
			pool.usable[f] = make([][]netip.Addr, len(m.sites))
			pool.all[f] = make([][]netip.Addr, len(m.sites))
		}
		for j := range s.Nodes {
			n := &s.Nodes[j]
			at := m.index(n.Site)
			if at < 0 || !n.Edge || !p.Serves(n.Site) {
				continue
			}
			pool.add(at, n, reasons[n.ID])
		}
		t.pools[p.Name] = pool
	}
	return t
}

func (p *Pool) add(at int, n *model.Node, why string) {
	node := poolNode{id: n.ID, name: n.Name, why: why, addrs: n.ServiceAddresses}
	for _, a := range n.ServiceAddresses {
		f := family(a)
		node.family[f] = true
		p.all[f][at] = append(p.all[f][at], a)
		if why == "" {
			p.usable[f][at] = append(p.usable[f][at], a)
		}
	}
	p.nodes[at] = append(p.nodes[at], node)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Pool returns a node pool, or nil.
func (t *Table) Pool(name model.PoolName) *Pool { return t.pools[name] }

// IgnoreECS says that clients are judged by their resolver only.
func (t *Table) IgnoreECS() bool { return t.ignoreECS }

// Choice is an answer.
type Choice struct {
	Addrs  []netip.Addr // valid until the scratch's next use; empty: the pool has no such address at all
	Scope  int          // length of the network around the client for which it holds
	TTL    time.Duration
	Source Source
	Site   model.SiteName
	Open   bool // nobody was usable, so all are answered
	Second bool // the client's best site could not be used
	Trial  bool // another site is named, so that the round trip to it gets measured
}

const (
	// spreadBits is the network by whose hash clients are spread over sites with weights and over nodes
	// of which an answer holds only some: clients of one network always get the same.
	spreadBits4, spreadBits6 = 24, 48
	// secondTTL bounds the TTL of an answer that is not the client's best, so that clients come back soon.
	secondTTL = 10 * time.Second
)

// Choose answers for a client. v6 asks for IPv6 addresses.
func (t *Table) Choose(p *Pool, client netip.Addr, v6 bool, s *Scratch) Choice {
	j := t.m.judge(client, s)
	f := 0
	if v6 {
		f = 1
	}
	c := Choice{Source: j.source, Scope: j.scope, TTL: t.ttl}
	by := p.usable[f]
	best := t.pick(by, client, j.forced, s, &c.Scope)
	if best < 0 {
		by, c.Open = p.all[f], true
		if best = t.pick(by, client, j.forced, s, &c.Scope); best < 0 {
			return c
		}
	}
	for i := range p.all[f] {
		if len(p.all[f][i]) > 0 && len(by[i]) == 0 && s.scores[i] < s.scores[best] {
			c.Second = true
		}
	}
	if !c.Open && !c.Second && j.measured && j.forced < 0 {
		if other := t.trial(by, client, best, s); other >= 0 {
			best, c.Trial = other, true
		}
	}
	c.Site = t.m.sites[best].name
	if c.Second || c.Open || c.Trial {
		c.TTL = min(c.TTL, secondTTL)
	}
	c.Addrs = by[best]
	if len(c.Addrs) > t.addressesMax {
		c.Addrs = s.subset(c.Addrs, spread(client, &c.Scope), t.addressesMax)
	}
	return c
}

// pick returns the best site that has addresses, or -1. A site with a weight below 100 keeps that share
// of the clients, by the hash of their network; if that leaves none, weights do not count.
func (t *Table) pick(by [][]netip.Addr, client netip.Addr, forced int, s *Scratch, scope *int) int {
	best, kept := -1, -1
	for i := range by {
		if len(by[i]) == 0 {
			continue
		}
		if best < 0 || s.scores[i] < s.scores[best] {
			best = i
		}
		if w := t.m.sites[i].weight; w < 100 && i != forced {
			if int(mix(spread(client, scope)^hashName(t.m.sites[i].name))%100) >= w {
				continue
			}
		}
		if kept < 0 || s.scores[i] < s.scores[kept] {
			kept = i
		}
	}
	if kept >= 0 {
		return kept
	}
	return best
}

// spread returns the hash of a client's network, and narrows the scope to it.
func spread(client netip.Addr, scope *int) uint64 {
	n := spreadBits4
	if client.Is6() {
		n = spreadBits6
	}
	*scope = max(*scope, n)
	b, base := bits(client)
	h := uint64(fnvOffset)
	for _, x := range b[base/8 : (base+n)/8] {
		h = (h ^ uint64(x)) * fnvPrime
	}
	return mix(h)
}

// FNV-1a, 64 bits: the same at every node and version, which Go's own hashes are not.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func hashName(name model.SiteName) uint64 {
	h := uint64(fnvOffset)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * fnvPrime
	}
	return h
}

// mix spreads a hash over all bits (the finisher of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

type ranked struct {
	addr netip.Addr
	rank uint64
}

// subset takes n of the addresses by rendezvous hashing: when one goes, the others keep their clients.
func (s *Scratch) subset(addrs []netip.Addr, client uint64, n int) []netip.Addr {
	s.ranked = s.ranked[:0]
	for _, a := range addrs {
		b := a.As16()
		h := client
		for _, x := range b {
			h = (h ^ uint64(x)) * fnvPrime
		}
		s.ranked = append(s.ranked, ranked{a, mix(h)})
	}
	slices.SortFunc(s.ranked, func(a, b ranked) int { return cmp.Compare(b.rank, a.rank) })
	s.list = s.list[:0]
	for _, r := range s.ranked[:n] {
		s.list = append(s.list, r.addr)
	}
	return s.list
}

// Explained is a site in an explanation.
type Explained struct {
	Site       model.SiteName
	Kilometres float64 // negative: unknown
	RTT        float64 // measured, milliseconds; negative: none
	Weight     int
	Nodes      []string // that can take clients
	PassedOver string   // "": it is the answer
	score      float64
}

// Explain says how Choose comes to its answer: every site of the pool, best first.
func (t *Table) Explain(p *Pool, client netip.Addr, v6 bool) (Choice, Location, []Explained) {
	s := new(Scratch)
	c := t.Choose(p, client, v6, s)
	c.Addrs = slices.Clone(c.Addrs)
	j := t.m.judge(client, s)
	f := 0
	if v6 {
		f = 1
	}
	var all []Explained
	for i := range t.m.sites {
		if len(p.nodes[i]) == 0 {
			continue
		}
		e := Explained{Site: t.m.sites[i].name, Kilometres: s.km[i], RTT: s.rtt[i],
			Weight: t.m.sites[i].weight, score: s.scores[i]}
		why := ""
		for _, n := range p.nodes[i] {
			switch {
			case !n.family[f]:
				why = n.name + " has no address of this family"
			case n.why != "":
				why = n.name + " " + n.why
			default:
				e.Nodes = append(e.Nodes, n.name)
			}
		}
		switch {
		case e.Site == c.Site:
		case len(e.Nodes) == 0:
			e.PassedOver = why
		default:
			e.PassedOver = "another site is better"
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b Explained) int { return cmp.Compare(a.score, b.score) })
	before := true
	for i := range all {
		if all[i].Site == c.Site {
			before = false
		} else if before && len(all[i].Nodes) > 0 {
			all[i].PassedOver = "its weight leaves this client's network out"
		}
	}
	if c.Open {
		for i := range all {
			if all[i].Site != c.Site {
				continue
			}
			all[i].PassedOver = ""
		}
	}
	return c, j.where, all
}

// NodesAt returns the nodes of a pool that have one of the addresses.
func (p *Pool) NodesAt(addrs []netip.Addr) (ids []model.NodeID) {
	for _, at := range p.nodes {
		for _, n := range at {
			if slices.ContainsFunc(n.addrs, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
				ids = append(ids, n.id)
			}
		}
	}
	return ids
}
