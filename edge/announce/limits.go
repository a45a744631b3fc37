package announce

import "time"

const (
	// partialAfter is how long a prefix that is not announced yet waits for listening sockets that cannot
	// be opened. After it, it is announced if some are open: one port that another process has must not
	// keep a whole prefix off the air everywhere.
	partialAfter = 5 * time.Second

	// floorWait is how long a node that wants a prefix withdrawn for its own sickness waits, so that gossip
	// (500 ms a round) has told whether others want the same.
	floorWait = 2 * time.Second

	// settleAfter is how long packets still come after a withdrawal: routers need a moment to change their
	// minds. Only then a node that drains shuts its doors.
	settleAfter = time.Second

	// pollEvery is how often doors and gossip are looked at.
	pollEvery = 250 * time.Millisecond

	// restartWait is how long a restarted speaker waits until it can announce what it did before, so that
	// its End-of-RIB does not come before its routes (RFC 4724 4.1).
	restartWait = 5 * time.Second
	// deferral is how long it waits at most for the router's End-of-RIB.
	deferral = 5 * time.Second

	// stopWait is how long the speaker may take to say goodbye.
	stopWait = 3 * time.Second
)
