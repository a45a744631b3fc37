package relay

import "time"

const (
	flowsMaxDefault = 262_144 // of each protocol

	// openTimeoutDefault is longer than a gateway tries (5 s), so that its answer is what counts.
	openTimeoutDefault = 7 * time.Second
	openSweepEvery     = 100 * time.Millisecond // how soon a flow leaves a gateway that went down
	frozenAfter        = time.Second            // between two sweeps: this process did not run meanwhile
	openSilence        = 300 * time.Millisecond // a gateway may be down this long before flows leave it
	attemptsMax        = 8                      // gateways asked for one flow
	pathWait           = 3 * time.Second        // for a tunnel, by a flow that finds all of them down

	// openRangesMax bounds the ranges of ports that the kernel is told to open for a listener of custom
	// routing. What is allowed in more pieces is opened whole, and refused here.
	openRangesMax = 1024

	proxyTimeout = 5 * time.Second // for a PROXY header, as HAProxy's documentation advises to bound it

	// What a client sent before an endpoint answered is kept to be sent again: a first piece that holds
	// most requests, and then one that makes it earlyMax.
	earlySmall = 4<<10 + 512 // also the longest PROXY header
	earlyMax   = 64 << 10

	tellAfter = time.Minute // a flow that lasts says by then what it saw

	idleSweepEvery = time.Second
	idleChecks     = 8 // looks at a flow per idle timeout: the timeout is exact to an eighth

	memoryShed    = 95               // percent of the streams' memory in use: new flows are not taken
	memoryReap    = 92               // percent from which flows that stand still are ended sooner
	memoryReapAge = 10 * time.Second // than after this

	admissionShards = 64 // locks of the counts of sources

	udpShards       = 64              // locks of the tables of UDP sessions; a power of two
	inSockets       = 8               // that answers of one batch leave by, before the first are sent
	udpBufferBytes  = 64 << 10        // messages are made in buffers of this size
	udpBufferMax    = 256 << 10       // or larger ones, up to this
	udpSweepEvery   = time.Second     //
	udpPressure     = 75              // percent of the table: from here on silence is not waited for as long
	udpPressureIdle = 5 * time.Second // by flows that nobody ever answered
)

// notMapped is why flows to ports of custom routing are not taken that lead nowhere or are denied.
const notMapped = "not mapped or denied"

// provenExchanges is how often a client has to go on after an answer until it is believed to get them.
const provenExchanges = 3
