package backbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A bulkConn is the TCP connection below a carrier's TLS: crypto/tls makes a system call for each
// record, while a batch is several. It can
//
//   - hold what is written until all of a batch is sealed, so that it leaves in one piece, which the
//     network's layers below handle as one;
//   - read more than TLS asks for, while there is more than that;
//   - say that there is nothing to read instead of waiting, so that the frames of several records can
//     be taken together.
//
// Its system calls never block, and the runtime is not told of them: see package udpio. Reading is
// for one goroutine, and so is writing; everything else is for any.
type bulkConn struct {
	*net.TCPConn
	rc syscall.RawConn

	// The reader's.
	patient bool    // wait when there is nothing
	emptied bool    // the last system call took all there was
	eager   bool    // the last system call filled what it was offered: offer more
	ahead   *[]byte // aheadBytes, that were read and not asked for yet lie at [r:w); or nil
	r, w    int
	into    []byte
	got     int
	readErr error
	receive func(fd uintptr) bool

	// The writer's.
	holding  bool
	held     []byte
	out      []byte
	writeErr error
	transmit func(fd uintptr) bool
}

// aheads lends buffers for reading ahead, so that carriers without traffic hold none.
var aheads = sync.Pool{New: func() any { b := make([]byte, aheadBytes); return &b }}

// errNothing says that a read would have to wait. It is temporary, so that TLS goes on afterwards.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// newBulkConn returns nil for what is no TCP connection.
func newBulkConn(conn net.Conn) *bulkConn {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	rc, err := tc.SyscallConn()
	if err != nil {
		return nil
	}
	b := &bulkConn{TCPConn: tc, rc: rc, patient: true}
	b.receive, b.transmit = b.receiveOnce, b.transmitAll
	return b
}

// Read implements net.Conn.
func (b *bulkConn) Read(p []byte) (n int, err error) {
	if b.ahead != nil {
		n = copy(p, (*b.ahead)[b.r:b.w])
		if b.r += n; b.r == b.w {
			aheads.Put(b.ahead)
			b.ahead = nil
		}
		return n, nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.emptied && !b.patient {
		return 0, errNothing
	}
	b.into, b.got, b.readErr = p, 0, nil
	if err := b.rc.Read(b.receive); err != nil {
		return 0, err
	}
	switch {
	case b.readErr != nil:
		return 0, b.readErr
	case b.got == 0:
		return 0, io.EOF
	}
	return b.got, nil
}

// receiveOnce reads what there is into p, and what does not fit there into the buffer ahead. It
// reports false to be called again when there is something.
func (b *bulkConn) receiveOnce(fd uintptr) bool {
	iov := [2]unix.Iovec{{Base: &b.into[0]}}
	iov[0].SetLen(len(b.into))
	vectors, room := 1, len(b.into)
	if b.eager {
		b.ahead = aheads.Get().(*[]byte)
		iov[1].Base = &(*b.ahead)[0]
		iov[1].SetLen(aheadBytes)
		vectors, room = 2, room+aheadBytes
	}
	var n uintptr
	var errno syscall.Errno
	for {
		n, _, errno = unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(vectors))
		if errno != unix.EINTR {
			break
		}
	}
	if errno != 0 {
		n = 0
	}
	b.got = min(int(n), len(b.into))
	if b.ahead != nil {
		if b.r, b.w = 0, int(n)-b.got; b.w == 0 {
			aheads.Put(b.ahead)
			b.ahead = nil
		}
	}
	b.emptied, b.eager = int(n) < room, int(n) >= len(b.into)
	switch {
	case errno == unix.EAGAIN && b.patient:
		return false
	case errno == unix.EAGAIN:
		b.readErr = errNothing
	case errno != 0:
		b.readErr = os.NewSyscallError("readv", errno)
	}
	return true
}

// Write implements net.Conn.
func (b *bulkConn) Write(p []byte) (n int, err error) {
	if b.holding {
		b.held = append(b.held, p...)
		return len(p), nil
	}
	if err := b.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// hold keeps what is written from now on in buf, until release sends it and returns the buffer.
func (b *bulkConn) hold(buf []byte) { b.holding, b.held = true, buf[:0] }

func (b *bulkConn) release() (buf []byte, err error) {
	b.holding = false
	buf, b.held = b.held, nil
	return buf, b.send(buf)
}

// send writes all of p, waiting for room.
func (b *bulkConn) send(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	b.out, b.writeErr = p, nil
	err := b.rc.Write(b.transmit)
	b.out = nil
	return errors.Join(err, b.writeErr)
}

// transmitAll reports false to be called again when there is room.
func (b *bulkConn) transmitAll(fd uintptr) bool {
	for len(b.out) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd,
			uintptr(unsafe.Pointer(unsafe.SliceData(b.out))), uintptr(len(b.out)))
		switch {
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			b.writeErr = os.NewSyscallError("write", errno)
			return true
		default:
			b.out = b.out[n:]
		}
	}
	return true
}
