package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	v4 = netip.MustParseAddrPort("192.0.2.1:1024")
	v6 = netip.MustParseAddrPort("[2001:db8::1]:65535")
)

// split cuts the first frame off b.
func split(t *testing.T, b []byte) (Type, []byte, []byte) {
	t.Helper()
	typ, n, ok, err := ParseHeader(b)
	if err != nil || !ok || len(b) < HeaderBytes+n {
		t.Fatalf("no whole frame in %d bytes: %v", len(b), err)
	}
	return typ, b[HeaderBytes : HeaderBytes+n], b[HeaderBytes+n:]
}

func TestOpen(t *testing.T) {
	for _, want := range []Open{
		{},
		{Listener: "0123abcd", Group: "0123456789ab", Proto: 6, HopsLeft: HopsMax, Revision: 1 << 60, Src: v4, Dst: v4},
		{Listener: "l", Proto: 17, HopsLeft: 1, Flags: 0x80, Src: v6, Dst: v4},
		{Listener: strings.Repeat("x", 64), Group: strings.Repeat("y", 64), Src: v6, Dst: v6},
	} {
		typ, p, rest := split(t, AppendOpen(nil, 77, &want))
		var got Open
		stream, err := DecodeOpen(p, &got)
		if err != nil || stream != 77 || typ != TypeOpen || len(rest) != 0 {
			t.Fatalf("%v %d %v", typ, stream, err)
		}
		if !want.Src.IsValid() { // what was not said comes out as ::
			want.Src = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
			want.Dst = want.Src
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestOpenCanGrow: what a later version adds at the end is skipped, and what follows is found.
func TestOpenCanGrow(t *testing.T) {
	o := Open{Listener: "l", Group: "g", Src: v4, Dst: v6}
	b := o.Append(nil)
	grown := append(bytes.Clone(b), "later"...)
	grown[1] += 5
	grown = append(grown, "payload"...)
	var got Open
	n, err := got.Decode(grown)
	if err != nil || got != o || string(grown[n:]) != "payload" {
		t.Fatalf("%v, %+v, rest %q", err, got, grown[n:])
	}
	for cut := range b {
		if _, err := got.Decode(b[:cut]); err == nil {
			t.Fatalf("decoded from %d bytes of %d", cut, len(b))
		}
	}
}

func TestMappedAddressesComeOutPlain(t *testing.T) {
	o := Open{Src: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1024"), Dst: v4}
	var got Open
	if _, err := got.Decode(o.Append(nil)); err != nil || got.Src != v4 {
		t.Fatal(got.Src, err)
	}
}

func TestStreamFrames(t *testing.T) {
	b := AppendResult(nil, 1, &OpenResult{Code: OpenTimeout, Endpoint: "10.0.0.1"})
	b = (&Ack{2, 100, 200, true, true}).Append(b)
	b = (&Ack{2, 0, OffsetMax, false, false}).Append(b)
	b = AppendReset(b, 3, ResetIdle)
	header := make([]byte, DataHeaderBytes)
	PutDataHeader(header, true, 4, 1<<40, 5)
	b = append(append(b, header...), "hello"...)

	_, p, b := split(t, b)
	if id, r, err := DecodeResult(p); err != nil || id != 1 || r != (OpenResult{Code: OpenTimeout, Endpoint: "10.0.0.1"}) {
		t.Fatal(id, r, err)
	}
	for _, want := range []Ack{{2, 100, 200, true, true}, {2, 0, OffsetMax, false, false}} {
		_, p, b = split(t, b)
		var got Ack
		if err := got.Decode(p); err != nil || got != want {
			t.Fatal(got, err)
		}
	}
	_, p, b = split(t, b)
	if id, r, err := DecodeReset(p); err != nil || id != 3 || r != ResetIdle {
		t.Fatal(id, r, err)
	}
	typ, p, b := split(t, b)
	id, offset, data, err := DecodeData(p)
	if err != nil || typ != TypeDataFin || id != 4 || offset != 1<<40 || string(data) != "hello" || len(b) != 0 {
		t.Fatal(typ, id, offset, data, err)
	}
}

func TestControlFrames(t *testing.T) {
	hello := Hello{1, 3, TunnelID{1, 2, 3}, 7, 4 << 20, 9}
	welcome := Welcome{WelcomeOK, 1, 1 << 63, 5 << 20, 9}
	ping := Ping{1 << 50, 1 << 49, 5000, 16}
	_, p, _ := split(t, hello.Append(nil))
	var h Hello
	if err := h.Decode(append(p, "later"...)); err != nil || h != hello {
		t.Fatal(h, err)
	}
	_, p, _ = split(t, welcome.Append(nil))
	var w Welcome
	if err := w.Decode(p); err != nil || w != welcome {
		t.Fatal(w, err)
	}
	_, p, _ = split(t, ping.AppendPong(nil))
	var g Ping
	if err := g.Decode(p); err != nil || g != ping {
		t.Fatal(g, err)
	}
	_, p, _ = split(t, AppendGoAway(nil, true, ResetShutdown))
	if final, reason, err := DecodeGoAway(p); err != nil || !final || reason != ResetShutdown {
		t.Fatal(final, reason, err)
	}
	_, p, _ = split(t, AppendKey(nil, 1<<31))
	if epoch, err := DecodeKey(p); err != nil || epoch != 1<<31 {
		t.Fatal(epoch, err)
	}
	if typ, p, _ := split(t, AppendPad(nil, 1000)); typ != TypePad || len(p) != 1000 {
		t.Fatal(typ, len(p))
	}
	if typ, p, _ := split(t, AppendLeave(nil)); typ != TypeLeave || len(p) != 0 {
		t.Fatal(typ, len(p))
	}
	if typ, p, _ := split(t, AppendDatagram(nil, []byte("m"))); typ != TypeDatagram || string(p) != "m" {
		t.Fatal(typ, p)
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	bad := map[string]func() error{
		"a frame too long": func() error {
			_, _, _, err := ParseHeader(AppendHeader(nil, TypeData, PayloadMax+1))
			return err
		},
		"hello without magic": func() error { return new(Hello).Decode(make([]byte, 48)) },
		"hello with versions reversed": func() error {
			_, p, _ := split(t, (&Hello{VersionMin: 2, VersionMax: 1}).Append(nil))
			return new(Hello).Decode(p)
		},
		"welcome with a version of the future": func() error {
			_, p, _ := split(t, (&Welcome{Version: VersionMax + 1}).Append(nil))
			return new(Welcome).Decode(p)
		},
		"ack beyond its limit": func() error {
			_, p, _ := split(t, (&Ack{1, 2, 1, false, false}).Append(nil))
			return new(Ack).Decode(p)
		},
		"offsets without end": func() error {
			b := make([]byte, DataHeaderBytes)
			PutDataHeader(b, false, 1, OffsetMax+1, 0)
			_, _, _, err := DecodeData(b[HeaderBytes:])
			return err
		},
		"an address family of its own": func() error {
			b := (&Open{Src: v4, Dst: v4}).Append(nil)
			b[len(b)-14] = 5
			_, err := new(Open).Decode(b)
			return err
		},
		"an id too long": func() error {
			_, err := new(Open).Decode((&Open{Listener: strings.Repeat("x", 65), Src: v4, Dst: v4}).Append(nil))
			return err
		},
		"a part beyond the parts": func() error {
			_, p, _ := split(t, AppendGroups(nil, 1, func(func(string, bool)) {}))
			p[9] = 1
			return new(Groups).Decode(p)
		},
	}
	for name, f := range bad {
		if err := f(); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLong) && !errors.Is(err, ErrShort) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		min, max, want uint16
		ok             bool
	}{
		{1, 1, 1, true}, {1, 9, 1, true}, {2, 9, 1, false}, {0, 0, 0, false},
	} {
		h := Hello{VersionMin: c.min, VersionMax: c.max}
		if v, ok := h.Negotiate(); ok != c.ok || ok && v != c.want {
			t.Errorf("%d to %d: %d %v", c.min, c.max, v, ok)
		}
	}
}

func TestGroups(t *testing.T) {
	for _, n := range []int{0, 1, 100, 10_000} {
		want := map[string]bool{}
		for i := range n {
			want[fmt.Sprintf("%012x", i)] = i%2 == 0
		}
		b := AppendGroups([]byte("before"), 42, func(yield func(string, bool)) {
			for id, servable := range want {
				yield(id, servable)
			}
		})[6:]
		got := map[string]bool{}
		parts := 0
		for len(b) > 0 {
			var p []byte
			_, p, b = split(t, b)
			var g Groups
			if err := g.Decode(p); err != nil || g.Version != 42 || int(g.Part) != parts {
				t.Fatal(g, err)
			}
			g.All(func(id string, servable bool) { got[id] = servable })
			if parts++; len(b) == 0 && parts != int(g.Parts) {
				t.Fatalf("%d parts of %d", parts, g.Parts)
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%d groups: %s", n, diff)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []fmt.Stringer{
		TypeData, Type(0x77), OpenOK, OpenUnreachable, OpenCode(99), ResetUnspecified, ResetRemoved, ResetReason(99),
		WelcomeOK, WelcomeDraining, WelcomeCode(99),
	} {
		if s.String() == "" {
			t.Errorf("%#v has no name", s)
		}
	}
	if !Type(0x80).Critical() || TypeDatagram.Critical() {
		t.Error("the top bit makes a type critical")
	}
}

func TestHotFramesAllocateNothing(t *testing.T) {
	b := make([]byte, 0, 1<<16)
	open := Open{Listener: "0123abcd", Group: "0123456789ab", Src: v4, Dst: v6}
	var decoded Open
	n := testing.AllocsPerRun(1000, func() {
		b = b[:DataHeaderBytes]
		PutDataHeader(b, false, 1, 2, 0)
		if _, _, _, err := DecodeData(b[HeaderBytes:]); err != nil {
			t.Fatal(err)
		}
		a := Ack{Stream: 1, Consumed: 2, Limit: 3}
		b = a.Append(b[:0])
		if err := a.Decode(b[HeaderBytes:]); err != nil {
			t.Fatal(err)
		}
		b = AppendOpen(b[:0], 1, &open)
		if _, err := DecodeOpen(b[HeaderBytes:], &decoded); err != nil {
			t.Fatal(err)
		}
		b = AppendReset(b[:0], 1, ResetIdle)
		if _, _, err := DecodeReset(b[HeaderBytes:]); err != nil {
			t.Fatal(err)
		}
		g := Ping{Seq: 1}
		b = g.AppendPing(b[:0])
		if err := g.Decode(b[HeaderBytes:]); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Fatalf("%v allocations", n)
	}
}

// Where a flow went is told where it is known, and its absence is what nodes before it send.
func TestPathsOfFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, want := range []OpenResult{
		{Code: OpenOK, Endpoint: "e"},
		{Code: OpenOK, Endpoint: "e", EndpointAddr: at("10.0.0.1:80"), Source: at("[2001:db8::1]:5")},
	} {
		b := AppendResult(nil, 7, &want)
		if id, got, err := DecodeResult(b[HeaderBytes:]); err != nil || id != 7 || got != want {
			t.Errorf("got %d %+v, %v, want %+v", id, got, err, want)
		}
		ack := DatagramAck{FlowID: 9, Endpoint: want.EndpointAddr, Source: want.Source}
		got := DatagramAck{Endpoint: at("192.0.2.9:9")} // of a message before
		m := ack.Append(nil)
		if err := got.Decode(m); err != nil || got != ack {
			t.Errorf("got %+v, %v, want %+v", got, err, ack)
		}
		for n := DatagramHeaderBytes + 1; n < len(m); n++ {
			if got.Decode(m[:n]) == nil {
				t.Errorf("an acknowledgement cut to %d bytes is taken", n)
			}
		}
	}
}
