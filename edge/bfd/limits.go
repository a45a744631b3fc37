package bfd

import "time"

const (
	// Port is where control packets arrive (RFC 5881 4); they leave from a port of at least sourceMin.
	Port      = 3784
	sourceMin = 49152
	// sourceTries is how many ports are tried for one that is free.
	sourceTries = 64

	// slowInterval is the least time between packets of a session that is not up (RFC 5880 6.8.3).
	slowInterval = time.Second

	// inboxPackets is how many packets wait for a session; more are dropped and counted: a session that
	// is so late gains nothing from old ones.
	inboxPackets = 8

	// goodbyes is how often a session that ends says so: a lost packet would look like a failure.
	goodbyes = 3

	// packetBytesMax is more than any control packet has; what is longer is cut and refused.
	packetBytesMax = 256
)
