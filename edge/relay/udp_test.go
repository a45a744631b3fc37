package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/edge/proxyproto"
	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/model"
)

// udpWorlds are the ways a datagram can take to its endpoint.
func udpWorlds(t *testing.T, f func(t *testing.T, w *world)) {
	worlds(t, f)
	t.Run("UDP blocked", func(t *testing.T) {
		f(t, newWorld(t, spec{gates: []string{"x"}, udpBlocked: true, groups: []model.EndpointGroup{group("x", 1)}}))
	})
}

// answerUDP answers every datagram to 127.0.2.N by what answer returns; nil is no answer.
func (w *world) answerUDP(n int, answer func(from netip.AddrPort, b []byte) []byte) (stop func()) {
	w.t.Helper()
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 2, byte(n)}), w.port)
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetReadBuffer(8 << 20)
	var done sync.WaitGroup
	done.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if reply := answer(from, b[:n]); reply != nil {
				_, _ = c.WriteToUDPAddrPort(reply, from)
			}
		}
	})
	stop = sync.OnceFunc(func() { c.Close(); done.Wait() })
	w.t.Cleanup(stop)
	return stop
}

func udpEcho(_ netip.AddrPort, b []byte) []byte { return b }

// dialUDP is a client's socket.
func (w *world) dialUDP() *net.UDPConn {
	w.t.Helper()
	c, err := net.Dial("udp", w.at().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// exchange sends a datagram until an answer comes, for up to half a minute.
func exchange(c net.Conn, b []byte) ([]byte, error) {
	in := make([]byte, 1<<16)
	var err error
	for range 60 {
		if _, err = c.Write(b); err != nil {
			return nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		var n int
		if n, err = c.Read(in); err == nil {
			return in[:n], nil
		}
	}
	return nil, err
}

// echoed sends a datagram until it comes back whole. Late answers to earlier copies are passed over.
func echoed(c net.Conn, want []byte) error {
	in, last := make([]byte, 1<<16), ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if _, err := c.Write(want); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for {
			n, err := c.Read(in)
			if err != nil {
				break
			}
			if bytes.Equal(in[:n], want) {
				return nil
			}
			last = fmt.Sprintf("; %d bytes did", n)
		}
	}
	return fmt.Errorf("it did not come back%s", last)
}

func TestDatagramSizes(t *testing.T) {
	udpWorlds(t, func(t *testing.T, w *world) {
		w.answerUDP(1, udpEcho)
		c := w.dialUDP()
		for i, size := range []int{0, 1, 500, 1200, 1472, 1473, 4000, 9000, 65_000, 65_507, 0} {
			want := pattern(size, uint64(i))
			if err := echoed(c, want); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if n := w.udp.Flows(); n != 1 {
			t.Errorf("%d flows, want 1", n)
		}
	})
}

// TestDatagramsToTheirOwn: many clients at once, and every answer reaches who asked.
func TestDatagramsToTheirOwn(t *testing.T) {
	udpWorlds(t, func(t *testing.T, w *world) {
		w.answerUDP(1, udpEcho)
		const clients, each, window = 50, 200, 2
		var all sync.WaitGroup
		var lost, foreign atomic.Int64
		for i := range clients {
			all.Go(func() {
				c := w.dialUDP()
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				out, in := make([]byte, 1200), make([]byte, 1<<16)
				for sent := 0; sent < each; sent += window {
					for j := range window {
						binary.BigEndian.PutUint64(out, uint64(i)<<32|uint64(sent+j))
						if _, err := c.Write(out[:8+rng.IntN(1192)]); err != nil {
							t.Error(err)
						}
					}
					for j := range window {
						_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
						n, err := c.Read(in)
						if err != nil {
							lost.Add(int64(window - j))
							break
						}
						if n < 8 || binary.BigEndian.Uint64(in)>>32 != uint64(i) {
							foreign.Add(1)
						}
					}
				}
			})
		}
		all.Wait()
		if foreign.Load() != 0 {
			t.Errorf("%d answers reached the wrong client", foreign.Load())
		}
		// A busy machine may lose some, as UDP does: who gets what is what is tested.
		if n := lost.Load(); n > clients*each/10 {
			t.Errorf("%d of %d datagrams are lost", n, clients*each)
		}
		if n := w.udp.Flows(); n != clients {
			t.Errorf("%d flows, want %d", n, clients)
		}
	})
}

// TestTOS: DSCP and ECN arrive at the endpoint, and come back to the client.
func TestTOS(t *testing.T) {
	udpWorlds(t, func(t *testing.T, w *world) {
		at := netip.AddrPortFrom(netip.MustParseAddr("127.0.2.1"), w.port)
		server, err := udpio.Listen(at, udpio.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go func() {
			pkts := make([]udpio.Packet, 16)
			for {
				n, err := server.ReadBatch(pkts)
				if err != nil {
					return
				}
				for i := range pkts[:n] {
					pkts[i].Data = append(bytes.Clone(pkts[i].Data), pkts[i].TOS)
					pkts[i].TOS ^= 0x04
				}
				_, _ = server.WriteBatch(pkts[:n])
			}
		}()
		c, err := udpio.Dial(netip.AddrPort{}, w.at(), udpio.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i, tos := range []uint8{0, 0xb8 | 2, 1, 3, 0x28} {
			pkts := make([]udpio.Packet, 1)
			w.eventually("an answer", func() bool {
				_, _ = c.WriteBatch([]udpio.Packet{{Data: []byte{byte(i)}, TOS: tos}})
				_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				for { // late answers to the questions before are passed over
					if _, err := c.ReadBatch(pkts); err != nil {
						return false
					}
					if b := pkts[0].Data; len(b) > 0 && b[0] == byte(i) {
						return true
					}
				}
			})
			if b := pkts[0].Data; len(b) != 2 || b[1] != tos || pkts[0].TOS != tos^0x04 {
				t.Errorf("TOS 0x%02x: the endpoint saw 0x%02x, the client 0x%02x", tos, b[1:], pkts[0].TOS)
			}
		}
	})
}

func TestUDPProxyHeader(t *testing.T) {
	g := group("x", 1)
	g.Endpoints[0].ClientAddress = model.ClientAddressProxyV2
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{g}})
	w.answerUDP(1, func(_ netip.AddrPort, b []byte) []byte {
		h, n, err := proxyproto.Parse(b)
		if err != nil {
			t.Errorf("%q: %v", b, err)
		}
		return fmt.Appendf(nil, "%v %v %s", h.Src, h.Dst, b[n:])
	})
	c := w.dialUDP()
	for range 3 { // every datagram has a header
		want := fmt.Sprintf("%v %v hello", c.LocalAddr(), w.at())
		if got, err := exchange(c, []byte("hello")); err != nil || string(got) != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := c.Write(make([]byte, 65507)); err != nil { // no room for a header
		t.Fatal(err)
	}
	w.eventually("it is dropped and counted", func() bool {
		return metric(t, w.gates["gw-x"].reg, "nearcast_gateway_udp_dropped_total", "reason", "no room for the PROXY header") == 1
	})
}

// TestUDPIdle: a silent flow is forgotten, at both ends, and begins anew when it speaks.
func TestUDPIdle(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)},
		listener: func(l *model.Listener) { l.UDPIdleTimeout = time.Second }})
	w.answerUDP(1, udpEcho)
	c := w.dialUDP()
	for range 2 {
		begin := time.Now()
		if got, err := exchange(c, []byte("hi")); err != nil || string(got) != "hi" {
			t.Fatalf("%q, %v", got, err)
		}
		if n := w.udp.Flows(); n != 1 && time.Since(begin) < time.Second {
			t.Errorf("%d flows", n)
		}
		w.eventually("the flow is forgotten", func() bool {
			_, n := w.gates["gw-x"].gateway.Flows()
			return w.udp.Flows() == 0 && n == 0
		})
	}
}

// TestUDPGatewayForgets: a gateway that was restarted gets the flow again, and the client notices at
// most one lost datagram.
func TestUDPGatewayForgets(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}})
	w.answerUDP(1, udpEcho)
	c := w.dialUDP()
	if _, err := exchange(c, []byte("one")); err != nil {
		t.Fatal(err)
	}
	var id uint64
	for _, s := range w.udp.which(func(*udpSession) bool { return true }) {
		id = s.id
	}
	// As if it had been restarted: it closes the session without a word to the edge.
	w.gates["gw-x"].gateway.HandleDatagrams("edge", [][]byte{closeMessage(id)})
	sent := 0
	w.eventually("the flow is there again", func() bool {
		_, err := c.Write([]byte("two"))
		sent++
		in := make([]byte, 100)
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for err == nil { // late answers to the first one are passed over
			var n int
			if n, err = c.Read(in); err == nil && string(in[:n]) == "two" {
				return true
			}
		}
		return false
	})
	// On a busy machine the second copy may go before the edge hears of it.
	if n := metric(t, w.gates["gw-x"].reg, "nearcast_gateway_udp_dropped_total", "reason", "unknown flow"); n < 1 || n > float64(sent) {
		t.Errorf("%v datagrams of an unknown flow, of %d that were sent", n, sent)
	}
}

func closeMessage(id uint64) []byte {
	return append([]byte{4, 0}, binary.BigEndian.AppendUint64(nil, id)...)
}

// TestUDPFailover: a refused flow goes to the next group; one whose gateway is lost does, too.
func TestUDPFailover(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x", "y", "z"},
		groups: []model.EndpointGroup{group("x", 1), group("y", 2), group("z", 3)}})
	for i, name := range []string{"", "one", "two", "three"} {
		if name != "" {
			w.answerUDP(i, func(netip.AddrPort, []byte) []byte { return []byte(name) })
		}
	}
	c := w.dialUDP()
	expect := func(want string) {
		t.Helper()
		w.eventually("an answer of "+want, func() bool {
			got, err := exchange(c, []byte("?"))
			return err == nil && string(got) == want
		})
	}
	expect("one")
	w.cut("gw-x")
	expect("two")
	w.gates["gw-y"].gateway.SetVerdict("g-y", "127.0.2.2", model.HealthUnhealthy)
	expect("two") // an established flow stays
	c = w.dialUDP()
	expect("three")
}

// TestUDPLimits: full tables refuse new flows, count them, and leave the others alone.
func TestUDPLimits(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)},
		listener: func(l *model.Listener) { l.MaxFlows, l.MaxFlowsPerSource = 10, 6 }})
	w.answerUDP(1, udpEcho)
	open := []*net.UDPConn{}
	for range 6 {
		c := w.dialUDP()
		if _, err := exchange(c, []byte("x")); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	c := w.dialUDP()
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("a seventh flow of one source was answered (%d bytes)", n)
	}
	refused := func() float64 { return metric(t, w.reg, "nearcast_relay_udp_dropped_total", "reason", "full: source") }
	w.eventually("it is counted", func() bool { return refused() > 0 })
	if n := refused(); n != 1 {
		t.Errorf("%v datagrams counted", n)
	}
	for _, c := range open {
		if _, err := exchange(c, []byte("x")); err != nil {
			t.Error("an established flow suffers")
		}
	}
	w.udp.SetDraining(true)
	if _, err := exchange(open[0], []byte("x")); err != nil {
		t.Error("an established flow suffers from draining")
	}
}

func TestUDPHostileSources(t *testing.T) {
	w := newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)}})
	conn, err := udpio.Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.1.9"), w.port), udpio.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, src := range []string{"10.0.0.1:0", "0.0.0.0:53", "224.0.0.1:53", "255.255.255.255:53", "[ff02::1]:53", "[::]:9",
		w.at().String()} {
		w.udp.HandleUDP(conn, []udpio.Packet{{Data: []byte("x"), Remote: netip.MustParseAddrPort(src), Local: vip}})
		if n := w.udp.Flows(); n != 0 {
			t.Fatalf("a datagram from %s began a flow", src)
		}
	}
}

// TestUDPRemoved: flows of a listener that goes are forgotten.
func TestUDPRemoved(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)}})
	w.answerUDP(1, udpEcho)
	c := w.dialUDP()
	if _, err := exchange(c, []byte("x")); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.snap.Accelerators[0].Enabled = false
	w.mu.Unlock()
	w.apply()
	w.eventually("flows are forgotten", func() bool {
		_, n := w.gates["gw-x"].gateway.Flows()
		return w.udp.Flows() == 0 && n == 0
	})
}

// TestDatagramsDoNotAllocate: a datagram of a known flow allocates nothing on its way in or out.
func TestDatagramsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	w := newWorld(t, spec{groups: []model.EndpointGroup{group("x", 1)}})
	w.answerUDP(1, func(netip.AddrPort, []byte) []byte { return nil })
	conn, err := udpio.Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.1.9"), w.port), udpio.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pkts := []udpio.Packet{{Data: make([]byte, 100), Remote: netip.MustParseAddrPort("127.0.0.1:9"), Local: vip}}
	w.udp.HandleUDP(conn, pkts)
	s := w.udp.find(flow.Tuple{Src: pkts[0].Remote, Dst: w.at(), Proto: flow.UDP})
	if s == nil || !s.way.Load().known.Load() {
		t.Fatal("the gateway does not know the flow")
	}
	if n := testing.AllocsPerRun(500, func() { w.udp.HandleUDP(conn, pkts) }); n >= 1 {
		t.Errorf("in: %v allocations a datagram", n)
	}
	m := [][]byte{append([]byte{2, 0}, append(binary.BigEndian.AppendUint64(nil, s.id), "answer"...)...)}
	if n := testing.AllocsPerRun(500, func() { w.udp.HandleDatagrams("edge", m) }); n >= 1 {
		t.Errorf("out: %v allocations a datagram", n)
	}
}
