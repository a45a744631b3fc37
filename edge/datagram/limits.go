package datagram

import (
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

const (
	// payloadBase is the UDP payload that every path carries: QUIC's minimum (RFC 9000, 14).
	payloadBase = 1200

	// payloadCeiling bounds Config.PayloadMax: a jumbo frame of 9,000 bytes less IPv6 and UDP.
	payloadCeiling = 8952

	// overhead of a packet, around its frames.
	overhead = wire.PacketHeaderBytes + wire.PacketTagBytes

	// batchPackets and arenaBytes bound what one sendmmsg gets: a whole train.
	batchPackets = 64
	arenaBytes   = 64<<10 + payloadCeiling

	// readErrorsMax consecutive errors of a socket end the transport: it is broken.
	readErrorsMax = 1000

	// windowBits is how far behind the latest packet of a lane one may arrive and still be taken. A
	// lane is one 4-tuple, which networks keep in order but for retries and parallel links: 8,192
	// packets are 80 ms at 100,000 a second.
	windowBits = 8192

	// epochsMax is how many epochs can be received under: the current, the one before, and one that
	// the peer does not use yet. The oldest goes when there are more.
	epochsMax = 3

	// epochOverlap is how long packets of an epoch are taken after the first of a newer one: longer
	// than any reordering of a network.
	epochOverlap = 10 * time.Second

	// rekeyDuePackets is when Stats.RekeyDue turns true. The numbers of a lane end at 2^32; AES-GCM
	// bounds are further off for packets of this size (RFC 9001, B.1: 2^28 of 2 KB for 2^-57).
	rekeyDuePackets = 1 << 28

	// assemblySlots is how many messages of a lane may be incomplete; the oldest goes for a new one.
	assemblySlots = 32

	// assemblyTime is how long a message may be incomplete. Its pieces leave together; 1 s is 65 KB
	// at 0.5 Mbit/s.
	assemblyTime = time.Second

	// keepAliveDefault, and how many may go unanswered before a lane is down.
	keepAliveDefault = time.Second
	keepAlivesMissed = 3

	// tickShare of the keep-alive is the period at which the machines are looked at.
	tickShare = 20

	// rttMax: a longer round trip than this is a clock gone wrong.
	rttMax = time.Minute

	// lossMemory is how many packets back the loss estimate looks, on average.
	lossMemory = 128

	// secretBytesMin bounds what a secret may be; TLS exports 32.
	secretBytesMin = 16

	// Path MTU search, after RFC 8899: tries of a size before it is given up, of the size in use
	// before it is believed to pass no more, how often the size in use is tested, and when sizes
	// that failed are tried again (PMTU_RAISE_TIMER).
	searchTries     = 4
	confirmTries    = 6
	confirmInterval = 5 * time.Second
	raiseInterval   = 10 * time.Minute
)

// payloadSizes are the UDP payloads worth trying: common MTUs less 28 bytes (IPv4) or 48 (IPv6).
var payloadSizes = [...]int{
	payloadBase,
	1232, // 1280: IPv6's minimum
	1352, // 1400, IPv6
	1372, // 1400; 1420 (WireGuard), IPv6
	1392, // 1420
	1412, // 1440; 1460 (GCP), IPv6
	1432, // 1460; 1480 (a tunnel), IPv6
	1444, // 1492 (PPPoE), IPv6
	1452, // 1480; 1500, IPv6
	1464, // 1492
	1472, // 1500
	8848, // 8896 (GCP jumbo), IPv6
	payloadCeiling,
}
