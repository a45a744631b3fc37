package gateway

import (
	"net"
	"net/netip"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/netns"
)

// name has an endpoint at 127.0.2.N answer with the address that it sees.
func (w *world) name(n int) {
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
			_, _ = c.WriteToUDPAddrPort(append([]byte(from.String()+" "), b[:n]...), from)
		}
	}()
	w.t.Cleanup(func() { c.Close(); <-done })
}

// from opens a flow of a client, which is at this machine for once.
func (w *world) from(id uint64, group string, client netip.AddrPort, payload string) {
	o := w.open(group, 1)
	o.Proto, o.Src = 17, client
	w.say((&wire.DatagramOpen{FlowID: id, Open: *o, Payload: []byte(payload)}).Append(nil))
}

// expect waits for an answer.
func (w *world) expect(id uint64, want string) {
	w.t.Helper()
	if got, said, _ := w.hear(wire.DatagramTypeData); got != id || said != want {
		w.t.Errorf("flow %d: %q, want flow %d: %q", got, said, id, want)
	}
}

// TestTransparentSessions: what endpoints see is the client's own address and port, also if the client
// speaks with two of them, or comes by another edge.
func TestTransparentSessions(t *testing.T) {
	netns.RequireRoot(t, "transparent client addresses")
	w := newWorld(t)
	for i, id := range []string{"one", "two"} {
		w.group(id, "x", i+1).Endpoints[0].ClientAddress = model.ClientAddressTransparent
		w.name(i + 1)
	}
	w.apply()
	client := netip.AddrPortFrom(netip.MustParseAddr("127.0.3.1"), netns.FreePort(t))
	w.from(1, "one", client, "a")
	w.expect(1, client.String()+" a")
	w.from(2, "two", client, "b") // one socket of the client, two endpoints
	w.expect(2, client.String()+" b")
	w.say(data(1, "c"))
	w.expect(1, client.String()+" c")

	w.from(3, "one", client, "d") // the flow came to another edge
	w.expect(3, client.String()+" d")
	w.say(data(1, "e"))
	if id, _, reason := w.hear(wire.DatagramTypeClose); id != 1 || reason != wire.ResetUnknown {
		t.Errorf("flow %d was closed: %v", id, reason)
	}
	w.say(data(2, "f"))
	w.expect(2, client.String()+" f")
	if n := w.metric("udp_replaced_total"); n != 1 {
		t.Errorf("%v sessions were replaced, want 1", n)
	}

	o := w.open("one", 1) // an IPv4 endpoint cannot see an IPv6 client
	o.Proto, o.Src = 17, netip.MustParseAddrPort("[2001:db8::1]:5000")
	w.say((&wire.DatagramOpen{FlowID: 4, Open: *o}).Append(nil))
	if id, _, reason := w.hear(wire.DatagramTypeClose); id != 4 || reason != wire.ResetRefused {
		t.Errorf("flow %d was closed: %v", id, reason)
	}
	if n := w.metric("udp_refused_total", wire.OpenUnreachable.String()); n != 1 {
		t.Errorf("%v sessions were refused, want 1", n)
	}
	for id := range uint64(4) {
		w.say((&wire.DatagramClose{FlowID: id, Reason: wire.ResetIdle}).Append(nil))
	}
	w.g.claims.mu.Lock()
	defer w.g.claims.mu.Unlock()
	if n := len(w.g.claims.m); n != 0 {
		t.Errorf("%d ways are still taken", n)
	}
}

// TestRetell: when an endpoint is to be told of clients in another way, flows that are there are begun anew,
// and only those of this endpoint.
func TestRetell(t *testing.T) {
	w := newWorld(t)
	w.group("one", "x", 1)
	w.group("two", "x", 2)
	w.apply()
	w.answer(1)
	w.answer(2)
	w.say(w.opening(1, "one", 1, "a"))
	w.hear(wire.DatagramTypeData)
	w.say(w.opening(2, "two", 1, "b"))
	w.hear(wire.DatagramTypeData)
	w.apply() // without a change
	if _, n := w.g.Flows(); n != 2 {
		t.Errorf("%d sessions after a snapshot without a change, want 2", n)
	}
	// The old snapshot's endpoints stay as they were.
	groups := append([]model.EndpointGroup(nil), w.snap.Groups...)
	groups[0].Endpoints = append([]model.Endpoint(nil), groups[0].Endpoints...)
	groups[0].Endpoints[0].ClientAddress = model.ClientAddressProxyV2
	w.snap.Groups = groups
	w.apply()
	if id, _, reason := w.hear(wire.DatagramTypeClose); id != 1 || reason != wire.ResetUnknown {
		t.Errorf("flow %d was closed: %v", id, reason)
	}
	w.say(data(2, "c"))
	w.expect(2, "c")
	w.say(w.opening(1, "one", 1, "d"))
	if _, got, _ := w.hear(wire.DatagramTypeData); len(got) != 28+1 || got[28:] != "d" {
		t.Errorf("the endpoint heard %q, want a header of 28 bytes before it", got)
	}
	if n := w.metric("udp_retold_total"); n != 1 {
		t.Errorf("%v sessions were begun anew, want 1", n)
	}
}
