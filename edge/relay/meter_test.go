package relay

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/proto/model"
)

// metered makes each kind of world with a meter, whose metrics are read from r.
func metered(t *testing.T, f func(t *testing.T, w *world, r *prometheus.Registry)) {
	for name, s := range map[string]spec{
		"backbone": {gates: []string{"x"}}, "this node is the gateway": {selfGateway: "x"}, "no gateway": {},
	} {
		t.Run(name, func(t *testing.T) {
			r := prometheus.NewRegistry()
			m, err := meter.New(meter.Config{Metrics: r})
			if err != nil {
				t.Fatal(err)
			}
			s.groups = []model.EndpointGroup{group("x", 1)}
			s.relay = func(c *Config) { c.Meter = m }
			f(t, newWorld(t, s), r)
		})
	}
}

// The counts of TCP flows hold all that was on the wire: bytes, headers, and who ended it.
func TestTCPIsMetered(t *testing.T) {
	metered(t, func(t *testing.T, w *world, r *prometheus.Registry) {
		count := func(name string, want ...string) float64 {
			return metric(t, r, "nearcast_traffic_"+name, append(want, "group", "g-x", "protocol", "tcp")...)
		}
		w.serve(1, func(c *net.TCPConn) {
			first := make([]byte, 1)
			if _, err := io.ReadFull(c, first); err == nil && first[0] == 'r' {
				_ = c.SetLinger(0) // the deferred Close resets
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.CloseWrite()
		})
		const size = 200_000
		c := w.dial()
		if _, err := c.Write(pattern(size, 1)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size-1)
		if _, err := io.ReadFull(c, got); err != nil {
			t.Fatal(err)
		}
		if n := count("flows"); n != 1 {
			t.Errorf("%v flows are open", n)
		}
		if n := count("bytes_total"); n != 0 {
			t.Errorf("%v bytes before anything was folded", n)
		}
		w.tcp.Fold()
		in, out := count("bytes_total", "direction", "in"), count("bytes_total", "direction", "out")
		if in < size || in > size*1.2 || out < size-1 || out > size*2 { // what a busy machine sends again counts
			t.Errorf("%v bytes in and %v out while it is open", in, out)
		}
		_ = c.CloseWrite()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		w.eventually("the flow has ended", func() bool { return count("flows") == 0 })
		// 40 bytes and 12 of options for each packet, SYN and FIN among them. To the kernel a FIN is a byte.
		packets := count("packets_total", "direction", "in")
		if in = count("bytes_total", "direction", "in"); in != size+1+packets*52 {
			t.Errorf("%v bytes in %v packets", in, packets)
		}

		reset := w.dial() // by the client
		if _, err := reset.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		w.eventually("the flow is taken", func() bool { return count("flows") == 1 })
		_ = reset.SetLinger(0)
		reset.Close()
		w.eventually("the client's reset is counted", func() bool { return count("resets_total", "by", "client") == 1 })
		if _, err := w.dial().Write([]byte("r")); err != nil { // by the endpoint
			t.Fatal(err)
		}
		w.eventually("the endpoint's reset is counted", func() bool { return count("resets_total", "by", "endpoint") == 1 })
		if n := count("resets_total", "by", "nearcast"); n != 0 {
			t.Errorf("%v resets by nearcast", n)
		}
		if n := count("flows_total"); n != 3 {
			t.Errorf("%v flows", n)
		}
	})
}

// Nobody listens at the endpoint: the flow is reset, and counted without a group.
func TestUnservedIsMetered(t *testing.T) {
	metered(t, func(t *testing.T, w *world, r *prometheus.Registry) {
		if c, err := net.Dial("tcp", w.at().String()); err == nil { // else it was reset already
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection was not reset: %v", err)
			}
			c.Close()
		}
		w.eventually("it is counted", func() bool {
			return metric(t, r, "nearcast_traffic_unserved_total", "group", "") == 1 &&
				metric(t, r, "nearcast_traffic_resets_total", "group", "", "by", "nearcast") == 1
		})
		if n := metric(t, r, "nearcast_traffic_flows_total"); n != 0 {
			t.Errorf("%v flows are counted as served", n)
		}
	})
}

func TestUDPIsMetered(t *testing.T) {
	metered(t, func(t *testing.T, w *world, r *prometheus.Registry) {
		at := net.UDPAddrFromAddrPort(w.at())
		at.IP = net.IPv4(127, 0, 2, 1)
		endpoint, err := net.ListenUDP("udp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer endpoint.Close()
		go func() {
			buf := make([]byte, 2000)
			for {
				n, from, err := endpoint.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = endpoint.WriteToUDPAddrPort(buf[:n/2], from)
			}
		}()
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(w.at()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 2000)
		for range 5 {
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := c.Write(buf[:1000]); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(buf); n != 500 || err != nil {
				t.Fatal(n, err)
			}
		}
		for direction, want := range map[string]float64{"in": 5 * (1000 + 28), "out": 5 * (500 + 28)} {
			w.eventually("all is counted", func() bool { // an answer may be at the client before it is
				w.udp.Fold()
				return metric(t, r, "nearcast_traffic_bytes_total", "direction", direction, "group", "g-x", "protocol", "udp") >= want
			})
			if n := metric(t, r, "nearcast_traffic_bytes_total", "direction", direction, "group", "g-x", "protocol", "udp"); n != want {
				t.Errorf("%v bytes %s, want %v", n, direction, want)
			}
		}
		if n := metric(t, r, "nearcast_traffic_flows", "group", "g-x", "protocol", "udp"); n != 1 {
			t.Errorf("%v flows", n)
		}
	})
}
