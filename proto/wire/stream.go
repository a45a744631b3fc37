package wire

import (
	"encoding/binary"
	"fmt"
)

// PutDataHeader writes the header of a DATA (or, with fin, DATAFIN) frame of n bytes into the first
// DataHeaderBytes of b. The n bytes must follow directly: a sender keeps DataHeaderBytes free in
// front of what it sends, and writes header and bytes as one TLS record without copying them.
//
//	+--------+---------------+---------------+---------
//	| header |    stream     |    offset     | bytes …
//	+--------+---------------+---------------+---------
//
// offset is the stream offset of the first byte; a stream's two directions count from 0 each. With
// fin the stream ends behind the last byte (there may be none).
func PutDataHeader(b []byte, fin bool, stream, offset uint64, n int) {
	t := TypeData
	if fin {
		t = TypeDataFin
	}
	_ = b[DataHeaderBytes-1]
	binary.BigEndian.PutUint32(b, uint32(t)<<24|uint32(n+16))
	binary.BigEndian.PutUint64(b[4:], stream)
	binary.BigEndian.PutUint64(b[12:], offset)
}

// DecodeData reads the payload of a DATA or DATAFIN frame; data aliases it.
func DecodeData(p []byte) (stream, offset uint64, data []byte, err error) {
	if len(p) < 16 {
		return 0, 0, nil, fmt.Errorf("data: %w", ErrShort)
	}
	stream, offset, data = binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]), p[16:]
	if offset > OffsetMax {
		return 0, 0, nil, fmt.Errorf("data at offset %d: %w", offset, ErrInvalid)
	}
	return stream, offset, data, nil
}

// Flags of an ACK.
const (
	ackFin    = 1 << 0
	ackRewind = 1 << 1
)

// Ack tells the sender of a stream's bytes how far the receiver has come.
//
//	+--------+---------------+---------------+---------------+-------+
//	| header |    stream     |   consumed    |     limit     | flags |
//	+--------+---------------+---------------+---------------+-------+
type Ack struct {
	Stream   uint64
	Consumed uint64 // all bytes below this offset are with the client or endpoint: forget them
	Limit    uint64 // bytes below this offset may be sent
	Fin      bool   // the end of the stream was consumed as well
	Rewind   bool   // bytes from Consumed on were not kept: send them again from there
}

// Append appends the ACK frame.
func (a *Ack) Append(b []byte) []byte {
	b = AppendHeader(b, TypeAck, 25)
	b = binary.BigEndian.AppendUint64(b, a.Stream)
	b = binary.BigEndian.AppendUint64(b, a.Consumed)
	b = binary.BigEndian.AppendUint64(b, a.Limit)
	var flags byte
	if a.Fin {
		flags |= ackFin
	}
	if a.Rewind {
		flags |= ackRewind
	}
	return append(b, flags)
}

// Decode reads an ACK frame's payload.
func (a *Ack) Decode(p []byte) error {
	if len(p) < 25 {
		return fmt.Errorf("ack: %w", ErrShort)
	}
	a.Stream = binary.BigEndian.Uint64(p)
	a.Consumed = binary.BigEndian.Uint64(p[8:])
	a.Limit = binary.BigEndian.Uint64(p[16:])
	a.Fin, a.Rewind = p[24]&ackFin != 0, p[24]&ackRewind != 0
	if a.Consumed > OffsetMax || a.Limit > OffsetMax || a.Consumed > a.Limit {
		return fmt.Errorf("ack of %d, limit %d: %w", a.Consumed, a.Limit, ErrInvalid)
	}
	return nil
}

// AppendReset appends a RESET frame.
//
//	+--------+---------------+--------+
//	| header |    stream     | reason |
//	+--------+---------------+--------+
func AppendReset(b []byte, stream uint64, reason ResetReason) []byte {
	b = binary.BigEndian.AppendUint64(AppendHeader(b, TypeReset, 9), stream)
	return append(b, byte(reason))
}

// DecodeReset reads a RESET frame's payload.
func DecodeReset(p []byte) (stream uint64, reason ResetReason, err error) {
	r := reader{b: p}
	stream, reason = r.uint64(), ResetReason(r.uint8())
	if r.err != nil {
		return 0, 0, fmt.Errorf("reset: %w", r.err)
	}
	return stream, reason, nil
}
