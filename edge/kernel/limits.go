package kernel

const (
	guardSampleEvery = 100   // dropped packets a sample, at random
	dropsKept        = 1_000 // kept; the oldest goes

	flowsFull = 90 // per cent of balance's table that are in use, from which on a note says so
)
