package udpio

const (
	// readMessages is how many messages one recvmmsg asks for. Each needs a buffer of 64 KiB; what is
	// never filled is never backed by memory. 32 messages amortise the call to a few ns a packet.
	readMessages = 32

	// messageBytes holds the largest message: a GRO train, or a datagram of 65,507 bytes.
	messageBytes = 1 << 16

	// writeMessages is how many messages one sendmmsg carries, and writePackets how many packets:
	// a message may be a train of up to trainPackets.
	writeMessages = 64
	writePackets  = 256

	// trainPackets is UDP_MAX_SEGMENTS of the first kernels with UDP_SEGMENT (4.18); newer ones
	// allow 128. trainBytes is the largest UDP payload of IPv4, the smaller of the two families'.
	trainPackets = 64
	trainBytes   = 65507

	// trainSizeMin: below this size of a refused train's packets, path MTU cannot be the reason
	// (the IPv4 minimum MTU is 576), so trains are given up altogether.
	trainSizeMin = 548

	// pollEvents is how many ready sockets one epoll_wait of a Poller reports.
	pollEvents = 128

	// yieldPackets: fewer in a batch have others go first, see package pace. 16 share the cost of a batch
	// well enough.
	yieldPackets = 16

	// PayloadMax is the largest datagram: 65,535 less the IPv4 and UDP headers.
	PayloadMax = 65507

	// defaultSocketBuffer is asked for in each direction. It holds 25 ms of 1 Gbit/s in 1,200 byte
	// packets at the kernel's own accounting (about twice the payload).
	defaultSocketBuffer = 8 << 20
)
