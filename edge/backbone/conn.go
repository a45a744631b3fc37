package backbone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/proto/wire"
)

// A bulkConn is the TCP connection below a carrier's TLS. crypto/tls makes a system call for each
// record, while a batch is several. A bulkConn can
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
	eager   bool    // the last system call filled what TLS asked for: offer more
	ahead   *[]byte // bytes that were read and not asked for yet, at [r:w); nil: none
	r, w    int
	into    []byte
	got     int
	readErr error
	receive func(fd uintptr) bool
	iov     [2]unix.Iovec

	// The writer's.
	holding  bool
	held     []byte
	out      []byte
	writeErr error
	transmit func(fd uintptr) bool
}

// aheads lends buffers for reading ahead, so that carriers without traffic hold none.
// bulks lends a carrier's reader a buffer for the frames of many records.
var (
	aheads = sync.Pool{New: func() any { b := make([]byte, aheadBytes); return &b }}
	bulks  = sync.Pool{New: func() any { b := make([]byte, bulkBytes); return &b }}
)

// errNothing says that a read would have to wait. It is temporary, so that TLS goes on afterwards.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// below returns what the TLS of a carrier stands on: a bulkConn, or conn if that is no TCP connection.
func below(conn net.Conn) net.Conn {
	tc, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	rc, err := tc.SyscallConn()
	if err != nil {
		return conn
	}
	b := &bulkConn{TCPConn: tc, rc: rc, patient: true}
	b.receive, b.transmit = b.receiveOnce, b.transmitAll
	return b
}

// Read implements net.Conn.
func (b *bulkConn) Read(p []byte) (n int, err error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case b.ahead != nil:
		n = copy(p, (*b.ahead)[b.r:b.w])
		if b.r += n; b.r == b.w {
			aheads.Put(b.ahead)
			b.ahead = nil
		}
		return n, nil
	case b.emptied && !b.patient:
		return 0, errNothing
	}
	b.into, b.got, b.readErr = p, 0, nil
	err = b.rc.Read(b.receive)
	b.into = nil
	switch {
	case err != nil:
		return 0, err
	case b.readErr != nil:
		return 0, b.readErr
	case b.got == 0:
		return 0, io.EOF
	}
	return b.got, nil
}

// receiveOnce reads what there is, and what TLS did not ask for into the buffer ahead. It reports
// false to be called again when there is something.
func (b *bulkConn) receiveOnce(fd uintptr) bool {
	b.iov[0].Base = &b.into[0]
	b.iov[0].SetLen(len(b.into))
	vectors, room := 1, len(b.into)
	if b.eager {
		b.ahead = aheads.Get().(*[]byte)
		b.iov[1].Base = &(*b.ahead)[0]
		b.iov[1].SetLen(aheadBytes)
		vectors, room = 2, room+aheadBytes
	}
	var n int
	errno := unix.EINTR
	for errno == unix.EINTR {
		var r1 uintptr
		r1, _, errno = unix.RawSyscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&b.iov[0])), uintptr(vectors))
		n = int(r1)
	}
	if errno != 0 {
		n = 0
	}
	b.iov = [2]unix.Iovec{}
	b.got = min(n, len(b.into))
	if b.ahead != nil {
		if b.r, b.w = 0, n-b.got; b.w == 0 {
			aheads.Put(b.ahead)
			b.ahead = nil
		}
	}
	b.emptied, b.eager = n < room, n >= len(b.into)
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

// hold collects what is written from now on in buf, until release sends it and gives buf back.
func (b *bulkConn) hold(buf []byte) { b.holding, b.held = true, buf[:0] }

func (b *bulkConn) release() (buf []byte, err error) {
	buf = b.held
	b.holding, b.held = false, nil
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
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&b.out[0])), uintptr(len(b.out)))
		switch errno {
		case 0:
			b.out = b.out[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			b.writeErr = os.NewSyscallError("write", errno)
			return true
		}
	}
	return true
}

// read is the reader: it decodes frames until the connection ends.
func (c *carrier) read() error {
	own := make([]byte, readBytes)
	buf, r, w := own, 0, 0
	var bulk *[]byte // buf, while much comes at a time
	defer func() {
		if bulk != nil {
			bulks.Put(bulk)
		}
	}()
	for {
		n, err := c.fill(buf[w:])
		if n > 0 {
			c.lastRead.Store(int64(c.t.env.now()))
			c.t.env.metrics.received.Add(float64(n))
		}
		w += n
		used, need, ferr := c.frames(buf[r:w])
		r += used
		c.t.flushDatagrams(c)
		if ferr != nil {
			return ferr
		}
		if err != nil {
			return readEnd(err)
		}
		switch much := n > readBytes-quantum; {
		case much && bulk == nil && c.bulk != nil:
			bulk = bulks.Get().(*[]byte)
			r, w = 0, copy(*bulk, buf[r:w])
			buf = *bulk
		case !much && r == w && bulk != nil:
			bulks.Put(bulk)
			buf, bulk = own, nil
		case r == w && bulk == nil:
			buf = own // makeRoom may have made a larger one
		}
		buf, r, w = makeRoom(buf, r, w, need)
	}
}

// fill waits for bytes, and takes those of all whole records that have come.
func (c *carrier) fill(p []byte) (n int, err error) {
	n, err = c.conn.Read(p)
	if c.bulk == nil {
		return n, err
	}
	c.bulk.patient = false
	for err == nil && len(p)-n >= quantum {
		var m int
		m, err = c.conn.Read(p[n:])
		n += m
	}
	c.bulk.patient = true
	if err == errNothing {
		err = nil
	}
	return n, err
}

// frames does what the frames in p say, and returns how many bytes they are, and how many the next
// frame has if p begins it.
func (c *carrier) frames(p []byte) (used, need int, err error) {
	for {
		need = wire.HeaderBytes
		t, length, ok, err := wire.ParseHeader(p[used:])
		if err != nil {
			return used, need, err
		}
		if !ok {
			return used, need, nil
		}
		if need += length; len(p)-used < need {
			return used, need, nil
		}
		end := used + need
		if t == wire.TypeData {
			t, need, end = joinData(p[used:], need)
			end += used
		}
		if err := c.frame(t, p[used+wire.HeaderBytes:used+need]); err != nil {
			return used, need, fmt.Errorf("%v: %w", t, err)
		}
		used = end
	}
}

// joinData joins a DATA frame, which is the first n bytes of p, with those that follow it in p if they
// go on with the same stream where it ends: their bytes are moved up behind its own, so that they are
// delivered together. It returns the type and size of the joined frame, and where the next one begins.
func joinData(p []byte, n int) (t wire.Type, size, next int) {
	t, size, next = wire.TypeData, n, n
	stream, offset, data, err := wire.DecodeData(p[wire.HeaderBytes:n])
	if err != nil {
		return t, size, next
	}
	offset += uint64(len(data))
	for t == wire.TypeData {
		also, length, ok, err := wire.ParseHeader(p[next:])
		end := next + wire.HeaderBytes + length
		if err != nil || !ok || also != wire.TypeData && also != wire.TypeDataFin || end > len(p) {
			break
		}
		s, at, data, err := wire.DecodeData(p[next+wire.HeaderBytes : end])
		if err != nil || s != stream || at != offset {
			break
		}
		size += copy(p[size:], data)
		offset += uint64(len(data))
		t, next = also, end
	}
	return t, size, next
}

// makeRoom sees to it that a frame of need bytes which begins at r fits into buf.
func makeRoom(buf []byte, r, w, need int) ([]byte, int, int) {
	if r == w {
		r, w = 0, 0
	}
	if r+max(need, quantum) > len(buf) {
		to := buf
		if need > len(buf) {
			to = make([]byte, need+quantum)
		}
		w = copy(to, buf[r:w])
		buf, r = to, 0
	}
	return buf, r, w
}

func readEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
