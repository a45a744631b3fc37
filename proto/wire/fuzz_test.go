package wire

import (
	"bytes"
	"testing"
)

// The targets below hold each decoder to this: no input makes it panic, and what it accepts it
// accepts again, the same, after it was encoded.

func FuzzOpen(f *testing.F) {
	f.Add((&Open{}).Append(nil))
	f.Add((&Open{Listener: "0123abcd", Group: "0123456789ab", Proto: 6, HopsLeft: 4, Src: v4, Dst: v6}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o, again Open
		n, err := o.Decode(b)
		if err != nil {
			return
		}
		if n > len(b) {
			t.Fatalf("took %d bytes of %d", n, len(b))
		}
		if _, err := again.Decode(o.Append(nil)); err != nil || again != o {
			t.Fatalf("%+v, again %+v, %v", o, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add((&Hello{VersionMin: 1, VersionMax: 1, Window: 1 << 20}).Append(nil)[HeaderBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again Hello
		if h.Decode(b) != nil {
			return
		}
		if err := again.Decode(h.Append(nil)[HeaderBytes:]); err != nil || again != h {
			t.Fatalf("%+v, again %+v, %v", h, again, err)
		}
		h.Negotiate()
	})
}

func FuzzWelcome(f *testing.F) {
	f.Add((&Welcome{Version: 1}).Append(nil)[HeaderBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var w, again Welcome
		if w.Decode(b) != nil {
			return
		}
		if err := again.Decode(w.Append(nil)[HeaderBytes:]); err != nil || again != w {
			t.Fatalf("%+v, again %+v, %v", w, again, err)
		}
	})
}

func FuzzAck(f *testing.F) {
	f.Add((&Ack{1, 2, 3, true, false}).Append(nil)[HeaderBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again Ack
		if a.Decode(b) != nil {
			return
		}
		if err := again.Decode(a.Append(nil)[HeaderBytes:]); err != nil || again != a {
			t.Fatalf("%+v, again %+v, %v", a, again, err)
		}
	})
}

func FuzzGroups(f *testing.F) {
	f.Add(AppendGroups(nil, 1, func(yield func(string, bool)) { yield("a", true); yield("b", false) })[HeaderBytes:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var g, again Groups
		if g.Decode(b) != nil {
			return
		}
		all := func(g *Groups) (ids []string, states []bool) {
			g.All(func(id string, servable bool) { ids, states = append(ids, id), append(states, servable) })
			return ids, states
		}
		ids, states := all(&g)
		first := AppendGroups(nil, g.Version, func(yield func(string, bool)) {
			for i := range ids {
				yield(ids[i], states[i])
			}
		})
		_, n, _, err := ParseHeader(first)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Decode(first[HeaderBytes : HeaderBytes+n]); err != nil || again.Version != g.Version {
			t.Fatalf("%+v, again %+v, %v", g, again, err)
		}
	})
}

// FuzzFrames walks over bytes as a carrier's reader does.
func FuzzFrames(f *testing.F) {
	var b []byte
	b = AppendOpen(b, 1, &Open{Listener: "l", Src: v4, Dst: v6})
	b = AppendResult(b, 1, &OpenResult{Code: OpenRefused, Endpoint: "e"})
	b = AppendReset(b, 1, ResetIdle)
	b = (&Ping{1, 2, 3, 4}).AppendPing(b)
	b = AppendGoAway(b, true, ResetShutdown)
	b = AppendKey(b, 1)
	b = AppendLeave(AppendPad(b, 3))
	b = AppendDatagram(b, []byte("message"))
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		for {
			typ, n, ok, err := ParseHeader(b)
			if err != nil || !ok || len(b) < HeaderBytes+n {
				return
			}
			p := b[HeaderBytes : HeaderBytes+n]
			if !bytes.Equal(AppendHeader(nil, typ, n), b[:HeaderBytes]) {
				t.Fatal("the header comes out differently")
			}
			decodeAny(typ, p)
			b = b[HeaderBytes+n:]
		}
	})
}

func decodeAny(typ Type, p []byte) {
	switch typ {
	case TypeHello:
		_ = new(Hello).Decode(p)
	case TypeWelcome:
		_ = new(Welcome).Decode(p)
	case TypePing, TypePong:
		_ = new(Ping).Decode(p)
	case TypeGoAway:
		_, _, _ = DecodeGoAway(p)
	case TypeGroups:
		_ = new(Groups).Decode(p)
	case TypeKey:
		_, _ = DecodeKey(p)
	case TypeOpen:
		_, _ = DecodeOpen(p, new(Open))
	case TypeResult:
		_, _, _ = DecodeResult(p)
	case TypeData, TypeDataFin:
		_, _, _, _ = DecodeData(p)
	case TypeAck:
		_ = new(Ack).Decode(p)
	case TypeReset:
		_, _, _ = DecodeReset(p)
	}
}
