package wan

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// engine moves packets between the TUNs. One thread runs it and owns every field but those marked as shared.
// Its functions stand in the order in which a packet meets them.
type engine struct {
	tuns   []int                 // file descriptors by host; never change
	wake   int                   // an eventfd: readable means stop
	tables atomic.Pointer[table] // shared: swapped by the Fabric
	totals totals                // shared: read by anyone
	seed   uint64

	clock  clock
	table  *table // what tables held at the beginning of this round
	stages []stage
	lanes  lanes
	byPair []pairLanes          // from*hosts + to
	caches []map[netip.Addr]int // by ingress host: destination to index of hop
	pool   pool
	chunk  *chunk // being read into
	poll   []unix.PollFd
	first  int // the host that is read first in this round
}

// pairLanes are the lanes of one pair of hosts: at 0 the one at the end of the path, at i+1 the one before
// stage i. They are made when first needed.
type pairLanes []*lane

// round says how times are taken in one round of the loop. After a blind sleep (see wait) arrivals came in
// some time during it, and what is due within half a tick is nearer to now than to the next wake-up.
type round struct {
	arrived int64 // what arrivals are stamped with
	horizon int64 // what is due until then leaves now
}

func newEngine(tuns []int, wake int, seed uint64) *engine {
	e := &engine{tuns: tuns, wake: wake, seed: seed, byPair: make([]pairLanes, len(tuns)*len(tuns))}
	for _, fd := range append([]int{wake}, tuns...) {
		e.poll = append(e.poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	e.caches = make([]map[netip.Addr]int, len(tuns))
	return e
}

// run moves packets until wake is readable. It must have the thread for itself.
func (e *engine) run() error {
	defer e.pool.unmap()
	e.clock = newClock()
	last := e.clock.now()
	blind := false
	for e.poll[0].Revents == 0 {
		e.loadTable()
		now := e.clock.now()
		r := round{arrived: now, horizon: now}
		if blind {
			half := int64(tick / 2)
			r.arrived, r.horizon = now-min(half, (now-last)/2), now+half
		}
		last = now
		read, err := e.readAll(r)
		if err != nil {
			return err
		}
		r.horizon = max(r.horizon, e.clock.now())
		released := e.releaseDue(r.horizon)
		blind = e.wait(now, read || released)
	}
	return nil
}

// wait sleeps until there is something to do. After work it sleeps for the rest of a tick whatever comes:
// that is a blind sleep, and bounds the number of wake-ups. Without, it sleeps exactly until the next packet
// comes or falls due.
func (e *engine) wait(woken int64, worked bool) (blind bool) {
	due, queued := e.lanes.due()
	switch {
	case worked:
		e.clock.rawSleepUntil(woken + int64(tick))
		rawPoll(e.poll, 0)
		return true
	case queued:
		rawPoll(e.poll, max(0, min(busyPollMax, time.Duration(due-e.clock.now()))))
	default:
		idlePoll(e.poll, idlePollMax)
	}
	return false
}

// loadTable takes a new table over, if there is one.
func (e *engine) loadTable() {
	t := e.tables.Load()
	if t == e.table {
		return
	}
	e.table = t
	for n := len(e.stages); n < len(t.stages); n++ {
		e.stages = append(e.stages, newStage(e.seed, n))
	}
	clear(e.caches)
}

// readAll reads what has come in at all hosts, beginning with another one each time.
func (e *engine) readAll(r round) (any bool, err error) {
	budget := readsPerLoop
	e.first = (e.first + 1) % len(e.tuns)
	for i := range e.tuns {
		host := (e.first + i) % len(e.tuns)
		if e.poll[host+1].Revents == 0 {
			continue
		}
		n, err := e.readHost(host, budget, r)
		if err != nil {
			return any, err
		}
		budget -= n
		any = any || n > 0
	}
	return any, nil
}

func (e *engine) readHost(host, budget int, r round) (n int, err error) {
	for ; n < budget; n++ {
		if err := e.ensureChunk(); err != nil {
			return n, err
		}
		c := e.chunk
		length, errno := rawRead(e.tuns[host], c.b[c.used:])
		switch errno {
		case 0:
		case unix.EAGAIN, unix.EINTR:
			return n, nil
		default:
			return n, fmt.Errorf("read from host %d: %w", host, errno)
		}
		k := packet{buf: c, from: c.used, to: c.used + length}
		refs := c.refs
		e.route(k, host, r)
		if c.refs != refs { // something of it is in flight
			c.used += (length + 63) &^ 63
		}
	}
	return n, nil
}

// ensureChunk sees to it that any packet fits into e.chunk. With all memory in use it reads on into the last
// piece of the present chunk, and route drops what is read there.
func (e *engine) ensureChunk() error {
	if e.chunk != nil && chunkBytes-e.chunk.used >= packetBytesMax {
		return nil
	}
	next, err := e.pool.chunk()
	if err != nil || next == nil {
		return err
	}
	if e.chunk != nil {
		e.pool.drop(e.chunk)
	}
	e.chunk = next
	e.totals.memory.Store(uint64(len(e.pool.all)) * chunkBytes)
	return nil
}

// route finds where a packet that came from a host goes, and lets it set out.
func (e *engine) route(k packet, from int, r round) {
	if k.to-k.from < vnetBytes+ip4BytesMin {
		e.totals.malformed.Add(1)
		return
	}
	ip := k.buf.b[k.from+vnetBytes : k.to]
	dst, ok := destination(ip)
	if !ok {
		e.totals.malformed.Add(1)
		return
	}
	to := e.hostOf(from, dst, ip)
	if to < 0 || !e.table.path(from, to).exists {
		e.totals.noRoute.Add(1)
		return
	}
	p := e.table.path(from, to)
	if p.blocked != 0 {
		if mask, _ := transport(ip); p.blocked&mask != 0 {
			e.table.stages[p.link].counts.blocked.Add(1)
			return
		}
	}
	if chunkBytes-k.from < packetBytesMax { // see ensureChunk
		e.totals.overflow.Add(1)
		return
	}
	e.forward(k, from, to, 0, r.arrived, r.horizon)
}

// hostOf returns the host that a destination address is at, seen from a host, or -1.
func (e *engine) hostOf(from int, dst netip.Addr, ip []byte) int {
	cache := e.caches[from]
	index, ok := cache[dst]
	if !ok {
		index = e.table.lookup(from, dst)
		if cache == nil || len(cache) >= routeCacheMax {
			cache = map[netip.Addr]int{}
			e.caches[from] = cache
		}
		cache[dst] = index
	}
	if index < 0 {
		return -1
	}
	switch to := e.table.routes[from][index].to; len(to) {
	case 0:
		return -1
	case 1:
		return to[0]
	default:
		return to[flowHash(ip)%uint64(len(to))]
	}
}

// forward takes a packet that arrives before stage next of its path at the given time through as many stages
// as can be decided now, segment by segment, and queues what is left of it. Neighbouring segments that will
// be due within the path's quantum stay together. It gives up k's references to memory only through parts it
// queues: the caller keeps its own.
func (e *engine) forward(k packet, from, to, next int, arrived, horizon int64) {
	head := k.headers()
	s, ok := parseSuper(head, k.size())
	if !ok {
		e.totals.malformed.Add(1)
		return
	}
	p := e.table.path(from, to)
	if !p.exists { // the link was taken away while the packet was under way
		e.totals.noRoute.Add(1)
		return
	}
	hold := e.held(p, from, to, next)
	if s.segment == 0 {
		if stop, due, ok := e.travel(p, next, hold, arrived, horizon, s.payload); ok {
			e.enqueue(&s, k, 0, s.payload, e.lane(from, to, stop), due)
		}
		return
	}
	var run struct {
		open       bool
		from, stop int
		first, due int64
	}
	flush := func(end int) {
		if run.open {
			e.enqueue(&s, k, run.from, end, e.lane(from, to, run.stop), run.due)
			run.open = false
		}
	}
	for at := 0; at < s.payload; at += s.segment {
		bytes := min(s.segment, s.payload-at)
		stop, due, ok := e.travel(p, next, hold, arrived, horizon, s.header+bytes)
		if !ok || run.open && (stop != run.stop || due-run.first > p.quantum) {
			flush(at)
		}
		if !ok {
			continue
		}
		if stop != deliver {
			hold = stop // nor may later segments get ahead of this one
		}
		if !run.open {
			run.open, run.from, run.stop, run.first = true, at, stop, due
		}
		run.due = due
	}
	flush(s.payload)
}

// held returns the index of the first stage after next before which packets of this pair still wait, perhaps
// only for the release of this round: a packet that comes now must queue behind them.
func (e *engine) held(p *path, from, to, next int) int {
	lanes := e.byPair[from*len(e.tuns)+to]
	for i := next + 1; i+1 < len(lanes); i++ {
		if l := lanes[i+1]; l != nil && l.n > 0 {
			return i
		}
	}
	return len(p.stages)
}

// travel takes one wire packet through the stages of a path from index next on. It stops before stage hold,
// and before a bottleneck that the packet will only reach later than horizon, since others may reach it
// first. ok is false when the packet is lost.
func (e *engine) travel(p *path, next, hold int, t, horizon int64, size int) (stop int, due int64, ok bool) {
	for i := next; i < len(p.stages); i++ {
		number := p.stages[i]
		conf := e.table.stages[number]
		if i == hold || conf.nsPerByte > 0 && t > horizon {
			return i, t, true
		}
		out, f := e.stages[number].admit(conf, t, size)
		switch f {
		case fateLost:
			conf.counts.lost.Add(1)
			return 0, 0, false
		case fateQueueFull:
			conf.counts.queueDrops.Add(1)
			return 0, 0, false
		case fateTooBig:
			conf.counts.tooBig.Add(1)
			return 0, 0, false
		}
		conf.counts.packets.Add(1)
		conf.counts.bytes.Add(uint64(size))
		t = out
	}
	return deliver, t, true
}

// enqueue queues the payload bytes [a, b) of k, which s describes, with a reference of its own to the memory.
func (e *engine) enqueue(s *super, k packet, a, b int, l *lane, due int64) {
	part := packet{due: due, buf: k.buf, from: k.from, to: k.to}
	part.buf.refs++
	switch whole := a == 0 && b == s.payload; {
	case whole && k.hdr == nil:
	case whole:
		part.hdr = e.pool.header()
		*part.hdr = *k.hdr
	default:
		start := k.to - s.payload
		part.from, part.to = start+a, start+b
		part.hdr = e.pool.header()
		part.hdr.len = s.part(part.hdr.b[:], k.headers(), a, b)
	}
	e.lanes.push(l, part)
}

func (e *engine) lane(from, to, next int) *lane {
	pair := &e.byPair[from*len(e.tuns)+to]
	for len(*pair) <= next+1 {
		*pair = append(*pair, nil)
	}
	l := (*pair)[next+1]
	if l == nil {
		l = &lane{from: from, to: to, next: next}
		(*pair)[next+1] = l
	}
	return l
}

// releaseDue sends every packet that is due on its way: to its host, or to the next stage of its path.
func (e *engine) releaseDue(horizon int64) (any bool) {
	for {
		due, ok := e.lanes.due()
		if !ok || due > horizon {
			return any
		}
		any = true
		k, l := e.lanes.pop()
		if l.next == deliver {
			e.write(k, l.to)
		} else {
			e.forward(k, l.from, l.to, l.next, k.due, horizon)
		}
		e.pool.release(k)
	}
}

// write hands a packet to its destination.
func (e *engine) write(k packet, to int) {
	now := e.clock.now()
	var errno unix.Errno
	if k.hdr == nil {
		errno = rawWrite(e.tuns[to], k.buf.b[k.from:k.to])
	} else {
		errno = rawWrite2(e.tuns[to], k.hdr.b[:k.hdr.len], k.buf.b[k.from:k.to])
	}
	if errno != 0 {
		e.totals.writeErrors.Add(1)
		return
	}
	e.totals.delivery(now - k.due)
}
