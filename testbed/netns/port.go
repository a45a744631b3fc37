package netns

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// Ports that FreePort returns: below those that the kernel gives to outgoing connections (from 32768).
const portFirst, portLast = 10_000, 31_999

// FreePort returns a port at which nobody listens, by TCP or UDP, at any address of this namespace, and which nobody
// is given again in it, by this process or another one, before this process has ended. A port that the kernel chose
// would not do for who listens there later: it is of the range of outgoing connections, so that one of those may have
// it by then, and a connection that is tried before anybody listens may even reach itself.
func FreePort(t TB) uint16 {
	t.Helper()
	return FreePorts(t, 1)
}

// FreePorts is FreePort for n ports in a row, of which it returns the first.
func FreePorts(t TB, n int) uint16 {
	t.Helper()
tries:
	for range 1000 {
		first := portFirst + rand.IntN(portLast-portFirst+2-n)
		for port := first; port < first+n; port++ {
			free, err := claimPort(port)
			if err != nil {
				t.Fatalf("claim port %d: %v", port, err)
			}
			if !free || !nobodyListens(port) {
				continue tries
			}
		}
		return uint16(first)
	}
	t.Fatalf("no %d ports in a row from %d to %d are free", n, portFirst, portLast)
	return 0
}

func nobodyListens(port int) bool {
	at := ":" + strconv.Itoa(port)
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	p, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	p.Close()
	return true
}

// claimPort takes a port for this process, if nobody has. The claim is a name of a local socket, which is of the
// network namespace, as the port is, and goes with the process. It is never given back: a test may come to the port
// again at any time.
func claimPort(port int) (mine bool, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@nearcast-test-port-" + strconv.Itoa(port)})
	if err == nil {
		return true, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil
	}
	return false, err
}
