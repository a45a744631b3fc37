package netns

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// FreeAddr returns "host:port" of a loopback address at which nobody listens by TCP. The host is one of some
// four million and the port is none that the kernel gives away, so nobody else has it either when it is listened
// at later, or again after a restart: another process that looks for a port has another host, and connections
// within the machine come from 127.0.0.1.
func FreeAddr(t TB) string {
	t.Helper()
	for range 1000 {
		at := fmt.Sprintf("127.%d.%d.%d:%d", 1+rand.IntN(63), rand.IntN(256), 1+rand.IntN(254),
			portFirst+rand.IntN(portLast-portFirst+1))
		if l, err := net.Listen("tcp", at); err == nil {
			l.Close()
			return at
		}
	}
	t.Fatalf("no port from %d to %d is free", portFirst, portLast)
	return ""
}
