package tune

import "time"

const (
	// DefaultNetworksMax bounds remembered client networks: about 120 bytes of kernel memory each, allocated at
	// once. The least recently used is forgotten.
	DefaultNetworksMax = 1 << 16

	// DefaultWindowMax is the ceiling of learned windows in segments: 740 KB, the path of 300 Mbit/s at 20 ms.
	// Measured, windows beyond 300 gain nothing for downloads of 1 MB at 100 Mbit/s.
	DefaultWindowMax = 512

	// windowMaxMax is the largest ceiling that makes sense: 1 Gbit/s at 120 ms.
	windowMaxMax = 10_000

	// windowDefault is what the kernel starts with (RFC 6928); tune.c has the same.
	windowDefault = 10

	// DefaultHalfLife is how long without news it takes a window to count half: access lines keep their speed
	// for months, but who is behind an address changes within hours.
	DefaultHalfLife = time.Hour

	// legsMax is how many legs the program knows.
	legsMax = 4

	// congestionNameMax is the kernel's TCP_CA_NAME_MAX without the final zero.
	congestionNameMax = 15

	layoutVersion = "v1" // of pinned maps, as in package dispatch
)
