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
