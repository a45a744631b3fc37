package clients

import "time"

const (
	// networksMax bounds the networks that are remembered, 250 bytes each; in a full shard the one of eight
	// that was seen least recently goes.
	networksMax = 1 << 16
	shards      = 16
	regionsMax  = 4 // of a network; further ones are not remembered
	evictOf     = 8

	// keep is how long a network counts after its last flow.
	keep = 24 * time.Hour

	// smoothing is the weight of a new sample, 1/8, as in a connection's own smoothed round trip (RFC 6298);
	// the first ones are averaged.
	smoothing = 8

	// Throughput is taken of flows that sent this much, for so long: less is their start alone.
	downBytesMin = 256 << 10
	downTimeMin  = 20 * time.Millisecond
)
