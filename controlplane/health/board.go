package health

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Key names one endpoint of one group.
type Key struct {
	Group    model.GroupID
	Endpoint model.EndpointID
}

func (k Key) compare(o Key) int {
	return cmp.Or(strings.Compare(string(k.Group), string(o.Group)),
		strings.Compare(string(k.Endpoint), string(o.Endpoint)))
}

// Verdict is what the cluster holds of an endpoint.
type Verdict struct {
	State model.HealthState
	// Reason says in words why it is not healthy, or why it is called healthy although its probers
	// say otherwise. Empty when there is nothing to say.
	Reason string
	Since  time.Time // when State came to be
}

// Report is one prober's own verdict on one endpoint.
type Report struct {
	Key
	State   model.HealthState
	Reason  string
	Since   time.Time     // when the prober's verdict came to be
	Latency time.Duration // of its last successful probe; 0: unknown
}

// ProberReport is a report with who made it.
type ProberReport struct {
	Prober string // node id, or ControllerProber
	Report
}

// ControllerProber is the prober's name when the controller itself probes.
const ControllerProber = "controller"

// Transition is a change of a published verdict.
type Transition struct {
	Key
	From, To Verdict
}

// Config of a Board. The zero value is right.
type Config struct {
	// StaleAfter is how long a report counts. Default 150 s: probers repeat everything each minute, and
	// two repetitions may get lost. Shorter forgets probers that are merely busy; longer lets a dead
	// one vote.
	StaleAfter time.Duration
	// RecoverHold is how long the probers must agree that an endpoint is well again before it is
	// published, after its first failure; each further failure within FlapMemory doubles it, up to
	// RecoverHoldMax. Defaults 5 s, 10 min, 5 min. It is dampening: the probers' own thresholds have
	// been met already.
	RecoverHold, RecoverHoldMax, FlapMemory time.Duration
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.StaleAfter, staleAfter}, {&c.RecoverHold, recoverHold},
		{&c.RecoverHoldMax, recoverHoldMax}, {&c.FlapMemory, flapMemory},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return c
}

// Board keeps the reports and the published verdicts of all endpoints. It is not safe for concurrent
// use: one goroutine owns it.
//
// How a verdict comes about:
//
//	reports ──votes──▶ opinion ──dampening──▶ wish ──largest share──▶ verdict
//
// Votes: every live prober that has decided counts once. An endpoint is unhealthy in their opinion if
// more than half of them say so; half is not enough, since a path that is cut in the middle of the
// fleet looks like that (R-HC4). Route 53 calls an endpoint healthy as soon as 18 % of its checkers do, but
// it has checkers all over the world, of which most see trouble that has nothing to do with the
// endpoint; ours stand in the endpoint's own region and are few. Without a live report there is no
// opinion, and the verdict stays: silence takes nobody out.
//
// Dampening: bad news is published at the next Tick, good news after everybody has agreed for a while
// without a break (Config.RecoverHold), longer each time it turned out wrong. An endpoint that flaps
// stays out. One that was never judged is published at the first opinion: INITIAL gets no traffic
// anyway, and new endpoints should not wait.
//
// Largest share: at most the given percentage of a group's endpoints of weight > 0, rounded down, is
// unhealthy at once; who failed first is out. The rest stay as they were, since so many at once are more
// likely a fault of the checks, or there is nothing to gain from it.
type Board struct {
	cfg    Config
	share  int // percent of a group that may be out
	groups map[model.GroupID]*group
	said   map[string]map[Key]bool // by prober: where its votes may be
	now    time.Time               // the latest that anybody said it was
}

type group struct {
	endpoints map[model.EndpointID]*endpoint
	wake      time.Time // decide no later than this; zero: at the next Tick
}

type endpoint struct {
	weighted bool // its weight is > 0
	votes    map[string]vote
	opinion  model.HealthState // HealthInitial: none
	since    time.Time         // opinion has been the same without a break
	verdict  Verdict
	failures []time.Time // published ones within FlapMemory, oldest first, at most failuresMax
}

type vote struct {
	Report
	heard time.Time
}

// New returns an empty Board.
func New(cfg Config) *Board {
	return &Board{
		cfg: cfg.withDefaults(), share: 100,
		groups: map[model.GroupID]*group{}, said: map[string]map[Key]bool{},
	}
}

// SetGroups tells the Board which endpoints exist and the share of a group (percent) that verdicts may
// take out at once. Endpoints that it did not know begin as HealthInitial; what is not in groups any more
// is forgotten.
func (b *Board) SetGroups(now time.Time, groups []model.EndpointGroup, maxEjectionPercent int) {
	b.clock(now)
	kept := make(map[model.GroupID]*group, len(groups))
	for i := range groups {
		g := &groups[i]
		old := b.groups[g.ID]
		fresh := &group{endpoints: make(map[model.EndpointID]*endpoint, len(g.Endpoints))}
		for _, e := range g.Endpoints {
			known := (*endpoint)(nil)
			if old != nil {
				known = old.endpoints[e.ID]
			}
			if known == nil {
				known = &endpoint{since: now, verdict: Verdict{Since: now}}
			}
			known.weighted = e.Weight > 0
			fresh.endpoints[e.ID] = known
		}
		kept[g.ID] = fresh
	}
	b.groups, b.share = kept, maxEjectionPercent
}

// Restore makes verdicts that an earlier Board published the published ones here, so that a new leader
// continues where the old one ended. Keys that SetGroups did not name are ignored.
func (b *Board) Restore(now time.Time, verdicts map[Key]Verdict) {
	b.clock(now)
	for k, v := range verdicts {
		if g, e := b.find(k); e != nil {
			e.verdict, e.failures = v, nil
			if v.State == model.HealthUnhealthy {
				e.failures = []time.Time{now}
			}
			g.wake = time.Time{}
		}
	}
}

// Report takes what a prober said at time now. With complete set, what is not in reports is no longer
// probed by it. Reports on unknown endpoints are ignored.
func (b *Board) Report(now time.Time, prober string, reports []Report, complete bool) {
	b.clock(now)
	named := make(map[Key]bool, len(reports))
	for _, r := range reports {
		named[r.Key] = true
		g, e := b.find(r.Key)
		if e == nil {
			continue
		}
		if _, known := e.votes[prober]; !known && len(e.votes) >= votesMax {
			continue
		}
		if e.votes == nil {
			e.votes = map[string]vote{}
		}
		if len(r.Reason) > model.ReasonMax {
			r.Reason = strings.ToValidUTF8(r.Reason[:model.ReasonMax], "")
		}
		if b.said[prober] == nil {
			b.said[prober] = map[Key]bool{}
		}
		b.said[prober][r.Key] = true
		e.votes[prober] = vote{r, now}
		e.count(now)
		g.wake = time.Time{}
	}
	if complete {
		b.drop(prober, func(k Key) bool { return !named[k] })
	}
}

// Forget drops all that a prober said: it is gone or no longer authorised.
func (b *Board) Forget(prober string) {
	b.drop(prober, func(Key) bool { return true })
	delete(b.said, prober)
}

// drop takes a prober's votes away where which holds.
func (b *Board) drop(prober string, which func(Key) bool) {
	for k := range b.said[prober] {
		if !which(k) {
			continue
		}
		delete(b.said[prober], k)
		if g, e := b.find(k); e != nil {
			delete(e.votes, prober)
			e.count(b.now)
			g.wake = time.Time{}
		}
	}
}

// clock notes that it is now.
func (b *Board) clock(now time.Time) {
	if now.After(b.now) {
		b.now = now
	}
}

// Tick decides and returns the verdicts that changed, sorted by key. Call it after reports and at least
// once a second.
func (b *Board) Tick(now time.Time) []Transition {
	b.clock(now)
	var changed []Transition
	for id, g := range b.groups {
		if !g.wake.After(now) {
			changed = append(changed, b.decide(now, id, g)...)
		}
	}
	slices.SortFunc(changed, func(x, y Transition) int { return x.Key.compare(y.Key) })
	return changed
}

// Verdicts returns a copy of every published verdict.
func (b *Board) Verdicts() map[Key]Verdict {
	all := map[Key]Verdict{}
	for group, g := range b.groups {
		for id, e := range g.endpoints {
			all[Key{group, id}] = e.verdict
		}
	}
	return all
}

// Reports returns the live reports on one endpoint, sorted by prober.
func (b *Board) Reports(now time.Time, k Key) (live []ProberReport) {
	_, e := b.find(k)
	if e == nil {
		return nil
	}
	for _, prober := range slices.Sorted(maps.Keys(e.votes)) {
		if v := e.votes[prober]; now.Sub(v.heard) < b.cfg.StaleAfter {
			live = append(live, ProberReport{prober, v.Report})
		}
	}
	return live
}

func (b *Board) find(k Key) (*group, *endpoint) {
	if g := b.groups[k.Group]; g != nil {
		return g, g.endpoints[k.Endpoint]
	}
	return nil, nil
}

// count makes the votes an opinion.
func (e *endpoint) count(now time.Time) {
	healthy, unhealthy := e.tally()
	opinion := model.HealthInitial
	switch {
	case unhealthy > healthy:
		opinion = model.HealthUnhealthy
	case healthy > 0:
		opinion = model.HealthHealthy
	}
	if opinion != e.opinion {
		e.opinion, e.since = opinion, now
	}
}

func (e *endpoint) tally() (healthy, unhealthy int) {
	for _, v := range e.votes {
		switch v.State {
		case model.HealthHealthy:
			healthy++
		case model.HealthUnhealthy:
			unhealthy++
		}
	}
	return healthy, unhealthy
}

// decide brings the verdicts of one group up to date.
func (b *Board) decide(now time.Time, id model.GroupID, g *group) (changed []Transition) {
	g.wake = now.Add(decideAtLeast)
	later := func(t time.Time) {
		if t.Before(g.wake) {
			g.wake = t
		}
	}
	publish := func(e model.EndpointID, v Verdict) {
		was := &g.endpoints[e].verdict
		if was.State != v.State {
			changed = append(changed, Transition{Key{id, e}, *was, v})
			*was = v
		}
	}
	var out []model.EndpointID // who should be unhealthy
	weighted := 0
	for eid, e := range g.endpoints {
		if e.weighted {
			weighted++
		}
		e.expire(now, b.cfg.StaleAfter, later)
		switch wish, at := b.wish(now, e); {
		case wish == model.HealthUnhealthy:
			out = append(out, eid)
			if !at.IsZero() {
				later(at)
			}
		case wish == model.HealthHealthy:
			publish(eid, Verdict{State: wish, Since: now})
			e.verdict.Reason = ""
		}
	}
	slices.SortFunc(out, func(x, y model.EndpointID) int { return g.firstOut(x, y) })
	room := weighted * b.share / 100
	for _, eid := range out {
		e := g.endpoints[eid]
		if e.weighted && room == 0 {
			if e.verdict.State == model.HealthUnhealthy {
				publish(eid, Verdict{State: model.HealthHealthy, Since: now})
			}
			if e.verdict.State == model.HealthHealthy {
				e.verdict.Reason = fmt.Sprintf("kept in service, no more than %d %% may be out: %s",
					b.share, e.reason())
			}
			continue
		}
		if e.weighted {
			room--
		}
		if e.verdict.State == model.HealthHealthy {
			e.fail(now, b.cfg.FlapMemory)
		}
		publish(eid, Verdict{State: model.HealthUnhealthy, Reason: e.reason(), Since: now})
	}
	return changed
}

// wish is what e's verdict should be if its group allows; HealthInitial: what it is. If that will
// change by itself, at is when.
func (b *Board) wish(now time.Time, e *endpoint) (state model.HealthState, at time.Time) {
	switch {
	case e.opinion == model.HealthUnhealthy:
		return model.HealthUnhealthy, at
	case e.verdict.State != model.HealthUnhealthy:
		return e.opinion, at
	case e.opinion == model.HealthInitial: // silence keeps it out
		return model.HealthUnhealthy, at
	}
	if well := e.since.Add(b.hold(now, e)); well.After(now) {
		return model.HealthUnhealthy, well
	}
	return model.HealthHealthy, at
}

// hold is how long an endpoint must be well before it is believed.
func (b *Board) hold(now time.Time, e *endpoint) time.Duration {
	hold := b.cfg.RecoverHold
	recent := 0
	for _, t := range e.failures {
		if now.Sub(t) < b.cfg.FlapMemory {
			recent++
		}
	}
	for range recent - 1 {
		hold = min(2*hold, b.cfg.RecoverHoldMax)
	}
	return min(hold, b.cfg.RecoverHoldMax)
}

// fail remembers a published failure.
func (e *endpoint) fail(now time.Time, memory time.Duration) {
	e.failures = slices.DeleteFunc(e.failures, func(t time.Time) bool { return now.Sub(t) >= memory })
	e.failures = append(e.failures, now)
	if len(e.failures) > failuresMax {
		e.failures = e.failures[1:]
	}
}

// expire drops stale votes and says when the next one will be.
func (e *endpoint) expire(now time.Time, staleAfter time.Duration, later func(time.Time)) {
	dropped := false
	for prober, v := range e.votes {
		end := v.heard.Add(staleAfter)
		if end.After(now) {
			later(end)
			continue
		}
		delete(e.votes, prober)
		dropped = true
	}
	if dropped {
		e.count(now)
	}
}

// firstOut orders endpoints that should be unhealthy by who has the better claim: those that are, for
// the longest, and then those whose probers said so first.
func (g *group) firstOut(x, y model.EndpointID) int {
	a, b := g.endpoints[x], g.endpoints[y]
	isOut := func(e *endpoint) int {
		if e.verdict.State == model.HealthUnhealthy {
			return 0
		}
		return 1
	}
	order := cmp.Compare(isOut(a), isOut(b))
	if order == 0 && isOut(a) == 0 {
		order = a.verdict.Since.Compare(b.verdict.Since)
	}
	return cmp.Or(order, a.since.Compare(b.since), strings.Compare(string(x), string(y)))
}

// reason is what most of the probers that found e unhealthy say, and how many they are.
func (e *endpoint) reason() string {
	counts := map[string]int{}
	_, unhealthy := e.tally()
	for _, v := range e.votes {
		if v.State == model.HealthUnhealthy {
			counts[v.Reason]++
		}
	}
	if len(counts) == 0 {
		return e.verdict.Reason
	}
	reasons := slices.Sorted(maps.Keys(counts))
	best := slices.MaxFunc(reasons, func(x, y string) int {
		return cmp.Or(cmp.Compare(counts[x], counts[y]), strings.Compare(y, x))
	})
	if len(e.votes) > 1 {
		return fmt.Sprintf("%d of %d probers: %s", unhealthy, len(e.votes), best)
	}
	return best
}
