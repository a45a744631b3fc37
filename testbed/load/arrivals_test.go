package load

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestArrivals: who is served, refused, and who gives up is told apart, whatever the others do.
func TestArrivals(t *testing.T) {
	here := func(f func() error) error { return f() }
	server := startServer(t)[PortHTTP]
	silent, err := net.Listen("tcp4", "127.0.0.1:0") // takes connections into its backlog, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	at := func(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	for _, c := range []struct {
		name  string
		addr  netip.AddrPort
		which func(a Arrived) int
	}{
		{"served", server, func(a Arrived) int { return a.Served }},
		{"gave up", at(silent), func(a Arrived) int { return a.TimedOut }},
		{"refused", at(gone), func(a Arrived) int { return a.Refused }},
	} {
		for _, a := range []Arrivals{{Rate: 200}, {Waiting: 4}} {
			a.Enter, a.Addr, a.Size, a.Timeout = here, c.addr, 100, 300*time.Millisecond
			if c.addr == server {
				a.Timeout = 20 * time.Second
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
