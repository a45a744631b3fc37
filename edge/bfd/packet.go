package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State of a session (RFC 5880 4.1).
type State uint8

// The states.
const (
	AdminDown State = iota // the other side has been told to stop: no failure
	Down
	Init
	Up
)

func (s State) String() string {
	return [...]string{"admin-down", "down", "init", "up"}[s&3]
}

// Diag says why a session went down (RFC 5880 4.1).
type Diag uint8

// The diagnostics that this package gives.
const (
	DiagNone       Diag = 0
	DiagTimeout    Diag = 1 // control detection time expired
	DiagSignaled   Diag = 3 // neighbour signaled session down
	DiagAdminDown  Diag = 7
	packetBytes         = 24
	packetVersion       = 1
	flagPoll            = 0x20
	flagFinal           = 0x10
	flagCPI             = 0x08
	flagAuth            = 0x04
	flagDemand          = 0x02
	flagMultipoint      = 0x01
)

// Packet is a control packet (RFC 5880 4.1):
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-----+---------+---+-+-+-+-+-+-+---------------+---------------+
//	|Vers |  Diag   |Sta|P|F|C|A|D|M|  Detect Mult  |    Length     |
//	+-----+---------+---+-+-+-+-+-+-+---------------+---------------+
//	|                       My Discriminator                        |
//	|                      Your Discriminator                       |
//	|                    Desired Min TX Interval                    |
//	|                   Required Min RX Interval                    |
//	|                 Required Min Echo RX Interval                 |
//	+---------------------------------------------------------------+
//
// Intervals are microseconds. Vers is 1, Length 24 without authentication.
type Packet struct {
	Diag          Diag
	State         State
	Poll, Final   bool
	Demand        bool
	Mult          uint8
	My, Your      uint32
	DesiredMinTX  time.Duration
	RequiredMinRX time.Duration
}

// Append appends the packet's wire form to b.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State) << 6
	if p.Poll {
		flags |= flagPoll
	}
	if p.Final {
		flags |= flagFinal
	}
	if p.Demand {
		flags |= flagDemand
	}
	b = append(b, packetVersion<<5|byte(p.Diag)&0x1f, flags, p.Mult, packetBytes)
	b = binary.BigEndian.AppendUint32(b, p.My)
	b = binary.BigEndian.AppendUint32(b, p.Your)
	b = binary.BigEndian.AppendUint32(b, uint32(p.DesiredMinTX/time.Microsecond))
	b = binary.BigEndian.AppendUint32(b, uint32(p.RequiredMinRX/time.Microsecond))
	return binary.BigEndian.AppendUint32(b, 0) // no echo
}

var errShort = errors.New("control packet is too short")

// Parse reads a control packet and refuses what RFC 5880 6.8.6 has discarded whatever the session: wrong
// versions and lengths, no multiplier, multipoint, no discriminators, and authentication, which is not
// spoken here.
func Parse(b []byte) (Packet, error) {
	if len(b) < packetBytes {
		return Packet{}, errShort
	}
	length := int(b[3])
	p := Packet{
		Diag: Diag(b[0] & 0x1f), State: State(b[1] >> 6), Mult: b[2],
		Poll: b[1]&flagPoll != 0, Final: b[1]&flagFinal != 0, Demand: b[1]&flagDemand != 0,
		My: binary.BigEndian.Uint32(b[4:]), Your: binary.BigEndian.Uint32(b[8:]),
		DesiredMinTX:  time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Microsecond,
		RequiredMinRX: time.Duration(binary.BigEndian.Uint32(b[16:])) * time.Microsecond,
	}
	switch {
	case b[0]>>5 != packetVersion:
		return Packet{}, fmt.Errorf("version %d, spoken is %d", b[0]>>5, packetVersion)
	case b[1]&flagAuth != 0:
		return Packet{}, errors.New("authentication is not spoken here")
	case length < packetBytes || length > len(b):
		return Packet{}, fmt.Errorf("length %d of %d bytes", length, len(b))
	case p.Mult == 0:
		return Packet{}, errors.New("detection multiplier 0")
	case b[1]&flagMultipoint != 0:
		return Packet{}, errors.New("multipoint is reserved")
	case p.My == 0:
		return Packet{}, errors.New("no discriminator of its own")
	case p.Your == 0 && p.State != Down && p.State != AdminDown:
		return Packet{}, fmt.Errorf("no discriminator of ours in state %v", p.State)
	}
	return p, nil
}
