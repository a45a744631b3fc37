package udpio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is one datagram.
type Packet struct {
	// Data is the payload, 0 to [PayloadMax] bytes. In what ReadBatch returned it aliases the
	// reader's buffers and is valid until the next read from the same reader.
	Data []byte

	// Remote is the far end. Writing to a connected socket ignores it.
	Remote netip.AddrPort

	// Local is the address the datagram was sent to (reading), or is to be sent from (writing;
	// the zero Addr lets the kernel choose; a connected socket ignores it).
	Local netip.Addr

	// LocalPort is the port the datagram was sent to, from a socket with Options.OriginalPort; else 0.
	// Writing ignores it: a datagram leaves with its socket's port.
	LocalPort uint16

	// TOS is the whole byte: DSCP in the upper six bits, ECN in the lower two.
	TOS uint8
}

// Options say how a socket is made. The zero value is a plain socket.
type Options struct {
	ReusePort   bool // SO_REUSEPORT: several sockets share one port, the kernel spreads flows by hash
	FreeBind    bool // IP_FREEBIND: bind to an address that no interface has (yet)
	Transparent bool // IP_TRANSPARENT: bind to foreign addresses as one's own; needs CAP_NET_ADMIN

	// Shared lets other sockets have the same local address and port (SO_REUSEADDR): for connected sockets
	// of which each has another remote. Of two with the same remote only one receives.
	Shared bool

	// NoFragment sets the don't-fragment bit and ignores the kernel's path MTU cache
	// (IP_PMTUDISC_PROBE): for a protocol that finds the path MTU by itself. Larger datagrams are
	// refused (EMSGSIZE) or lost. Otherwise datagrams are fragmented where they need to be, and
	// never carry the bit, because a relay has nobody to tell that a datagram was too large.
	NoFragment bool

	// Unpolled keeps the socket out of the runtime's poller: for use with a [Poller]. ReadBatch
	// fails on such a socket.
	Unpolled bool

	// OriginalPort asks for the port that each datagram was sent to, which is not the socket's own when
	// the kernel's socket lookup was told to bring it here.
	OriginalPort bool

	// RecvBuffer and SendBuffer are the kernel's buffers in bytes; 0 is 8 MiB, negative leaves the
	// system's default (right for one of thousands of sockets). With CAP_NET_ADMIN the size is
	// had whole, else it is cut to net.core.rmem_max and wmem_max.
	RecvBuffer, SendBuffer int

	NoGRO bool // never ask for joined trains on receive
	NoGSO bool // never send joined trains
}

// Conn is a UDP socket, connected to one remote or not. ReadBatch is for one goroutine at a time,
// everything else for any number.
type Conn struct {
	// Set by Listen or Dial, then constant.
	file     *os.File // owns the descriptor, and counts its users so that none sees a reused one
	raw      syscall.RawConn
	v6       bool           // AF_INET6
	remote   netip.AddrPort // valid: connected
	local    netip.AddrPort
	unpolled bool

	users    atomic.Int32 // Use and Unuse
	closed   atomic.Bool
	onClose  atomic.Pointer[func()] // a Poller's
	trainMax atomic.Int32           // largest packet size worth joining to trains; 0: no trains
	stats    counters
	behind   atomic.Int64 // since when every batch was full (time.Now's Unix nanoseconds); 0: the last was not

	readMu sync.Mutex
	reader *Reader // made by the first ReadBatch
}

type counters struct {
	truncated, trainsRefused atomic.Uint64
}

// Stats are what a socket lost or had to do without.
type Stats struct {
	KernelDrops   uint64 // datagrams dropped because the receive buffer was full
	Truncated     uint64 // datagrams dropped because they did not fit the reader's buffer
	TrainsRefused uint64 // UDP_SEGMENT sends that the kernel or device refused and that went singly
	Trains        bool   // whether trains are still tried
}

// Listen opens an unconnected socket. Port 0 takes any free one. The unspecified IPv6 address takes
// IPv4 as well; any other IPv6 address does not.
func Listen(local netip.AddrPort, o Options) (*Conn, error) {
	c, err := open(local, netip.AddrPort{}, o)
	if err != nil {
		return nil, fmt.Errorf("listen udp %v: %w", local, err)
	}
	return c, nil
}

// ListenGroup opens n sockets on one port with SO_REUSEPORT, so that the kernel spreads flows over
// them by the hash of their addresses and ports. Port 0 takes any free port for all of them.
func ListenGroup(local netip.AddrPort, n int, o Options) ([]*Conn, error) {
	o.ReusePort = true
	conns := make([]*Conn, 0, n)
	for range n {
		c, err := Listen(local, o)
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			return nil, err
		}
		local = netip.AddrPortFrom(local.Addr(), c.local.Port())
		conns = append(conns, c)
	}
	return conns, nil
}

// Dial opens a connected socket: it receives from remote alone, and learns of ICMP errors (see
// [Refused]). The zero local lets the kernel choose; with o.Transparent it may be a foreign address.
func Dial(local, remote netip.AddrPort, o Options) (*Conn, error) {
	c, err := open(local, remote, o)
	if err != nil {
		return nil, fmt.Errorf("dial udp %v: %w", remote, err)
	}
	return c, nil
}

// LocalAddr is the socket's own address; unspecified if it was bound to none.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr is what the socket is connected to; the zero AddrPort if it is not.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// SetReadDeadline makes a ReadBatch that waits past t fail with os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

// SyscallConn gives the descriptor, for options that this package does not know (a socket map, say).
func (c *Conn) SyscallConn() syscall.RawConn { return c.raw }

// Use notes a flow that answers from this socket, and Unuse its end: for who closes sockets that are not
// used any more. They cost an atomic addition.
func (c *Conn) Use() { c.users.Add(1) }

// Unuse ends a Use.
func (c *Conn) Unuse() { c.users.Add(-1) }

// Users returns how many Uses have not ended.
func (c *Conn) Users() int { return int(c.users.Load()) }

// Behind returns for how long the socket has not been found empty, although what was received was handled at
// once: more comes than its reader can do. It is 0 for a socket that keeps up, and known with Serve or a Poller.
func (c *Conn) Behind() time.Duration {
	since := c.behind.Load()
	if since == 0 {
		return 0
	}
	return max(1, time.Duration(time.Now().UnixNano()-since))
}

// batch notes whether a receive took all that it asked for.
func (c *Conn) batch(full bool) {
	switch was := c.behind.Load(); {
	case full && was == 0:
		c.behind.Store(time.Now().UnixNano())
	case !full && was != 0:
		c.behind.Store(0)
	}
}

// Close ends reads that wait with net.ErrClosed. The second Close does nothing.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	if f := c.onClose.Swap(nil); f != nil {
		(*f)()
	}
	return c.file.Close()
}

// Stats reads the counters. It costs a system call.
func (c *Conn) Stats() Stats {
	s := Stats{
		Truncated:     c.stats.truncated.Load(),
		TrainsRefused: c.stats.trainsRefused.Load(),
		Trains:        c.trainMax.Load() > 0,
	}
	c.raw.Control(func(fd uintptr) { s.KernelDrops = kernelDrops(int(fd)) })
	return s
}

// Refused reports whether err is an ICMP error that a connected socket brought back: nobody listens
// there (port unreachable), or there is no way there. The socket stays usable; a later read or write
// may succeed.
func Refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) ||
		errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTDOWN) ||
		errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EACCES)
}

// Full reports whether err says that the kernel's send buffer or the device's queue was full, or
// memory short: the datagram was not sent and the caller drops it or tries again later.
func Full(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

func open(local, remote netip.AddrPort, o Options) (*Conn, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	v6 := local.Addr().Is6()
	if remote.IsValid() {
		v6 = remote.Addr().Is6()
		if local.Addr().IsValid() && local.Addr().Is6() != v6 {
			return nil, errors.New("local and remote addresses differ in family")
		}
	} else if !local.Addr().IsValid() {
		return nil, errors.New("no local address")
	}
	family, kind := unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC
	if v6 {
		family = unix.AF_INET6
	}
	if !o.Unpolled {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &Conn{v6: v6, remote: remote, unpolled: o.Unpolled}
	if !o.NoGSO {
		c.trainMax.Store(messageBytes)
	}
	if err := c.setUp(fd, local, o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	c.file = os.NewFile(uintptr(fd), "udp")
	if c.raw, err = c.file.SyscallConn(); err != nil {
		c.file.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) setUp(fd int, local netip.AddrPort, o Options) error {
	if err := setOptions(fd, c.v6, local, o); err != nil {
		return err
	}
	if local.Addr().IsValid() {
		if err := unix.Bind(fd, sockaddr(local)); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	if c.remote.IsValid() {
		if err := unix.Connect(fd, sockaddr(c.remote)); err != nil {
			return os.NewSyscallError("connect", err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	c.local = addrPort(sa)
	return nil
}

// closedOr is net.ErrClosed if the socket was closed, else err.
func (c *Conn) closedOr(err error) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return err
}
