package dispatch

// What the program has built in; dispatch.c has the same names.
const (
	// Slots is how many different uses of sockets rules can name.
	Slots = 16

	// GroupSockets is how many sockets a slot can have of one protocol and family: one a CPU is plenty.
	GroupSockets = 64

	// generations is how many hand-overs' sockets are kept side by side. A daemon that is still draining when
	// the eighth one after it takes over gets no more of its held datagrams.
	generations = 8

	groupsPerGeneration = 4 * Slots

	// layoutVersion names the directory of pins. It changes with the layout or meaning of any map, so that two
	// releases with different layouts never write into each other's.
	layoutVersion = "v1"
)

const (
	// DefaultPrefixesMax bounds different (protocol, prefix) pairs: about 150 bytes of kernel memory each.
	DefaultPrefixesMax = 1 << 16

	// DefaultRangesMax bounds the port ranges of all different extents together: 8 bytes each, allocated at
	// once. Prefixes with the same ranges share them.
	DefaultRangesMax = 1 << 18

	// DefaultHeldMax bounds held UDP flows: about 100 bytes each, allocated at once. The least recently used
	// is forgotten when it is full, and its flow goes to the live process.
	DefaultHeldMax = 1 << 16
)
