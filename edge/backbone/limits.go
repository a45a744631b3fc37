package backbone

const (
	windowCeiling   = 64 << 20 // bytes; no path of this world needs a larger window for one stream
	carriersCeiling = 32       // carriers of a tunnel; measured: beyond 16 they only compete

	// MemoryDefault is the size of a Memory that nobody sized.
	MemoryDefault = 256 << 20
)
