package announce

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/bfd"
	"github.com/nearcast/nearcast/proto/model"
)

// Config configures an Announcer. Self, Doors and Fleet are needed.
type Config struct {
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered

	Self model.NodeID
	// DataDir keeps a mark while something is announced, by which a speaker knows that it has restarted.
	// Empty: it never says so.
	DataDir string
	// Doors returns the state of the listening sockets by address, Fleet the other nodes that gossip has
	// for alive. They are asked often and must not block.
	Doors func() map[netip.Addr]Doors
	Fleet func() map[model.NodeID]Member
	// OnChange is called after anything that Report, Gossip or Gone return has changed, from Run's
	// goroutine. It must not wait for this Announcer.
	OnChange func()
}

// Announcer is this node's BGP speaker and its mind. Its methods may be called from any goroutine.
type Announcer struct {
	cfg     Config
	metrics *metrics
	wake    chan struct{} // 1
	bfd     *bfd.Server
	down    chan netip.Addr // routers that BFD has for dead

	snapshot atomic.Pointer[model.Snapshot]
	leaving  atomic.Bool
	state    atomic.Pointer[state]

	// Owned by Run's goroutine.
	speaker *speaker
	began   time.Time
	goneAt  time.Time // since when nothing is announced; zero: something is
	watched []bfd.Peer
	marked  bool
}

// state is what others may see. It is immutable.
type state struct {
	plan     Plan
	sessions []Session
	bfd      map[netip.Addr]string
	routerID netip.Addr
	problem  string
	gone     bool // and packets had the time to go elsewhere
}

// New returns an Announcer that does nothing until Run.
func New(cfg Config) (*Announcer, error) {
	if cfg.Self == "" || cfg.Doors == nil || cfg.Fleet == nil {
		return nil, fmt.Errorf("announce: Self, Doors and Fleet must be set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func() {}
	}
	a := &Announcer{cfg: cfg, wake: make(chan struct{}, 1), down: make(chan netip.Addr, 64)}
	a.state.Store(&state{plan: Plan{Off: "there is no snapshot yet"}, gone: true})
	a.speaker = newSpeaker(cfg.Log, a.Poke)
	a.bfd = bfd.New(bfd.Config{Log: cfg.Log, Metrics: cfg.Metrics, OnChange: a.onBFD})
	a.metrics = newMetrics(cfg.Metrics, a)
	return a, nil
}

// SetSnapshot has announcements follow a snapshot, which has taken effect in all else.
func (a *Announcer) SetSnapshot(s *model.Snapshot) {
	a.snapshot.Store(s)
	a.Poke()
}

// Poke has the announcements worked out anew soon.
func (a *Announcer) Poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Leave has everything drained and withdrawn, since the process ends; Gone tells when it is done.
func (a *Announcer) Leave() {
	a.leaving.Store(true)
	a.Poke()
}

// Gone reports whether nothing is announced any more, long enough for packets to go elsewhere by now.
func (a *Announcer) Gone() bool { return a.state.Load().gone }

// Gossip returns what the others need to know for the floor: whether this node announces all that it is
// to announce, and whether it wants to withdraw something.
func (a *Announcer) Gossip() Member {
	s := a.state.Load()
	up := slices.ContainsFunc(s.sessions, func(x Session) bool { return x.State == "established" })
	return Member{Announcing: up && s.plan.complete(), WantsOut: up && s.plan.wantsOut()}
}

// onBFD hears of a router from BFD.
func (a *Announcer) onBFD(peer netip.Addr, _ bfd.State, failed bool) {
	if failed {
		select {
		case a.down <- peer:
		default: // the session's own hold time is left
		}
	}
	a.Poke()
}

// Run speaks until ctx ends, and then closes all sessions in order.
func (a *Announcer) Run(ctx context.Context) error {
	a.began = time.Now()
	a.speaker.restart = a.wasAnnouncing()
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		_ = a.bfd.Run(ctx) // has no error to say
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		a.turn(time.Now())
		select {
		case <-ctx.Done():
			a.speaker.close()
			<-watch
			a.mark(false)
			return nil
		case addr := <-a.down:
			a.cfg.Log.Warn("BFD has a router for dead: its session is reset", "peer", addr)
			a.metrics.bfdResets.Inc()
			a.speaker.reset(addr)
		case <-a.wake:
		case <-tick.C:
		}
	}
}

// turn decides and acts once.
func (a *Announcer) turn(now time.Time) {
	before := a.state.Load()
	snapshot := a.snapshot.Load()
	plan := Decide(Input{
		Snapshot: snapshot, Self: a.cfg.Self, Doors: a.cfg.Doors(), Fleet: a.cfg.Fleet(),
		Leaving: a.leaving.Load(), Started: a.began, Previous: before.plan.Entries, Now: now,
	})
	next := &state{plan: plan, bfd: map[netip.Addr]string{}}
	if plan.Off == "" {
		next.routerID = routerID(&plan, snapshot.Node(a.cfg.Self))
	}
	// A restarted speaker first has its routes together: what is missing when it says End-of-RIB, routers
	// drop (RFC 4724 4.2).
	if a.speaker.restart && now.Before(a.began.Add(restartWait)) && !plan.complete() {
		plan.Peers = nil
	}
	if !plan.gone() && !plan.BGP.DryRun {
		a.mark(true)
	}
	if err := a.speaker.apply(&plan, next.routerID); err != nil {
		next.problem = err.Error()
		if before.problem != next.problem {
			a.cfg.Log.Error("BGP", "error", err)
		}
	}
	next.sessions = a.speaker.look(&next.plan)
	a.watch(&plan, next)
	switch {
	case !plan.gone() && !plan.BGP.DryRun:
		a.goneAt = time.Time{}
	case a.goneAt.IsZero():
		a.goneAt = now
	}
	// What was gone before stays so without another wait.
	next.gone = !a.goneAt.IsZero() && (before.gone || now.Sub(a.goneAt) >= settleAfter)
	a.say(before, next)
	a.state.Store(next)
	if !next.same(before) {
		a.cfg.OnChange()
	}
}

// watch has BFD follow the sessions that want it.
func (a *Announcer) watch(p *Plan, next *state) {
	var want []bfd.Peer
	for _, b := range p.Peers {
		if b.BFD && !b.Disabled && !p.BGP.DryRun {
			want = append(want, bfd.Peer{Addr: b.Address, Local: b.LocalAddress,
				Params: bfd.Params{Interval: b.BFDInterval, Multiplier: b.BFDMultiplier}})
		}
	}
	if !slices.Equal(want, a.watched) {
		a.watched = want
		if err := a.bfd.SetPeers(want); err != nil {
			a.cfg.Log.Error("BFD", "error", err)
			next.problem = err.Error()
		}
	}
	for _, w := range want {
		next.bfd[w.Addr] = a.bfd.State(w.Addr).String()
	}
}

// say logs what has changed, one line a prefix.
func (a *Announcer) say(before, next *state) {
	for _, e := range next.plan.Entries {
		i := slices.IndexFunc(before.plan.Entries, func(b Entry) bool { return b.Prefix == e.Prefix })
		if i >= 0 && before.plan.Entries[i].Phase == e.Phase && before.plan.Entries[i].Held == e.Held {
			continue
		}
		if i < 0 && e.Phase == Withdrawn {
			continue
		}
		a.metrics.changes.WithLabelValues(phaseText[e.Phase]).Inc()
		a.cfg.Log.Info("announcement", "prefix", e.Prefix, "phase", phaseText[e.Phase], "reason", e.Reason)
	}
}

var phaseText = map[Phase]string{Withdrawn: "withdrawn", Announced: "announced", Draining: "draining"}

// same reports whether nobody needs to be told of s after o.
func (s *state) same(o *state) bool {
	return s.gone == o.gone && s.problem == o.problem && s.plan.Off == o.plan.Off &&
		slices.EqualFunc(s.plan.Entries, o.plan.Entries, func(a, b Entry) bool {
			return a.Prefix == b.Prefix && a.Phase == b.Phase && a.Reason == b.Reason && a.Held == b.Held && a.Out == b.Out
		}) &&
		slices.EqualFunc(s.sessions, o.sessions, func(a, b Session) bool {
			return a.Peer.Name == b.Peer.Name && a.State == b.State && a.Reason == b.Reason &&
				slices.Equal(a.Announced, b.Announced) && s.bfd[a.Peer.Address] == o.bfd[a.Peer.Address]
		})
}

// routerID names this speaker: as configured, by its own IPv4 address, or by its id.
func routerID(p *Plan, self *model.Node) netip.Addr {
	if p.BGP.RouterID.IsValid() {
		return p.BGP.RouterID
	}
	for _, b := range self.BackboneAddresses {
		if b.Addr().Is4() {
			return b.Addr()
		}
	}
	if self.GossipAddress.Addr().Is4() {
		return self.GossipAddress.Addr()
	}
	h := fnv.New32a()
	h.Write([]byte(self.ID))
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], h.Sum32()|1)
	return netip.AddrFrom4(b)
}

func (a *Announcer) markPath() string { return filepath.Join(a.cfg.DataDir, "announcing") }

// wasAnnouncing reports whether the process before this one ended while it announced something.
func (a *Announcer) wasAnnouncing() bool {
	if a.cfg.DataDir == "" {
		return false
	}
	_, err := os.Stat(a.markPath())
	a.marked = err == nil
	return err == nil
}

// mark notes that something is announced, or that all was withdrawn in order. That it cannot be written
// costs a graceful restart, no more.
func (a *Announcer) mark(announcing bool) {
	if a.cfg.DataDir == "" || a.marked == announcing {
		return
	}
	a.marked = announcing
	var err error
	if announcing {
		err = os.WriteFile(a.markPath(), nil, 0o600)
	} else {
		err = os.Remove(a.markPath())
	}
	if err != nil {
		a.cfg.Log.Warn("note that prefixes are announced", "error", err)
	}
}
