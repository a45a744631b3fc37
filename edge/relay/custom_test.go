package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/listen"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// routed has the world's listener lead its ports to the machines 127.0.3.0 to .3, one after the other.
type routed struct{ *world }

func newRouted(t *testing.T, s spec) routed {
	w := routed{newWorld(t, s)}
	w.change(func(s *model.Snapshot) {
		s.Accelerators = slices.Clone(s.Accelerators)
		s.Accelerators[0].Type = model.CustomRouting
		s.Listeners = slices.Clone(s.Listeners)
		s.Listeners[0].PortRanges = []model.PortRange{{From: w.port, To: w.port + 3}}
		s.Subnets = []model.Subnet{{Name: "s", Region: "x", Prefix: netip.MustParsePrefix("127.0.3.0/30")}}
	})
	return w
}

// change has everybody serve by another snapshot.
func (w routed) change(f func(*model.Snapshot)) {
	w.mu.Lock()
	s := *w.snap
	f(&s)
	w.snap = &s
	w.mu.Unlock()
	w.apply()
}

// destination is what the i-th port leads to.
func (w routed) destination(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 3, byte(i)}), w.port)
}

// allow lets traffic through to the i-th ports, by bits.
func (w routed) allow(bits byte) {
	w.change(func(s *model.Snapshot) {
		s.CustomRoutingGroups = []model.CustomRoutingGroup{{ID: "g", Listener: "l", Region: "x",
			Destinations: []model.CustomRoutingDestination{
				{PortRange: model.PortRange{From: w.port, To: w.port}, Protocol: model.TCPUDP}},
			Endpoints: []model.CustomRoutingEndpoint{{Subnet: "s", Allowed: []byte{bits},
				Ports: []model.PortRange{{From: w.port, To: w.port + 3}}}}}}
	})
}

// machines answer, each with its number.
func (w routed) machines() {
	for i := range 4 {
		w.t.Cleanup(serve(w.t, w.destination(i), func(c *net.TCPConn) {
			defer c.Close()
			for b := make([]byte, 100); ; {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%d: %s", i, b[:n])
			}
		}))
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(w.destination(i)))
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { u.Close() })
		go func() {
			for b := make([]byte, 100); ; {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%d: %s", i, b[:n]), from)
			}
		}()
	}
}

// connect asks the i-th port.
func (w routed) connect(network string, i int) (net.Conn, error) {
	return net.DialTimeout(network, netip.AddrPortFrom(vip, w.port+uint16(i)).String(), time.Minute)
}

// say says something on a connection and returns the answer.
func say(c net.Conn, text string) (string, error) {
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestCustomRouting(t *testing.T) {
	for name, s := range map[string]spec{
		"backbone": {gates: []string{"x"}}, "this node is the gateway": {selfGateway: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRouted(t, s)
			w.machines()
			w.allow(0b0101)
			old := map[string]net.Conn{}
			for i := range 4 {
				c, err := w.connect("tcp", i)
				if i%2 == 1 {
					if !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("TCP to port %d, which is denied: %v", i, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				old["tcp"] = c
				if got, err := say(c, "hello"); err != nil || got != fmt.Sprintf("%d: hello", i) {
					t.Errorf("TCP to port %d: %q, %v", i, got, err)
				}
				u, err := w.connect("udp", i)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				if got, err := exchange(u, []byte("hello")); err != nil || string(got) != fmt.Sprintf("%d: hello", i) {
					t.Errorf("UDP to port %d: %q, %v", i, got, err)
				}
			}
			// Denied and allowed the other way around: for new flows at once, and the old ones go on.
			w.allow(0b0010)
			if c, err := w.connect("tcp", 2); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("TCP to what was denied: %v, %v", c, err)
			}
			c, err := w.connect("tcp", 1)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := say(c, "new"); err != nil || got != "1: new" {
				t.Errorf("TCP to what was allowed: %q, %v", got, err)
			}
			if got, err := say(old["tcp"], "still"); err != nil || got != "2: still" {
				t.Errorf("a connection from before: %q, %v", got, err)
			}
		})
	}
}

// Where the ports are opened wide, what leads nowhere is refused by the relay, and counted.
func TestDeniedAtWideDoors(t *testing.T) {
	w := newRouted(t, spec{selfGateway: "x"})
	w.machines()
	w.allow(0b1000)
	w.mu.Lock()
	table := steer.Compile(w.snap, "edge", steer.View{})
	w.mu.Unlock()
	wide := Bindings(table, true)
	for i, b := range wide {
		if b.Proto == 17 && b.Ports.Len() != 4 || b.Proto == 6 && b.Ports.Len() != 1 || !b.Spare {
			t.Errorf("binding %d: %+v", i, b)
		}
	}
	all := []listen.Binding{}
	for _, b := range wide {
		b.Ports = model.PortRange{From: w.port, To: w.port + 3}
		all = append(all, b)
	}
	if err := w.doors.Apply(all); err != nil {
		t.Fatal(err)
	}
	c, err := w.connect("tcp", 0)
	if err == nil {
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TCP to a denied port: %v", err)
	}
	u, err := w.connect("udp", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	w.eventually("the datagram is counted", func() bool {
		_, _ = u.Write([]byte("x"))
		return metric(t, w.reg, "nearcast_relay_udp_dropped_total", "reason", notMapped) > 0
	})
	if n := metric(t, w.reg, "nearcast_relay_tcp_shed_total", "reason", notMapped); n != 1 {
		t.Errorf("%v refusals", n)
	}
	if w.tcp.Flows()+w.udp.Flows() != 0 {
		t.Error("a denied flow is there")
	}
}

// A gateway that knows less than the edge refuses the flow, and one that knows more, too.
func TestGatewayJudgesMappings(t *testing.T) {
	w := newRouted(t, spec{gates: []string{"x"}})
	w.machines()
	w.allow(0b0001)
	w.mu.Lock()
	knows := w.snap
	behind := *knows
	w.mu.Unlock()
	behind.CustomRoutingGroups = nil
	w.gates["gw-x"].gateway.Apply(&behind)
	c, err := w.connect("tcp", 0)
	if err == nil {
		defer c.Close()
		_, err = say(c, "hello")
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a gateway that knows no mapping: %v", err)
	}
	w.gates["gw-x"].gateway.Apply(knows)
	c, err = w.connect("tcp", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := say(c, "hello"); err != nil || got != "0: hello" {
		t.Errorf("%q, %v", got, err)
	}
}
