package geo

import (
	"math"
	"net/netip"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Only clients that come to a site are measured there. So a network that is always sent to the wrong site,
// because the database has it in the wrong place, would never be known to be nearer to another one. Therefore
// a small share of its answers names a site to which its round trip is not known, if physics allows that site
// to be nearer: light in fibre needs rttPerKilometreLight for the way between two sites, so a client that is
// 30 ms away from one of them cannot be near another one that is 100 ms from there.
const (
	// TrialSlot is how long a trial lasts, and what its answers' TTL is bounded by: all of a network's answers
	// in one stretch of time are alike, whichever node gives them.
	TrialSlot = secondTTL
	// trialGain is what a site must at least be able to save, in milliseconds.
	trialGain = 8
	// rttPerKilometreLight is a round trip's least, in milliseconds.
	rttPerKilometreLight = 0.01
)

// SlotAt returns Scratch.Slot for a time.
func SlotAt(now time.Time) uint64 { return uint64(now.Unix()) / uint64(TrialSlot/time.Second) }

// trial returns the site to be tried by this client's network now, or -1. s is as judge left it.
func (t *Table) trial(by [][]netip.Addr, client netip.Addr, best int, s *Scratch) int {
	if s.Slot == 0 || t.explore == 0 || s.rtt[best] < 0 {
		return -1
	}
	scope := 0
	h := mix(spread(client, &scope) ^ s.Slot*fnvPrime)
	if h%1000 >= t.explore {
		return -1
	}
	chosen, n := -1, uint64(0)
	for i := range by {
		if len(by[i]) == 0 || s.rtt[i] >= 0 || t.m.sites[i].weight == 0 || t.m.least(i, s) > s.rtt[best]-trialGain {
			continue
		}
		if n++; (h>>32)%n == 0 { // each of the n so far is as likely
			chosen = i
		}
	}
	return chosen
}

// least is the shortest round trip to a site that those which are measured allow.
func (m *Map) least(site int, s *Scratch) float64 {
	least := 0.0
	if !m.sites[site].placed {
		return least
	}
	for i := range s.rtt {
		if s.rtt[i] >= 0 && m.sites[i].placed {
			between := kilometres(m.sites[i].at.chord(m.sites[site].at)) * rttPerKilometreLight
			least = max(least, between-s.rtt[i])
		}
	}
	return least
}

// Direct estimates the round trip between a client and a region whose sites are given, from where the client
// is and what its line costs: rtt is what was measured between it and the site from. ok is false if the
// database does not know the client, or a site's place is not known.
func (m *Map) Direct(client netip.Addr, from model.SiteName, rtt time.Duration,
	region []model.SiteName) (time.Duration, Source, bool) {
	if m == nil {
		return 0, SourceDefault, false
	}
	var j judgement
	at, ok := m.locate(client, &j)
	if !ok {
		return 0, SourceDefault, false
	}
	own := m.indexPlaced(from)
	far := math.Inf(1)
	for _, name := range region {
		if i := m.indexPlaced(name); i >= 0 {
			far = min(far, kilometres(at.chord(m.sites[i].at))*rttPerKilometre)
		}
	}
	if own < 0 || math.IsInf(far, 1) {
		return 0, j.source, false
	}
	line := float64(rtt)/float64(time.Millisecond) - kilometres(at.chord(m.sites[own].at))*rttPerKilometre
	return time.Duration((far + max(line, 0)) * float64(time.Millisecond)), j.source, true
}

// indexPlaced is index for a site whose place is known.
func (m *Map) indexPlaced(name model.SiteName) int {
	i := m.index(name)
	if i >= 0 && !m.sites[i].placed {
		return -1
	}
	return i
}
