package dns

import "time"

const (
	// udpSizeMax is what answers by UDP have at most: they pass every path unfragmented (RFC 9715 3.1
	// allows 1400; 1232 is what DNS Flag Day 2020 measured as safe for IPv6, too).
	udpSizeMax = 1232
	// udpSizePlain is the most without EDNS (RFC 1035 4.2.1), and to a source that has not shown by a
	// cookie that it can be reached: no answer to a forged address is larger than ten times the query.
	udpSizePlain = 512
	// tcpSizeMax is what the length field of TCP holds.
	tcpSizeMax = 65535

	// batch is how many datagrams one round takes.
	batch = 64
	// chaseMax is how many CNAMEs of the same zone one answer follows.
	chaseMax = 8
	// rateSlots is the rate limiter's table, 24 bytes each, for each socket.
	rateSlots = 1 << 14

	// connectionsMax and connectionsPerSource bound TCP and TLS connections. At the first bound the one
	// that was idle longest is closed for a new one; at the second the new one is.
	connectionsMax       = 2048
	connectionsPerSource = 64
	// idleTimeout is how long a connection may be silent (RFC 7766 6.2.3: a few seconds), and
	// keepaliveTimeout how long if the client asked to keep it (RFC 7828).
	idleTimeout      = 10 * time.Second
	keepaliveTimeout = 30 * time.Second
	// writeTimeout is how long a client may take to read its answers, after which it is cut off.
	writeTimeout = 5 * time.Second
	// handshakeTimeout bounds TLS.
	handshakeTimeout = 5 * time.Second
	// answersMax is how many bytes of answers are collected before they are written.
	answersMax = 128 << 10
	// padTo is the block that answers over TLS are padded to (RFC 8467 4.1).
	padTo = 468

	// DefaultRate is how many like answers a second a network of /24 or /56 gets by UDP without a cookie.
	DefaultRate = 200
)
