package netns

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports that FreePort returns: below those that the kernel gives to outgoing connections (from 32768).
const portFirst, portLast = 10_000, 31_999

// portsTaken are the ports that this process has been given.
var portsTaken sync.Map

// FreePort returns a port at which nobody listens, by TCP or UDP, at any address of this namespace, and not
// the same twice. A port that the kernel chose would not do for who listens there later: it is of the range
// of outgoing connections, so that one of those may have it by then, and a connection that is tried before
// anybody listens may even reach itself.
func FreePort(t TB) uint16 {
	t.Helper()
	for range 1000 {
		port := portFirst + rand.IntN(portLast-portFirst+1)
		at := ":" + strconv.Itoa(port)
		l, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		p, err := net.ListenPacket("udp", at)
		l.Close()
		if err != nil {
			continue
		}
		p.Close()
		if _, twice := portsTaken.LoadOrStore(port, true); !twice {
			return uint16(port)
		}
	}
	t.Fatalf("no port from %d to %d is free", portFirst, portLast)
	return 0
}
