package kernel

const (
	guardSampleEvery = 100   // dropped packets a sample, at random
	dropsKept        = 1_000 // kept; the oldest goes
)
