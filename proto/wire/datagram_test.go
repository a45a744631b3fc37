package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	testDatagramOpen = DatagramOpen{
		FlowID: 0x0102030405060708,
		Open: Open{
			Listener: "0a1b2c3d", Group: "0123456789ab", Proto: 17, HopsLeft: HopsMax, Revision: 77,
			Src: netip.MustParseAddrPort("192.0.2.1:4444"), Dst: netip.MustParseAddrPort("[2001:db8::1]:53"),
		},
		TOS:     0xb9,
		Payload: []byte("hello"),
	}
	equalAddrs = cmpopts.EquateComparable(netip.AddrPort{})
)

func TestDatagramMessages(t *testing.T) {
	data := Datagram{FlowID: 1<<64 - 2, TOS: 3, Payload: []byte("x")}
	ack := DatagramAck{FlowID: 9}
	end := DatagramClose{FlowID: 10, Reason: ResetIdle}
	cases := []struct {
		name string
		m    []byte
		hex  string // "" where the Open's own tests say it
		back func(m []byte) (any, error)
		want any
	}{
		{"OPEN", testDatagramOpen.Append(nil), "",
			func(m []byte) (any, error) { var d DatagramOpen; err := d.Decode(m); return d, err }, testDatagramOpen},
		{"DATA", data.Append(nil), "0203fffffffffffffffe78",
			func(m []byte) (any, error) { var d Datagram; err := d.Decode(m); return d, err }, data},
		{"ACK", ack.Append(nil), "03000000000000000009",
			func(m []byte) (any, error) { var d DatagramAck; err := d.Decode(m); return d, err }, ack},
		{"CLOSE", end.Append(nil), "0402000000000000000a",
			func(m []byte) (any, error) { var d DatagramClose; err := d.Decode(m); return d, err }, end},
	}
	for i, tc := range cases {
		if tc.hex != "" && hex.EncodeToString(tc.m) != tc.hex {
			t.Errorf("%s is %x, want %s", tc.name, tc.m, tc.hex)
		}
		got, err := tc.back(tc.m)
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if d := cmp.Diff(tc.want, got, equalAddrs); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
		for j, other := range cases {
			if _, err := tc.back(other.m); (err == nil) != (i == j) {
				t.Errorf("%s decoded as %s: %v", other.name, tc.name, err)
			}
		}
		for n := range DatagramHeaderBytes {
			if _, err := tc.back(tc.m[:n]); !errors.Is(err, ErrShort) {
				t.Errorf("%s cut to %d bytes: %v", tc.name, n, err)
			}
		}
	}
}

func TestDatagramSizes(t *testing.T) {
	d := Datagram{Payload: make([]byte, DatagramPayloadMax)}
	var back Datagram
	if err := back.Decode(d.Append(nil)); err != nil || len(back.Payload) != DatagramPayloadMax {
		t.Errorf("largest: %v", err)
	}
	d.Payload = append(d.Payload, 0)
	if err := back.Decode(d.Append(nil)); !errors.Is(err, ErrTooLong) {
		t.Errorf("larger: %v", err)
	}
	d.Payload = nil
	if err := back.Decode(d.Append(nil)); err != nil || len(back.Payload) != 0 {
		t.Errorf("empty: %v", err)
	}
	o := testDatagramOpen
	o.Open.Listener = string(bytes.Repeat([]byte("l"), idBytesMax))
	o.Open.Group = string(bytes.Repeat([]byte("g"), idBytesMax))
	o.Open.Src = o.Open.Dst
	o.Payload = make([]byte, DatagramPayloadMax)
	if n := len(o.Append(nil)); n > DatagramMessageMax || n > PayloadMax {
		t.Errorf("the largest OPEN has %d bytes", n)
	}
	b := make([]byte, DatagramHeaderBytes, 99)
	PutDatagramHeader(b, 5, 6)
	if want := (&Datagram{FlowID: 5, TOS: 6}).Append(nil); !bytes.Equal(b, want) {
		t.Errorf("header in place %x, want %x", b, want)
	}
}

func TestPacketHeader(t *testing.T) {
	h := PacketHeader{Key: 0x0102030405060708, Lane: 7, Number: 0xfffffffe}
	b := make([]byte, PacketHeaderBytes+PacketTagBytes)
	h.Put(b)
	if got := hex.EncodeToString(b[:PacketHeaderBytes]); got != "010203040506070807000000fffffffe" {
		t.Errorf("header is %s", got)
	}
	if got, ok := ParsePacketHeader(b); !ok || got != h {
		t.Errorf("parsed %+v, %v", got, ok)
	}
	if _, ok := ParsePacketHeader(b[:len(b)-1]); ok {
		t.Error("parsed a packet without room for a tag")
	}
	b[8] = LanesMax
	if _, ok := ParsePacketHeader(b); ok {
		t.Error("parsed a lane that cannot be")
	}
	b[8], b[11] = 0, 1
	if _, ok := ParsePacketHeader(b); ok {
		t.Error("parsed a packet number that cannot be")
	}
}

func TestNoncesDiffer(t *testing.T) {
	iv := [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	seen := map[[12]byte]bool{}
	for lane := range uint8(LanesMax) {
		for _, number := range []uint64{0, 1, 255, 256, 1 << 20, PacketNumberMax} {
			var nonce [12]byte
			PacketHeader{Lane: lane, Number: number}.Nonce(&nonce, &iv)
			if seen[nonce] {
				t.Fatalf("nonce of lane %d packet %d came twice", lane, number)
			}
			seen[nonce] = true
		}
	}
}

func TestPacketFrames(t *testing.T) {
	message := make([]byte, 65507)
	for i := range message {
		message[i] = byte(i * 7)
	}
	probe := PacketProbe{Stamp: 1, Echo: 2, Delay: 3, Expected: 4, Received: 5}
	b := AppendPacketData(nil, nil)
	b = AppendPacketData(b, message[:1000])
	b = AppendPacketFragment(b, 99, message, 1100, 59) // the last of 60
	b = AppendPacketFragment(b, 99, message, 1100, 0)
	b = probe.Append(b, PacketPing)
	b = probe.Append(b, PacketPong)
	b = append(b, byte(PacketPadding), 1, 2, 3)
	want := []PacketFrame{
		{Type: PacketData, Message: []byte{}},
		{Type: PacketData, Message: message[:1000]},
		{Type: PacketFragment, ID: 99, Total: 65507, Chunk: 1100, Index: 59, Message: message[59*1100:]},
		{Type: PacketFragment, ID: 99, Total: 65507, Chunk: 1100, Message: message[:1100]},
		{Type: PacketPing, Probe: probe},
		{Type: PacketPong, Probe: probe},
		{Type: PacketPadding},
	}
	if n := want[2].Pieces(); n != 60 {
		t.Errorf("%d pieces, want 60", n)
	}
	for i := range want {
		var got PacketFrame
		rest, err := got.Decode(b)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if d := cmp.Diff(want[i], got); d != "" {
			t.Errorf("frame %d (-want +got):\n%s", i, d)
		}
		b = rest
	}
	if len(b) != 0 {
		t.Errorf("%d bytes after padding", len(b))
	}
}

func TestPacketFramesThatCannotBe(t *testing.T) {
	message := make([]byte, 3000)
	probe := PacketProbe{Stamp: 1}
	cases := map[string][]byte{
		"short data":     AppendPacketData(nil, message[:9])[:8],
		"short length":   {byte(PacketData), 0},
		"short fragment": AppendPacketFragment(nil, 1, message, 1000, 0)[:800],
		"chunk 0":        {byte(PacketFragment), 0, 0, 0, 1, 0, 9, 0, 0, 0, 0},
		"chunk too small": AppendPacketFragment(nil, 1, message,
			FragmentChunkMin-1, 0),
		"no fragment at all": AppendPacketFragment(nil, 1, message[:1000], 1000, 0),
		"index beyond":       {byte(PacketFragment), 0, 0, 0, 1, 0, 8, 0, 4, 0, 2, 1, 1, 1},
		"too long":           {byte(PacketFragment), 0, 0, 0, 1, 1, 5, 0, 4, 0, 0, 1, 1, 1},
		"short probe":        probe.Append(nil, PacketPong)[:PacketPingBytes-1],
		"stamp 0":            (&PacketProbe{}).Append(nil, PacketPing),
	}
	for name, b := range cases {
		var f PacketFrame
		if _, err := f.Decode(b); err == nil {
			t.Errorf("%s: decoded as %+v", name, f)
		}
	}
}

func TestDatagramNoAllocations(t *testing.T) {
	m := testDatagramOpen.Append(nil)
	data := (&Datagram{Payload: []byte("abc")}).Append(nil)
	frames := (&PacketProbe{Stamp: 1}).Append(AppendPacketData(nil, data), PacketPing)
	var o DatagramOpen
	var d Datagram
	var f PacketFrame
	buf := make([]byte, 0, 4096)
	if err := o.Decode(m); err != nil { // the ids are allocated once
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if o.Decode(m) != nil || d.Decode(data) != nil {
			t.Fatal("did not decode")
		}
		for b := frames; len(b) > 0; {
			b, _ = f.Decode(b)
		}
		buf = o.Append(d.Append(buf[:0]))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What decodes encodes to a message that decodes to the same.
func FuzzDatagramMessage(f *testing.F) {
	f.Add(testDatagramOpen.Append(nil))
	f.Add((&Datagram{FlowID: 1, TOS: 2, Payload: []byte("p")}).Append(nil))
	f.Add((&DatagramAck{FlowID: 1}).Append(nil))
	f.Add((&DatagramClose{FlowID: 1, Reason: ResetIdle}).Append(nil))
	f.Fuzz(func(t *testing.T, m []byte) {
		kind, flow, ok := DatagramHead(m)
		if !ok {
			return
		}
		again := func(id uint64, same bool) {
			if id != flow || !same {
				t.Errorf("%v of flow %d became flow %d, same: %v", kind, flow, id, same)
			}
		}
		switch kind {
		case DatagramTypeOpen:
			var d, e DatagramOpen
			if d.Decode(m) == nil {
				err := e.Decode(d.Append(nil))
				again(d.FlowID, err == nil && cmp.Equal(d, e, equalAddrs))
			}
		case DatagramTypeData:
			var d Datagram
			if d.Decode(m) == nil {
				again(d.FlowID, bytes.Equal(d.Append(nil), m))
			}
		case DatagramTypeAck:
			var d DatagramAck
			if d.Decode(m) == nil {
				again(d.FlowID, true)
			}
		case DatagramTypeClose:
			var d DatagramClose
			if d.Decode(m) == nil {
				again(d.FlowID, bytes.Equal(d.Append(nil), m[:DatagramHeaderBytes]))
			}
		}
	})
}

// No packet makes the parsers read past its end, go round for ever or hold an impossible piece.
func FuzzPacket(f *testing.F) {
	b := make([]byte, PacketHeaderBytes)
	PacketHeader{Key: 1, Lane: 1, Number: 1}.Put(b)
	b = AppendPacketData(b, []byte("message"))
	b = AppendPacketFragment(b, 1, make([]byte, 2000), 1000, 1)
	f.Add((&PacketProbe{Stamp: 1}).Append(b, PacketPing))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, ok := ParsePacketHeader(p)
		if !ok {
			return
		}
		again := make([]byte, PacketHeaderBytes)
		if h.Put(again); !bytes.Equal(again, p[:PacketHeaderBytes]) {
			t.Errorf("header %+v is %x, was %x", h, again, p[:PacketHeaderBytes])
		}
		var fr PacketFrame
		for b := p[PacketHeaderBytes:]; len(b) > 0; {
			rest, err := fr.Decode(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) {
				t.Fatal("no progress")
			}
			if fr.Type == PacketFragment {
				last := fr.Index == fr.Pieces()-1
				if end := fr.Index*fr.Chunk + len(fr.Message); end > fr.Total || last != (end == fr.Total) {
					t.Fatalf("piece %d of %d ends at %d of %d", fr.Index, fr.Pieces(), end, fr.Total)
				}
			}
			b = rest
		}
	})
}

// Random messages cut to pieces and put together again, in any order.
func TestFragmentsMakeTheMessage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		message := make([]byte, FragmentChunkMin+1+rng.IntN(DatagramMessageMax-FragmentChunkMin))
		for i := range message {
			message[i] = byte(rng.Uint32())
		}
		chunk := FragmentChunkMin + rng.IntN(len(message)-FragmentChunkMin)
		out := make([]byte, len(message))
		f := PacketFrame{Total: len(message), Chunk: chunk}
		for _, i := range rng.Perm(f.Pieces()) {
			var got PacketFrame
			if _, err := got.Decode(AppendPacketFragment(nil, 1, message, chunk, i)); err != nil {
				t.Fatal(err)
			}
			copy(out[got.Index*got.Chunk:], got.Message)
		}
		if !bytes.Equal(out, message) {
			t.Fatalf("%d bytes in pieces of %d differ", len(message), chunk)
		}
	}
}
