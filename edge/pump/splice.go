package pump

import (
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/proto/wire"
)

// Splice joins two sockets until both directions have ended, or either failed. The bytes stay in the
// kernel. (io.Copy would splice, too, but holds a pipe for as long as a connection lasts.)
type Splice struct {
	A, B  Socket
	owner Owner
	pipes *Pipes

	mu    sync.Mutex
	ended int
	over  bool
}

// Init joins two connections.
func (s *Splice) Init(a, b *net.TCPConn, owner Owner, pipes *Pipes) error {
	s.owner, s.pipes = owner, pipes
	if err := s.A.Init(a); err != nil {
		return err
	}
	return s.B.Init(b)
}

// CopyAB and CopyBA carry one direction each, until it ends. Each wants a goroutine.
func (s *Splice) CopyAB() { s.copy(&s.B, &s.A) }

// CopyBA is CopyAB the other way.
func (s *Splice) CopyBA() { s.copy(&s.A, &s.B) }

func (s *Splice) copy(dst, src *Socket) {
	sourceFailed, err := s.pipes.copy(dst, src)
	if err == nil {
		err = dst.conn.CloseWrite()
	}
	switch cause := SocketFailed; {
	case err != nil:
		if sourceFailed != (src == &s.A) {
			cause = StreamReset // B failed
		}
		s.finish(cause, wire.ResetByPeer)
	default:
		s.mu.Lock()
		s.ended++
		both := s.ended == 2
		s.mu.Unlock()
		if both {
			s.finish(EndedWell, wire.ResetUnspecified)
		}
	}
}

// End ends the flow for a reason of the owner's. Ending what is over does nothing.
func (s *Splice) End(reason wire.ResetReason) { s.finish(OwnerEnded, reason) }

func (s *Splice) finish(cause Cause, reason wire.ResetReason) {
	s.mu.Lock()
	over := s.over
	s.over = true
	s.mu.Unlock()
	if over {
		return
	}
	progress, _ := s.A.Progress()
	CloseFor(s.A.conn, cause, reason)
	CloseFor(s.B.conn, cause, reason)
	s.owner.Ended(End{cause, reason, progress})
}

// Pipes lends pipes to Splices. The zero value is ready; Close it when its Splices have ended.
type Pipes struct {
	mu   sync.Mutex
	free []pipe
	shut bool
}

type pipe struct{ r, w int }

func (p *Pipes) get() (pipe, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		got := p.free[n-1]
		p.free = p.free[:n-1]
		return got, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, os.NewSyscallError("pipe2", err)
	}
	// A smaller pipe is slower and still right: unprivileged users have a quota.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeBytes)
	return pipe{fds[0], fds[1]}, nil
}

func (p *Pipes) put(idle pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut || len(p.free) >= pipesIdleMax {
		idle.close()
		return
	}
	p.free = append(p.free, idle)
}

// Close closes the pipes that nobody uses, and later those that come back.
func (p *Pipes) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, idle := range p.free {
		idle.close()
	}
	p.free, p.shut = nil, true
}

func (p pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// copy moves bytes from src to dst until src ends. It tells which of them failed.
func (p *Pipes) copy(dst, src *Socket) (sourceFailed bool, err error) {
	for {
		via, n, err := p.fill(src)
		if n == 0 || err != nil {
			return true, err
		}
		for n > 0 {
			moved, err := drain(dst, via, n)
			if err != nil {
				via.close() // it holds bytes that must go nowhere else
				return false, err
			}
			n -= moved
		}
		p.put(via)
	}
}

// fill waits for bytes of src and moves them into a pipe. n is 0 at the end of src.
func (p *Pipes) fill(src *Socket) (via pipe, n int, err error) {
	var serr error
	err = src.raw.Read(func(fd uintptr) bool {
		if via, serr = p.get(); serr != nil {
			return true
		}
		n, serr = splice(int(fd), via.w, pipeBytes)
		if n == 0 {
			p.put(via)
		}
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	return via, n, err
}

// drain moves up to n bytes out of a pipe into dst, waiting until it takes some.
func drain(dst *Socket, via pipe, n int) (moved int, err error) {
	var serr error
	err = dst.raw.Write(func(fd uintptr) bool {
		moved, serr = splice(via.r, int(fd), n)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	return moved, err
}

func splice(from, to, n int) (int, error) {
	for {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return max(0, int(moved)), err
		}
	}
}
