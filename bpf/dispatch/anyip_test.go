package dispatch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAnyIP: whole prefixes that are routed to the machine and are on no interface, each of their addresses and
// ports, for both protocols. A datagram is answered from the address and port that it was sent to.
func TestAnyIP(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	groups := []Group{
		{0, TCP, IPv4, conns(t, w.tcp(t, "edge", loopback4))}, {0, TCP, IPv6, conns(t, w.tcp(t, "edge", loopback6))},
		{0, UDP, IPv4, conns(t, w.answering(t, loopback4))}, {0, UDP, IPv6, conns(t, w.answering(t, loopback6))},
	}
	must(t, d.SetSockets(groups))
	var rules []Rule
	for _, p := range []netip.Prefix{accelerated4, accelerated6} {
		rules = append(rules, Rule{p, everyPort, TCP, 0}, Rule{p, everyPort, UDP, 0})
	}
	must(t, d.Update(rules))
	addresses := []netip.Addr{v4, v6}
	for _, n := range []byte{0, 1, 100, 255} { // the first and the last are addresses like the others
		addresses = append(addresses, netip.AddrFrom4([4]byte{198, 51, 100, n}))
		b := accelerated6.Addr().As16()
		b[8], b[11], b[15] = n, n, n
		addresses = append(addresses, netip.AddrFrom16(b))
	}
	for i, a := range addresses {
		for _, port := range []uint16{1, 443, uint16(1024 + 6007*i%60000), 65535} {
			w.wantAnswer(t, addrPort(a, port), "edge")
			if err := w.echo(addrPort(a, port), fmt.Sprint("to ", a)); err != nil {
				t.Errorf("udp %v: %v", addrPort(a, port), err)
			}
		}
	}
	s, err := d.Stats()
	must(t, err)
	if s.Prefixes != 4 || s.Ranges != 1 {
		t.Errorf("a /24 and a /64 cost %d prefixes and %d ranges", s.Prefixes, s.Ranges)
	}
	must(t, d.Update(rules[:2])) // IPv6 goes, and with it all of its addresses
	w.wantAnswer(t, addrPort(v4, 443), "edge")
	w.wantAnswer(t, addrPort(v6, 443), "refused")
}

// echo sends a datagram and wants it back from where it went: the socket is connected.
func (w *world) echo(at netip.AddrPort, what string) error {
	c, err := w.client.Dial(context.Background(), "udp", netip.AddrPort{}, at)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline()); err != nil {
		return err
	}
	if _, err := c.Write([]byte(what)); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err == nil && string(b[:n]) != what {
		err = fmt.Errorf("%q came back", b[:n])
	}
	return err
}

// answering opens a socket that sends each datagram back, from a socket that is bound to where it was sent to.
func (w *world) answering(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	in := w.udp(t, "", at)
	raw, err := in.SyscallConn()
	must(t, err)
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if at.Addr().Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }))
	must(t, err)
	go func() {
		b, oob := make([]byte, 100), make([]byte, 100)
		for {
			n, m, _, from, err := in.ReadMsgUDPAddrPort(b, oob)
			if err != nil {
				return
			}
			if err := w.answerFrom(oob[:m], from, b[:n]); err != nil {
				t.Error(err)
			}
		}
	}()
	return in
}

func (w *world) answerFrom(oob []byte, to netip.AddrPort, what []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		sa, err := unix.ParseOrigDstAddr(&messages[i])
		if err != nil {
			continue
		}
		var at netip.AddrPort
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			at = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			at = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		}
		return w.sendFrom(at, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), what)
	}
	return fmt.Errorf("the kernel does not say where %q was sent to", what)
}

// sendFrom sends a datagram from an address of the server's that no interface has.
func (w *world) sendFrom(from, to netip.AddrPort, what []byte) error {
	return w.server.Do(func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			level, option := unix.SOL_IP, unix.IP_FREEBIND
			if from.Addr().Is6() {
				level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
				return e
			}
			return err
		}}
		c, err := lc.ListenPacket(context.Background(), "udp", from.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(what, net.UDPAddrFromAddrPort(to))
		return err
	})
}

func deadline() time.Time { return time.Now().Add(patience) }
