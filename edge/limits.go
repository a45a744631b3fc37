package edge

import "time"

const (
	// DrainTimeoutDefault is how long a node that is asked to stop waits for its flows to end. It is
	// shorter than what supervisors commonly grant before they kill (30 s, 90 s).
	DrainTimeoutDefault = 15 * time.Second

	// MaxFlowsDefault bounds the client flows of a node, TCP and UDP each. At the 10 KB that an idle
	// flow may cost it is 2.5 GB, and four times what a machine of that size usually carries.
	MaxFlowsDefault = 1 << 18

	// DefaultBalancePort is where nodes of a site send each other packets of flows: that of Generic UDP Encapsulation.
	DefaultBalancePort = 6080
	// Bounds of --balance-flows: the kernel takes 8 GB at once for the most.
	balanceFlowsMin, balanceFlowsMax = 1 << 10, 1 << 26
	// clientMSSMin is the least segment size that the kernel takes.
	clientMSSMin = 88

	// memoryHeld is the share of the memory limit that streams may hold in their buffers; what is
	// left is for connections, tables, the runtime, and the garbage between two collections.
	memoryHeld = 0.4
	// memoryRuntime is the share that the runtime is told as its limit: memory outside its heap
	// (sockets' bookkeeping, mapped files) is not counted by it.
	memoryRuntime = 0.9
	// memoryMin is the least limit that a node works with.
	memoryMin = 64 << 20

	// recompilePause is the least time between two compilations of the steering table. The first
	// event after a quiet time is acted on at once.
	recompilePause = 5 * time.Millisecond
	// recompileRest is how many times as long as a compilation took nothing is compiled after it, so that
	// constant change costs at most a fifth of a CPU. (20,000 groups and 2,000 gateways: 250 ms each.)
	recompileRest = 4

	// A measured round trip is news for the steering table if it differs from the one that the table
	// was compiled with by both. Below that it could not change a choice: the table's own hysteresis
	// (see steer) is coarser.
	newsTime  = 500 * time.Microsecond
	newsShare = 0.02

	// roomStopTimeout is how long one part may take to end once it is asked to.
	roomStopTimeout = 5 * time.Second

	// withdrawSpare is how long withdrawing announcements may take beyond the site's drain time.
	withdrawSpare = 3 * time.Second

	// drainPoll is how often a draining node looks whether its flows have ended.
	drainPoll = 50 * time.Millisecond

	// drainUDPQuiet is how long a flow of datagrams must be silent before a draining node no longer waits for it:
	// longer than an answer takes that somebody still waits for.
	drainUDPQuiet = 3 * time.Second

	// How long an upgrade's steps may take: until the next process has a snapshot and tunnels (which it
	// waits for up to tunnelsTimeout), and then until it has opened its ports.
	nextReadyTimeout   = time.Minute
	tunnelsTimeout     = 15 * time.Second
	nextServingTimeout = 30 * time.Second
	// retireGrace is longer than handshakes that began at the process before may take.
	retireGrace = 10 * time.Second

	// Limits of the HTTP server for metrics: it answers a few requests of tools, not of the public.
	httpHeaderTimeout = 5 * time.Second
	httpWriteTimeout  = 30 * time.Second
	httpHeaderBytes   = 16 << 10
	httpStopTimeout   = time.Second
)

const (
	// aliveInterval is how often DNS answers look who is alive, besides when a tunnel says so at once.
	aliveInterval = 250 * time.Millisecond
	// databaseInterval is how often the geo databases' files are looked at.
	databaseInterval = 5 * time.Second
	// clientsKeep is how often what is measured of clients' networks is written to disk, and clientsAge how
	// old it may be at a start.
	clientsKeep = time.Minute
	clientsAge  = 24 * time.Hour
	// A node with this share of its flows asks not to be named in answers, until it is below the other.
	shedAt, shedUntil = 0.9, 0.8
)
