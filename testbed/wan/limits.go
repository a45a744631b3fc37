package wan

import "time"

const (
	// tick is the least time between two wake-ups of the engine while it has work. Wake-ups, not bytes, dominate
	// its cost: measured, 500 µs halves it against waking for every packet, at a release error of ±250 µs
	// whose mean is zero. Sparse traffic is not touched by it: then the engine sleeps exactly.
	tick = 500 * time.Microsecond

	// quantumSlow is the serialisation time of a full packet from which on a superpacket is split fully: on
	// slower bottlenecks (under about 50 Mbit/s) a burst within one tick would be visible to TCP.
	quantumSlow = tick / 2

	// idlePollMax bounds a wait with nothing queued. Nothing depends on it: a stop wakes the engine at once.
	idlePollMax = 100 * time.Millisecond

	// busyPollMax bounds a wait with packets queued. The thread keeps its processor (P) meanwhile, and the
	// garbage collector must wait for it.
	busyPollMax = time.Millisecond

	// readsPerLoop bounds the superpackets read between two releases. 1,024 per 500 µs is 2 million a second:
	// well above what one thread can do, so it only keeps one busy host from starving the releases.
	readsPerLoop = 1024

	// tunQueueLen is the TUN's ring in packets. It overflows silently (Stats.RingDrops), so it must hold what
	// may come in while the engine releases: the kernel's default of 500 lost a quarter of 89,000 packets/s.
	tunQueueLen = 10000

	// chunkBytes is the size of a buffer chunk and packetBytesMax what must be left in one for the next read:
	// the largest IP packet, its virtio header, and room to align.
	chunkBytes     = 1 << 20
	packetBytesMax = 1<<16 + 1024

	// memoryMax bounds the bytes in flight. A gigabit over 300 ms is 37 MB; packets are dropped and counted
	// (Stats.Overflow) beyond.
	memoryMax = 1 << 30

	// headerBytesMax is the longest virtio+IP+L4 header of a superpacket that can be split: 10 + 60 + 60 for
	// IPv4, more than enough for IPv6 with usual extensions. Longer ones are counted as malformed.
	headerBytesMax = 256

	// routeCacheMax bounds the remembered destinations per ingress host. The cache is dropped when full.
	routeCacheMax = 1 << 16

	// queueTimeDefault and queueBytesMin give the queue of a rate without a stated one: 100 ms, but room for at
	// least one full superpacket and its successor.
	queueTimeDefault = 100 * time.Millisecond
	queueBytesMin    = 128 << 10

	// jitterStep is the least time between two independent values of a link's jitter. Between them it moves
	// linearly, so that packets keep their order and a busy link has the same mean delay as an idle one.
	jitterStep = 10 * time.Millisecond

	// hostsMax bounds a Fabric: paths are a matrix over hosts.
	hostsMax = 256

	// realtimePriority is the engine's SCHED_FIFO priority: anything above 0 gets it ahead of all normal work.
	realtimePriority = 10

	// mtu of every interface in bytes.
	mtu = 1500
)
