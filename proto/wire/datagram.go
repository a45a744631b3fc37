package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// DatagramType is the first byte of a datagram message.
type DatagramType uint8

// The datagram messages. They travel in the sealed packets of a tunnel's datagram channel (see
// datagram_packet.go) or, where UDP does not pass, in DATAGRAM frames on its carriers. Either way a
// message may be lost, and arrives at most once. All begin alike:
//
//	 0       1       2                              10
//	+-------+-------+-------------------------------+---
//	| type  |  arg  |             flow              |
//	+-------+-------+-------------------------------+---
//
//	type  name   direction   arg     after the flow
//	0x01  OPEN   edge →      TOS     an Open, then the datagram's bytes
//	0x02  DATA   both        TOS     the datagram's bytes
//	0x03  ACK    → edge      0       nothing: the gateway knows the flow, DATA will do
//	0x04  CLOSE  both        reason  nothing: the flow is over
//
// flow is the edge's number for the flow, never used again in the life of the tunnel. TOS is the
// whole byte of the IP header, DSCP and ECN. A gateway that gets DATA of a flow it does not know (it
// was restarted, or the flow was idle for too long) answers CLOSE with ResetUnknown, and the edge
// begins the flow anew with OPEN. Bytes behind ACK and CLOSE are ignored.
const (
	DatagramTypeOpen  DatagramType = 1
	DatagramTypeData  DatagramType = 2
	DatagramTypeAck   DatagramType = 3
	DatagramTypeClose DatagramType = 4
)

const (
	// DatagramHeaderBytes precede the bytes of a Datagram, and the Open of a DatagramOpen.
	DatagramHeaderBytes = 10

	// DatagramPayloadMax is the largest UDP payload: 65,535 less the IPv4 and UDP headers.
	DatagramPayloadMax = 65507

	// DatagramMessageMax bounds a datagram message: the largest payload, its header, and an Open
	// (182 bytes with the longest ids of version 1) that may still grow.
	DatagramMessageMax = 65 << 10
)

func (t DatagramType) String() string {
	switch t {
	case DatagramTypeOpen:
		return "OPEN"
	case DatagramTypeData:
		return "DATA"
	case DatagramTypeAck:
		return "ACK"
	case DatagramTypeClose:
		return "CLOSE"
	}
	return fmt.Sprintf("datagram type 0x%02x", uint8(t))
}

// Datagram is one datagram of a flow that the gateway knows.
type Datagram struct {
	FlowID  uint64
	TOS     uint8
	Payload []byte // 0 to DatagramPayloadMax bytes; after Decode it aliases the message
}

// DatagramOpen is one datagram of a flow that the gateway has not acknowledged yet.
type DatagramOpen struct {
	FlowID  uint64
	Open    Open
	TOS     uint8
	Payload []byte // as in Datagram
}

// DatagramAck says that the gateway knows the flow. Endpoint and Source are OpenResult's, where they are known already: both or none are there.
type DatagramAck struct {
	FlowID           uint64
	Endpoint, Source netip.AddrPort
}

// DatagramClose says that the flow is over.
type DatagramClose struct {
	FlowID uint64
	Reason ResetReason
}

// DatagramHead reads what all datagram messages begin with: enough to say which decoder is next,
// and which flow it is about. ok is false for what is no datagram message.
func DatagramHead(m []byte) (t DatagramType, flow uint64, ok bool) {
	if len(m) < DatagramHeaderBytes || m[0] < byte(DatagramTypeOpen) || m[0] > byte(DatagramTypeClose) {
		return 0, 0, false
	}
	return DatagramType(m[0]), binary.BigEndian.Uint64(m[2:]), true
}

// Append appends the message. Who has the payload in place already (behind room for the header)
// uses PutDatagramHeader instead.
func (d *Datagram) Append(b []byte) []byte {
	b = appendDatagramHeader(b, DatagramTypeData, d.TOS, d.FlowID)
	return append(b, d.Payload...)
}

// PutDatagramHeader writes the header of a Datagram into the first DatagramHeaderBytes of b.
func PutDatagramHeader(b []byte, flow uint64, tos uint8) {
	_ = b[DatagramHeaderBytes-1]
	b[0], b[1] = byte(DatagramTypeData), tos
	binary.BigEndian.PutUint64(b[2:], flow)
}

// Decode reads a DATA message.
func (d *Datagram) Decode(m []byte) error {
	r, err := datagramReader(m, DatagramTypeData)
	if err != nil {
		return err
	}
	d.TOS, d.FlowID, d.Payload = r.uint8(), r.uint64(), r.b
	if len(d.Payload) > DatagramPayloadMax {
		return fmt.Errorf("datagram of %d bytes: %w", len(d.Payload), ErrTooLong)
	}
	return nil
}

// Append appends the message.
func (d *DatagramOpen) Append(b []byte) []byte {
	b = appendDatagramHeader(b, DatagramTypeOpen, d.TOS, d.FlowID)
	return append(d.Open.Append(b), d.Payload...)
}

// Decode reads an OPEN message. It allocates what Open.Decode does.
func (d *DatagramOpen) Decode(m []byte) error {
	r, err := datagramReader(m, DatagramTypeOpen)
	if err != nil {
		return err
	}
	d.TOS, d.FlowID = r.uint8(), r.uint64()
	n, err := d.Open.Decode(r.b)
	if err != nil {
		return fmt.Errorf("datagram: %w", err)
	}
	d.Payload = r.b[n:]
	if len(d.Payload) > DatagramPayloadMax {
		return fmt.Errorf("datagram of %d bytes: %w", len(d.Payload), ErrTooLong)
	}
	return nil
}

// Append appends the message.
func (d *DatagramAck) Append(b []byte) []byte {
	b = appendDatagramHeader(b, DatagramTypeAck, 0, d.FlowID)
	if d.Endpoint.IsValid() && d.Source.IsValid() {
		b = appendAddrPort(appendAddrPort(b, d.Endpoint), d.Source)
	}
	return b
}

// Decode reads an ACK message.
func (d *DatagramAck) Decode(m []byte) error {
	r, err := datagramReader(m, DatagramTypeAck)
	if err != nil {
		return err
	}
	r.uint8()
	*d = DatagramAck{FlowID: r.uint64()}
	if len(r.b) > 0 {
		d.Endpoint, d.Source = r.addrPort(), r.addrPort()
	}
	return r.err
}

// Append appends the message.
func (d *DatagramClose) Append(b []byte) []byte {
	return appendDatagramHeader(b, DatagramTypeClose, byte(d.Reason), d.FlowID)
}

// Decode reads a CLOSE message.
func (d *DatagramClose) Decode(m []byte) error {
	r, err := datagramReader(m, DatagramTypeClose)
	if err != nil {
		return err
	}
	d.Reason, d.FlowID = ResetReason(r.uint8()), r.uint64()
	return nil
}

func appendDatagramHeader(b []byte, t DatagramType, arg byte, flow uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(t), arg), flow)
}

// datagramReader reads the type and makes sure of a whole header.
func datagramReader(m []byte, want DatagramType) (reader, error) {
	if len(m) < DatagramHeaderBytes {
		return reader{}, fmt.Errorf("datagram message of %d bytes: %w", len(m), ErrShort)
	}
	if DatagramType(m[0]) != want {
		return reader{}, fmt.Errorf("datagram message %v, not %v: %w", DatagramType(m[0]), want, ErrInvalid)
	}
	return reader{b: m[1:]}, nil
}
