package gateway

import "time"

const (
	flowsMaxDefault    = 262_144 // TCP flows; each has a descriptor
	sessionsMaxDefault = 65_536  // UDP sessions; each has a descriptor

	// dialTimeoutDefault has room for one lost SYN (repeated after 1 s) and an endpoint that is slow
	// to accept. While other endpoints are left, half of it is enough to wait for one.
	dialTimeoutDefault = 3 * time.Second
	// openBudgetDefault is for all tries of one flow. Edges wait longer than this for an answer.
	openBudgetDefault = 5 * time.Second
	triesMax          = 8 // endpoints tried for one flow

	// troubleTime is how long an endpoint that did not take a connection comes last. One flow finds out,
	// the next ones need not; and it is as short as the shortest health check interval and a bit.
	troubleTime = 2 * time.Second
	troublesMax = 1024 // endpoints remembered so

	// promptDial: a connect that took less tells nothing about overload (overload's target is twice as long).
	promptDial = 10 * time.Millisecond

	// Keep-alive towards endpoints: finds out within 2 minutes that one is gone without a word.
	keepAliveIdle     = time.Minute
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 4

	// notsentLowat bounds what the kernel holds of a connection beyond what the endpoint's window takes:
	// without it, one that stops reading costs up to tcp_wmem (4 MB).
	notsentLowat = 256 << 10

	namesMax        = 4096             // host names remembered
	nameAddrsMax    = 16               // addresses used of one name
	nameTTL         = 10 * time.Second // Go's resolver tells no TTL; a changed name is followed this soon
	nameRefusedTTL  = time.Second      // for names that do not resolve
	nameStaleTTL    = 10 * time.Minute // a name that does not resolve any more keeps its last addresses
	nameTimeout     = 3 * time.Second
	namesInParallel = 32 // look-ups at once

	shards        = 64 // of the table of sessions; a power of two
	pendingMax    = 16 // datagrams that a session keeps while its endpoint's name is looked up
	pendingBytes  = 64 << 10
	sweepEvery    = time.Second
	sessionSlack  = 5 * time.Second // sessions outlive the edge's by this, so that the edge decides
	replyBytesMax = 128 << 10       // of messages that one loop collects; two of the largest fit
)
