package wan

import (
	"fmt"
	"net/netip"
	"time"
)

// Change is a set of changes to a running Fabric that takes effect as a whole: the engine sees either none or
// all of them. Packets already under way keep their due times, as on a real line, and order is kept: what is
// sent after a delay was lowered comes no earlier than what was sent before.
type Change struct{ plan *plan }

// Change calls fn and applies what it did to its argument, at once and together, unless fn returns an error.
func (f *Fabric) Change(fn func(*Change) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.plan.clone()
	if err := fn(&Change{plan: next}); err != nil {
		return fmt.Errorf("change fabric: %w", err)
	}
	f.engine.tables.Store(next.compile())
	f.plan = next
	return nil
}

// Set gives the Link with exactly these ends new parameters. Is there none, it makes one that passes the same
// shapers as the Link that has covered the pair so far: so two hosts can get a line of their own.
func (c *Change) Set(from, to string, p Params) error {
	return c.Update(from, to, func(old *Params) { *old = p })
}

// Update lets change alter the parameters that Set would replace.
func (c *Change) Update(from, to string, change func(*Params)) error {
	l, err := c.plan.linkNamed(from, to)
	if err != nil {
		return err
	}
	change(&l.Params)
	return c.plan.setLink(l)
}

// SetAccess replaces the access line of a host or place, or gives it one. Packets that wait before another
// stage at the moment in which it gets one may pass a stage twice.
func (c *Change) SetAccess(a Access) error { return c.plan.setAccess(a) }

// SetShaper replaces the parameters of a shaper.
func (c *Change) SetShaper(name string, p Params) error {
	if _, ok := c.plan.shapers[name]; !ok {
		return fmt.Errorf("no shaper %q", name)
	}
	return c.plan.setShaper(name, p)
}

// Cut drops everything that hosts covered by from send to hosts covered by to. The other direction is not
// touched, and what is under way arrives.
func (c *Change) Cut(from, to string) error { return c.Block(from, to, Everything) }

// Restore undoes all Cuts and Blocks with exactly these names.
func (c *Change) Restore(from, to string) error { return c.Unblock(from, to, Everything) }

// Block drops one or more protocols, one way: wan.UDP, wan.TCP, wan.ICMP or several with |.
func (c *Change) Block(from, to string, what Protocols) error {
	if err := c.plan.knownPair(from, to); err != nil {
		return fmt.Errorf("block %s to %s: %w", from, to, err)
	}
	c.plan.faults[pair{from, to}] |= what
	return nil
}

// Unblock undoes Block for the given protocols and exactly these names.
func (c *Change) Unblock(from, to string, what Protocols) error {
	if err := c.plan.knownPair(from, to); err != nil {
		return fmt.Errorf("unblock %s to %s: %w", from, to, err)
	}
	key := pair{from, to}
	if c.plan.faults[key] &^= what; c.plan.faults[key] == 0 {
		delete(c.plan.faults, key)
	}
	return nil
}

// Attach adds a Route, or replaces the one with the same Prefix and From.
func (c *Change) Attach(r Route) error { return c.plan.setRoute(r) }

// Detach removes the Route with this Prefix and From, if there is one.
func (c *Change) Detach(prefix netip.Prefix, from string) {
	delete(c.plan.routes, routeKey{prefix.Masked(), from})
}

// Set is Change with one Change.Set.
func (f *Fabric) Set(from, to string, p Params) error {
	return f.Change(func(c *Change) error { return c.Set(from, to, p) })
}

// Update is Change with one Change.Update.
func (f *Fabric) Update(from, to string, change func(*Params)) error {
	return f.Change(func(c *Change) error { return c.Update(from, to, change) })
}

// Cut is Change with one Change.Cut.
func (f *Fabric) Cut(from, to string) error {
	return f.Change(func(c *Change) error { return c.Cut(from, to) })
}

// Restore is Change with one Change.Restore.
func (f *Fabric) Restore(from, to string) error {
	return f.Change(func(c *Change) error { return c.Restore(from, to) })
}

// Block is Change with one Change.Block.
func (f *Fabric) Block(from, to string, what Protocols) error {
	return f.Change(func(c *Change) error { return c.Block(from, to, what) })
}

// Unblock is Change with one Change.Unblock.
func (f *Fabric) Unblock(from, to string, what Protocols) error {
	return f.Change(func(c *Change) error { return c.Unblock(from, to, what) })
}

// Attach is Change with one Change.Attach.
func (f *Fabric) Attach(r Route) error {
	return f.Change(func(c *Change) error { return c.Attach(r) })
}

// Detach is Change with one Change.Detach.
func (f *Fabric) Detach(prefix netip.Prefix, from string) error {
	return f.Change(func(c *Change) error { c.Detach(prefix, from); return nil })
}

// Delay returns the one-way propagation delay that is configured between two hosts now, with half the jitter:
// the floor that measurements are compared with. ok is false when no path leads there.
func (f *Fabric) Delay(from, to string) (d time.Duration, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, okA := f.plan.byName[from]
	b, okB := f.plan.byName[to]
	if !okA || !okB {
		return 0, false
	}
	t := f.engine.tables.Load()
	p := t.path(a, b)
	for _, number := range p.stages {
		d += time.Duration(t.stages[number].delay + t.stages[number].jitter/2)
	}
	return d, p.exists
}
