// Package wire answers: what do two nodes say to each other over the backbone, byte by byte?
//
// A carrier is one TLS 1.3 connection. What it carries is a sequence of frames, and nothing else:
//
//	 0               1               2               3               4
//	+---------------+-----------------------------------------------+----------
//	|     type      |            length (of the payload)            | payload …
//	+---------------+-----------------------------------------------+----------
//
// All numbers are big endian. A reader skips a frame whose type it does not know, unless the type's
// top bit is set: then it must end the carrier. Payloads grow at their end only: a reader ignores
// bytes behind the fields it knows (DATA and DATAGRAM excepted, whose last field is the rest).
//
//	type  name      direction   on                meaning
//	0x01  HELLO     edge →      carrier, first    whose tunnel this is; versions spoken
//	0x02  WELCOME   → edge      carrier, first    the version chosen, or why not
//	0x03  PING      edge →      carrier           are you there; what I saw; what I want
//	0x04  PONG      → edge      carrier           the answer to one PING
//	0x05  GOAWAY    both        tunnel            open no more streams; or: all streams are over
//	0x06  GROUPS    → edge      tunnel            which endpoint groups can be served
//	0x07  KEY       both        tunnel            this carrier's TLS session keys the datagrams
//	0x08  PAD       both        carrier           nothing: warms a congestion window
//	0x09  LEAVE     both        carrier           I send nothing more on this carrier
//	0x10  OPEN      edge →      stream            a client connected
//	0x11  RESULT    → edge      stream            the endpoint answered, or none did
//	0x12  DATA      both        stream            bytes at an offset
//	0x13  DATAFIN   both        stream            bytes at an offset, and then no more
//	0x14  ACK       both        stream            consumed so far, may send so far
//	0x15  RESET     both        stream            over, and why
//	0x20  DATAGRAM  both        tunnel            one datagram message where UDP does not pass
//
// docs/WIRE.md tells how the frames are used. Version history: 1 is the first.
//
// Encoders append to the caller's buffer. Decoders alias their input and allocate nothing, but for
// the strings of OPEN, RESULT and GROUPS, which outlive the buffer.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Versions of the protocol that this package speaks.
const (
	VersionMin uint16 = 1
	VersionMax uint16 = 1
)

// ALPN is the protocol name both ends of a carrier offer in their TLS handshake.
const ALPN = "nearcast-backbone"

// Type is the first byte of a frame.
type Type uint8

// The types of frames; the package comment says what each is for.
const (
	TypeHello    Type = 0x01
	TypeWelcome  Type = 0x02
	TypePing     Type = 0x03
	TypePong     Type = 0x04
	TypeGoAway   Type = 0x05
	TypeGroups   Type = 0x06
	TypeKey      Type = 0x07
	TypePad      Type = 0x08
	TypeLeave    Type = 0x09
	TypeOpen     Type = 0x10
	TypeResult   Type = 0x11
	TypeData     Type = 0x12
	TypeDataFin  Type = 0x13
	TypeAck      Type = 0x14
	TypeReset    Type = 0x15
	TypeDatagram Type = 0x20

	typeCritical Type = 0x80 // a reader that does not know such a type must end the carrier
)

// Critical reports whether a reader that does not know the type must end the carrier.
func (t Type) Critical() bool { return t&typeCritical != 0 }

func (t Type) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("type 0x%02x", uint8(t))
}

var typeNames = map[Type]string{
	TypeHello: "HELLO", TypeWelcome: "WELCOME", TypePing: "PING", TypePong: "PONG",
	TypeGoAway: "GOAWAY", TypeGroups: "GROUPS", TypeKey: "KEY", TypePad: "PAD", TypeLeave: "LEAVE",
	TypeOpen: "OPEN", TypeResult: "RESULT", TypeData: "DATA", TypeDataFin: "DATAFIN",
	TypeAck: "ACK", TypeReset: "RESET", TypeDatagram: "DATAGRAM",
}

// Sizes, in bytes.
const (
	HeaderBytes = 4
	// PayloadMax bounds a frame's payload. The largest is a datagram message: 65,507 bytes that a
	// client sent, and an Open before them.
	PayloadMax = 68 << 10
	// DataHeaderBytes precede the bytes of a DATA frame: the frame's header, stream and offset.
	DataHeaderBytes = HeaderBytes + 8 + 8
	// DataMax bounds the bytes of one DATA frame: with its header it is exactly one TLS record.
	DataMax = 16<<10 - DataHeaderBytes
	// OffsetMax bounds a stream's length: 2^62 bytes, so that sums of offsets do not overflow.
	OffsetMax = 1 << 62
)

// Errors of decoders. Any of them means that the peer does not speak this protocol, and ends the
// carrier (never the process).
var (
	ErrShort   = errors.New("frame is too short")
	ErrTooLong = errors.New("frame is too long")
	ErrInvalid = errors.New("frame holds an impossible value")
)

// ParseHeader reads a frame's header. ok is false when b holds less than a header. A length beyond
// PayloadMax is ErrTooLong.
func ParseHeader(b []byte) (t Type, length int, ok bool, err error) {
	if len(b) < HeaderBytes {
		return 0, 0, false, nil
	}
	v := binary.BigEndian.Uint32(b)
	t, length = Type(v>>24), int(v&0xffffff)
	if length > PayloadMax {
		return t, length, true, fmt.Errorf("%v of %d bytes: %w", t, length, ErrTooLong)
	}
	return t, length, true, nil
}

// AppendHeader appends a frame's header.
func AppendHeader(b []byte, t Type, length int) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(t)<<24|uint32(length))
}

// begin appends a header whose length end fills in.
func begin(b []byte, t Type) []byte { return AppendHeader(b, t, 0) }

// end fills in the length of the frame that began at start.
func end(b []byte, start int) []byte {
	n := len(b) - start - HeaderBytes
	b[start+1], b[start+2], b[start+3] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

// AppendPad appends a PAD frame whose payload is n zero bytes (n ≤ PayloadMax).
func AppendPad(b []byte, n int) []byte {
	b = AppendHeader(b, TypePad, n)
	return append(b, make([]byte, n)...)
}

// AppendDatagram appends a DATAGRAM frame around one datagram message.
func AppendDatagram(b, message []byte) []byte {
	return append(AppendHeader(b, TypeDatagram, len(message)), message...)
}

// A reader walks over a payload. After a short read every further one yields zero and err is set.
type reader struct {
	b   []byte
	err error
}

func (r *reader) bytes(n int) []byte {
	if len(r.b) < n {
		r.b, r.err = nil, ErrShort
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) uint8() uint8 {
	if p := r.bytes(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if p := r.bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if p := r.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if p := r.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// short reads a byte that says how many follow.
func (r *reader) short() []byte { return r.bytes(int(r.uint8())) }
