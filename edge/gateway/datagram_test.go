package gateway

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// answer has an endpoint at 127.0.2.N send every datagram back.
func (w *world) answer(n int) {
	w.t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 2, byte(n)), Port: int(w.port)})
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
}

// say hands a message to the gateway as this node's own relay does.
func (w *world) say(m []byte) { w.g.HandleDatagrams("gw", [][]byte{m}) }

func (w *world) opening(id uint64, group string, n int, payload string) []byte {
	o := w.open(group, n)
	o.Proto = 17
	return (&wire.DatagramOpen{FlowID: id, Open: *o, Payload: []byte(payload)}).Append(nil)
}

func data(id uint64, payload string) []byte {
	return (&wire.Datagram{FlowID: id, Payload: []byte(payload)}).Append(nil)
}

// hear waits for the next message to the edge of a type, and returns what it says.
func (w *world) hear(want wire.DatagramType) (id uint64, payload string, reason wire.ResetReason) {
	w.t.Helper()
	for end := time.After(patience); ; {
		select {
		case m := <-w.msgs:
			typ, id, ok := wire.DatagramHead(m)
			if !ok || typ != want {
				continue
			}
			var d wire.Datagram
			var c wire.DatagramClose
			if typ == wire.DatagramTypeData && d.Decode(m) == nil {
				return id, string(d.Payload), 0
			}
			if typ == wire.DatagramTypeClose && c.Decode(m) == nil {
				return id, "", c.Reason
			}
			return id, "", 0
		case <-end:
			w.t.Fatalf("no %v came", want)
		}
	}
}

// TestSession: an Open makes the flow known and is answered; data of it arrives; what nobody knows is
// closed, so that the edge begins it anew.
func TestSession(t *testing.T) {
	w := newWorld(t)
	w.group("g", "x", 1)
	w.apply()
	w.answer(1)
	w.say(w.opening(7, "g", 1, "one"))
	if id, _, _ := w.hear(wire.DatagramTypeAck); id != 7 {
		t.Errorf("flow %d is acknowledged", id)
	}
	if id, got, _ := w.hear(wire.DatagramTypeData); id != 7 || got != "one" {
		t.Errorf("flow %d: %q", id, got)
	}
	w.say(data(7, "two"))
	if _, got, _ := w.hear(wire.DatagramTypeData); got != "two" {
		t.Errorf("%q", got)
	}
	w.say(w.opening(7, "g", 1, "again")) // the acknowledgement was lost
	if _, got, _ := w.hear(wire.DatagramTypeData); got != "again" {
		t.Errorf("%q", got)
	}
	if _, udp := w.g.Flows(); udp != 1 {
		t.Errorf("%d sessions", udp)
	}
	w.say(data(8, "who?"))
	if id, _, reason := w.hear(wire.DatagramTypeClose); id != 8 || reason != wire.ResetUnknown {
		t.Errorf("flow %d was closed: %v", id, reason)
	}
	w.say((&wire.DatagramClose{FlowID: 7, Reason: wire.ResetIdle}).Append(nil))
	if _, udp := w.g.Flows(); udp != 0 {
		t.Errorf("%d sessions after the edge closed its only flow", udp)
	}
	w.say(w.opening(9, "nowhere", 1, "x"))
	if id, _, reason := w.hear(wire.DatagramTypeClose); id != 9 || reason != wire.ResetRefused {
		t.Errorf("flow %d was closed: %v", id, reason)
	}
}

// TestSessionsAreBounded: a full table refuses new flows and leaves the others alone.
func TestSessionsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxSessions = 3 })
	w.group("g", "x", 1)
	w.apply()
	w.answer(1)
	for id := range uint64(5) {
		w.say(w.opening(id, "g", int(id), "x"))
		if id < 3 {
			w.hear(wire.DatagramTypeData)
		} else if _, _, reason := w.hear(wire.DatagramTypeClose); reason != wire.ResetOverload {
			t.Errorf("flow %d: %v", id, reason)
		}
	}
	w.say(data(0, "still there"))
	if _, got, _ := w.hear(wire.DatagramTypeData); got != "still there" {
		t.Errorf("%q", got)
	}
}

// TestDatagramsWaitForTheName: what comes while a name is looked up is kept, up to a bound.
func TestDatagramsWaitForTheName(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	w.g.names.lookup = func(ctx context.Context, _, host string) ([]netip.Addr, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		if host == "bad" {
			return nil, fmt.Errorf("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("127.0.2.1")}, nil
	}
	for _, host := range []string{"good", "bad"} {
		e := &w.group(host, "x", 1).Endpoints[0]
		e.ID, e.Host = model.EndpointID(host), host
	}
	w.apply()
	w.answer(1)
	w.say(w.opening(1, "good", 1, "0"))
	w.say(w.opening(2, "bad", 1, "0"))
	for i := 1; i < 20; i++ {
		w.say(data(1, fmt.Sprint(i)))
	}
	close(release)
	for i := range pendingMax {
		if _, got, _ := w.hear(wire.DatagramTypeData); got != fmt.Sprint(i) {
			t.Errorf("answer %d is %q", i, got)
		}
	}
	if n := w.metric("udp_dropped_total", "name not resolved yet"); n != 20-pendingMax {
		t.Errorf("%v datagrams were dropped, want %d", n, 20-pendingMax)
	}
	w.eventually("the flow whose name does not resolve is gone", func() bool { _, n := w.g.Flows(); return n == 1 })
}

// TestSessionsEnd: idle sessions end, those that speak stay.
func TestSessionsEnd(t *testing.T) {
	w := newWorld(t)
	w.group("g", "x", 1)
	w.apply()
	w.answer(1)
	w.say(w.opening(1, "g", 1, "x"))
	w.say(w.opening(2, "g", 2, "x"))
	w.hear(wire.DatagramTypeData)
	w.hear(wire.DatagramTypeData)
	quiet := w.g.sessions.get(sessionKey{"gw", 1})
	quiet.last.Store(int64(w.g.now() - quiet.idle - time.Second)) // as if it had been silent for so long
	w.eventually("the silent session ends", func() bool { _, n := w.g.Flows(); return n == 1 })
	if w.g.sessions.get(sessionKey{"gw", 2}) == nil {
		t.Error("the other one ended")
	}
}

// FuzzHandleDatagrams: whatever an edge sends, the gateway neither panics nor holds more than its bound.
func FuzzHandleDatagrams(f *testing.F) {
	o := wire.Open{Listener: "l", Group: "g", Proto: 17, HopsLeft: 1, Src: netip.MustParseAddrPort("192.0.2.1:9"),
		Dst: netip.MustParseAddrPort("198.51.100.1:9")}
	f.Add((&wire.DatagramOpen{FlowID: 1, Open: o, Payload: []byte("x")}).Append(nil), data(1, "y"))
	f.Add(data(2, ""), (&wire.DatagramClose{FlowID: 2, Reason: wire.ResetIdle}).Append(nil))
	f.Add([]byte{1, 0, 0}, bytes.Repeat([]byte{1}, 400))
	w := newWorld(f, func(c *Config) { c.MaxSessions = 8 })
	w.group("g", "x", 1)
	w.apply()
	f.Fuzz(func(t *testing.T, a, b []byte) {
		w.g.HandleDatagrams("gw", [][]byte{a, b})
		w.g.HandleDatagrams("stranger", [][]byte{b, a})
		if _, n := w.g.Flows(); n > 8 {
			t.Fatalf("%d sessions", n)
		}
	})
}
