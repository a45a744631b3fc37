package announce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Phase is where a prefix stands on this node.
type Phase uint8

// The phases.
const (
	Withdrawn Phase = iota
	Announced
	Draining // announced as less wanted
)

// Entry is one prefix and what becomes of it.
type Entry struct {
	Prefix netip.Prefix
	Pools  []model.PoolName
	Phase  Phase
	Reason string
	Since  time.Time // of the phase
	Held   bool      // by the floor
	Out    time.Time // since when this node wants it withdrawn; zero: it does not
	needed bool      // somebody uses it
}

// Doors is how many listening sockets of an address are open, and how many should be and are not.
type Doors struct{ Open, Missing int }

// Member is what gossip says about another node that is alive.
type Member struct {
	Announcing bool // it announces everything that it is to announce
	WantsOut   bool // it wants to withdraw something
}

// Input is all that a decision rests on. Tunnels and controllers are not in it, on purpose.
type Input struct {
	Snapshot *model.Snapshot // nil: none yet
	Self     model.NodeID
	Doors    map[netip.Addr]Doors
	Leaving  bool      // the process is ending
	Started  time.Time // of this process
	Fleet    map[model.NodeID]Member
	Previous []Entry
	Now      time.Time
}

// Plan is what this node is to announce.
type Plan struct {
	Off     string // why it announces nothing at all; "": see Entries
	Site    model.SiteName
	BGP     model.SiteBGP
	Peers   []model.BGPPeer
	Entries []Entry   // by prefix
	Wake    time.Time // when another decision may come out differently by itself; zero: never
}

// Decide works out what to announce. It is pure: the same input gives the same plan.
func Decide(in Input) Plan {
	if in.Snapshot == nil {
		return Plan{Off: "there is no snapshot yet"}
	}
	self := in.Snapshot.Node(in.Self)
	switch {
	case self == nil:
		return Plan{Off: "this node is not in the snapshot"}
	case !self.Edge:
		return Plan{Off: "this node is no edge"}
	}
	site := in.Snapshot.Site(self.Site)
	if site == nil || site.BGP == nil {
		return Plan{Off: fmt.Sprintf("site %s has no BGP", self.Site)}
	}
	d := decision{Input: in, self: self, site: site, plan: Plan{Site: site.Name, BGP: *site.BGP}}
	for _, p := range in.Snapshot.Peers(self) {
		d.plan.Peers = append(d.plan.Peers, *p)
	}
	for _, e := range d.prefixes() {
		d.decide(e)
	}
	return d.plan
}

type decision struct {
	Input
	self *model.Node
	site *model.Site
	plan Plan
}

// prefixes returns what could be announced, with what became of it before.
func (d *decision) prefixes() []Entry {
	var all []Entry
	for i := range d.Snapshot.Pools {
		p := &d.Snapshot.Pools[i]
		if !d.site.BGP.Announces(p) {
			continue
		}
		for _, prefix := range p.Prefixes {
			prefix = model.Aggregate(d.Snapshot.AnnounceAggregates, prefix)
			at := slices.IndexFunc(all, func(e Entry) bool { return e.Prefix == prefix })
			if at < 0 {
				at = len(all)
				all = append(all, Entry{Prefix: prefix})
			}
			if !slices.Contains(all[at].Pools, p.Name) {
				all[at].Pools = append(all[at].Pools, p.Name)
			}
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	for i := range all {
		for _, before := range d.Previous {
			if before.Prefix == all[i].Prefix {
				before.Pools = all[i].Pools
				all[i] = before
			}
		}
	}
	return all
}

// wish is what a prefix would be if this node were alone.
type wish struct {
	up     bool
	sick   bool // it cannot serve: nobody asked for that
	needed bool
	reason string
}

func (d *decision) decide(e Entry) {
	w := d.wish(&e)
	e.needed, e.Held = w.needed, false
	before := e.Phase
	switch {
	case w.up:
		e.Phase, e.Reason, e.Out = Announced, w.reason, time.Time{}
	case e.Phase == Withdrawn:
		e.Reason, e.Out = w.reason, time.Time{}
	default:
		d.leave(&e, w)
	}
	if e.Phase != before || e.Since.IsZero() {
		e.Since = d.Now
	}
	d.plan.Entries = append(d.plan.Entries, e)
}

// leave takes a prefix that is announced out of use, as far as the floor allows.
func (d *decision) leave(e *Entry, w wish) {
	if e.Out.IsZero() {
		e.Out = d.Now
	}
	if d.Leaving { // the process ends in any case: better with notice
		d.drain(e, w)
		return
	}
	if held := d.floor(e); held != "" {
		e.Phase, e.Held, e.Reason = Announced, true, w.reason+"; "+held
		return
	}
	if !w.sick {
		d.drain(e, w)
		return
	}
	if at := e.Out.Add(floorWait); d.Now.Before(at) {
		e.Phase, e.Reason = Announced, w.reason+"; first the others are asked whether they want out, too"
		d.wake(at)
		return
	}
	e.Phase, e.Reason = Withdrawn, w.reason
}

// drain makes a prefix less wanted for a time, and then withdraws it.
func (d *decision) drain(e *Entry, w wish) {
	since := e.Since
	if e.Phase != Draining {
		since = d.Now
	}
	at := since.Add(d.site.BGP.DrainTime)
	if !d.Now.Before(at) {
		e.Phase, e.Reason = Withdrawn, w.reason
		return
	}
	e.Phase, e.Reason = Draining, w.reason
	d.wake(at)
}

func (d *decision) wake(at time.Time) {
	if d.plan.Wake.IsZero() || at.Before(d.plan.Wake) {
		d.plan.Wake = at
	}
}

// wish judges one prefix by what this node knows about itself.
func (d *decision) wish(e *Entry) wish {
	users, doors := 0, Doors{}
	for i := range d.Snapshot.Accelerators {
		a := &d.Snapshot.Accelerators[i]
		if !a.Enabled {
			continue
		}
		for _, addr := range a.Addresses {
			if e.Prefix.Contains(addr) {
				users++
				doors.Open += d.Doors[addr].Open
				doors.Missing += d.Doors[addr].Missing
			}
		}
	}
	bgp, needed := d.site.BGP, users > 0
	switch {
	case d.Leaving:
		return wish{needed: needed, reason: "this node is stopping"}
	case d.self.State == model.NodeDraining:
		return wish{reason: "this node is drained (nearcast node restore)"}
	case bgp.Drained:
		return wish{reason: "the site's announcements are drained (nearcast announce restore)"}
	case d.self.AnnounceDrained:
		return wish{reason: "this node's announcements are drained (nearcast announce restore)"}
	case !needed:
		return wish{reason: "no enabled accelerator has an address in it"}
	case doors.Open == 0 && doors.Missing == 0:
		return wish{reason: "no listener has an address in it"}
	case doors.Open == 0:
		return wish{sick: true, needed: true,
			reason: fmt.Sprintf("none of its %d listening sockets is open", doors.Missing)}
	case doors.Missing > 0 && e.Phase == Withdrawn && d.Now.Before(d.Started.Add(partialAfter)):
		d.wake(d.Started.Add(partialAfter))
		return wish{needed: true,
			reason: fmt.Sprintf("waiting for %d of %d listening sockets", doors.Missing, doors.Open+doors.Missing)}
	case doors.Missing > 0:
		return wish{up: true, needed: true, reason: fmt.Sprintf("served here, but for %d of %d listening sockets",
			doors.Missing, doors.Open+doors.Missing)}
	}
	return wish{up: true, needed: true, reason: "served here"}
}

// floor says why this node must keep announcing a prefix, or "". Other sites count only if they are known
// to announce it and to want nothing else: without gossip nobody is known, and everything is kept. Of the
// sites that want out, the first by name make up what is missing, and all know which those are.
func (d *decision) floor(e *Entry) string {
	stay, want := map[model.SiteName]bool{}, map[model.SiteName]bool{d.site.Name: true}
	for i := range d.Snapshot.Nodes {
		n := &d.Snapshot.Nodes[i]
		m, alive := d.Fleet[n.ID]
		if n.ID == d.Self || !alive || !n.Edge || !m.Announcing && !m.WantsOut || !d.announcedAt(n.Site, e) {
			continue
		}
		switch {
		case m.WantsOut || n.State != model.NodeActive || n.AnnounceDrained || d.Snapshot.Site(n.Site).BGP.Drained:
			want[n.Site] = true
		default:
			stay[n.Site] = true
		}
	}
	floor := max(d.Snapshot.AnnounceFloor, model.DefaultAnnounceFloor)
	missing := floor - len(stay)
	if missing <= 0 || stay[d.site.Name] {
		return ""
	}
	before := 0
	for s := range want {
		if s < d.site.Name && !stay[s] {
			before++
		}
	}
	if before >= missing {
		return ""
	}
	return fmt.Sprintf("kept, since at least %d sites announce a prefix and %d others do for sure", floor, len(stay))
}

// announcedAt reports whether a site is to announce any of a prefix's pools.
func (d *decision) announcedAt(name model.SiteName, e *Entry) bool {
	s := d.Snapshot.Site(name)
	if s == nil || s.BGP == nil || s.BGP.DryRun {
		return false
	}
	return slices.ContainsFunc(e.Pools, func(name model.PoolName) bool {
		p := d.Snapshot.Pool(name)
		return p != nil && s.BGP.Announces(p)
	})
}

// gone reports whether nothing of a plan is announced any more.
func (p *Plan) gone() bool {
	return !slices.ContainsFunc(p.Entries, func(e Entry) bool { return e.Phase != Withdrawn })
}

// complete reports whether all that somebody uses is announced, and wanted so.
func (p *Plan) complete() bool {
	used := 0
	for _, e := range p.Entries {
		if e.needed {
			used++
			if e.Phase != Announced || !e.Out.IsZero() {
				return false
			}
		}
	}
	return used > 0
}

// wantsOut reports whether something is announced that this node wants withdrawn.
func (p *Plan) wantsOut() bool {
	return slices.ContainsFunc(p.Entries, func(e Entry) bool { return e.Phase != Withdrawn && !e.Out.IsZero() })
}
