package listen

import (
	"net"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/udpio"
)

func TestAcceptSockets(t *testing.T) {
	for _, c := range []struct{ wanted, cpus, want int }{
		{0, 1, 1}, {0, 8, 1}, {0, 9, 2}, {0, 64, 8}, {0, 10_000, AcceptSocketsMax}, {1, 64, 1}, {5, 2, 5}, {64, 1, 64},
	} {
		if n := acceptSockets(c.wanted, c.cpus); n != c.want {
			t.Errorf("%d wanted on %d CPUs: %d, want %d", c.wanted, c.cpus, n, c.want)
		}
	}
	for _, wrong := range []int{-1, AcceptSocketsMax + 1} {
		cfg := Config{HandleTCP: func(*net.TCPConn) {}, HandleUDP: func(*udpio.Conn, []udpio.Packet) {}, AcceptSockets: wrong}
		if cfg.Validate() == nil {
			t.Errorf("%d accepting sockets were accepted", wrong)
		}
	}
}

// TestSeveralAcceptingSockets: each takes connections, none of which is lost when they are all closed at a hand-over,
// and the bound of the backlog is for all together.
func TestSeveralAcceptingSockets(t *testing.T) {
	f := start(t, Config{Dispatch: dispatcher(t), AcceptSockets: 3})
	at := netip.AddrPortFrom(ownLoopback(7), freePorts(t, 1).From)
	must(t, f.Apply([]Binding{everyPort(at.Addr(), flow.TCP)}))
	accepting := map[dispatch.Family]int{}
	f.mu.Lock()
	for _, k := range f.shared.sockets {
		if k.tcp != nil && k.key.at.Addr().Is4() {
			accepting[dispatch.IPv4]++
		} else if k.tcp != nil {
			accepting[dispatch.IPv6]++
		}
		if k.tcp != nil {
			f.Backlog(9)
			if n := f.boundOf(k); n != 3 {
				t.Errorf("a backlog of 9 is %d at one of 3 sockets", n)
			}
		}
	}
	f.mu.Unlock()
	f.Backlog(0)
	if accepting[dispatch.IPv4] != 3 || accepting[dispatch.IPv6] != 3 && accepting[dispatch.IPv6] != 0 {
		t.Errorf("accepting sockets: %v", accepting)
	}
	for range 60 {
		if got, err := greet(at); err != nil || got != at.String() {
			t.Fatalf("tcp says %q, %v", got, err)
		}
	}
	f.mu.Lock()
	f.leaveAccepting()
	for _, k := range f.shared.sockets {
		if k.tcp != nil {
			t.Error("a socket still accepts")
		}
	}
	f.mu.Unlock()
	if _, err := greet(at); err == nil {
		t.Error("closed sockets answer")
	}
}
