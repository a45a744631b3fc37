package udpio

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writers lends Writers to WriteBatch. A Writer has 30 KB of headers, too much to have one for each
// of thousands of sockets; they hold nothing between uses.
var writers = sync.Pool{New: func() any { return NewWriter() }}

// Writer is the headers of a batched write. A goroutine that writes to many sockets may keep one;
// [Conn.WriteBatch] borrows one otherwise.
type Writer struct {
	msgs    [writeMessages]mmsghdr
	names   [writeMessages]name
	control [writeMessages][controlBytes]byte
	count   [writeMessages]int // packets of each message
	iovs    [writePackets]unix.Iovec

	used  int // messages of the batch at hand
	sent  int
	errno unix.Errno
	send  func(uintptr)
}

// NewWriter returns a Writer for one goroutine.
func NewWriter() *Writer {
	w := &Writer{}
	for i := range w.msgs {
		w.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&w.names[i].raw))
	}
	w.send = func(fd uintptr) { w.transmit(fd) }
	return w
}

// WriteBatch sends the packets in order and returns how many the kernel took. It never blocks. If n
// < len(pkts), err says why pkts[n] was not sent: [Full], [Refused] (an ICMP error that came back
// for an earlier packet; the socket stays usable), net.ErrClosed, or EMSGSIZE for a packet larger
// than [PayloadMax] or, with NoFragment, than the device's MTU. The caller goes on from n or n+1 as
// it likes.
func (c *Conn) WriteBatch(pkts []Packet) (n int, err error) {
	w := writers.Get().(*Writer)
	n, err = w.Write(c, pkts)
	writers.Put(w)
	return n, err
}

// Write is [Conn.WriteBatch] with the headers of w.
func (w *Writer) Write(c *Conn, pkts []Packet) (n int, err error) {
	for n < len(pkts) {
		packets := w.fill(c, pkts[n:])
		if packets == 0 {
			return n, fmt.Errorf("send to %v: %w", pkts[n].Remote, unix.EAFNOSUPPORT)
		}
		if err := c.raw.Control(w.send); err != nil {
			w.release(packets)
			return n, c.closedOr(err)
		}
		for i := range w.sent {
			n += w.count[i]
		}
		w.release(packets)
		if w.errno == 0 {
			continue
		}
		if w.count[w.sent] > 1 && c.refuseTrains(w.errno, len(pkts[n].Data)) {
			k, err := w.singly(c, pkts[n:n+w.count[w.sent]])
			if n += k; err != nil {
				return n, err
			}
			continue
		}
		return n, os.NewSyscallError("sendmmsg", w.errno)
	}
	return n, nil
}

// singly sends a refused train packet by packet.
func (w *Writer) singly(c *Conn, pkts []Packet) (n int, err error) {
	for n < len(pkts) {
		w.used = 0
		w.addMessage(c, pkts[n:n+1], 0)
		err := c.raw.Control(w.send)
		w.release(1)
		if err != nil {
			return n, c.closedOr(err)
		}
		if w.errno != 0 {
			return n, os.NewSyscallError("sendmmsg", w.errno)
		}
		n++
	}
	return n, nil
}

// fill makes messages of the packets, as many as fit, and returns the number of packets in them. It
// stops at a remote that the socket's family cannot reach.
func (w *Writer) fill(c *Conn, pkts []Packet) (packets int) {
	w.used = 0
	trainMax := int(c.trainMax.Load())
	for packets < len(pkts) && w.used < writeMessages && packets < writePackets {
		if !c.reaches(pkts[packets].Remote.Addr()) {
			break
		}
		n := train(pkts[packets:min(len(pkts), writePackets)], trainMax, c.remote.IsValid())
		w.addMessage(c, pkts[packets:packets+n], packets)
		packets += n
	}
	return packets
}

// reaches reports whether a datagram to a can leave the socket as far as families go.
func (c *Conn) reaches(a netip.Addr) bool {
	return c.remote.IsValid() || a.IsValid() && (c.v6 || a.Is4() || a.Is4In6())
}

// train returns how many of the first packets can leave as one message: all of one size but the
// last, which may be shorter, and alike in addresses and TOS.
func train(pkts []Packet, sizeMax int, connected bool) int {
	first := &pkts[0]
	size := len(first.Data)
	if size == 0 || size > sizeMax {
		return 1
	}
	n, total := 1, size
	for n < len(pkts) && n < trainPackets {
		p := &pkts[n]
		if len(p.Data) > size || len(p.Data) == 0 || total+len(p.Data) > trainBytes || p.TOS != first.TOS {
			break
		}
		if !connected && (p.Remote != first.Remote || p.Local != first.Local) {
			break
		}
		n++
		total += len(p.Data)
		if len(p.Data) < size {
			break
		}
	}
	return n
}

// addMessage makes a message of a train, with iovecs from index iov on.
func (w *Writer) addMessage(c *Conn, pkts []Packet, iov int) {
	i := w.used
	w.used++
	w.count[i] = len(pkts)
	h := &w.msgs[i].hdr
	h.Iov = &w.iovs[iov]
	h.SetIovlen(len(pkts))
	for j := range pkts {
		v := &w.iovs[iov+j]
		v.Base = unsafe.SliceData(pkts[j].Data)
		v.SetLen(len(pkts[j].Data))
	}
	first := &pkts[0]
	remote, local := first.Remote, first.Local
	if c.remote.IsValid() {
		h.Namelen = 0
		remote, local = c.remote, netip.Addr{}
	} else {
		h.Namelen = w.names[i].set(remote, c.v6)
	}
	segment := 0
	if len(pkts) > 1 {
		segment = len(first.Data)
	}
	to4 := remote.Addr().Is4() || remote.Addr().Is4In6()
	control := appendControl(w.control[i][:0], local.Unmap(), to4, first.TOS, segment)
	h.Control = nil
	if len(control) > 0 {
		h.Control = &w.control[i][0]
	}
	h.SetControllen(len(control))
}

// transmit sends until all messages are sent or one is refused.
func (w *Writer) transmit(fd uintptr) {
	w.sent, w.errno = 0, 0
	for w.sent < w.used {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.msgs[w.sent])),
			uintptr(w.used-w.sent), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			w.errno = errno
			return
		}
		w.sent += int(n)
	}
}

// release forgets the packets' memory, which is the caller's.
func (w *Writer) release(packets int) {
	for i := range packets {
		w.iovs[i].Base = nil
	}
}

// refuseTrains takes note of a refused train of packets of the given size, and reports whether its
// packets are worth sending singly. EIO is a device that cannot compute checksums; EINVAL and
// EMSGSIZE an MTU smaller than the size (such packets need fragments, which trains cannot have).
func (c *Conn) refuseTrains(errno unix.Errno, size int) bool {
	switch {
	case errno == unix.EIO, errno == unix.EINVAL && size <= trainSizeMin:
		c.trainMax.Store(0)
	case errno == unix.EINVAL, errno == unix.EMSGSIZE:
		for {
			old := c.trainMax.Load()
			if int(old) < size || c.trainMax.CompareAndSwap(old, int32(size-1)) {
				break
			}
		}
	default:
		return false
	}
	c.stats.trainsRefused.Add(1)
	return true
}
