package health

import "time"

const (
	// Defaults of Config.
	staleAfter     = 150 * time.Second
	recoverHold    = 5 * time.Second
	recoverHoldMax = 5 * time.Minute
	flapMemory     = 10 * time.Minute
	// votesMax bounds the probers of one endpoint; more say nothing new.
	votesMax = 128
	// failuresMax is more than it takes to reach recoverHoldMax.
	failuresMax = 16
	// decideAtLeast is how long a group may go without being looked at.
	decideAtLeast = time.Minute
	// checkAddressesMax bounds how many addresses of a name one check tries.
	checkAddressesMax = 3
	// headerBytesMax bounds the header of an answer to a check.
	headerBytesMax = 16 << 10
)
