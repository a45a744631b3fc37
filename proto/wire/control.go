package wire

import (
	"encoding/binary"
	"fmt"
)

// helloMagic begins a HELLO: "NCBB". It tells a peer that is something else from one that is old.
const helloMagic = 0x4e434242

// TunnelID names a tunnel among those of one edge; it is random.
type TunnelID [16]byte

// Hello is the first frame of an edge on a new carrier.
//
//	+--------+-------+-------+-------+----------------+--------+--------+-------
//	| header | magic | vmin  | vmax  | tunnel id (16) | number | window | flags
//	+--------+-------+-------+-------+----------------+--------+--------+-------
//	             4       2       2                        4        8        4
type Hello struct {
	VersionMin, VersionMax uint16
	Tunnel                 TunnelID
	Number                 uint32 // of this carrier in the tunnel: 1, 2, … as they were dialled
	Window                 uint64 // bytes the gateway may send on a new stream before the first ACK
	Flags                  uint32 // none defined: write 0, ignore
}

// Append appends the HELLO frame.
func (h *Hello) Append(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(begin(b, TypeHello), helloMagic)
	b = binary.BigEndian.AppendUint16(b, h.VersionMin)
	b = binary.BigEndian.AppendUint16(b, h.VersionMax)
	b = append(b, h.Tunnel[:]...)
	b = binary.BigEndian.AppendUint32(b, h.Number)
	b = binary.BigEndian.AppendUint64(b, h.Window)
	b = binary.BigEndian.AppendUint32(b, h.Flags)
	return end(b, start)
}

// Decode reads a HELLO frame's payload. A wrong magic is ErrInvalid.
func (h *Hello) Decode(p []byte) error {
	r := reader{b: p}
	magic := r.uint32()
	h.VersionMin, h.VersionMax = r.uint16(), r.uint16()
	copy(h.Tunnel[:], r.bytes(len(h.Tunnel)))
	h.Number, h.Window, h.Flags = r.uint32(), r.uint64(), r.uint32()
	switch {
	case r.err != nil:
		return fmt.Errorf("hello: %w", r.err)
	case magic != helloMagic || h.VersionMin > h.VersionMax || h.Window > OffsetMax:
		return fmt.Errorf("hello: %w", ErrInvalid)
	}
	return nil
}

// Negotiate returns the highest version that both this package and the peer speak.
func (h *Hello) Negotiate() (version uint16, ok bool) {
	version = min(h.VersionMax, VersionMax)
	return version, version >= max(h.VersionMin, VersionMin)
}

// WelcomeCode says whether a carrier was taken.
type WelcomeCode uint8

// Answers to a HELLO; after any but WelcomeOK the gateway closes the carrier.
const (
	WelcomeOK           WelcomeCode = 0
	WelcomeVersion      WelcomeCode = 1 // no common version
	WelcomeUnauthorized WelcomeCode = 2 // no snapshot of the gateway has this edge (yet)
	WelcomeFull         WelcomeCode = 3 // too many tunnels or carriers
	WelcomeDraining     WelcomeCode = 4 // the gateway is going away
)

func (c WelcomeCode) String() string {
	names := [...]string{"ok", "no common version", "not authorized", "full", "draining"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// Welcome is the first frame of a gateway on a new carrier.
//
//	+--------+------+------+---------+------------+--------+-------+
//	| header | code | zero | version | generation | window | flags |
//	+--------+------+------+---------+------------+--------+-------+
//	            1      1        2          8          8        4
type Welcome struct {
	Code       WelcomeCode
	Version    uint16
	Generation uint64 // random, made with the tunnel's state: another one means that streams were lost
	Window     uint64 // bytes the edge may send on a new stream before the first ACK
	Flags      uint32 // none defined: write 0, ignore
}

// Append appends the WELCOME frame.
func (w *Welcome) Append(b []byte) []byte {
	start := len(b)
	b = append(begin(b, TypeWelcome), byte(w.Code), 0)
	b = binary.BigEndian.AppendUint16(b, w.Version)
	b = binary.BigEndian.AppendUint64(b, w.Generation)
	b = binary.BigEndian.AppendUint64(b, w.Window)
	b = binary.BigEndian.AppendUint32(b, w.Flags)
	return end(b, start)
}

// Decode reads a WELCOME frame's payload.
func (w *Welcome) Decode(p []byte) error {
	r := reader{b: p}
	w.Code = WelcomeCode(r.uint8())
	r.uint8()
	w.Version, w.Generation, w.Window, w.Flags = r.uint16(), r.uint64(), r.uint64(), r.uint32()
	switch {
	case r.err != nil:
		return fmt.Errorf("welcome: %w", r.err)
	case w.Window > OffsetMax || w.Code == WelcomeOK && (w.Version < VersionMin || w.Version > VersionMax):
		return fmt.Errorf("welcome: %w", ErrInvalid)
	}
	return nil
}

// Ping is an edge's question, and in the other direction (PONG) the gateway's answer.
//
//	+--------+---------------+---------------+-----------+------+
//	| header |      seq      |     seen      | loss(ppm) | want |
//	+--------+---------------+---------------+-----------+------+
//
// Frames of a carrier arrive in order, so a PONG tells the edge that the gateway has read all that
// was sent before its PING, and Seen tells the gateway the same about its PONGs.
type Ping struct {
	Seq  uint64 // of the PING; its PONG has the same
	Seen uint64 // in a PING: the highest Seq of the PONGs received; in a PONG: 0
	Loss uint32 // share of segments the sender of this frame had to repeat on the carrier, parts a million
	Want uint8  // carriers the sender of this frame thinks the tunnel should have; 0: no opinion
}

// AppendPing appends a PING frame.
func (g *Ping) AppendPing(b []byte) []byte { return g.append(b, TypePing) }

// AppendPong appends a PONG frame.
func (g *Ping) AppendPong(b []byte) []byte { return g.append(b, TypePong) }

func (g *Ping) append(b []byte, t Type) []byte {
	b = binary.BigEndian.AppendUint64(AppendHeader(b, t, 21), g.Seq)
	b = binary.BigEndian.AppendUint64(b, g.Seen)
	b = binary.BigEndian.AppendUint32(b, g.Loss)
	return append(b, g.Want)
}

// Decode reads the payload of a PING or PONG frame.
func (g *Ping) Decode(p []byte) error {
	r := reader{b: p}
	g.Seq, g.Seen, g.Loss, g.Want = r.uint64(), r.uint64(), r.uint32(), r.uint8()
	if r.err != nil {
		return fmt.Errorf("ping: %w", r.err)
	}
	return nil
}

// AppendLeave appends a LEAVE frame, which has no payload.
func AppendLeave(b []byte) []byte { return AppendHeader(b, TypeLeave, 0) }

// AppendGoAway appends a GOAWAY frame: open no more streams; with final also: every stream of the
// tunnel is over, for the reason.
//
//	+--------+-------+--------+
//	| header | final | reason |
//	+--------+-------+--------+
func AppendGoAway(b []byte, final bool, reason ResetReason) []byte {
	var f byte
	if final {
		f = 1
	}
	return append(AppendHeader(b, TypeGoAway, 2), f, byte(reason))
}

// DecodeGoAway reads a GOAWAY frame's payload.
func DecodeGoAway(p []byte) (final bool, reason ResetReason, err error) {
	r := reader{b: p}
	final, reason = r.uint8() != 0, ResetReason(r.uint8())
	if r.err != nil {
		return false, 0, fmt.Errorf("goaway: %w", r.err)
	}
	return final, reason, nil
}

// AppendKey appends a KEY frame: from the edge, that the TLS session of this very carrier keys the
// datagram channel's epoch; from the gateway, that it is ready to receive under it.
//
//	+--------+-------+
//	| header | epoch |
//	+--------+-------+
func AppendKey(b []byte, epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(AppendHeader(b, TypeKey, 4), epoch)
}

// DecodeKey reads a KEY frame's payload.
func DecodeKey(p []byte) (epoch uint32, err error) {
	r := reader{b: p}
	epoch = r.uint32()
	if r.err != nil {
		return 0, fmt.Errorf("key: %w", r.err)
	}
	return epoch, nil
}

// groupsPayloadMax is where a table of groups is cut into the next frame.
const groupsPayloadMax = 32 << 10

// Groups is one part of a gateway's table of endpoint groups. A table replaces the one before it,
// when all its parts have arrived; a part of an older version than the newest seen is ignored.
//
//	+--------+---------------+-------+-------+-------+-----+----+-------+---
//	| header |    version    | part  | parts | count | len | id | state | …
//	+--------+---------------+-------+-------+-------+-----+----+-------+---
//	                8            2       2       2      1          1
type Groups struct {
	Version     uint64
	Part, Parts uint16
	entries     []byte
	count       int
}

// AppendGroups appends a whole table as one or more GROUPS frames. The ids and states come from
// each, which is called with a function that takes them one by one.
func AppendGroups(b []byte, version uint64, each func(yield func(id string, servable bool))) []byte {
	var starts []int
	count := 0
	cut := func() {
		if len(starts) > 0 {
			start := starts[len(starts)-1]
			binary.BigEndian.PutUint16(b[start+HeaderBytes+12:], uint16(count))
			b = end(b, start)
		}
	}
	open := func() {
		starts = append(starts, len(b))
		b = binary.BigEndian.AppendUint64(begin(b, TypeGroups), version)
		b = append(b, 0, 0, 0, 0, 0, 0)
		count = 0
	}
	open()
	each(func(id string, servable bool) {
		if len(b)-starts[len(starts)-1] > groupsPayloadMax {
			cut()
			open()
		}
		b = appendShort(b, id)
		if servable {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
		count++
	})
	cut()
	for i, start := range starts {
		binary.BigEndian.PutUint16(b[start+HeaderBytes+8:], uint16(i))
		binary.BigEndian.PutUint16(b[start+HeaderBytes+10:], uint16(len(starts)))
	}
	return b
}

// Decode reads a GROUPS frame's payload, which All aliases.
func (g *Groups) Decode(p []byte) error {
	r := reader{b: p}
	g.Version, g.Part, g.Parts, g.count = r.uint64(), r.uint16(), r.uint16(), int(r.uint16())
	g.entries = r.b
	for range g.count {
		r.short()
		r.uint8()
	}
	switch {
	case r.err != nil:
		return fmt.Errorf("groups: %w", r.err)
	case g.Part >= g.Parts:
		return fmt.Errorf("groups, part %d of %d: %w", g.Part, g.Parts, ErrInvalid)
	}
	return nil
}

// All calls yield with every entry.
func (g *Groups) All(yield func(id string, servable bool)) {
	r := reader{b: g.entries}
	for range g.count {
		id := r.short()
		yield(string(id), r.uint8() != 0)
	}
}
