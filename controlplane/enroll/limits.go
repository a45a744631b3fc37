package enroll

import "time"

const (
	// tokenLifetimeDefault is a join token's when its maker does not say.
	tokenLifetimeDefault = time.Hour
	// tokenLifetimeMax bounds how long a forgotten token stays dangerous.
	tokenLifetimeMax = 365 * 24 * time.Hour
	// tokenKeep is how long an ended token is still listed, so that operators see what became of it.
	tokenKeep = 7 * 24 * time.Hour
	// tokensMax bounds what List has to read.
	tokensMax = 10_000
	// usesKept is how many enrolments of one token are remembered, to answer them again. Older ones
	// cannot be repeated, which matters for minutes only.
	usesKept        = 64
	descriptionMax  = 256 // characters
	concurrentMax   = 16  // Enroll calls at once: each costs store writes, and anybody may call
	conflictRetries = 16  // a token that machines use at several controllers at the same moment
	// claimTimeout is after how long a use that nobody settled is given up: longer than the store's
	// operations can take.
	claimTimeout  = 30 * time.Second
	settleTimeout = 5 * time.Second  // to undo a use when the caller has gone
	renewRetry    = 10 * time.Second // of the controller's own certificate
	authorityKey  = "authority"
	tokensPrefix  = "tokens/"
)
