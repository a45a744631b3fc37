package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// doorsDone is what clients did.
type doorsDone struct {
	latencies []float64 // of connections, in seconds
	datagrams int
	failed    int
}

// target is where the next connection or datagram of a row goes.
func (r *DispatchRow) target(rng *rand.Rand) *unix.SockaddrInet4 {
	if r.Listeners > 0 {
		return &unix.SockaddrInet4{Addr: doorsAddress.As4(), Port: int(doorsPort(rng.IntN(r.Listeners)))}
	}
	to := doorsPrefix.Addr().As4()
	to[2], to[3] = byte(rng.Uint32()), byte(rng.Uint32())
	return &unix.SockaddrInet4{Addr: to, Port: 1 + rng.IntN(65_535)}
}

// connections has clients connect, one after the other each, as fast as they can.
func (b *dispatchBench) connections(row *DispatchRow, during time.Duration) (all doorsDone, err error) {
	var mu sync.Mutex
	var clients sync.WaitGroup
	end := time.Now().Add(during)
	for n := range doorsWorkers {
		clients.Go(func() {
			var done doorsDone
			e := b.client.Do(func() error {
				rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
				for { // once, however short the time
					if err := done.connect(row.target(rng), rng); err != nil || !time.Now().Before(end) {
						return err
					}
				}
			})
			mu.Lock()
			defer mu.Unlock()
			all.latencies = append(all.latencies, done.latencies...)
			all.failed += done.failed
			err = firstError(err, e)
		})
	}
	clients.Wait()
	return all, err
}

// steady has one client connect at a steady rate, at which nobody waits for anybody.
func (b *dispatchBench) steady(row *DispatchRow) (done doorsDone, err error) {
	err = b.client.Do(func() error {
		rng := rand.New(rand.NewPCG(0, uint64(time.Now().UnixNano())))
		begin := time.Now()
		for due := begin; due.Before(begin.Add(b.opt.Turn)); due = due.Add(doorsEvery) {
			time.Sleep(time.Until(due))
			if err := done.connect(row.target(rng), rng); err != nil {
				return err
			}
		}
		return nil
	})
	return done, err
}

// connect connects from one of the clients' addresses, waits until it is told when it was accepted, and resets the
// connection, so that nothing of it is left. An error is one of this machine; a connection that fails is counted.
func (d *doorsDone) connect(to *unix.SockaddrInet4, rng *rand.Rand) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a client's socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(doorsTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), // the port is chosen when both ends are known
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 0, byte(1 + rng.IntN(doorsSources))}}))
	if err != nil {
		return fmt.Errorf("prepare a client's socket: %w", err)
	}
	begin := monotonic()
	for err = unix.Connect(fd, to); errors.Is(err, unix.EINTR); {
		err = unix.Connect(fd, to)
	}
	if err != nil && !errors.Is(err, unix.EISCONN) {
		d.failed++
		return nil
	}
	var at [8]byte
	n, err := unix.Read(fd, at[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, at[:])
	}
	if err != nil || n != len(at) {
		d.failed++
		return nil
	}
	d.latencies = append(d.latencies, float64(int64(binary.LittleEndian.Uint64(at[:]))-begin)/1e9)
	return nil
}

// datagrams sends as many as the other side reads, with a bounded number under way.
func (b *dispatchBench) datagrams(row *DispatchRow, during time.Duration) (done doorsDone, err error) {
	err = b.sending(func(s *doorsSender) error {
		rng := rand.New(rand.NewPCG(0, uint64(time.Now().UnixNano())))
		for begin := time.Now(); time.Since(begin) < during; {
			for range doorsBatch {
				if err := s.send(row.target(rng)); err != nil {
					return err
				}
			}
			if err := s.wait(doorsWindow); err != nil {
				return err
			}
		}
		done.datagrams = int(s.sent)
		return s.wait(0)
	})
	return done, err
}

// everyPort sends a datagram to each listener: the first one to each port opens the socket that it would be answered
// from.
func (b *dispatchBench) everyPort(row *DispatchRow) error {
	return b.sending(func(s *doorsSender) error {
		for i := range row.Listeners {
			if err := s.send(&unix.SockaddrInet4{Addr: doorsAddress.As4(), Port: int(doorsPort(i))}); err != nil {
				return err
			}
			if err := s.wait(doorsWindow); err != nil {
				return err
			}
		}
		return s.wait(0)
	})
}

// doorsSender sends datagrams, and knows how many of them have been read.
type doorsSender struct {
	fd          int
	counter     *atomic.Int64
	first, sent int64
}

// sending runs f with a sender in the client's namespace.
func (b *dispatchBench) sending(f func(*doorsSender) error) error {
	return b.client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a client's socket: %w", err)
		}
		defer unix.Close(fd)
		return f(&doorsSender{fd: fd, counter: b.counter, first: b.counter.Load()})
	})
}

var doorsPayload [64]byte

func (s *doorsSender) send(to *unix.SockaddrInet4) error {
	if err := unix.Sendto(s.fd, doorsPayload[:], 0, to); err != nil {
		return fmt.Errorf("send a datagram: %w", err)
	}
	s.sent++
	return nil
}

// wait waits until at most so many datagrams have not been read.
func (s *doorsSender) wait(left int64) error {
	for begin := time.Now(); ; {
		away := s.sent - (s.counter.Load() - s.first)
		if away <= left {
			return nil
		}
		if time.Since(begin) > doorsTimeout {
			return fmt.Errorf("%d of %d datagrams were lost", away, s.sent)
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: doorsPause.Nanoseconds()}, nil) // shorter is no harm
	}
}
