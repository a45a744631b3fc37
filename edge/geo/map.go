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

// SiteRTT is what a site's nodes measured towards a network.
type SiteRTT struct {
	Site model.SiteName
	RTT  time.Duration
}

// NetworkRTT is what is measured towards a client network.
type NetworkRTT struct {
	Prefix netip.Prefix
	Sites  []SiteRTT
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
	country  map[string]point
}

type siteRTT struct {
	site int32
	ms   float64
}

// NewMap works out what is known. db may be nil.
func NewMap(sites []model.Site, s model.Steering, db *Database, rtts []NetworkRTT) *Map {
	m := &Map{db: db, fallback: 0}
	if db != nil {
		m.country = centres()
	}
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
	for _, n := range s.Networks {
		m.rules.insert(n.Prefix, len(m.ruleSite))
		m.ruleSite = append(m.ruleSite, int32(m.index(n.Site)))
	}
	for _, n := range rtts {
		var list []siteRTT
		for _, r := range n.Sites {
			if i := m.index(r.Site); i >= 0 {
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
	scores []float64 // estimated round trip to each site, milliseconds
	km     []float64 // great circle to each site; negative: unknown
	rtt    []float64 // measured round trip; negative: none
	list   []netip.Addr
	ranked []ranked
}

// judgement is what a Map knows for one client; the scores are in the scratch.
type judgement struct {
	source Source
	scope  int // length of the network for which all of it is so
	forced int // site by the operator's networks; -1: none
	where  Location
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
	from, ok := m.locate(client, &j)
	if !ok {
		if n > 0 {
			from = m.sites[m.fallback].at
		}
	}
	for i := range m.sites {
		s.rtt[i], s.km[i] = -1, -1
		chord := from.chord(m.sites[i].at)
		s.scores[i] = chord * unknownWorse
		if !m.sites[i].placed {
			s.scores[i] = 4 * unknownWorse // as if it were at the antipodes
		}
		if ok {
			if m.sites[i].placed {
				s.km[i] = kilometres(chord)
				s.scores[i] = s.km[i] * rttPerKilometre
			}
			continue
		}
		if i == m.fallback {
			s.scores[i] = 0.5 * defaultScore
		} else {
			s.scores[i] += defaultScore
		}
	}
	if known >= 0 {
		for _, r := range m.measured[known] {
			s.scores[r.site], s.rtt[r.site] = r.ms, r.ms
		}
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
	if p, ok := m.country[where.Country]; ok {
		j.source = SourceCountry
		return p, true
	}
	return point{}, false
}
