package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// HopsMax is the number of backbone hops a new Open may take; it ends loops.
const HopsMax = 4

// idBytesMax bounds the ids of an Open. Listener ids have 8 characters and group ids 12.
const idBytesMax = 64

// Open says what a client wants: it begins a stream, and rides in the first datagrams of a flow.
//
//	 0       2       3       4       5       6              14
//	+-------+-------+-------+-------+-------+---------------+---
//	|length | proto | hops  | flags | zero  |   revision    |
//	+-------+-------+-------+-------+-------+---------------+---
//	   +-----+----------+-----+-------+-----+------+------+-----+------+------+---
//	   | len | listener | len | group | 4/6 | src  | port | 4/6 | dst  | port | …
//	   +-----+----------+-----+-------+-----+------+------+-----+------+------+---
//
// length counts the bytes behind itself, so that an Open can be followed by other fields and can
// grow at its end. src and dst have 4 or 16 bytes.
type Open struct {
	Listener string // the listener's id; at most 64 bytes
	Group    string // the endpoint group's id; at most 64 bytes
	Proto    uint8  // 6 or 17: the IP protocol number
	HopsLeft uint8  // backbone hops it may still take; who gets 0 refuses
	Flags    uint8  // OpenFailOpen; write 0 for the others, ignore them
	Revision uint64 // of the snapshot the edge decided by
	Src      netip.AddrPort
	Dst      netip.AddrPort // the client's own tuple: Dst is the accelerated address
}

// OpenFailOpen says that no group can be served: the gateway shall take any endpoint, whatever the
// verdicts on it are. Without it, a gateway that holds no endpoint healthy answers OpenNoEndpoint.
const OpenFailOpen uint8 = 1 << 0

// Append appends the Open (without a frame header).
func (o *Open) Append(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, o.Proto, o.HopsLeft, o.Flags, 0)
	b = binary.BigEndian.AppendUint64(b, o.Revision)
	b = appendShort(b, o.Listener)
	b = appendShort(b, o.Group)
	b = appendAddrPort(b, o.Src)
	b = appendAddrPort(b, o.Dst)
	binary.BigEndian.PutUint16(b[start:], uint16(len(b)-start-2))
	return b
}

// Decode reads an Open from the beginning of b and returns how many bytes it took. The ids are
// copied, but for ids that o holds already: who decodes into the same Open again and again
// allocates only when they change.
func (o *Open) Decode(b []byte) (n int, err error) {
	if len(b) < 2 {
		return 0, fmt.Errorf("open: %w", ErrShort)
	}
	n = 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < n {
		return 0, fmt.Errorf("open: %w", ErrShort)
	}
	r := reader{b: b[2:n]}
	o.Proto, o.HopsLeft, o.Flags = r.uint8(), r.uint8(), r.uint8()
	r.uint8()
	o.Revision = r.uint64()
	listener, group := r.short(), r.short()
	o.Src, o.Dst = r.addrPort(), r.addrPort()
	if r.err != nil {
		return 0, fmt.Errorf("open: %w", r.err)
	}
	if len(listener) > idBytesMax || len(group) > idBytesMax {
		return 0, fmt.Errorf("open: id is too long: %w", ErrInvalid)
	}
	if o.Listener != string(listener) {
		o.Listener = string(listener)
	}
	if o.Group != string(group) {
		o.Group = string(group)
	}
	return n, nil
}

// AppendOpen appends an OPEN frame.
//
//	+--------+---------------+------+
//	| header |    stream     | Open |
//	+--------+---------------+------+
func AppendOpen(b []byte, stream uint64, o *Open) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(begin(b, TypeOpen), stream)
	return end(o.Append(b), start)
}

// DecodeOpen reads an OPEN frame's payload. See Open.Decode for what it allocates.
func DecodeOpen(p []byte, o *Open) (stream uint64, err error) {
	r := reader{b: p}
	stream = r.uint64()
	if r.err != nil {
		return 0, fmt.Errorf("open: %w", r.err)
	}
	_, err = o.Decode(r.b)
	return stream, err
}

// OpenCode is how an Open ended.
type OpenCode uint8

// What a gateway can answer to an Open. Every code but OpenOK is a refusal, and the stream is over.
const (
	OpenOK          OpenCode = 0 // an endpoint took the connection
	OpenRefused     OpenCode = 1 // the endpoints refused it
	OpenTimeout     OpenCode = 2 // the endpoints did not answer in time
	OpenNoEndpoint  OpenCode = 3 // the group has no endpoint that may be tried
	OpenUnknown     OpenCode = 4 // the gateway does not know the listener or group (yet)
	OpenForbidden   OpenCode = 5 // the endpoint's address must not be dialled
	OpenOverloaded  OpenCode = 6 // the gateway is full
	OpenDraining    OpenCode = 7 // the gateway is going away
	OpenHops        OpenCode = 8 // no hops left: a loop
	OpenUnreachable OpenCode = 9 // no route to the endpoints
)

func (c OpenCode) String() string {
	names := [...]string{"ok", "refused", "timeout", "no endpoint", "unknown group", "forbidden",
		"overloaded", "draining", "too many hops", "unreachable"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// endpointBytesMax bounds OpenResult.Endpoint: an endpoint id is at most a DNS name of 253 bytes.
const endpointBytesMax = 255

// OpenResult is a gateway's answer to an Open.
type OpenResult struct {
	Code     OpenCode
	Endpoint string // the id of the endpoint connected to, or the last one tried; cut at 255 bytes

	// EndpointAddr is where the connection went, and Source where it came from, for those who write down
	// flows. Both or none are there.
	EndpointAddr, Source netip.AddrPort
}

// AppendResult appends a RESULT frame.
//
//	+--------+---------------+------+-----+----------+------------------+------------+
//	| header |    stream     | code | len | endpoint | [endpoint's addr | its source] |
//	+--------+---------------+------+-----+----------+------------------+------------+
func AppendResult(b []byte, stream uint64, r *OpenResult) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(begin(b, TypeResult), stream)
	b = appendShort(append(b, byte(r.Code)), r.Endpoint)
	if r.EndpointAddr.IsValid() && r.Source.IsValid() {
		b = appendAddrPort(appendAddrPort(b, r.EndpointAddr), r.Source)
	}
	return end(b, start)
}

// DecodeResult reads a RESULT frame's payload.
func DecodeResult(p []byte) (stream uint64, res OpenResult, err error) {
	r := reader{b: p}
	stream, res.Code, res.Endpoint = r.uint64(), OpenCode(r.uint8()), string(r.short())
	if len(r.b) > 0 {
		res.EndpointAddr, res.Source = r.addrPort(), r.addrPort()
	}
	if r.err != nil {
		return 0, OpenResult{}, fmt.Errorf("result: %w", r.err)
	}
	return stream, res, nil
}

// ResetReason is why a stream or a flow ended before its time.
type ResetReason uint8

// Reasons of a reset.
const (
	ResetUnspecified ResetReason = 0
	ResetByPeer      ResetReason = 1  // the client or the endpoint reset its connection
	ResetIdle        ResetReason = 2  // nothing for longer than the idle timeout
	ResetPathLost    ResetReason = 3  // every carrier was down for too long
	ResetPeerLost    ResetReason = 4  // the peer node was restarted and knows the stream no more
	ResetShutdown    ResetReason = 5  // the node is going away
	ResetRevoked     ResetReason = 6  // the node may not take part any more
	ResetProtocol    ResetReason = 7  // the peer broke the protocol
	ResetUnknown     ResetReason = 8  // no such stream (any more)
	ResetOverload    ResetReason = 9  // a limit of the node
	ResetRefused     ResetReason = 10 // the gateway refused the Open
	ResetCancelled   ResetReason = 11 // the opener wants it no more (it went to another gateway)
	ResetRemoved     ResetReason = 12 // the listener, group or endpoint was removed
	ResetHandover    ResetReason = 13 // of GOAWAY: the node's next process has taken over, dial anew
)

func (r ResetReason) String() string {
	names := [...]string{"unspecified", "reset by peer", "idle", "path lost", "peer restarted", "shutdown",
		"revoked", "protocol error", "unknown stream", "overload", "refused", "cancelled", "removed", "handed over"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

func appendShort(b []byte, s string) []byte {
	if len(s) > endpointBytesMax {
		s = s[:endpointBytesMax]
	}
	return append(append(b, byte(len(s))), s...)
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	switch addr := a.Addr().Unmap(); {
	case addr.Is4():
		ip := addr.As4()
		b = append(append(b, 4), ip[:]...)
	default: // the zero Addr becomes ::
		ip := addr.As16()
		b = append(append(b, 6), ip[:]...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// addrPort reads a family, an address and a port. Addresses come out unmapped.
func (r *reader) addrPort() netip.AddrPort {
	var addr netip.Addr
	switch family := r.uint8(); family {
	case 4:
		if p := r.bytes(4); p != nil {
			addr = netip.AddrFrom4([4]byte(p))
		}
	case 6:
		if p := r.bytes(16); p != nil {
			addr = netip.AddrFrom16([16]byte(p)).Unmap()
		}
	default:
		if r.err == nil {
			r.b, r.err = nil, ErrInvalid
		}
	}
	return netip.AddrPortFrom(addr, r.uint16())
}
