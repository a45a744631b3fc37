package backbone

import (
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

const (
	windowDefault    = 4 << 20  // 100 Mbit/s × 200 ms is 2.5 MB, and acknowledgements come in steps
	windowMaxDefault = 16 << 20 // 1 Gbit/s × 100 ms is 12.5 MB
	windowCeiling    = 64 << 20 // bytes; no path of this world needs a larger window for one stream
	warmDefault      = 1 << 20
	windowFloor      = 16 << 10 // bytes of credit that a stream gets however scarce memory is

	carriersMinDefault = 2
	carriersMaxDefault = 16
	carriersCeiling    = 32 // carriers of a tunnel; measured: beyond 16 they only compete
	slotsMax           = 64 // of a tunnel: bits in Stream.used; dying carriers keep theirs for a moment
	tunnelsPerPeerMax  = 32
	handshakesMax      = 256
	firstFrameMax      = 1 << 10 // bytes of a HELLO or WELCOME, whatever a later version adds

	// MemoryDefault is the size of a Memory that nobody sized.
	MemoryDefault      = 256 << 20
	memoryShareable    = 4                            // all but a quarter may be shared out
	memoryShareDivisor = 8                            // of what is free of it, for one stream
	smallWrite         = 4<<10 - wire.DataHeaderBytes // bytes a stream may hold however scarce memory is: a chunk
	readChunks         = 4                            // chunks a socket is read into at once: a batch
	smallRoom          = 512                          // bytes at a chunk's end not worth a frame of their own

	quantum         = 16 << 10  // bytes a stream may send before it is another's turn: one TLS record
	batchBytesMax   = 64 << 10  // bytes a carrier takes from its streams at once; later ones cannot pass them
	unsentMax       = 256 << 10 // bytes a stream may have waiting for its carrier: its writer is woken at half
	directMin       = 2 << 10   // bytes in a chunk worth a TLS record of their own; fewer are copied
	notsentLowat    = 128 << 10 // bytes the kernel may hold unsent, for the same reason as batchBytesMax
	controlMax      = 1 << 20   // bytes of replies and announcements waiting for a carrier; then it is closed
	datagramsMax    = 512 << 10 // bytes of datagrams waiting for a carrier; the newest is dropped
	readBytes       = 32 << 10  // a carrier's buffer for reading: two TLS records
	bulkBytes       = 128 << 10 // as long as more comes than that holds
	aheadBytes      = 64 << 10  // read at once behind what TLS asks for
	shortStream     = 64 << 10  // bytes outstanding up to which a stream is sent again at the first sign of loss
	moveSlack       = 32 << 10  // load up to which a stream stays on its carrier between bursts
	carrierBusy     = 128 << 10 // load of a carrier that calls for another one
	interestingMax  = 1024      // entries of a carrier's log of short streams
	arrivedMax      = 64        // datagram messages handed on at once
	groupsMax       = 1 << 20   // entries of a peer's table of groups
	dialsMax        = 4         // carriers of a tunnel that are set up at the same time
	tombstonesEvery = 20 * time.Second

	pathWaitDefault     = 15 * time.Second
	pingIntervalDefault = 250 * time.Millisecond
	deadAfterDefault    = 5 * time.Second
	pingsMissed         = 3                      // then a carrier is stalled
	ackDelay            = 10 * time.Millisecond  // for what need not be acknowledged sooner
	tickBusy            = 20 * time.Millisecond  // how often carriers with load are looked at
	handshakeTimeout    = 5 * time.Second        // TCP, TLS and HELLO together
	dialBackoffMin      = 100 * time.Millisecond // full jitter, doubled at each failure
	dialBackoffMax      = 5 * time.Second
	fullFor             = 250 * time.Millisecond // of all carriers being busy, then another is added
	shrinkAfter         = time.Minute            // of fewer carriers being wanted
	strangeEvery        = 100 * time.Millisecond // a RESET for one stream that is over
	notifyEvery         = 10 * time.Millisecond
	longRTT             = 5 * time.Millisecond   // of paths worth warming and pacing
	warmFor             = 5 * time.Second        // one carrier of a tunnel warms up at a time, at most so long
	warmRest            = 32 << 10               // bytes unacknowledged at which it is done
	warmTriesMax        = 5                      // of a carrier
	ownLoss             = 200 * time.Millisecond // losses are told after the queue that made them has gone
	lossSegments        = 500                    // that the loss estimate looks back on, about
	finishTimeout       = time.Second            // for the last frame of a carrier to be written
	leaveTimeout        = 2 * time.Second        // for a carrier that said LEAVE to end

	pacingRateMax = 1 << 40 // bytes a second: any number turns pacing on, this one limits nothing

	// The loss at which more carriers, and another congestion control, pay
	// (measured over 80 ms with 20 Mbit/s: at 0.5 % sixteen carriers had the shortest tail).
	lossSome = 0.001
	lossMuch = 0.004
	lossNone = 0.0002
)
