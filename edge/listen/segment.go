package listen

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// setMaxSegment bounds the segments that a listening socket's clients are told to send; 0: no bound.
func setMaxSegment(c syscall.RawConn, size int) (err error) {
	if size == 0 {
		return nil
	}
	e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, size) })
	if err = errors.Join(e, err); err != nil {
		return fmt.Errorf("limit segments to %d bytes (--client-mss): %w", size, err)
	}
	return nil
}
