package load

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// closedPort returns an address at which nobody listens, nor will until the test ends.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	v4 := bound.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

// TestArrivals: who is served, refused, and who gives up is told apart, whatever the others do.
func TestArrivals(t *testing.T) {
	here := func(f func() error) error { return f() }
	server := startServer(t)[PortHTTP]
	silent, err := net.Listen("tcp4", "127.0.0.1:0") // takes connections into its backlog, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	at := func(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	for _, c := range []struct {
		name  string
		addr  netip.AddrPort
		which func(a Arrived) int
	}{
		{"served", server, func(a Arrived) int { return a.Served }},
		{"gave up", at(silent), func(a Arrived) int { return a.TimedOut }},
		{"refused", closedPort(t), func(a Arrived) int { return a.Refused }},
	} {
		for _, a := range []Arrivals{{Rate: 200}, {Waiting: 4}} {
			a.Enter, a.Addr, a.Size, a.Timeout = here, c.addr, 100, 300*time.Millisecond
			if c.addr == server {
				a.Timeout = time.Minute
			}
			got, err := a.Run(context.Background(), 200*time.Millisecond)
			if err != nil && c.addr == server {
				t.Fatal(err)
			}
			if got.Came == 0 && c.name != "refused" || c.which(got) != got.Came {
				t.Errorf("%s, rate %v: %+v", c.name, a.Rate, got)
			}
		}
	}
}
