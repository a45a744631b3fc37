package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
	"golang.org/x/sys/unix"
)

// patience bounds waits that end at once unless something is broken.
const patience = 30 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// numbered is a host with the address 10.0.0.(i+1).
func numbered(name string, i int) Host {
	return Host{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}}
}

// twoHosts is a Fabric of a and b with the same parameters both ways.
func twoHosts(t *testing.T, p Params) *Fabric {
	t.Helper()
	f, _ := ForTest(t, "two hosts with a WAN between them", Spec{
		Hosts: []Host{
			{Name: "a", Addrs: []netip.Addr{addr("10.1.0.1"), addr("fd00:1::1")}},
			{Name: "b", Addrs: []netip.Addr{addr("10.2.0.1"), addr("fd00:2::1")}},
		},
		Links: Both("a", "b", p), Seed: 42,
	})
	return f
}

var families = []struct {
	name string
	a, b netip.Addr
}{
	{"v4", addr("10.1.0.1"), addr("10.2.0.1")},
	{"v6", addr("fd00:1::1"), addr("fd00:2::1")},
}

// link returns the counters of one link.
func (s Stats) link(from, to string) Counters {
	for _, l := range s.Links {
		if l.From == from && l.To == to {
			return l.Counters
		}
	}
	return Counters{}
}

// until waits until done is true.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// sink is a UDP receiver with a buffer for a whole test's packets.
func sink(t *testing.T, ns *netns.NS, at netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := ns.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(at, 0))
	must(t, err)
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20)
	}))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(2*patience)))
	return c, netip.AddrPortFrom(at, uint16(c.LocalAddr().(*net.UDPAddr).Port))
}

// dialUDP opens a connected UDP socket in a host.
func dialUDP(t *testing.T, ns *netns.NS, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := ns.Dial(t.Context(), "udp", netip.AddrPort{}, to)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// fill writes a pattern that depends on n into b: its first 8 bytes are n.
func fill(b []byte, n uint64) {
	binary.BigEndian.PutUint64(b, n)
	rnd := rand.NewPCG(n, 99)
	for i := 8; i < len(b); i++ {
		b[i] = byte(rnd.Uint64())
	}
}

// checkFilled returns n, and an error when b is not what fill made.
func checkFilled(b []byte) (n uint64, err error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%d bytes", len(b))
	}
	n = binary.BigEndian.Uint64(b)
	want := make([]byte, len(b))
	fill(want, n)
	if string(want) != string(b) {
		return n, fmt.Errorf("packet %d is damaged", n)
	}
	return n, nil
}

// echo sends every UDP packet back until the socket is closed, with the name put in front.
func echo(t *testing.T, ns *netns.NS, at netip.AddrPort, name string) {
	t.Helper()
	c, err := ns.ListenPacket(t.Context(), "udp", at)
	must(t, err)
	var done sync.WaitGroup
	t.Cleanup(func() { c.Close(); done.Wait() })
	done.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b[len(name):])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(append([]byte(name), b[len(name):len(name)+n]...), from)
			}
		}
	})
}

// ask sends one packet from a socket and returns the answer.
func ask(t *testing.T, c net.Conn) string {
	t.Helper()
	_, err := c.Write([]byte("?"))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(patience)))
	b := make([]byte, 100)
	n, err := c.Read(b)
	must(t, err)
	return string(b[:n])
}

// ping measures round trips to the kernel of dst: no Go program answers, and the answers are stamped by the
// kernel as they arrive, so that only the sender's own clock reading is in it.
func ping(t *testing.T, ns *netns.NS, dst netip.Addr, n int, pause time.Duration) []time.Duration {
	t.Helper()
	family, proto, level := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: as4(dst)}
	if dst.Is6() {
		family, proto, level = unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
		to = &unix.SockaddrInet6{Addr: dst.As16()}
	}
	var fd int
	must(t, ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		return err
	}))
	defer unix.Close(fd)
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	var rtts []time.Duration
	id := uint16(os.Getpid())
	for i := range n {
		b := make([]byte, 16)
		b[0] = level
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[6:], uint16(i))
		if family == unix.AF_INET {
			binary.BigEndian.PutUint16(b[2:], ^fold(sum16(b, 0)))
		}
		sent := time.Now().Round(0)
		must(t, unix.Sendto(fd, b, 0, to))
		at := answer(t, fd, family == unix.AF_INET, level, id, uint16(i))
		rtts = append(rtts, at.Sub(sent))
		time.Sleep(pause)
	}
	return rtts
}

func as4(a netip.Addr) (b [4]byte) {
	if a.Is4() {
		b = a.As4()
	}
	return b
}

// answer waits for the answer with this number and returns when it came.
func answer(t *testing.T, fd int, v4 bool, request byte, id, seq uint16) time.Time {
	t.Helper()
	b, oob := make([]byte, 256), make([]byte, 256)
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		must(t, err)
		p := b[:n]
		reply := byte(129)
		if v4 {
			p, reply = p[20:], 0
		}
		if p[0] != reply || binary.BigEndian.Uint16(p[4:]) != id || binary.BigEndian.Uint16(p[6:]) != seq {
			continue
		}
		return stamp(t, oob[:oobn])
	}
}

// stamp returns the kernel's time stamp of a received packet.
func stamp(t *testing.T, oob []byte) time.Time {
	t.Helper()
	msgs, err := unix.ParseSocketControlMessage(oob)
	must(t, err)
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	t.Fatal("no time stamp")
	return time.Time{}
}

// sends n datagrams of size bytes, at most burst at a time.
func blast(t *testing.T, c *net.UDPConn, n, size, burst int, pause time.Duration) {
	t.Helper()
	b := make([]byte, size)
	for i := range n {
		binary.BigEndian.PutUint64(b, uint64(i))
		_, err := c.Write(b)
		must(t, err)
		if i%burst == burst-1 {
			time.Sleep(pause)
		}
	}
}

// drain reads datagrams until the marker number comes, and returns their numbers.
func drain(t *testing.T, c *net.UDPConn, marker uint64) (got []uint64) {
	t.Helper()
	b := make([]byte, 1<<16)
	for {
		n, err := c.Read(b)
		must(t, err)
		if n < 8 {
			t.Fatalf("%d bytes", n)
		}
		seq := binary.BigEndian.Uint64(b)
		if seq == marker {
			return got
		}
		got = append(got, seq)
	}
}

// transfer sends data over TCP from a to b and returns what arrives.
func transfer(ctx context.Context, from, to *netns.NS, at netip.Addr, data []byte) (got []byte, err error) {
	got = make([]byte, 0, len(data)+1)
	err = exchange(ctx, from, to, at, func(c net.Conn) error {
		_, err := c.Write(data)
		return err
	}, func(c net.Conn) error {
		for {
			n, err := c.Read(got[len(got):cap(got)])
			got = got[:len(got)+n]
			if errors.Is(err, io.EOF) || n == 0 && err == nil {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	return got, err
}

// pour sends n bytes over TCP from a to b without keeping them: big buffers would make garbage collections,
// which stop the engine, since it shares this process.
func pour(ctx context.Context, from, to *netns.NS, at netip.Addr, n int) error {
	return exchange(ctx, from, to, at, func(c net.Conn) error {
		_, err := io.CopyN(onlyWriter{c}, zeros{}, int64(n))
		return err
	}, func(c net.Conn) error {
		got, err := io.CopyBuffer(onlyWriter{io.Discard}, c, make([]byte, 256<<10))
		if err == nil && got != int64(n) {
			err = fmt.Errorf("%d bytes of %d arrived", got, n)
		}
		return err
	})
}

// exchange connects from with to over TCP and lets send and receive have an end each. Whichever fails, none
// of them waits for the other for ever.
func exchange(ctx context.Context, from, to *netns.NS, at netip.Addr, send, receive func(net.Conn) error) error {
	l, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(at, 0))
	if err != nil {
		return err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := from.DialContext(ctx, "tcp", l.Addr().String())
		if err != nil {
			l.Close() // nobody comes
			sent <- err
			return
		}
		sent <- errors.Join(c.SetDeadline(time.Now().Add(4*patience)), send(c), c.Close())
	}()
	c, err := l.Accept()
	if err != nil {
		return errors.Join(err, <-sent)
	}
	err = errors.Join(c.SetDeadline(time.Now().Add(4*patience)), receive(c), c.Close())
	return errors.Join(err, <-sent)
}

// zeros reads as endless zeros, onlyWriter hides that a writer can do more.
type (
	zeros      struct{}
	onlyWriter struct{ io.Writer }
)

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
