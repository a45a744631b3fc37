package backbone

import (
	"sync"
	"sync/atomic"

	"github.com/nearcast/nearcast/proto/wire"
)

// Memory bounds the bytes that the streams of a process hold: what was sent and not yet consumed,
// and what arrived and was not yet taken. It is safe for concurrent use.
//
// There is no reservation. Each stream may hold up to an eighth of what is free of three quarters at
// the moment (dynamic thresholds, Choudhury and Hahne 1998): one stream alone may hold a lot, a
// thousand that stall end up with equal shares, and the last quarter, which no share reaches, stays
// for those that move and for new ones. Only the few bytes that every stream may hold go beyond.
type Memory struct {
	max   int64
	used  atomic.Int64
	pools [len(chunkClasses)]sync.Pool
}

// chunkClasses are the sizes of chunks. The smallest holds a request or a keystroke; recordClass holds
// a TLS record with the frame header in front, so that it is sent without being copied; the largest is
// for what arrives in bulk faster than its socket takes it, and is written there in one go.
var chunkClasses = [...]int{512, 4 << 10, 16 << 10, 64 << 10}

const recordClass = 2

// NewMemory returns a Memory of so many bytes; 0 means MemoryDefault.
func NewMemory(bytes int64) *Memory {
	if bytes <= 0 {
		bytes = MemoryDefault
	}
	return &Memory{max: bytes}
}

// Used returns the bytes held now.
func (m *Memory) Used() int64 { return m.used.Load() }

// Max returns the bound.
func (m *Memory) Max() int64 { return m.max }

// share returns how many bytes one stream may hold at the moment.
func (m *Memory) share() int {
	return int(max(0, m.max/memoryShareable*(memoryShareable-1)-m.used.Load()) / memoryShareDivisor)
}

// get returns an empty chunk for about n bytes besides the headroom. It is of the largest class only if
// they fill it.
func (m *Memory) get(n int) *chunk {
	class := 0
	for class < recordClass && n+wire.DataHeaderBytes > chunkClasses[class] {
		class++
	}
	if last := len(chunkClasses) - 1; n+wire.DataHeaderBytes >= chunkClasses[last] {
		class = last
	}
	m.used.Add(int64(chunkClasses[class]))
	c, _ := m.pools[class].Get().(*chunk)
	if c == nil {
		c = &chunk{b: make([]byte, chunkClasses[class]), class: class}
	}
	c.r, c.w = wire.DataHeaderBytes, wire.DataHeaderBytes
	return c
}

// put takes a chunk back.
func (m *Memory) put(c *chunk) {
	m.used.Add(-int64(len(c.b)))
	c.next, c.orphan = nil, false
	m.pools[c.class].Put(c)
}

// A chunk holds bytes of one direction of a stream: those from offset off, at b[r:w]. In front of
// them is room for a frame header.
type chunk struct {
	next   *chunk
	b      []byte
	off    uint64
	r, w   int
	class  int
	pins   int  // carriers that write it out now
	orphan bool // nobody needs it; who unpins it last gives it back
}

func (c *chunk) end() uint64  { return c.off + uint64(c.w-c.r) }
func (c *chunk) room() int    { return len(c.b) - c.w }
func (c *chunk) data() []byte { return c.b[c.r:c.w] }

// release gives a chunk back, or leaves that to those who still write it out.
func (m *Memory) release(c *chunk) {
	if c.pins > 0 {
		c.orphan = true
		return
	}
	m.put(c)
}

// unpin ends one carrier's use of a chunk.
func (m *Memory) unpin(c *chunk) {
	if c.pins--; c.pins == 0 && c.orphan {
		m.put(c)
	}
}

// A sendBuffer keeps the bytes of a stream from their being written until the peer has consumed
// them, and knows which to send next:
//
//	      base            next            end      limit
//	        │ sent, kept    │ to be sent   │         │
//	────────┴───────────────┴──────────────┴─────────┴──▶ offset
//	consumed by the peer                    not yet written
//
// It is a pure machine; the stream's mutex guards it. The zero value is empty.
type sendBuffer struct {
	head, tail *chunk
	cur        *chunk // holds the byte at next, or ends there
	base       uint64 // the peer has consumed all before
	next       uint64 // to be sent next
	high       uint64 // the highest offset ever sent
	end        uint64 // written by the application so far
	limit      uint64 // the peer's credit
	held       int    // bytes of memory
}

// append copies p behind the end. The caller has seen to credit and memory.
func (b *sendBuffer) append(m *Memory, p []byte) {
	for len(p) > 0 {
		c := b.tail
		if c == nil || c.room() == 0 || c.room() < smallRoom && len(p) > smallRoom {
			c = m.get(len(p))
			b.push(c)
		}
		n := copy(c.b[c.w:], p)
		c.w += n
		p = p[n:]
		b.end += uint64(n)
	}
}

// pushFilled links a chunk that the caller has filled.
func (b *sendBuffer) pushFilled(c *chunk) {
	b.push(c)
	b.end += uint64(c.w - c.r)
}

func (b *sendBuffer) push(c *chunk) {
	c.off = b.end
	b.held += len(c.b)
	if b.tail == nil {
		b.head, b.cur = c, c
	} else {
		b.tail.next = c
	}
	b.tail = c
}

// sendable returns how many bytes could be sent now.
func (b *sendBuffer) sendable() int {
	to := min(b.end, b.limit)
	if to <= b.next {
		return 0
	}
	return int(to - b.next)
}

// take returns the next bytes to send, at most n and all within one chunk, and counts them as sent.
// They are c.b[lo:hi]. Precondition: sendable() > 0.
func (b *sendBuffer) take(n int) (c *chunk, lo, hi int) {
	for b.cur.end() <= b.next {
		b.cur = b.cur.next
	}
	c = b.cur
	lo = c.r + int(b.next-c.off)
	hi = min(c.w, lo+min(n, b.sendable()))
	b.next += uint64(hi - lo)
	b.high = max(b.high, b.next)
	return c, lo, hi
}

// consume forgets what the peer has consumed: all before to. It reports false for an offset that
// was never sent.
func (b *sendBuffer) consume(m *Memory, to uint64) bool {
	if to > b.high {
		return false
	}
	if to <= b.base {
		return true
	}
	b.base = to
	b.next = max(b.next, to) // a rewound stream was served by what was sent before
	for c := b.head; c != nil && c.end() <= to; c = b.head {
		b.head = c.next
		if b.cur == c {
			b.cur = c.next
		}
		b.held -= len(c.b)
		m.release(c)
	}
	if b.head == nil {
		b.tail, b.cur = nil, nil
	}
	return true
}

// rewind sends everything again that was not consumed.
func (b *sendBuffer) rewind() { b.next, b.cur = b.base, b.head }

// drop forgets everything.
func (b *sendBuffer) drop(m *Memory) {
	for c := b.head; c != nil; {
		next := c.next
		m.release(c)
		c = next
	}
	b.head, b.tail, b.cur, b.held = nil, nil, nil, 0
	b.base, b.next = b.end, b.end
}

// An assembly holds bytes that arrived and could not be delivered yet, in order and without
// overlaps. It is a pure machine; the stream's mutex guards it. The zero value is empty.
type assembly struct {
	head, tail *chunk
	held       int // bytes of memory
}

// insert keeps a copy of the bytes of p, which begins at off, that it does not have yet.
func (a *assembly) insert(m *Memory, off uint64, p []byte) {
	var prev, cur *chunk = nil, a.head
	if a.tail != nil && a.tail.end() <= off {
		prev, cur = a.tail, nil // the usual case
	}
	for len(p) > 0 {
		for cur != nil && cur.end() <= off {
			prev, cur = cur, cur.next
		}
		if cur != nil && cur.off <= off {
			have := int(min(uint64(len(p)), cur.end()-off))
			off, p = off+uint64(have), p[have:]
			continue
		}
		n := len(p)
		if cur != nil {
			n = int(min(uint64(n), cur.off-off))
		}
		prev, n = a.place(m, prev, off, p[:n])
		off, p = off+uint64(n), p[n:]
	}
}

// place copies as much of p as fits behind prev: into it, or into a new chunk linked behind it.
func (a *assembly) place(m *Memory, prev *chunk, off uint64, p []byte) (at *chunk, n int) {
	if prev == nil || prev.end() != off || prev.room() == 0 {
		size := len(p)
		if prev != nil && prev == a.tail && prev.end() == off {
			size = max(size, a.held) // a lot waits already, in order: larger chunks for more
		}
		c := m.get(size)
		c.off = off
		a.held += len(c.b)
		if prev == nil {
			c.next, a.head = a.head, c
		} else {
			c.next, prev.next = prev.next, c
		}
		if c.next == nil {
			a.tail = c
		}
		prev = c
	}
	n = copy(prev.b[prev.w:], p)
	prev.w += n
	return prev, n
}

// front returns the bytes at offset next, or nil when they are missing.
func (a *assembly) front(m *Memory, next uint64) []byte {
	for c := a.head; c != nil && c.end() <= next; c = a.head {
		a.pop(m)
	}
	c := a.head
	if c == nil || c.off > next {
		return nil
	}
	return c.b[c.r+int(next-c.off) : c.w]
}

func (a *assembly) pop(m *Memory) {
	c := a.head
	if a.head = c.next; a.head == nil {
		a.tail = nil
	}
	a.held -= len(c.b)
	m.release(c)
}

// drop forgets everything.
func (a *assembly) drop(m *Memory) {
	for a.head != nil {
		a.pop(m)
	}
}
