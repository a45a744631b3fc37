package scenario

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Ports of a witness: clients ask the first ones, the last one shows overrides.
const (
	witnessPort     = 7100
	witnessLast     = 7109
	witnessOverride = 7108 // leads to witnessOther
	witnessOther    = 7200 // which no listener has, nor the next one
)

// witness answers on an endpoint's machine with what it saw of a client: its address, and what came
// before the word "hello".
func (d *deployment) witness(t *testing.T, host string) {
	t.Helper()
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	for _, port := range []uint16{witnessPort, witnessPort + 1, witnessOther, witnessOther + 1} {
		l, err := d.NS(host).Listen(d.ctx, "tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			t.Fatal(err)
		}
		u, err := d.NS(host).ListenPacket(d.ctx, "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		running.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				running.Go(func() { testify(c, port) })
			}
		})
		running.Go(func() {
			b := make([]byte, 2048)
			for {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				before, _ := bytes.CutSuffix(b[:n], []byte("hello"))
				_, _ = u.WriteToUDPAddrPort(statement(from, port, before), from)
			}
		})
	}
}

func statement(from netip.AddrPort, port uint16, before []byte) []byte {
	return fmt.Appendf(nil, "%v %d %q", netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), port, before)
}

func testify(c net.Conn, port uint16) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	all, err := io.ReadAll(c)
	if err != nil {
		return
	}
	before, _ := bytes.CutSuffix(all, []byte("hello"))
	_, _ = c.Write(statement(c.RemoteAddr().(*net.TCPAddr).AddrPort(), port, before))
}

// seen is a witness's statement.
type seen struct {
	from   netip.AddrPort
	port   uint16
	before string
	client netip.AddrPort // the asker's own address
}

// asked counts questions by UDP.
var asked atomic.Uint32

// ask asks the witness behind an accelerated address; with says what the client sends before "hello".
func (d *deployment) ask(network string, local netip.AddrPort, to netip.AddrPort, with string) (s seen, err error) {
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	if network == "udp" && !local.IsValid() {
		// A port that an earlier question had would be the same flow, with the socket that it had then.
		local = netip.AddrPortFrom(d.Host("jakarta").V4, uint16(20_000+asked.Add(1)%10_000))
		if to.Addr().Is6() {
			local = netip.AddrPortFrom(d.Host("jakarta").V6, local.Port())
		}
	}
	c, err := d.NS("jakarta").Dial(ctx, network, local, to)
	if err != nil {
		return s, err
	}
	defer c.Close()
	b := make([]byte, 2048)
	n := 0
	if network == "tcp" {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, with+"hello"); err != nil {
			return s, err
		}
		_ = c.(*net.TCPConn).CloseWrite()
		if n, err = io.ReadFull(c, b); err == io.ErrUnexpectedEOF {
			err = nil
		}
		s.client = c.LocalAddr().(*net.TCPAddr).AddrPort()
	} else {
		for range 8 { // datagrams may be lost
			if _, err = io.WriteString(c, with+"hello"); err != nil {
				return s, err
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err = c.Read(b); err == nil {
				break
			}
		}
		s.client = c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	if err != nil {
		return s, err
	}
	var from string
	if _, err := fmt.Sscanf(string(b[:n]), "%s %d %q", &from, &s.port, &s.before); err != nil {
		return s, fmt.Errorf("the witness says %q: %w", b[:n], err)
	}
	s.from, err = netip.ParseAddrPort(from)
	return s, err
}

// headerV1 and headerV2 are what a PROXY protocol header must look like (its specification, sections
// 2.1 and 2.2), written down here anew so that the product's own code is not its judge.
func headerV1(src, dst netip.AddrPort) string {
	family := "TCP4"
	if src.Addr().Is6() {
		family = "TCP6"
	}
	return fmt.Sprintf("PROXY %s %v %v %d %d\r\n", family, src.Addr(), dst.Addr(), src.Port(), dst.Port())
}

func headerV2(network string, src, dst netip.AddrPort) string {
	var b strings.Builder
	b.WriteString("\r\n\r\n\x00\r\nQUIT\n\x21")
	kind := byte(0x11)
	if src.Addr().Is6() {
		kind = 0x21
	}
	if network == "udp" {
		kind++
	}
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	addrs = binary.BigEndian.AppendUint16(addrs, src.Port())
	addrs = binary.BigEndian.AppendUint16(addrs, dst.Port())
	b.WriteByte(kind)
	b.Write(binary.BigEndian.AppendUint16(nil, uint16(len(addrs))))
	b.Write(addrs)
	return b.String()
}
