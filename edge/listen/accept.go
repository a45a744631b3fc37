package listen

import (
	"errors"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// backlogOf returns how many connections wait to be accepted at a socket.
func backlogOf(l *net.TCPListener) (n int) {
	rc, err := l.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		// Of a socket that listens the kernel says it where others have what is unacknowledged.
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = int(info.Unacked)
		}
	})
	return n
}

// accept takes connections from one socket until it is closed, or told to drain by a deadline.
func (s *Set) accept(k *socket) {
	defer close(k.done)
	defer k.tcp.Close()
	var backoff time.Duration
	var drained time.Time // when the first deadline passed
	backlog := 0
	for {
		conn, err := k.tcp.AcceptTCP()
		if now := s.boundOf(k); now != backlog && setBacklog(k.tcp, now) == nil {
			backlog = now
		}
		var nerr net.Error
		switch {
		case err == nil:
			backoff = 0
			s.metrics.accepted.Inc()
			s.cfg.HandleTCP(conn)
		case errors.Is(err, net.ErrClosed):
			return
		case errors.As(err, &nerr) && nerr.Timeout():
			if drained.IsZero() {
				drained = time.Now()
			}
			// On a busy machine the deadline may pass before this goroutine runs.
			if backlogOf(k.tcp) == 0 || time.Since(drained) > drainMax {
				return
			}
			_ = k.tcp.SetDeadline(time.Now().Add(drainAccept))
		default:
			// No descriptors or no memory: the backlog holds connections for a while, and they are
			// worth more than those that come later.
			s.metrics.acceptErrors.Inc()
			if backoff == 0 {
				s.cfg.Log.Warn("connections are not accepted", "address", k.key.at, "error", err)
			}
			backoff = min(max(2*backoff, acceptBackoffMin), acceptBackoffMax)
			select {
			case <-s.ctx.Done():
			case <-time.After(backoff):
			}
		}
	}
}

// shut closes sockets, those for TCP when their backlogs are empty, and returns when they are closed.
func (s *Set) shut(sockets []*socket) {
	for _, k := range sockets {
		switch {
		case k.tcp == nil:
			for _, c := range k.udp {
				c.Close()
			}
		case k.started:
			_ = k.tcp.SetDeadline(time.Now().Add(drainAccept))
		default:
			_ = k.tcp.Close()
		}
	}
	for _, k := range sockets {
		if k.tcp != nil && k.started {
			<-k.done
		}
	}
}

// Backlog bounds how many connections may wait to be accepted at each socket from now on, or at all sockets of a
// family together with a dispatcher; 0 is the system's bound. The kernel drops the SYNs of those that would be too
// many, which is the cheapest way there is to turn somebody away, and one after which clients try again in a second.
// A socket takes the bound over when it next accepts.
func (s *Set) Backlog(bound int) { s.backlog.Store(int64(bound)) }

// boundOf is the bound of one socket.
func (s *Set) boundOf(k *socket) int {
	bound := int(s.backlog.Load())
	if bound == 0 || !k.shared {
		return bound
	}
	return max(1, bound/acceptSockets(s.cfg.AcceptSockets, runtime.GOMAXPROCS(0)))
}

// setBacklog has the kernel change the backlog of a socket that listens already.
func setBacklog(l *net.TCPListener, bound int) error {
	if bound == 0 {
		bound = backlogMax
	}
	rc, err := l.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = os.NewSyscallError("listen", unix.Listen(int(fd), bound)) })
	return errors.Join(err, cerr)
}
