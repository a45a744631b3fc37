package listen

import (
	"time"

	"github.com/nearcast/nearcast/edge/udpio"
)

// watch notes when a UDP socket is behind.
func (s *Set) watch(c *udpio.Conn) {
	if c.Behind() >= behindMax {
		s.behind.Store(time.Now().UnixNano())
	}
}

// Behind reports whether more datagrams come than this node can do: one of its sockets was not found empty for
// long, a moment ago.
func (s *Set) Behind() bool {
	at := s.behind.Load()
	return at != 0 && time.Now().UnixNano()-at < int64(behindMax)
}
