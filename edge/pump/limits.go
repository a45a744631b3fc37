package pump

const (
	// pipeBytes is what one splice moves at most: about what a socket's buffer holds by default.
	pipeBytes = 256 << 10

	// pipesIdleMax bounds the pipes kept for later: each is two file descriptors.
	pipesIdleMax = 64

	// registryShards spreads the lock of a Registry: flows come and go on every CPU.
	registryShards = 64
)
