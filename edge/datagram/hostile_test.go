package datagram

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
)

// capture makes a transport that nobody runs, with a responder's channel, and the edge's key to seal
// packets for it.
type capture struct {
	t    *Transport
	r    *receiver
	c    *Channel
	edge *outbound
	in   inbox
	sent [][]byte // what the transport sent
	from netip.AddrPort
}

func newCapture(t testing.TB) *capture {
	t.Helper()
	m := newMemory()
	s := m.socket(gatewayAddr)
	k := &capture{
		t:    newTransport(Config{}.withDefaults(), []socket{s}, nil),
		from: netip.MustParseAddrPort(edgeAddr0),
	}
	m.tap = func(p udpio.Packet, _ netip.AddrPort) { k.sent = append(k.sent, bytes.Clone(p.Data)) }
	k.r = &receiver{t: k.t, socket: s}
	var err error
	if k.c, err = k.t.Open("edge", testSecret, 1, netip.AddrPort{}, false, k.in.recv); err != nil {
		t.Fatal(err)
	}
	if k.edge, _, err = deriveBoth(testSecret, 1, true); err != nil {
		t.Fatal(err)
	}
	return k
}

// packet seals frames as the edge does.
func (k *capture) packet(lane uint8, number uint64, frames []byte) []byte {
	h := wire.PacketHeader{Key: k.edge.id, Lane: lane, Number: number}
	b := make([]byte, wire.PacketHeaderBytes)
	h.Put(b)
	var nonce [12]byte
	h.Nonce(&nonce, &k.edge.iv)
	return k.edge.aead.Seal(b, nonce[:], frames, b)
}

func (k *capture) receive(p []byte) {
	k.r.batch([]udpio.Packet{{Data: bytes.Clone(p), Remote: k.from}})
}

func (k *capture) dropped(why dropReason) uint64 { return k.t.counters.dropped[why].Load() }

// Forged, cut, replayed and strange packets change nothing, are not answered, and are counted.
func TestHostilePackets(t *testing.T) {
	k := newCapture(t)
	ping := wire.PacketProbe{Stamp: 5}
	good := k.packet(0, 7, ping.Append(wire.AppendPacketData(nil, []byte("hello")), wire.PacketPing))
	rng := rand.New(rand.NewPCG(1, 1))
	forged := 0
	for range 3000 {
		bad := bytes.Clone(good)
		bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
		k.receive(bad)
		forged++
	}
	for n := range len(good) {
		k.receive(good[:n])
		forged++
	}
	k.receive(append(bytes.Clone(good), 0))
	other, _, _ := deriveBoth([]byte("another secret of 32 bytes......"), 1, true)
	mine := k.edge
	k.edge = other
	stranger := k.packet(0, 7, ping.Append(nil, wire.PacketPing))
	k.edge = mine
	k.receive(stranger)
	forged += 2
	refused := k.dropped(dropForged) + k.dropped(dropMalformed) + k.dropped(dropUnknown)
	if refused != uint64(forged) {
		t.Errorf("%d of %d hostile packets were counted", refused, forged)
	}
	if len(k.sent) != 0 || len(k.in.msgs) != 0 || k.c.Stats().Lanes != 0 || k.c.Stats().ReceivedPackets != 0 {
		t.Fatalf("they had effect: %d answers, %d messages, %+v", len(k.sent), len(k.in.msgs), k.c.Stats())
	}
	k.receive(good)
	if len(k.sent) != 1 || len(k.in.msgs) != 1 {
		t.Fatalf("the good packet: %d answers, %d messages", len(k.sent), len(k.in.msgs))
	}
	k.from = netip.MustParseAddrPort("203.0.113.66:6666")
	for range 10 {
		k.receive(good)
	}
	if len(k.sent) != 1 || len(k.in.msgs) != 1 || k.dropped(dropReplayed) != 10 {
		t.Errorf("replays: %d answers, %d messages, %d counted",
			len(k.sent), len(k.in.msgs), k.dropped(dropReplayed))
	}
	if r := k.c.Stats().Remote; r != netip.MustParseAddrPort(edgeAddr0) {
		t.Errorf("a replay moved the lane to %v", r)
	}
	late := k.packet(0, 3, wire.AppendPacketData(nil, []byte("late")))
	k.receive(late) // authentic and new, but not the latest: taken, and the lane stays
	if r := k.c.Stats().Remote; len(k.in.msgs) != 2 || r != netip.MustParseAddrPort(edgeAddr0) {
		t.Errorf("a late packet: %d messages, lane at %v", len(k.in.msgs), r)
	}
	// What we sent, sent back to us, is not authentic in this direction.
	k.receive(k.sent[0])
	if len(k.in.msgs) != 2 || len(k.sent) != 1 {
		t.Error("a reflected packet was taken")
	}
}

// Authentic nonsense (a broken peer) is counted, and what came before it in the packet is kept.
func TestMalformedFrames(t *testing.T) {
	k := newCapture(t)
	short := append(wire.AppendPacketData(nil, []byte("kept")), byte(wire.PacketData), 0xff, 0xff)
	k.receive(k.packet(0, 0, short))
	k.receive(k.packet(0, 1, []byte{99, 1, 2, 3})) // an unknown type ends the packet
	k.receive(k.packet(0, 2, nil))
	if len(k.in.msgs) != 1 || string(k.in.msgs[0]) != "kept" || k.dropped(dropMalformed) != 1 {
		t.Errorf("%q, %d counted", k.in.msgs, k.dropped(dropMalformed))
	}
}

func TestOpenRefuses(t *testing.T) {
	k := newCapture(t)
	none := netip.AddrPort{}
	if _, err := k.t.Open("x", testSecret, 1, none, false, nil); err == nil {
		t.Error("opened twice under one secret")
	}
	if _, err := k.t.Open("x", []byte("short"), 1, none, false, nil); err == nil {
		t.Error("opened under a short secret")
	}
	if _, err := k.t.Open("x", []byte("another secret of 32 bytes......"), 1, none, true, nil); err == nil {
		t.Error("an initiator opened towards nowhere")
	}
	k.t.Close()
	if _, err := k.t.Open("x", []byte("another secret of 32 bytes......"), 1, none, false, nil); err == nil {
		t.Error("opened on a closed transport")
	}
	for _, cfg := range []Config{
		{Lanes: 9}, {Lanes: -1}, {Sockets: -1}, {KeepAlive: time.Microsecond}, {PayloadMax: 500},
		{PayloadMax: 1 << 16}, {AssemblyBytes: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is valid", cfg)
		}
	}
}

// No datagram from outside makes the receiver fail, answer or hand over anything.
func FuzzReceive(f *testing.F) {
	k := newCapture(f)
	f.Add(k.packet(0, 1, wire.AppendPacketData(nil, []byte("x")))[:20])
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, p []byte) {
		before := k.c.Stats().ReceivedPackets
		k.receive(p)
		if k.c.Stats().ReceivedPackets != before || len(k.sent) != 0 || len(k.in.msgs) != 0 {
			t.Fatal("a packet that the edge did not seal had effect")
		}
	})
}

// No frames of an authentic peer make the receiver fail or hold more than it may.
func FuzzFrames(f *testing.F) {
	k := newCapture(f)
	message := make([]byte, 3000)
	f.Add(wire.AppendPacketFragment(wire.AppendPacketData(nil, []byte("x")), 1, message, 1000, 0))
	f.Add((&wire.PacketProbe{Stamp: 1, Echo: 2}).Append(nil, wire.PacketPong))
	f.Add(wire.AppendPacketFragment(wire.AppendPacketFragment(nil, 1, message, 1500, 0), 1, message, 1500, 1))
	number := uint64(0)
	f.Fuzz(func(t *testing.T, frames []byte) {
		k.receive(k.packet(uint8(number%wire.LanesMax), number, frames))
		number++
		if used := k.t.blocks.used.Load(); used < 0 || used > wire.LanesMax*assemblySlots*wire.DatagramMessageMax {
			t.Fatalf("%d bytes are held", used)
		}
		k.in.take()
		k.sent = nil
	})
}
