package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Knocks are connections, one after the other, to a service that speaks first.
type Knocks struct {
	Addr    netip.AddrPort // IPv4
	Every   time.Duration  // pause between them
	Timeout time.Duration  // of connecting, and of waiting for the first byte

	Connected []time.Duration // what connecting took
	FirstByte []time.Duration // what it took until the first byte came, connecting included
	Errs      []error         // of those that failed
}

// Attempts are how many were made.
func (k *Knocks) Attempts() int { return len(k.FirstByte) + len(k.Errs) }

// Run knocks until ctx ends, from the namespace of the calling thread. It makes blocking system calls: what it
// measures has none of the runtime's own waiting for sockets in it, which is longer than a handshake.
func (k *Knocks) Run(ctx context.Context) {
	pause := unix.NsecToTimespec(int64(k.Every))
	for ctx.Err() == nil {
		connected, first, err := k.knock()
		switch {
		case errors.Is(err, unix.EINTR): // a signal of the runtime came in between: nothing was learnt
		case err != nil:
			k.Errs = append(k.Errs, err)
		default:
			k.Connected, k.FirstByte = append(k.Connected, connected), append(k.FirstByte, first)
		}
		_ = unix.Nanosleep(&pause, nil)
	}
}

func (k *Knocks) knock() (connected, first time.Duration, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(k.Timeout))
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return 0, 0, fmt.Errorf("limit a socket's time: %w", err)
		}
	}
	begin := time.Now()
	to := &unix.SockaddrInet4{Port: int(k.Addr.Port()), Addr: k.Addr.Addr().As4()}
	if err := unix.Connect(fd, to); err != nil {
		return 0, 0, fmt.Errorf("connect: %w", err) // EINPROGRESS: the time was up
	}
	connected = time.Since(begin)
	var b [64]byte
	n, err := unix.Read(fd, b[:])
	if err == nil && n == 0 {
		err = errors.New("the connection ended")
	}
	if err != nil {
		return 0, 0, fmt.Errorf("first byte: %w", err)
	}
	return connected, time.Since(begin), nil
}
