package pump

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Socket is a TCP connection with the system calls that a pump needs beside net's. Reading is for one
// goroutine at a time, and so is writing; everything else is for any. What never blocks the runtime is
// not told of: see package udpio.
type Socket struct {
	conn *net.TCPConn
	raw  syscall.RawConn

	// Arguments and results of try, which is made once so that calling it allocates nothing.
	out      []byte
	wrote    int
	writeErr error
	try      func(fd uintptr)
}

// Init makes a Socket of a connection.
func (s *Socket) Init(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("use connection: %w", err)
	}
	s.conn, s.raw = conn, raw
	s.try = s.write
	return nil
}

// Conn returns the connection.
func (s *Socket) Conn() *net.TCPConn { return s.conn }

// TryWrite writes as much of p as the kernel takes at once.
func (s *Socket) TryWrite(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.out, s.wrote, s.writeErr = p, 0, nil
	// Control, and not Write: that would wait for whoever waits in AwaitWritable.
	err = s.raw.Control(s.try)
	s.out = nil
	if err == nil {
		err = s.writeErr
	}
	return s.wrote, err
}

func (s *Socket) write(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)))
		switch errno {
		case unix.EINTR:
			continue
		case 0: // fewer than all: the socket is full
			s.wrote = int(n)
		case unix.EAGAIN:
		default:
			s.writeErr = os.NewSyscallError("write", errno)
		}
		return
	}
}

// AwaitWritable waits until the kernel takes bytes again. It fails when the socket is closed.
func (s *Socket) AwaitWritable() error { return s.raw.Write(writable) }

// writable asks the kernel, because the edge that the poller waits for may have come already.
func writable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0 || err != nil
		}
	}
}

// Read waits for bytes and puts them into the buffer that get returns, which it calls only when there
// probably are some; put takes back a buffer that was not filled. At the end of the stream err is
// io.EOF.
func (s *Socket) Read(get func() []byte, put func([]byte)) (buf []byte, err error) {
	var rerr error
	err = s.raw.Read(func(fd uintptr) bool {
		b := get()
		n, e := readSome(fd, b)
		if e == nil && n > 0 {
			buf = b[:n]
			return true
		}
		put(b)
		rerr = e
		return e != unix.EAGAIN
	})
	switch {
	case buf != nil:
		return buf, nil
	case err != nil:
		return nil, err
	case rerr != nil:
		return nil, os.NewSyscallError("read", rerr)
	}
	return nil, io.EOF
}

func readSome(fd uintptr, b []byte) (n int, err error) {
	for {
		got, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(got), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Interrupt makes a Read that waits, and every later one, fail with os.ErrDeadlineExceeded until
// Proceed is called.
func (s *Socket) Interrupt() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// Proceed ends what Interrupt or SetReadDeadline did.
func (s *Socket) Proceed() { _ = s.conn.SetReadDeadline(time.Time{}) }

// Close ends the connection in good order: what was written still arrives.
func (s *Socket) Close() { _ = s.conn.Close() }

// Abort ends the connection with a reset.
func (s *Socket) Abort() { Abort(s.conn) }

// Abort ends a connection with a reset.
func Abort(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// Progress is how far a connection has come.
type Progress struct {
	In, Out uint64 // bytes received, and bytes that the other end has acknowledged
	Dead    bool   // the kernel has given the connection up; nobody reads, so nobody was told

	Sent        uint64 // bytes, those sent again too
	SegmentsIn  uint32 // with or without bytes; they wrap around after 2^32
	SegmentsOut uint32
	Stamped     bool // each has a timestamp, 12 bytes of options

	RTT  time.Duration // smallest of the last minutes; 0: none was measured
	Busy time.Duration // time in which there was something to send
}

// tcpiOptTimestamps is TCPI_OPT_TIMESTAMPS of linux/tcp.h.
const tcpiOptTimestamps = 1

// Progress asks the kernel (TCP_INFO). ok is false when the socket is closed.
func (s *Socket) Progress() (p Progress, ok bool) {
	_ = s.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			p, ok = Progress{
				In: info.Bytes_received, Out: info.Bytes_acked, Dead: info.State == unix.BPF_TCP_CLOSE,
				Sent: info.Bytes_sent, SegmentsIn: info.Segs_in, SegmentsOut: info.Segs_out,
				Stamped: info.Options&tcpiOptTimestamps != 0,
				RTT:     smallestRTT(info.Min_rtt), Busy: time.Duration(info.Busy_time) * time.Microsecond,
			}, true
		}
	})
	return p, ok
}

// smallestRTT converts TCP_INFO's, which is all ones before the first sample.
func smallestRTT(microseconds uint32) time.Duration {
	if microseconds == math.MaxUint32 {
		return 0
	}
	return time.Duration(microseconds) * time.Microsecond
}
