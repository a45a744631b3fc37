package datagram

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// message makes a DATA message of flow with n payload bytes that depend on seq.
func message(flow uint64, seq, n int) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(seq + i*13)
	}
	return (&wire.Datagram{FlowID: flow, TOS: uint8(seq), Payload: payload}).Append(nil)
}

// inTime runs a test on fake time.
func inTime(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

func expect(t *testing.T, what string, got [][]byte, want ...[]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d messages, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("%s: message %d of %d bytes is not the one of %d bytes sent", what, i, len(got[i]), len(want[i]))
		}
	}
}

func TestMessagesOfEverySize(t *testing.T) {
	inTime(t, func(t *testing.T) {
		p := newPair(t, newMemory())
		time.Sleep(200 * time.Millisecond)
		for _, payload := range []string{"at first", "after the search"} {
			sizes := []int{0, 1, 2, 100, 500, 1000, 1100, 1153, 1154, 1155, 1156, 1157, 1200, 1300, 1400,
				1430, 1500, 2000, 2300, 3000, 4000, 8900, 8952, 9000, 20000, 40000, 65000, 65506, 65507}
			var msgs [][]byte
			for i, n := range sizes {
				msgs = append(msgs, message(7, i, n))
			}
			if n := p.a.Send(msgs); n != len(msgs) {
				t.Fatalf("%s: sent %d of %d", payload, n, len(msgs))
			}
			if n := p.b.Send(msgs); n != len(msgs) {
				t.Fatalf("%s: replied %d of %d", payload, n, len(msgs))
			}
			time.Sleep(time.Second)
			expect(t, payload, inOrder(p.atB.take(), msgs), msgs...)
			expect(t, payload+" back", inOrder(p.atA.take(), msgs), msgs...)
			time.Sleep(20 * time.Second)
			if s := p.a.Stats(); s.PayloadMax != payloadCeiling {
				t.Errorf("the search ended at %d", s.PayloadMax)
			}
		}
	})
}

// inOrder sorts messages as in want (those it does not know last): fake timers of one moment fire in
// any order.
func inOrder(got, want [][]byte) [][]byte {
	at := map[string]int{}
	for i, m := range want {
		at[string(m)] = i
	}
	slices.SortStableFunc(got, func(a, b []byte) int { return at[string(a)] - at[string(b)] })
	return got
}

// Random sizes over a network that loses, doubles and reorders: what comes is what was sent, once.
func TestMessagesOverABadNetwork(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		m.loss, m.twice, m.jitter = 0.02, 0.02, 5*time.Millisecond
		p := newPair(t, m)
		time.Sleep(5 * time.Second)
		rng := rand.New(rand.NewPCG(1, 1))
		sent := map[string]int{}
		small, smallCame, largeCame := 0, 0, 0
		for round := range 200 {
			var msgs [][]byte
			for i := range 1 + rng.IntN(20) {
				n := rng.IntN(300)
				switch rng.IntN(20) {
				case 0:
					n = rng.IntN(65508)
				case 1, 2:
					n = rng.IntN(3000)
				}
				msg := message(uint64(rng.IntN(50)), round*100+i, n)
				msg = append(msg[:2:2], append([]byte(fmt.Sprintf("%08d", len(sent))), msg[10:]...)...)
				sent[string(msg)] = len(msg)
				msgs = append(msgs, msg)
				if n < 1000 {
					small++
				}
			}
			p.a.Send(msgs)
			time.Sleep(3 * time.Millisecond)
		}
		time.Sleep(3 * time.Second)
		for _, msg := range p.atB.take() {
			n, ok := sent[string(msg)]
			if !ok {
				t.Fatalf("a message of %d bytes was not sent, or came twice", len(msg))
			}
			delete(sent, string(msg))
			if n < 1000 {
				smallCame++
			} else {
				largeCame++
			}
		}
		if share := float64(smallCame) / float64(small); share < 0.93 || largeCame == 0 {
			t.Errorf("%.3f of the small messages came, and %d large ones", share, largeCame)
		}
		if n := p.gateway.counters.dropped[dropReplayed].Load(); n == 0 {
			t.Error("no doubled packet was counted")
		}
		if n := p.gateway.blocks.used.Load(); n != 0 {
			t.Errorf("%d bytes are still held for incomplete messages", n)
		}
		s, ms := p.a.Stats(), time.Millisecond
		if s.Loss < 0.003 || s.Loss > 0.06 || s.RTT < 20*ms || s.RTT > 31*ms {
			t.Errorf("measured loss %.3f and round trip %v", s.Loss, s.RTT)
		}
	})
}

// Flows are spread over lanes, and each keeps to one.
func TestFlowsKeepToTheirLane(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		p := newPair(t, m)
		time.Sleep(time.Second)
		count := map[netip.AddrPort]int{}
		m.set(func(m *memory) {
			m.tap = func(pkt udpio.Packet, to netip.AddrPort) {
				if to == netip.MustParseAddrPort(gatewayAddr) && len(pkt.Data) < 600 && len(pkt.Data) > 500 {
					h, _ := wire.ParsePacketHeader(pkt.Data)
					count[netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(h.Lane))]++
				}
			}
		})
		for flow := range uint64(100) {
			for range 3 {
				p.a.Send([][]byte{message(flow, 0, 500)})
			}
		}
		m.set(func(m *memory) { m.tap = nil })
		total := 0
		for lane, n := range count {
			if n%3 != 0 || n < 60 {
				t.Errorf("lane %d carried %d of 300 packets", lane.Port(), n)
			}
			total += n
		}
		if total != 300 || len(count) != 2 {
			t.Errorf("%d packets in %d lanes", total, len(count))
		}
	})
}

func TestSmallMessagesShareAPacket(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		p := newPair(t, m)
		time.Sleep(500 * time.Millisecond)
		before := p.a.Stats()
		var msgs [][]byte
		for i := range 100 {
			msgs = append(msgs, message(1, i, 40)) // 53 bytes with headers: 21 in 1,168
		}
		p.a.Send(msgs)
		after := p.a.Stats()
		if n := after.SentPackets - before.SentPackets; n > 5 {
			t.Errorf("100 messages went in %d packets", n)
		}
		time.Sleep(time.Second)
		expect(t, "shared", inOrder(p.atB.take(), msgs), msgs...)
	})
}

func TestSendWhenItCannot(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		m.block = func(_, _ netip.AddrPort) bool { return true }
		p := newPair(t, m)
		time.Sleep(time.Second)
		if n := p.a.Send([][]byte{message(1, 1, 1)}); n != 0 {
			t.Errorf("sent %d on a channel that is down", n)
		}
		m.set(func(m *memory) { m.block = nil })
		time.Sleep(2 * time.Second)
		if n := p.a.Send([][]byte{make([]byte, wire.DatagramMessageMax+1), message(1, 1, 1)}); n != 1 {
			t.Errorf("sent %d, want the one that is not too large", n)
		}
		if n := p.a.Stats().DroppedMessages; n != 2 {
			t.Errorf("counted %d dropped messages, want 2", n)
		}
		p.a.Close()
		p.a.Close()
		if n := p.a.Send([][]byte{message(1, 1, 1)}); n != 0 {
			t.Errorf("sent %d on a closed channel", n)
		}
		if err := p.a.Rekey(testSecret, 9); err == nil {
			t.Error("rekeyed a closed channel")
		}
		if n := len(*p.edge.keys.Load()) + len(*p.edge.channels.Load()); n != 0 {
			t.Errorf("the transport remembers %d things of a closed channel", n)
		}
	})
}

// states records OnState's calls.
type states struct {
	mu    sync.Mutex
	calls []string
	start time.Time
}

func (s *states) on(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf("%v at %v", up, time.Since(s.start).Round(500*time.Millisecond)))
}

func TestUpAndDown(t *testing.T) {
	gateway := netip.MustParseAddrPort(gatewayAddr)
	for _, tc := range []struct {
		name  string
		block func(from, to netip.AddrPort) bool
	}{
		{"both ways", func(_, _ netip.AddrPort) bool { return true }},
		{"towards the gateway", func(_, to netip.AddrPort) bool { return to == gateway }},
		{"towards the edge", func(from, _ netip.AddrPort) bool { return from == gateway }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				m := newMemory()
				p := newPair(t, m)
				atA, atB := states{start: time.Now()}, states{start: time.Now()}
				p.a.OnState(atA.on)
				p.b.OnState(atB.on)
				time.Sleep(10 * time.Second)
				m.set(func(m *memory) { m.block = tc.block })
				// Traffic in the direction that works must not hide that the other does not.
				for range 100 {
					p.a.Send([][]byte{message(1, 1, 1)})
					p.b.Send([][]byte{message(1, 1, 1)})
					time.Sleep(100 * time.Millisecond)
				}
				if p.a.Up() || p.b.Up() {
					t.Errorf("up while blocked: edge %v, gateway %v", p.a.Up(), p.b.Up())
				}
				m.set(func(m *memory) { m.block = nil })
				time.Sleep(10 * time.Second)
				for _, s := range []*states{&atA, &atB} {
					s.mu.Lock()
					defer s.mu.Unlock()
					if len(s.calls) != 3 || s.calls[0] != "true at 0s" {
						t.Errorf("states: %v", s.calls)
					}
				}
				if !slices.Contains([]string{"false at 12s", "false at 12.5s", "false at 13s"}, atA.calls[1]) {
					t.Errorf("the edge noticed late: %v", atA.calls)
				}
			})
		})
	}
}

// One lane of two dies: the channel stays up and the lane's flows move.
func TestOneLaneDies(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		p := newPair(t, m)
		time.Sleep(5 * time.Second)
		dead := netip.MustParseAddrPort(edgeAddr0)
		m.set(func(m *memory) {
			m.block = func(from, to netip.AddrPort) bool { return from == dead || to == dead }
		})
		time.Sleep(5 * time.Second)
		if s := p.a.Stats(); !s.Up || s.LanesUp != 1 || s.Lanes != 2 {
			t.Fatalf("%+v", s)
		}
		var msgs [][]byte
		for flow := range uint64(50) {
			msgs = append(msgs, message(flow, 1, 10))
		}
		p.a.Send(msgs)
		p.b.Send(msgs)
		time.Sleep(time.Second)
		expect(t, "to the gateway", inOrder(p.atB.take(), msgs), msgs...)
		expect(t, "to the edge", inOrder(p.atA.take(), msgs), msgs...)
	})
}

// The edge's address changes in mid-flow, as behind a translator that was restarted.
func TestPeerMoves(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		p := newPair(t, m)
		time.Sleep(5 * time.Second)
		m.set(func(m *memory) {
			m.alias[netip.MustParseAddrPort(edgeAddr0)] = netip.MustParseAddrPort("203.0.113.9:50000")
			m.alias[netip.MustParseAddrPort(edgeAddr1)] = netip.MustParseAddrPort("203.0.113.9:50001")
			m.block = func(_, to netip.AddrPort) bool { return to.Addr() == netip.MustParseAddr("198.51.100.1") }
		})
		time.Sleep(2 * time.Second)
		if s := p.b.Stats(); !s.Up || s.Remote != netip.MustParseAddrPort("203.0.113.9:50000") {
			t.Fatalf("the gateway's side: %+v", s)
		}
		msg := message(1, 2, 3)
		p.b.Send([][]byte{msg})
		time.Sleep(time.Second)
		expect(t, "to the new address", p.atA.take(), msg)
	})
}

// Messages flow on through changes of epoch; old epochs are forgotten.
func TestRekey(t *testing.T) {
	inTime(t, func(t *testing.T) {
		p := newPair(t, newMemory())
		time.Sleep(time.Second)
		var want [][]byte
		for epoch := range uint32(5) {
			secret := append([]byte(nil), testSecret...)
			secret[0] = byte(epoch)
			if err := p.b.Rekey(secret, 10+epoch); err != nil {
				t.Fatal(err)
			}
			if got := p.b.Stats().Epoch; got == 10+epoch {
				t.Errorf("the responder sends under epoch %d before it has heard it", got)
			}
			for i := range 10 {
				if i == 5 {
					if err := p.a.Rekey(secret, 10+epoch); err != nil {
						t.Fatal(err)
					}
				}
				msg := message(uint64(epoch), i, 100)
				want = append(want, msg)
				p.a.Send([][]byte{msg})
				p.b.Send([][]byte{msg})
				time.Sleep(7 * time.Millisecond)
			}
			time.Sleep(time.Second)
			if a, b := p.a.Stats().Epoch, p.b.Stats().Epoch; a != 10+epoch || b != 10+epoch {
				t.Errorf("epochs %d and %d, want %d", a, b, 10+epoch)
			}
		}
		expect(t, "at the gateway", inOrder(p.atB.take(), want), want...)
		expect(t, "at the edge", inOrder(p.atA.take(), want), want...)
		if err := p.a.Rekey(testSecret, 12); err == nil {
			t.Error("went back to an older epoch")
		}
		time.Sleep(30 * time.Second)
		for _, tr := range []*Transport{p.edge, p.gateway} {
			if n := len(*tr.keys.Load()); n != 1 {
				t.Errorf("%d keys are remembered, want the latest only", n)
			}
		}
		if !p.a.Up() || !p.b.Up() {
			t.Error("down after all epochs turned")
		}
	})
}

func TestRekeyIsDueBeforeNumbersEnd(t *testing.T) {
	inTime(t, func(t *testing.T) {
		p := newPair(t, newMemory())
		time.Sleep(time.Second)
		var due atomic.Int32
		p.a.OnRekeyDue(func() { due.Add(1) })
		time.Sleep(time.Second)
		if due.Load() != 0 || p.a.Stats().RekeyDue {
			t.Error("due at once")
		}
		p.a.out.Load().next[0].number.Store(rekeyDuePackets)
		time.Sleep(time.Second)
		if due.Load() != 1 || !p.a.Stats().RekeyDue {
			t.Errorf("called %d times", due.Load())
		}
		for i := range p.a.out.Load().next {
			p.a.out.Load().next[i].number.Store(wire.PacketNumberMax + 1)
		}
		if n := p.a.Send([][]byte{message(1, 1, 1)}); n != 0 {
			t.Error("sent beyond the last packet number")
		}
		if n := p.edge.counters.dropped[dropExhausted].Load(); n != 1 {
			t.Errorf("%d drops counted", n)
		}
	})
}

// The path carries less than the device: sizes are found, and lost again when the path changes.
func TestPathMTU(t *testing.T) {
	inTime(t, func(t *testing.T) {
		m := newMemory()
		m.mtu, m.device = 1412, 1472
		p := newPair(t, m)
		time.Sleep(30 * time.Second)
		if a, b := p.a.Stats(), p.b.Stats(); a.PayloadMax != 1412 || b.PayloadMax != 1412 {
			t.Fatalf("found %d and %d, want 1412", a.PayloadMax, b.PayloadMax)
		}
		if a := p.a.Stats(); a.Loss > 0.05 {
			t.Errorf("questions about sizes were counted as loss: %.3f", a.Loss)
		}
		m.set(func(m *memory) { m.mtu = 1300 })
		time.Sleep(20 * time.Second)
		if a := p.a.Stats(); a.PayloadMax != 1232 || !a.Up {
			t.Fatalf("after the path became narrower: %+v", a)
		}
		m.set(func(m *memory) { m.device = 1220 })
		msg := message(1, 1, 1180) // a packet of 1,225 bytes
		p.a.Send([][]byte{msg, msg})
		p.a.Send([][]byte{msg})
		time.Sleep(time.Second)
		if a := p.a.Stats(); a.PayloadMax != payloadBase || a.DroppedMessages == 0 {
			t.Errorf("after the device became narrower: %+v", a)
		}
		m.set(func(m *memory) { m.device, m.mtu = 0, 1472 })
		time.Sleep(raiseInterval + 30*time.Second)
		if a := p.a.Stats(); a.PayloadMax != 1472 {
			t.Errorf("after the path became wider again: %d", a.PayloadMax)
		}
	})
}
