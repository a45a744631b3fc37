package dispatch

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkConnect measures connections one after the other, each to another of so many listeners, until the
// server's first byte has come: through plain sockets, one a listener, and through the program and one socket.
// "address" has all listeners on the ports of one address, "addresses" one on each of many.
func BenchmarkConnect(b *testing.B) {
	for _, n := range []int{1, 100, 10000} {
		b.Run(fmt.Sprintf("plain/%d", n), func(b *testing.B) { benchConnect(b, n, plainSockets) })
		b.Run(fmt.Sprintf("dispatch-address/%d", n), func(b *testing.B) { benchConnect(b, n, oneAddress) })
		b.Run(fmt.Sprintf("dispatch-addresses/%d", n), func(b *testing.B) { benchConnect(b, n, manyAddresses) })
	}
}

// benchPort of listener i; odd ports only, so that no two ranges join.
func benchPort(i int) uint16 { return uint16(10001 + 2*i) }

func plainSockets(b *testing.B, w *world, n int) []netip.AddrPort {
	var at []netip.AddrPort
	for i := range n {
		at = append(at, addrPort(v4, benchPort(i)))
		l := w.tcpBytes(b, at[i])
		b.Cleanup(func() { l.Close() })
	}
	return at
}

func oneAddress(b *testing.B, w *world, n int) []netip.AddrPort {
	var at []netip.AddrPort
	for i := range n {
		at = append(at, addrPort(v4, benchPort(i)))
	}
	w.dispatchTo(b, at)
	return at
}

func manyAddresses(b *testing.B, w *world, n int) []netip.AddrPort {
	var at []netip.AddrPort
	a := netip.MustParseAddr("203.0.0.1")
	net16 := netip.MustParsePrefix("203.0.0.0/16")
	must(b, w.client.AddRoute(routeVia(net16)))
	must(b, w.server.AddRoute(routeLocal(net16)))
	for range n {
		at = append(at, addrPort(a, 443))
		a = a.Next()
	}
	w.dispatchTo(b, at)
	return at
}

func (w *world) dispatchTo(b *testing.B, at []netip.AddrPort) {
	d := w.load(b, Config{})
	w.measured = d.objs.Dispatch
	l := w.tcpBytes(b, loopback4)
	b.Cleanup(func() { l.Close() })
	must(b, d.SetSockets([]Group{{0, TCP, IPv4, conns(b, l)}}))
	var rules []Rule
	for _, a := range at {
		rules = append(rules, Rule{netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), Ports{a.Port(), a.Port()}, TCP, 0})
	}
	must(b, d.Update(rules))
}

// tcpBytes listens and answers each connection with one byte.
func (w *world) tcpBytes(b *testing.B, at netip.AddrPort) net.Listener {
	l, err := w.server.Listen(b.Context(), "tcp4", at)
	must(b, err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{1})
			c.Close()
		}
	}()
	return l
}

func benchConnect(b *testing.B, n int, listen func(*testing.B, *world, int) []netip.AddrPort) {
	w := newWorld(b)
	at := listen(b, w, n)
	times := make([]time.Duration, 0, b.N)
	if w.measured != nil {
		stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		must(b, err)
		defer stats.Close()
	}
	b.ResetTimer()
	err := w.client.Do(func() error {
		one := make([]byte, 1)
		for i := range b.N {
			start := time.Now()
			c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(at[i*7919%n]))
			if err != nil {
				return err
			}
			if _, err := io.ReadFull(c, one); err != nil {
				return err
			}
			times = append(times, time.Since(start))
			c.SetLinger(0)
			c.Close()
		}
		return nil
	})
	must(b, err)
	b.StopTimer()
	if w.measured != nil {
		s, err := w.measured.Stats()
		must(b, err)
		b.ReportMetric(float64(s.Runtime.Nanoseconds())/float64(s.RunCount), "program-ns")
	}
	slices.Sort(times)
	b.ReportMetric(float64(len(times))/b.Elapsed().Seconds(), "conn/s")
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds())/1e3, "p99-µs")
}
