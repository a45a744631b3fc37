package site

import "time"

const (
	// beatEvery is how often each other node of the site is asked.
	beatEvery = 250 * time.Millisecond

	// suspectAfter is the silence after which a node owns nothing: twelve questions without an answer. A process
	// that a busy machine does not run for a moment is still there.
	suspectAfter = 3 * time.Second

	// nonceEvery is how long one question is asked. Its answer may come that much later.
	nonceEvery = time.Second

	// goneAfter is the silence after which nothing is sent to a node any more.
	goneAfter = 10 * time.Second

	// routesEvery is how often the way to the others is looked up: a router that takes over another's MAC address
	// is noticed after that time.
	routesEvery = time.Second

	// usualMTU is that of nearly all clients' packets.
	usualMTU = 1500
)
