package backbone

import (
	"errors"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

var errUnexpected = errors.New("frame is not for this side")

// frame does what one frame says. p is valid during the call only. An error ends the carrier.
func (c *carrier) frame(t wire.Type, p []byte) error {
	switch t {
	case wire.TypeData, wire.TypeDataFin:
		id, offset, data, err := wire.DecodeData(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s == nil || !s.onData(offset, data, t == wire.TypeDataFin) {
			c.strange(id)
		}
	case wire.TypeAck:
		var a wire.Ack
		if err := a.Decode(p); err != nil {
			return err
		}
		if s := c.stream(a.Stream); s != nil {
			s.onAck(&a)
		}
	case wire.TypeOpen:
		return c.onOpen(p)
	case wire.TypeResult:
		id, r, err := wire.DecodeResult(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s == nil || !s.onResult(r) {
			c.strange(id)
		}
	case wire.TypeReset:
		id, reason, err := wire.DecodeReset(p)
		if err != nil {
			return err
		}
		if s := c.stream(id); s != nil {
			s.onReset(reason)
		} else if !c.t.client {
			c.t.bury(id) // its OPEN may still come, by another carrier
		}
	case wire.TypeDatagram:
		c.t.onDatagram(c, p)
	case wire.TypePad:
	default:
		return c.controlFrame(t, p)
	}
	return nil
}

// controlFrame does what a frame says that belongs to no stream.
func (c *carrier) controlFrame(t wire.Type, p []byte) error {
	switch t {
	case wire.TypePing:
		if c.t.client {
			return errUnexpected
		}
		return c.onPing(p)
	case wire.TypePong:
		if !c.t.client {
			return errUnexpected
		}
		return c.onPong(p)
	case wire.TypeGroups:
		if !c.t.client {
			return errUnexpected
		}
		var g wire.Groups
		if err := g.Decode(p); err != nil {
			return err
		}
		c.t.onGroups(&g)
	case wire.TypeGoAway:
		final, reason, err := wire.DecodeGoAway(p)
		if err != nil {
			return err
		}
		c.t.onGoAway(final, reason)
	case wire.TypeLeave:
		c.t.onLeave(c)
	case wire.TypeKey:
		epoch, err := wire.DecodeKey(p)
		if err != nil {
			return err
		}
		c.t.onKey(c, epoch)
	case wire.TypeHello, wire.TypeWelcome, wire.TypeOpen:
		return errUnexpected
	default:
		if t.Critical() {
			return errors.New("unknown critical frame")
		}
	}
	return nil
}

// stream finds a stream; nil if there is none.
func (c *carrier) stream(id uint64) *Stream {
	if s := c.last; s != nil && s.id == id {
		return s
	}
	s := c.t.streams.get(id)
	if s != nil {
		c.last = s
	}
	return s
}

// strange answers a frame for a stream that is over, once for the many that may be on their way.
func (c *carrier) strange(id uint64) {
	now := c.t.env.now()
	if id == c.unknown && now-c.unknownAt < strangeEvery {
		return
	}
	c.unknown, c.unknownAt = id, now
	c.send(func(b []byte) []byte { return wire.AppendReset(b, id, wire.ResetUnknown) })
}

// onOpen begins a stream at the gateway's side.
func (c *carrier) onOpen(p []byte) error {
	if c.t.client {
		return errUnexpected
	}
	o := &c.opening
	id, err := wire.DecodeOpen(p, o)
	if err != nil {
		return err
	}
	c.t.accept(c, id, o)
	return nil
}

// onPing answers an edge's PING.
func (c *carrier) onPing(p []byte) error {
	var g wire.Ping
	if err := g.Decode(p); err != nil {
		return err
	}
	c.confirmed(g.Seen)
	c.t.peerSays(&g)
	pong := c.t.pingFrame(c)
	pong.Seq = g.Seq
	c.mu.Lock()
	c.fence = g.Seq + 1
	c.mu.Unlock()
	c.send(pong.AppendPong)
	return nil
}

// onPong takes the answer to a PING.
func (c *carrier) onPong(p []byte) error {
	var g wire.Ping
	if err := g.Decode(p); err != nil {
		return err
	}
	c.confirmed(g.Seq)
	c.t.peerSays(&g)
	c.health.pong(g.Seq, c.t.env.now())
	return nil
}

// groupParts is a table of groups that is arriving.
type groupParts struct {
	version uint64
	parts   uint16
	got     map[uint16]bool // nil: the table is whole
	table   map[model.GroupID]bool
}

// onGroups takes a part of the gateway's table. The table is used when it is whole.
func (t *tunnel) onGroups(g *wire.Groups) {
	t.mu.Lock()
	p := &t.parts
	if g.Version > p.version {
		*p = groupParts{g.Version, g.Parts, map[uint16]bool{}, map[model.GroupID]bool{}}
	}
	if g.Version < p.version || p.got == nil || g.Parts != p.parts || len(p.table) > groupsMax {
		t.mu.Unlock()
		return
	}
	p.got[g.Part] = true
	g.All(func(id string, servable bool) { p.table[model.GroupID(id)] = servable })
	whole := len(p.got) == int(p.parts)
	if whole {
		table := p.table
		t.groups.Store(&table)
		p.got, p.table = nil, nil
	}
	t.mu.Unlock()
	if whole {
		t.changed()
	}
}

// sendGroups sends the gateway's table to the edge. Whoever carries it is remembered, so that it is
// sent again if that carrier dies.
func (t *tunnel) sendGroups() {
	t.groupsMu.Lock()
	defer t.groupsMu.Unlock()
	version, groups := t.announced()
	if version == 0 {
		return // nothing was announced yet
	}
	frames := wire.AppendGroups(nil, version, func(yield func(string, bool)) {
		for id, servable := range groups {
			yield(string(id), servable)
		}
	})
	for c := t.pick(nil); ; c = t.pick(c) {
		t.mu.Lock()
		t.groupsOn = c
		t.mu.Unlock()
		if c == nil || c.send(func(b []byte) []byte { return append(b, frames...) }) {
			return
		}
	}
}
