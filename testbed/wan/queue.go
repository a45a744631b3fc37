package wan

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// chunk is a buffer that packets are read into one behind the other. It is outside the Go heap, so that
// packets in flight cost the garbage collector nothing, and is used again when the last of its packets has
// gone.
type chunk struct {
	b    []byte
	used int // bytes handed out
	refs int // packets in it, and one while it is the one being read into
}

// pool owns all chunks and headers. Only the engine's thread uses it.
type pool struct {
	free    []*chunk
	all     []*chunk
	headers []*header
}

// header holds the headers of a part of a superpacket; the payload stays where it was read to.
type header struct {
	b   [headerBytesMax]byte
	len int
}

// chunk returns an empty chunk with one reference, or nil when memoryMax is in use.
func (p *pool) chunk() (*chunk, error) {
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		c.used, c.refs = 0, 1
		return c, nil
	}
	if len(p.all) >= memoryMax/chunkBytes {
		return nil, nil
	}
	b, err := unix.Mmap(-1, 0, chunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map packet memory: %w", err)
	}
	c := &chunk{b: b, refs: 1}
	p.all = append(p.all, c)
	return c, nil
}

// drop gives up one reference.
func (p *pool) drop(c *chunk) {
	c.refs--
	if c.refs == 0 {
		p.free = append(p.free, c)
	}
}

func (p *pool) header() *header {
	if n := len(p.headers); n > 0 {
		h := p.headers[n-1]
		p.headers = p.headers[:n-1]
		return h
	}
	return new(header)
}

// unmap gives all memory back. Nothing may use a chunk afterwards.
func (p *pool) unmap() {
	for _, c := range p.all {
		unix.Munmap(c.b) //nolint:errcheck // memory we mapped ourselves; there is nothing to do about it
	}
	*p = pool{}
}

// packet is a packet or superpacket in flight.
type packet struct {
	due      int64
	buf      *chunk
	from, to int     // its bytes in buf: with hdr only the payload, else everything
	hdr      *header // virtio, IP and L4 headers, when they are not in buf before the payload
}

// headers returns the bytes that parseSuper looks at.
func (k *packet) headers() []byte {
	if k.hdr != nil {
		return k.hdr.b[:k.hdr.len]
	}
	return k.buf.b[k.from:k.to]
}

// size returns the length of it all, virtio header included.
func (k *packet) size() int {
	if k.hdr != nil {
		return k.hdr.len + k.to - k.from
	}
	return k.to - k.from
}

// release gives back what a packet holds.
func (p *pool) release(k packet) {
	p.drop(k.buf)
	if k.hdr != nil {
		p.headers = append(p.headers, k.hdr)
	}
}

// lane is the queue of one pair of hosts before one point of its path: packets leave it in the order in which
// they came, each when it is due.
type lane struct {
	from, to int   // hosts
	next     int   // index in path.stages of the stage to enter when due; deliver: none is left
	last     int64 // due time of the packet pushed last
	ring     []packet
	head, n  int
}

// deliver marks the lane at the end of a path.
const deliver = -1

func (l *lane) push(k packet) {
	if l.n == len(l.ring) {
		grown := make([]packet, max(64, 2*len(l.ring)))
		for i := range l.n {
			grown[i] = l.ring[(l.head+i)&(len(l.ring)-1)]
		}
		l.ring, l.head = grown, 0
	}
	l.ring[(l.head+l.n)&(len(l.ring)-1)] = k
	l.n++
}

func (l *lane) first() *packet { return &l.ring[l.head] }

func (l *lane) pop() packet {
	k := l.ring[l.head]
	l.ring[l.head] = packet{}
	l.head = (l.head + 1) & (len(l.ring) - 1)
	l.n--
	return k
}

// lanes are all lanes, with the non-empty ones in a heap by the due time of their first packet.
type lanes struct {
	heap []*lane
}

// push appends a packet to a lane, not before what is in it.
func (q *lanes) push(l *lane, k packet) {
	k.due = max(k.due, l.last)
	l.last = k.due
	l.push(k)
	if l.n == 1 {
		q.heap = append(q.heap, l)
		q.up(len(q.heap) - 1)
	}
}

// due returns when the first packet of all is due.
func (q *lanes) due() (int64, bool) {
	if len(q.heap) == 0 {
		return 0, false
	}
	return q.heap[0].first().due, true
}

// pop takes the first packet of all, and its lane.
func (q *lanes) pop() (packet, *lane) {
	l := q.heap[0]
	k := l.pop()
	if l.n == 0 {
		n := len(q.heap) - 1
		q.swap(0, n)
		q.heap = q.heap[:n]
	}
	q.down(0)
	return k, l
}

func (q *lanes) swap(i, j int) { q.heap[i], q.heap[j] = q.heap[j], q.heap[i] }

func (q *lanes) less(i, j int) bool { return q.heap[i].first().due < q.heap[j].first().due }

func (q *lanes) up(i int) {
	for i > 0 && q.less(i, (i-1)/2) {
		q.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (q *lanes) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(q.heap) {
			return
		}
		if child+1 < len(q.heap) && q.less(child+1, child) {
			child++
		}
		if !q.less(child, i) {
			return
		}
		q.swap(i, child)
		i = child
	}
}
