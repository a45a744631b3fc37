package probe

import "time"

const (
	// concurrencyDefault bounds the checks that run at once. A check costs one socket and a few
	// kilobytes; 256 black-holed endpoints at the default timeout of 5 s still leave room for the rest
	// at ten-second intervals. What is due beyond the bound waits and is counted as late.
	concurrencyDefault = 256

	// firstSpread is the longest that a new check waits before it runs for the first time: a new
	// endpoint is to serve soon, and a whole snapshot's checks are not to start in one instant.
	firstSpread = 250 * time.Millisecond

	// initialInterval is the pace while an endpoint has not been judged yet (unless its own interval
	// is shorter), so that one that is just starting becomes healthy seconds after it answers.
	initialInterval = 2 * time.Second

	// intervalJitter is the share of the interval by which checks may come early. They never come
	// late by intention: the time to detect a dead endpoint is promised as thresholds × interval.
	intervalJitter = 0.1

	// lateAfter is when a check that waited for its turn is counted as late.
	lateAfter = time.Second

	// addressesMax bounds the addresses of one name that one check tries.
	addressesMax = 4

	// headerBytesMax bounds what is read of an answer's status line and headers. Servers send a few
	// kilobytes; net/http allows 1 MiB.
	headerBytesMax = 64 << 10

	// informationalMax bounds the 1xx answers before the final one.
	informationalMax = 5

	// drainBytesMax and drainWait bound what is read of a body so that the server sees an orderly
	// close in place of a reset. The verdict does not depend on it.
	drainBytesMax = 16 << 10
	drainWait     = 100 * time.Millisecond

	// reasonBytesMax bounds a reason, which may hold what the endpoint sent.
	reasonBytesMax = 160
)
