package backbone

import (
	"testing"

	"github.com/nearcast/nearcast/proto/wire"
)

// FuzzCarrier hands frames of anybody's making to both ends of a tunnel: nothing may panic, hang, or
// keep memory when the tunnel is closed.
func FuzzCarrier(f *testing.F) {
	data := func(b []byte, id, offset uint64, p string, fin bool) []byte {
		var h [wire.DataHeaderBytes]byte
		wire.PutDataHeader(h[:], fin, id, offset, len(p))
		return append(append(b, h[:]...), p...)
	}
	var b []byte
	b = wire.AppendOpen(b, 1, &wire.Open{Listener: "l", Group: "g"})
	b = wire.AppendOpen(b, 7, &wire.Open{Listener: "l", Group: "g"})
	b = wire.AppendResult(b, 1, &wire.OpenResult{})
	b = data(b, 1, 3, "lo", true)
	b = data(b, 1, 0, "hel", false)
	b = data(b, 7, 1<<40, "x", false)
	b = (&wire.Ack{Stream: 1, Consumed: 0, Limit: 100}).Append(b)
	b = (&wire.Ack{Stream: 1, Consumed: 5, Limit: 100, Rewind: true, Fin: true}).Append(b)
	b = wire.AppendReset(b, 1, wire.ResetIdle)
	b = (&wire.Ping{Seq: 1, Want: 200}).AppendPing(b)
	b = (&wire.Ping{Seq: 1}).AppendPong(b)
	b = wire.AppendGroups(b, 2, func(yield func(string, bool)) { yield("g", true) })
	b = wire.AppendKey(b, 1)
	b = wire.AppendLeave(b)
	b = wire.AppendDatagram(b, []byte("m"))
	b = wire.AppendGoAway(b, true, wire.ResetShutdown)
	f.Add(true, b)
	f.Add(false, b)
	f.Fuzz(func(t *testing.T, client bool, b []byte) {
		e := newEnv(Common{Memory: NewMemory(1 << 20)}, "fuzz", client)
		tun := newTunnel(e, "peer", wire.TunnelID{})
		tun.onStream = func(s *Stream, _ *wire.Open) Sink {
			s.OpenResult(wire.OpenResult{})
			_, _ = s.Write([]byte("hello"))
			return &deafSink{take: s.ID()%2 == 0}
		}
		tun.peerWindow.Store(1 << 20)
		c := newCarrier(tun, nil, noConn{}, 1)
		if !tun.join(c) {
			t.Fatal("no room")
		}
		if client {
			for range 2 {
				if s, err := tun.dial(&wire.Open{}, &deafSink{take: true}); err == nil {
					_, _ = s.Write([]byte("hello"))
				}
			}
		}
		out := batch{c: c}
		for {
			typ, n, ok, err := wire.ParseHeader(b)
			if err != nil || !ok || len(b) < wire.HeaderBytes+n {
				break
			}
			if c.frame(typ, b[wire.HeaderBytes:wire.HeaderBytes+n]) != nil {
				break
			}
			b = b[wire.HeaderBytes+n:]
			for s, ok := c.streams.pop(); ok; s, ok = c.streams.pop() {
				s.emit(c, &out, e.now())
			}
			for _, r := range out.runs {
				if r.k != nil {
					r.s.unpin(r.k)
				}
			}
			out = batch{c: c}
		}
		c.close()
		tun.lost(c)
		tun.close(wire.ResetShutdown, false)
		if e.memory.Used() != 0 {
			t.Fatalf("%d bytes are kept", e.memory.Used())
		}
	})
}
