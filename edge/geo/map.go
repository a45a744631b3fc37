package geo

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Source is what decided which site is best.
type Source uint8

// The sources, strongest first.
const (
	SourceNetwork Source = iota + 1 // the operator's networks
	SourceRTT                       // measured round trips
	SourcePlace                     // coordinates by database
	SourceCountry                   // the middle of the country by database
	SourceDefault                   // nothing is known
)

func (s Source) String() string {
	return [...]string{"none", "network", "rtt", "place", "country", "default"}[min(s, SourceDefault)]
}

// site is a site as answers see it.
type site struct {
	name   model.SiteName
	at     point
	placed bool
	weight int // percent
}

// Map is what is known of clients and sites. It is immutable.
type Map struct {
	sites    []site // by name
	fallback int    // index of the default site
	rules    trie
	ruleSite []int32 // site by the values of rules; -1: a site that is not there
	rtt      trie
	measured [][]siteRTT // by the values of rtt
	db       *Database
	centres  map[string]point     // of countries; nil without databases
	country  map[string][]float64 // great circles from there to each site
	defaults []float64            // scores for clients about whom nothing is known
}

type siteRTT struct {
	site int32
	ms   float64
}

// NewMap works out what is known. db may be nil; of clients the round trips count.
func NewMap(sites []model.Site, s model.Steering, db *Database, clients []model.ClientNetwork) *Map {
	m := &Map{db: db, fallback: 0}
	weights := map[model.SiteName]int{}
	for _, w := range s.Weights {
		weights[w.Site] = w.Percent
	}
	for _, in := range sites {
		w, listed := weights[in.Name]
		if !listed {
			w = 100
		}
		m.sites = append(m.sites, site{
			name: in.Name, at: pointAt(in.Latitude, in.Longitude), weight: w,
			placed: in.Latitude != 0 || in.Longitude != 0, // 0,0 is what was never said, and open sea
		})
	}
	slices.SortFunc(m.sites, func(a, b site) int { return cmp.Compare(a.name, b.name) })
	m.fallback = max(m.index(s.DefaultSite), 0)
	m.distant()
	for _, n := range s.Networks {
		m.rules.insert(n.Prefix, len(m.ruleSite))
		m.ruleSite = append(m.ruleSite, int32(m.index(n.Site)))
	}
	if s.IgnoreRTT {
		clients = nil
	}
	for _, n := range clients {
		var list []siteRTT
		for _, r := range n.Sites {
			if i := m.index(r.Site); i >= 0 && r.RTT > 0 {
				list = append(list, siteRTT{int32(i), float64(r.RTT) / float64(time.Millisecond)})
			}
		}
		if len(list) > 0 {
			m.rtt.insert(n.Prefix, len(m.measured))
			m.measured = append(m.measured, list)
		}
	}
	return m
}

// distant works out once what does not depend on the client.
func (m *Map) distant() {
	if m.db != nil {
		m.centres, m.country = centres(), map[string][]float64{}
		for code, at := range m.centres {
			m.country[code] = m.distances(at)
		}
	}
	for i, s := range m.sites {
		switch {
		case i == m.fallback:
			m.defaults = append(m.defaults, 0.5*defaultScore)
		case s.placed:
			m.defaults = append(m.defaults, defaultScore+unknownWorse*m.sites[m.fallback].at.chord(s.at))
		default:
			m.defaults = append(m.defaults, defaultScore+unknownWorse*4) // as if it were at the antipodes
		}
	}
}

// index returns a site's index, or -1.
func (m *Map) index(name model.SiteName) int {
	i, ok := slices.BinarySearchFunc(m.sites, name, func(s site, n model.SiteName) int { return cmp.Compare(s.name, n) })
	if !ok {
		return -1
	}
	return i
}

// Scratch is the working memory of one goroutine's choices.
type Scratch struct {
	// Slot is the present stretch of time, by which trials take turns; 0: there are none.
	Slot uint64

	scores []float64 // estimated round trip to each site, milliseconds
	km     []float64 // great circle to each site; negative: unknown
	rtt    []float64 // measured round trip; negative: none
	list   []netip.Addr
	ranked []ranked
	places places
}

// judgement is what a Map knows for one client; the scores are in the scratch.
type judgement struct {
	source Source
	scope  int // length of the network for which all of it is so
	forced int // site by the operator's networks; -1: none
	where  Location
	// measured says that a round trip to some site is known.
	measured bool
}

// judge fills s.scores. Lower is better; every site has a finite score.
func (m *Map) judge(client netip.Addr, s *Scratch) judgement {
	n := len(m.sites)
	s.scores = slices.Grow(s.scores[:0], n)[:n]
	s.rtt = slices.Grow(s.rtt[:0], n)[:n]
	s.km = slices.Grow(s.km[:0], n)[:n]
	j := judgement{forced: -1, source: SourceDefault}
	rule, scope := m.rules.find(client)
	j.scope = scope
	if rule >= 0 {
		j.forced = int(m.ruleSite[rule])
	}
	known, scope := m.rtt.find(client)
	j.scope = max(j.scope, scope)
	km := m.near(client, &j, s)
	for i := range m.sites {
		s.rtt[i], s.km[i] = -1, -1
		switch {
		case km == nil:
			s.scores[i] = m.defaults[i]
		case m.sites[i].placed:
			s.km[i], s.scores[i] = km[i], km[i]*rttPerKilometre
		default:
			s.scores[i] = 4 * unknownWorse // as if it were at the antipodes
		}
	}
	if known >= 0 {
		j.measured = true
		m.measure(m.measured[known], km != nil, s)
	}
	if j.forced >= 0 {
		s.scores[j.forced] = math.Inf(-1)
		j.source = SourceNetwork
	} else if known >= 0 {
		best := 0
		for i := range s.scores {
			if s.scores[i] < s.scores[best] {
				best = i
			}
		}
		if s.rtt[best] >= 0 {
			j.source = SourceRTT
		}
	}
	return j
}

// measure replaces guesses by what is measured. What a client's own line costs is in every round trip to it
// and in no distance: guesses for the other sites, if there are real ones, are made longer by the least that
// a measured one exceeds its guess by.
func (m *Map) measure(known []siteRTT, placed bool, s *Scratch) {
	line := math.Inf(1)
	for _, r := range known {
		if s.km[r.site] >= 0 {
			line = min(line, r.ms-s.scores[r.site])
		}
		s.rtt[r.site] = r.ms
	}
	for i := range s.scores {
		switch {
		case s.rtt[i] >= 0:
			s.scores[i] = s.rtt[i]
		case placed && s.km[i] >= 0 && line > 0 && !math.IsInf(line, 1):
			s.scores[i] += line
		}
	}
}

const (
	// defaultScore stands for a client about whom nothing is known: more than any round trip, so that
	// what is measured comes first.
	defaultScore = 10_000
	// unknownWorse makes chords (at most 4) of places that are guesses worse than estimates of real ones.
	unknownWorse = 1_000
)

// locate returns where a client is.
func (m *Map) locate(client netip.Addr, j *judgement) (point, bool) {
	if m.db == nil {
		return point{}, false
	}
	where, scope := m.db.Lookup(client)
	j.scope, j.where = max(j.scope, scope), where
	if where.Placed {
		j.source = SourcePlace
		return pointAt(where.Latitude, where.Longitude), true
	}
	if p, ok := m.centres[where.Country]; ok {
		j.source = SourceCountry
		return p, true
	}
	return point{}, false
}
