package udpio

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/pace"
)

// errUnpolled: such a socket would block its thread for as long as nothing comes.
var errUnpolled = errors.New("read a socket that belongs to a poller")

// mmsghdr is struct mmsghdr: a message and how many bytes of it were received or sent.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// Reader is the buffers of a batched read: about 2 MB, shared by all sockets that one goroutine
// reads. The packets of a read are valid until the next one.
type Reader struct {
	msgs    [readMessages]mmsghdr
	iovs    [readMessages]unix.Iovec
	names   [readMessages]name
	control [readMessages][controlBytes]byte
	buf     []byte

	conn       *Conn // whose messages these are
	next, have int   // messages not yet handed out: [next, have)
	offset     int   // bytes of message next already handed out (a train may be longer than a batch)

	errno unix.Errno         // of the last receive
	wait  func(uintptr) bool // receives, false to be called again when there is something
	try   func(uintptr)      // receives
}

// NewReader returns a Reader for one goroutine.
func NewReader() *Reader {
	r := &Reader{buf: make([]byte, readMessages*messageBytes)}
	for i := range r.msgs {
		r.iovs[i].Base = &r.buf[i*messageBytes]
		r.iovs[i].SetLen(messageBytes)
		r.msgs[i].hdr.Iov = &r.iovs[i]
		r.msgs[i].hdr.SetIovlen(1)
		r.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&r.names[i].raw))
		r.msgs[i].hdr.Control = &r.control[i][0]
	}
	r.wait = func(fd uintptr) bool { r.receive(fd); return r.errno != unix.EAGAIN }
	r.try = func(fd uintptr) { r.receive(fd) }
	return r
}

// ReadBatch waits for datagrams and puts up to len(pkts) of them into pkts. They are valid until
// the next call. A connected socket's ICMP errors come back as errors that [Refused] knows; reading
// may go on after them. After Close it fails with net.ErrClosed.
func (c *Conn) ReadBatch(pkts []Packet) (int, error) {
	if c.unpolled {
		return 0, errUnpolled
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.reader == nil {
		c.reader = NewReader()
		c.reader.conn = c
	}
	r := c.reader
	for len(pkts) > 0 {
		if n := r.take(pkts); n > 0 {
			return n, nil
		}
		r.conn = c
		if err := c.raw.Read(r.wait); err != nil {
			return 0, c.closedOr(err)
		}
		if r.errno != 0 {
			return 0, c.closedOr(os.NewSyscallError("recvmmsg", r.errno))
		}
	}
	return 0, nil
}

// Serve hands what arrives to handle, batch by batch, until the socket is closed, which returns
// net.ErrClosed, or handle returns an error. The packets are valid until handle returns; it gets an error
// instead of packets for what a receive failed with, and must not close the socket. It takes fewer system
// calls than ReadBatch in a loop: a socket that was found empty is not asked again before something has come.
func (c *Conn) Serve(handle func(pkts []Packet, err error) error) (err error) {
	if c.unpolled {
		return errUnpolled
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	r, pkts := NewReader(), make([]Packet, pollPackets)
	r.conn = c
	var batches pace.Pace
	// The runtime's poller remembers what comes while this function runs, and between two calls of it. Only
	// who returns from raw.Read and calls it again forgets that, and has to look once more.
	rerr := c.raw.Read(func(fd uintptr) (over bool) {
		for more := true; more && err == nil && !c.closed.Load(); {
			r.receive(fd)
			if r.errno == unix.EAGAIN {
				c.batch(false)
				return false
			}
			if r.errno != 0 {
				err = handle(nil, os.NewSyscallError("recvmmsg", r.errno))
				continue
			}
			more = r.have == readMessages
			got := r.have
			c.batch(more)
			for n := r.take(pkts); n > 0 && err == nil; n = r.take(pkts) {
				err = handle(pkts[:n], nil)
			}
			batches.Yield(got < yieldPackets)
		}
		return err != nil || c.closed.Load()
	})
	if err == nil {
		err = c.closedOr(rerr)
	}
	return err
}

// poll receives what c has, without waiting: nothing is no error.
func (r *Reader) poll(c *Conn) error {
	r.conn = c
	r.next, r.have, r.offset = 0, 0, 0
	if err := c.raw.Control(r.try); err != nil {
		return c.closedOr(err)
	}
	if r.errno != 0 && r.errno != unix.EAGAIN {
		return os.NewSyscallError("recvmmsg", r.errno)
	}
	return nil
}

// receive fills the messages.
func (r *Reader) receive(fd uintptr) {
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlBytes)
		h.Flags = 0
	}
	r.next, r.have, r.offset = 0, 0, 0
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])),
			readMessages, unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if r.errno = errno; errno == 0 {
			r.have = int(n)
		}
		return
	}
}

// take hands out what is received and not yet handed out, splitting trains.
func (r *Reader) take(pkts []Packet) (n int) {
	for r.next < r.have && n < len(pkts) {
		m := &r.msgs[r.next]
		size := int(m.n)
		if m.hdr.Flags&unix.MSG_TRUNC != 0 {
			r.conn.stats.truncated.Add(1)
			r.next++
			continue
		}
		a := parseControl(r.control[r.next][:m.hdr.Controllen])
		remote := r.conn.remote
		if !remote.IsValid() {
			remote = r.names[r.next].get()
		}
		if a.segment <= 0 || a.segment > size {
			a.segment = size
		}
		base := r.next * messageBytes
		for n < len(pkts) {
			end := min(r.offset+a.segment, size)
			pkts[n] = Packet{
				Data:   r.buf[base+r.offset : base+end : base+end],
				Remote: remote, Local: a.local, LocalPort: a.port, TOS: a.tos,
			}
			n++
			if r.offset = end; end == size {
				r.next++
				r.offset = 0
				break
			}
		}
	}
	return n
}
