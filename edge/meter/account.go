package meter

import (
	"net/netip"
	"sync"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Sample is how much a flow has carried since it began. Packet counts wrap around, as the kernel's do.
type Sample struct {
	PacketsIn, PacketsOut uint32
	BytesIn, BytesOut     uint64 // without headers
	Options               uint8  // bytes of TCP options in each packet
}

// Carried is what went over the wire, with all headers from IP on.
type Carried struct {
	PacketsIn, PacketsOut, BytesIn, BytesOut uint64
}

// Ending says who ended a flow.
type Ending uint8

// The endings.
const (
	Ended           Ending = iota // in good order, or idle
	ResetByClient                 //
	ResetByEndpoint               //
	ResetByNearcast               //
	endings
	Unserved // reset, too: there was no endpoint for it
)

// Account is what one flow has carried. Its flow embeds it; the zero value counts nothing until Begin.
type Account struct {
	protocol model.Protocol
	to       netip.AddrPort // the accelerated address
	listener *Listener

	mu   sync.Mutex // held briefly; guards what follows
	path Path
	from time.Time // of the present window
	cell *Cell     // nil: no group has taken the flow
	seen Sample    // what was folded
	over bool
}

// Begin says whose flow it is: of which listener and client, and by which accelerated address it came.
func (a *Account) Begin(l *Listener, p model.Protocol, client, to netip.AddrPort) {
	a.listener, a.protocol, a.to, a.path.Client, a.from = l, p, to, client, time.Now()
}

// Via says what has become known of the flow's path. What is not valid in it stays as it was.
func (a *Account) Via(p Path) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.Client.IsValid() {
		a.path.Client = p.Client
	}
	if p.Endpoint.IsValid() {
		a.path.Endpoint, a.path.Source = p.Endpoint, p.Source
	}
}

// Serve says which group has taken the flow. A flow that goes on to another group is no new one. What it
// carried before, as far as it was folded, stays where it was counted.
func (a *Account) Serve(g *model.EndpointGroup) {
	c := a.listener.Cell(a.key(g.ID, g.Region))
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.over || a.cell == c:
		return
	case a.cell == nil:
		c.flows.Add(1)
	default:
		a.cell.active.Add(-1)
	}
	a.cell = c
	c.active.Add(1)
}

func (a *Account) key(g model.GroupID, r model.RegionName) Key {
	return Key{Group: g, Region: r, Protocol: a.protocol, Address: a.to.Addr()}
}

// Fold adds what the flow has carried since the last time to its group's counts.
func (a *Account) Fold(now Sample) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over && a.cell != nil {
		a.fold(a.cell, now)
	}
}

// fold adds what is new.
func (a *Account) fold(c *Cell, now Sample) {
	d := a.news(now)
	if d == (Carried{}) && !a.over {
		return
	}
	a.window(c, d, "")
	c.add(d)
}

func (c *Cell) add(d Carried) {
	c.packetsIn.Add(d.PacketsIn)
	c.packetsOut.Add(d.PacketsOut)
	c.bytesIn.Add(d.BytesIn)
	c.bytesOut.Add(d.BytesOut)
}

// window hands on what a flow has carried since the last time. The caller holds mu.
func (a *Account) window(c *Cell, d Carried, rejected string) {
	l := a.listener
	if !l.wanted() {
		a.from = time.Time{}
		return
	}
	now := time.Now()
	if a.from.IsZero() || now.Sub(a.from) > period { // it was quiet, or not wanted, before
		a.from = now.Add(-period)
	}
	l.m.cfg.Window(Window{
		Accelerator: l.accelerator, Listener: l.id, Group: c.key.Group, Region: c.key.Region,
		Protocol: a.protocol, Path: a.path, Accelerated: a.to, Carried: d, Start: a.from, End: now, Rejected: rejected,
	})
	a.from = now
}

func (l *Listener) wanted() bool {
	return l.m.cfg.Wanted != nil && l.m.cfg.Window != nil && l.m.cfg.Wanted(l.accelerator)
}

// news returns what a sample says beyond the last one. One that is older adds nothing: two goroutines may
// have asked the kernel at once. The caller holds mu.
func (a *Account) news(now Sample) Carried {
	header := headerBytes(a.protocol, a.to.Addr()) + uint64(now.Options)
	var d Carried
	d.PacketsIn = grown(&a.seen.PacketsIn, now.PacketsIn)
	d.PacketsOut = grown(&a.seen.PacketsOut, now.PacketsOut)
	d.BytesIn, d.BytesOut = d.PacketsIn*header, d.PacketsOut*header
	if now.BytesIn > a.seen.BytesIn {
		d.BytesIn += now.BytesIn - a.seen.BytesIn
		a.seen.BytesIn = now.BytesIn
	}
	if now.BytesOut > a.seen.BytesOut {
		d.BytesOut += now.BytesOut - a.seen.BytesOut
		a.seen.BytesOut = now.BytesOut
	}
	return d
}

// grown returns how much a count that wraps around has grown, and keeps it. What seems to have grown by
// more than half of its range is older.
func grown(seen *uint32, now uint32) uint64 {
	d := now - *seen
	if d == 0 || d > 1<<31 {
		return 0
	}
	*seen = now
	return uint64(d)
}

// headerBytes are those of IP and TCP or UDP, without options.
func headerBytes(p model.Protocol, a netip.Addr) uint64 {
	n := uint64(20)
	if a.Is6() {
		n = 40
	}
	if p == model.UDP {
		return n + 8
	}
	return n + 20
}

// Close folds the last of a flow and counts its end. A flow that no group has taken is counted without
// one. Closing twice does nothing; neither does closing what was not begun.
func (a *Account) Close(now Sample, how Ending) {
	if a.listener == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	a.over = true
	c := a.cell
	if c == nil {
		c = a.listener.Cell(a.key("", ""))
	} else {
		c.active.Add(-1)
	}
	if how == Unserved {
		c.unserved.Add(1)
		how = ResetByNearcast
		d := a.news(now)
		c.add(d)
		a.window(c, d, "no_endpoint")
	} else {
		a.fold(c, now)
	}
	if how != Ended && a.protocol == model.TCP {
		c.resets[how].Add(1)
	}
}

// Refuse counts a flow that was not admitted, or, as Unserved, one for which there is no way. why is one
// word.
func (l *Listener) Refuse(p model.Protocol, client, to netip.AddrPort, how Ending, why string) {
	c := l.Cell(Key{Protocol: p, Address: to.Addr()})
	if how == Unserved {
		c.unserved.Add(1)
	}
	if p == model.TCP {
		c.resets[ResetByNearcast].Add(1)
	}
	if l.wanted() {
		now := time.Now()
		l.m.cfg.Window(Window{Accelerator: l.accelerator, Listener: l.id, Protocol: p, Path: Path{Client: client},
			Accelerated: to, Start: now, End: now, Rejected: why})
	}
}
