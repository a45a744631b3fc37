package relay

import "sync"

// early keeps what a client sent before an endpoint has answered. It borrows its memory from pools when
// there are bytes, and gives it back when they are not needed any more.
type early struct {
	first, second *[]byte // borrowed, or nil; their lengths are what is kept
	used          int
}

var (
	smallPieces = sync.Pool{New: func() any { b := make([]byte, 0, earlySmall); return &b }}
	largePieces = sync.Pool{New: func() any { b := make([]byte, 0, earlyMax-earlySmall); return &b }}
)

// room returns where the next bytes go; full must be false.
func (e *early) room() []byte {
	if e.first == nil {
		e.first = smallPieces.Get().(*[]byte)
	}
	if b := *e.first; len(b) < cap(b) {
		return b[len(b):cap(b)]
	}
	if e.second == nil {
		e.second = largePieces.Get().(*[]byte)
	}
	b := *e.second
	return b[len(b):cap(b)]
}

// give takes back what room has lent, if nothing came of it.
func (e *early) give([]byte) {
	if e.second != nil && len(*e.second) == 0 {
		largePieces.Put(e.second)
		e.second = nil
	}
	if e.first != nil && len(*e.first) == 0 {
		smallPieces.Put(e.first)
		e.first = nil
	}
}

// keep says that the first n bytes of room were filled.
func (e *early) keep(n int) {
	p := e.first
	if e.second != nil {
		p = e.second
	}
	*p = (*p)[:len(*p)+n]
	e.used += n
}

func (e *early) full() bool { return e.used >= earlyMax }

// drop forgets the first n bytes, which must lie in the first piece.
func (e *early) drop(n int) {
	*e.first = append((*e.first)[:0], (*e.first)[n:]...)
	e.used -= n
	e.give(nil)
}

// each calls f with what is kept, in order, until f returns false.
func (e *early) each(f func([]byte) bool) bool {
	for _, p := range []*[]byte{e.first, e.second} {
		if p != nil && len(*p) > 0 && !f(*p) {
			return false
		}
	}
	return true
}

// release forgets everything.
func (e *early) release() {
	if e.first != nil {
		*e.first = (*e.first)[:0]
	}
	if e.second != nil {
		*e.second = (*e.second)[:0]
	}
	e.used = 0
	e.give(nil)
}
