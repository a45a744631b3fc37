package udpio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/pace"
)

// PollerConfig configures a [Poller].
type PollerConfig[T any] struct {
	// Loops is how many goroutines read; 0 is GOMAXPROCS. Each has 2 MB of buffers.
	Loops int

	// Handle is called with what a socket received, or with err for what it learned (see
	// [Refused]); never with both. The packets are valid until it returns. One socket's calls come
	// from one goroutine, in the order of arrival; a call that blocks stalls all sockets of its
	// loop. It may close any socket. Required, unless there is PerLoop.
	Handle func(token T, pkts []Packet, err error)

	// PerLoop, if not nil, is called once for each loop and gives it a handle of its own, like Handle,
	// and a function that is called after each round of ready sockets: for who collects what many
	// sockets received. Both are called by one goroutine at a time.
	PerLoop func() (handle func(token T, pkts []Packet, err error), round func())
}

// Validate reports what is missing.
func (c PollerConfig[T]) Validate() error {
	if c.Handle == nil && c.PerLoop == nil {
		return errors.New("poller: no Handle")
	}
	if c.Loops < 0 {
		return fmt.Errorf("poller: %d loops", c.Loops)
	}
	return nil
}

// Poller reads many sockets with few goroutines. T is what the caller knows a socket by: a pointer
// to its flow. Sockets are opened with Options.Unpolled, and RecvBuffer and SendBuffer -1.
//
// Each loop has an epoll instance that is itself watched by the runtime's poller: an idle loop is a
// parked goroutine, not a thread. Readiness is level-triggered and each ready socket gives one batch
// a round, so a busy socket delays the others by one batch at most. The calls of Close wait for a call of
// Handle that is under way.
type Poller[T any] struct {
	cfg   PollerConfig[T]
	loops []*loop[T]
	turn  atomic.Uint32
}

// loop owns one epoll instance.
type loop[T any] struct {
	file   *os.File // the epoll descriptor
	raw    syscall.RawConn
	handle func(T, []Packet, error)
	round  func()

	events [pollEvents]unix.EpollEvent
	ready  [pollEvents]*member[T]
	have   int  // events of the last wait
	more   bool // there may be more events, or packets at a socket that gave a whole batch
	closed atomic.Bool
	reader *Reader
	pkts   [pollPackets]Packet

	mu      sync.Mutex
	members []*member[T] // by slot; nil: free
	free    []uint32
	serial  uint32
}

// pollPackets is how many packets one call of Handle gets at most: a batch without trains. A train
// makes several calls.
const pollPackets = 128

// member is a socket of a loop. An event that was already reported when the socket was closed is
// told from one of the slot's next socket by the serial.
type member[T any] struct {
	conn   *Conn
	token  T
	serial uint32
}

// NewPoller makes a poller. Run reads; sockets may be added before.
func NewPoller[T any](cfg PollerConfig[T]) (*Poller[T], error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Loops == 0 {
		cfg.Loops = runtime.GOMAXPROCS(0)
	}
	p := &Poller[T]{cfg: cfg}
	for range cfg.Loops {
		handle, round := cfg.Handle, func() {}
		if cfg.PerLoop != nil {
			handle, round = cfg.PerLoop()
		}
		l, err := newLoop(handle, round)
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("make poller: %w", err)
		}
		p.loops = append(p.loops, l)
	}
	return p, nil
}

func newLoop[T any](handle func(T, []Packet, error), round func()) (*loop[T], error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("set nonblocking", err)
	}
	l := &loop[T]{file: os.NewFile(uintptr(fd), "epoll"), handle: handle, round: round, reader: NewReader()}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// Add has the poller read c, which must have been opened with Options.Unpolled and belong to no
// poller yet. Closing c takes it out; a call of Handle for it may then still be under way, but none
// will start.
func (p *Poller[T]) Add(c *Conn, token T) error {
	if !c.unpolled {
		return errors.New("poller: the socket was not opened for a poller")
	}
	l := p.loops[int(p.turn.Add(1))%len(p.loops)]
	slot, m := l.enter(c, token)
	leave := func() { l.leave(slot, m) }
	if !c.onClose.CompareAndSwap(nil, &leave) {
		leave()
		return errors.New("poller: the socket is in a poller already")
	}
	var err error
	add := func(fd uintptr) {
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(slot), Pad: int32(m.serial)}
		lerr := l.raw.Control(func(epfd uintptr) {
			err = unix.EpollCtl(int(epfd), unix.EPOLL_CTL_ADD, int(fd), &ev)
		})
		if lerr != nil {
			err = net.ErrClosed // the poller is
		}
	}
	if cerr := c.raw.Control(add); cerr != nil {
		err = net.ErrClosed
	}
	if err != nil {
		if c.onClose.CompareAndSwap(&leave, nil) {
			leave()
		}
		return fmt.Errorf("add socket to poller: %w", err)
	}
	return nil
}

// Len is the number of sockets.
func (p *Poller[T]) Len() (n int) {
	for _, l := range p.loops {
		l.mu.Lock()
		n += len(l.members) - len(l.free)
		l.mu.Unlock()
	}
	return n
}

// Run reads until ctx ends, and releases the poller then; it cannot run again. The sockets stay the
// caller's to close.
func (p *Poller[T]) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, p.Close)
	defer stop()
	defer p.Close()
	var g errgroup.Group
	for _, l := range p.loops {
		g.Go(l.run)
	}
	return g.Wait()
}

// Close releases a poller, which ends Run. A poller that runs is better ended by its context.
func (p *Poller[T]) Close() {
	for _, l := range p.loops {
		l.closed.Store(true)
		l.file.Close()
	}
}

// run reads until the epoll descriptor is closed.
func (l *loop[T]) run() error {
	// What becomes ready while this function runs, between two calls of it, too, ends the wait that follows
	// at once: see Conn.Serve. So sockets that were found empty are not asked once more.
	var rounds pace.Pace
	_ = l.raw.Read(func(fd uintptr) (over bool) {
		for l.more = true; l.more && !l.closed.Load(); {
			l.wait(fd)
			l.more = l.have == pollEvents
			for _, m := range l.lookUp() {
				l.read(m)
			}
			if l.have > 0 {
				l.round()
				rounds.Yield(l.have < yieldPackets)
			}
			clear(l.ready[:l.have])
		}
		return l.closed.Load()
	})
	return nil // closed: there is no other way to fail
}

// wait asks for events, of which there may be none.
func (l *loop[T]) wait(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&l.events[0])),
			pollEvents, 0, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if l.have = int(n); errno != 0 {
			l.have = 0
		}
		return
	}
}

// lookUp finds the sockets of the events; those closed meanwhile have none.
func (l *loop[T]) lookUp() []*member[T] {
	ready := l.ready[:0]
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.have {
		ev := &l.events[i]
		if m := l.members[ev.Fd]; m != nil && m.serial == uint32(ev.Pad) {
			ready = append(ready, m)
		}
	}
	return ready
}

// read hands one batch of a socket to Handle.
func (l *loop[T]) read(m *member[T]) {
	err := l.reader.poll(m.conn)
	if errors.Is(err, net.ErrClosed) {
		return
	}
	if err != nil {
		l.handle(m.token, nil, err)
		l.more = true
		return
	}
	full := l.reader.have == readMessages
	m.conn.batch(full)
	l.more = l.more || full
	for !m.conn.closed.Load() {
		n := l.reader.take(l.pkts[:])
		if n == 0 {
			return
		}
		l.handle(m.token, l.pkts[:n], nil)
	}
}

func (l *loop[T]) enter(c *Conn, token T) (slot uint32, m *member[T]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	m = &member[T]{conn: c, token: token, serial: l.serial}
	if n := len(l.free); n > 0 {
		slot = l.free[n-1]
		l.free = l.free[:n-1]
		l.members[slot] = m
		return slot, m
	}
	l.members = append(l.members, m)
	return uint32(len(l.members) - 1), m
}

func (l *loop[T]) leave(slot uint32, m *member[T]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.members[slot] == m {
		l.members[slot] = nil
		l.free = append(l.free, slot)
	}
}
