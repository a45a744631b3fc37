// Package backbone answers: how do the bytes of many flows cross the distance between two nodes,
// fast, fairly, and without dying with any one connection?
//
// A Pool (at an edge) keeps a tunnel open to each gateway; a Server (at a gateway) accepts them. A
// tunnel has a few carriers (TLS connections); streams are multiplexed over them by absolute byte
// offsets, and every byte is kept until the peer's sink has taken it. So a stream can go from one
// carrier to another at any moment: what was outstanding is sent again, and duplicates are dropped
// by their offsets.
//
// The way of a byte, in the order of the files:
//
//	stream.go    Write copies into the stream's sendBuffer             (any goroutine; blocks)
//	buffers.go   and puts the stream into its carrier's scheduler
//	machines.go  the scheduler says whose turn it is
//	carrier.go   the carrier's writer collects frames of many streams  (1 goroutine a carrier)
//	             ═══ TLS over kernel TCP ═══
//	carrier.go   the peer's reader decodes them                        (1 goroutine a carrier)
//	receive.go   puts them in order and calls Sink.Deliver, whose
//	             answer becomes an ACK with new credit
//
// tunnel.go holds what a tunnel is (streams, carriers, who may use which), moves.go how streams get
// from one carrier to another; pool.go and server.go are the two ends. No stream has a goroutine,
// and an idle one has no buffer.
//
// Locks: Server.mu or Pool.mu before tunnel.mu before Stream.mu before carrier.mu. Nothing is held
// while a Sink, a handler or a connection is called.
package backbone

import (
	"errors"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// ErrNoPath is returned by Pool.Open when no carrier to the peer is up.
var ErrNoPath = errors.New("no carrier to the peer is up")

// ErrClosed is returned by Write after CloseWrite or Reset of the same stream.
var ErrClosed = errors.New("stream is closed for writing")

// ResetError is returned by Write when the stream was reset by the peer, or by the backbone itself.
type ResetError struct{ Reason wire.ResetReason }

func (e *ResetError) Error() string { return "stream was reset: " + e.Reason.String() }

// A Sink takes what arrives on a stream. The backbone calls one of its methods at a time, never two
// at once, but from changing goroutines: the one that reads a carrier (then every other stream of
// the carrier waits: do not block, do not lock what somebody holds while blocking), or the one that
// calls Resume. A Sink may call any method of its Stream but Write and ReadFrom, which block.
type Sink interface {
	// Opened is called at the opener's side, once, before the first Deliver, unless Reset comes
	// first. A code other than OpenOK is a refusal: nothing follows it, the stream is over.
	Opened(wire.OpenResult)

	// Deliver hands over the next bytes in order, and returns how many it took, at once. The stream
	// keeps the rest (bounded by its credit) and delivers it again after Resume. p is valid during
	// the call only. fin says that the stream ends behind p: whoever takes all of p takes fin too.
	// p is empty only together with fin.
	Deliver(p []byte, fin bool) (n int)

	// Reset says that the stream is over before its end. It is called at most once, and nothing
	// follows. It is not called for a Reset of one's own.
	Reset(reason wire.ResetReason)
}

// PeerState is what a Pool knows about a peer at one moment. The zero value is a peer that is down.
type PeerState struct {
	Up       bool          // a carrier is up and answers
	Draining bool          // the peer wants no new streams (GOAWAY)
	RTT      time.Duration // smoothed; of the fastest carrier
	RTTMin   time.Duration // the least seen in the last minutes
	Loss     float32       // share of segments lost towards the peer, 0..1, smoothed
	UDP      bool          // datagrams go by UDP; false: they ride the carriers
	Carriers int           // that are up
	Streams  int           // open
}

// StreamStats are a stream's figures.
type StreamStats struct {
	Sent, Acked uint64 // bytes given to carriers; bytes the peer has consumed
	Received    uint64 // bytes the sink has taken
	Held        int    // bytes of memory the stream holds
	Moves       uint32 // times it went to another carrier
	Peer        model.NodeID
}
