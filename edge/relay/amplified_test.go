package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// TestAmplification: a source that has not shown that it gets answers gets few bytes; one that has gets all.
func TestAmplification(t *testing.T) {
	w := newWorld(t, spec{gates: []string{"x"}, groups: []model.EndpointGroup{group("x", 1)},
		listener: func(l *model.Listener) { l.Guard.MaxAmplification = 3 }})
	w.answerUDP(1, func(netip.AddrPort, []byte) []byte { return make([]byte, 1000) })
	ask := func(c *net.UDPConn, n int) bool {
		t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		got, err := c.Read(make([]byte, 2000))
		return err == nil && got == 1000
	}
	c := w.dialUDP()
	if ask(c, 300) {
		t.Error("300 bytes were answered with 1,000")
	}
	dropped := func() float64 {
		return metric(t, w.reg, "nearcast_relay_udp_dropped_total", "reason", "amplification")
	}
	w.eventually("the answer is dropped and counted", func() bool { return dropped() > 0 })
	if n := dropped(); n != 1 {
		t.Errorf("%v datagrams counted", n)
	}
	w.eventually("an answer to larger questions", func() bool { return ask(c, 600) })
	for range 4 {
		w.eventually("an answer to larger questions", func() bool { return ask(c, 600) })
	}
	w.eventually("all answers after the proof", func() bool { return ask(c, 1) })
	for range 20 {
		if ask(c, 1) {
			return
		}
	}
	t.Error("a source that has shown itself gets no answers")
}

func TestAmplifiedOff(t *testing.T) {
	var a amplified
	for range 100 {
		if !a.answer(0, 1000) {
			t.Fatal("no limit, and yet one")
		}
	}
}
