package pump

import "sync/atomic"

// Gate holds back what a stream delivers until the socket is there. Bytes that are not taken are
// delivered again after Resume; but an end without bytes cannot be refused, so the Gate keeps it in
// mind. The zero value is shut.
type Gate struct{ state atomic.Uint32 }

const (
	gateOpen uint32 = 1 << iota
	gateEnd
)

// Pass reports whether a delivery may go on to the socket. If not, the sink takes nothing of it.
func (g *Gate) Pass(p []byte, fin bool) bool {
	for {
		s := g.state.Load()
		switch {
		case s&gateOpen != 0:
			return true
		case len(p) > 0 || !fin || g.state.CompareAndSwap(s, s|gateEnd):
			return false
		}
	}
}

// Open lets deliveries pass. It reports whether the stream's end came before: who opens the gate must
// deliver it.
func (g *Gate) Open() (ended bool) { return g.state.Or(gateOpen)&gateEnd != 0 }
