package datagram

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// block is memory for a message in pieces.
type block struct {
	bytes []byte
	class int
}

// blockSizes are the classes of blocks; the last holds any message.
var blockSizes = [...]int{4 << 10, 16 << 10, wire.DatagramMessageMax}

// blocks lends blocks and bounds their bytes in use in the whole process.
type blocks struct {
	max   int64
	used  atomic.Int64
	pools [len(blockSizes)]sync.Pool
}

func newBlocks(bytesMax int64) *blocks {
	b := &blocks{max: bytesMax}
	for class, size := range blockSizes {
		b.pools[class].New = func() any { return &block{bytes: make([]byte, size), class: class} }
	}
	return b
}

// get returns a block of at least size bytes, or nil if the bound is reached.
func (b *blocks) get(size int) *block {
	class := 0
	for size > blockSizes[class] {
		class++
	}
	if b.used.Add(int64(blockSizes[class])) > b.max {
		b.used.Add(-int64(blockSizes[class]))
		return nil
	}
	return b.pools[class].Get().(*block)
}

func (b *blocks) put(m *block) {
	b.used.Add(-int64(blockSizes[m.class]))
	b.pools[m.class].Put(m)
}

// partial is a message of which pieces are missing.
type partial struct {
	block        *block // nil: the slot is free
	id           uint32
	total, chunk int
	missing      int
	got          [3]uint64 // a bit a piece: at most 130
	deadline     time.Duration
}

// assembly puts the messages of one lane together. Message ids count up, so the slot is the id modulo
// their number: the latest assemblySlots messages have one, older ones have lost theirs. Guarded by
// the lane's mu.
type assembly struct {
	slots []partial // assemblySlots of them, made for the first piece: most lanes see none
	open  int       // in use
}

// add takes a piece. It returns the message when that was the last one missing: the block is the
// caller's to put back, and the message its first bytes. dropped is how many messages were given up
// for this one, or 1 if the piece itself is of one that was.
func (a *assembly) add(b *blocks, f *wire.PacketFrame, now time.Duration) (done *block, size, dropped int) {
	if a.slots == nil {
		a.slots = make([]partial, assemblySlots)
	}
	p := &a.slots[f.ID%assemblySlots]
	if p.block != nil && p.id != f.ID {
		if int32(f.ID-p.id) < 0 {
			return nil, 0, 1
		}
		a.free(b, p)
		dropped = 1
	}
	if p.block == nil {
		m := b.get(f.Total)
		if m == nil {
			return nil, 0, dropped + 1
		}
		*p = partial{block: m, id: f.ID, total: f.Total, chunk: f.Chunk, missing: f.Pieces()}
		p.deadline = now + assemblyTime
		a.open++
	}
	if p.total != f.Total || p.chunk != f.Chunk { // the peer broke the protocol
		a.free(b, p)
		return nil, 0, dropped + 1
	}
	word, bit := f.Index/64, uint64(1)<<(f.Index%64)
	if p.got[word]&bit != 0 {
		return nil, 0, dropped
	}
	p.got[word] |= bit
	copy(p.block.bytes[f.Index*f.Chunk:], f.Message)
	if p.missing--; p.missing > 0 {
		return nil, 0, dropped
	}
	done = p.block
	p.block = nil
	a.open--
	return done, f.Total, dropped
}

// expire gives up the messages that have been incomplete for too long, and returns how many.
func (a *assembly) expire(b *blocks, now time.Duration) (dropped int) {
	if a.open == 0 {
		return 0
	}
	for i := range a.slots {
		if p := &a.slots[i]; p.block != nil && now >= p.deadline {
			a.free(b, p)
			dropped++
		}
	}
	return dropped
}

// clear gives up everything.
func (a *assembly) clear(b *blocks) {
	for i := range a.slots {
		if p := &a.slots[i]; p.block != nil {
			a.free(b, p)
		}
	}
}

func (a *assembly) free(b *blocks, p *partial) {
	b.put(p.block)
	p.block = nil
	a.open--
}

// chunkOf is the size of the pieces of a message that is too long for a packet with room bytes for
// frames: as few pieces as can be, as equal as can be, so that they leave as one train.
func chunkOf(total, room int) (chunk, pieces int) {
	most := room - wire.PacketFragmentBytes
	pieces = (total + most - 1) / most
	return (total + pieces - 1) / pieces, pieces
}

// piecesMax makes sure at compile time that a partial has a bit for each piece.
const piecesMax = (wire.DatagramMessageMax + wire.FragmentChunkMin - 1) / wire.FragmentChunkMin

var _ [3*64 - piecesMax]struct{}
