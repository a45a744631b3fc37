package balance

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// BenchmarkPacket measures the program on one packet over and over, on one core: what each decision costs, beside
// that of a packet that is not for a balanced address. The kernel resets the packet in each round only where the
// program leaves it as it was; where it doesn't, a round trip of wrapping and unwrapping can't be repeated in place,
// so those are run once a system call, beside a packet of nobody that is run likewise.
func BenchmarkPacket(b *testing.B) {
	s := newSite(b, 3, false)
	n := s.nodes[0]
	of := func(mine bool, proto byte, flags byte) packet {
		for i := 0; ; i++ {
			p := flowOf(i, proto, false)
			if p.flags = flags; (s.owner(b, p) == n) == mine {
				return p
			}
		}
	}
	foreign := flowOf(1, udp, false)
	foreign.dst = foreign.src
	port := n.connect(b, flowOf(7, tcp, false))
	held := flowOf(7, tcp, false)
	held.src = netip.AddrPortFrom(held.src.Addr(), port)
	known := of(true, udp, 0)
	n.run(b, known.frame())
	for _, c := range []struct {
		name  string
		frame []byte
		want  Reason
	}{
		{"foreign", foreign.frame(), LocalForeign},
		{"own-udp", known.frame(), LocalOwn},
		{"own-syn", of(true, tcp, syn).frame(), LocalOwn},
		{"held-segment", held.frame(), LocalOwn},
	} {
		b.Run(c.name, func(b *testing.B) { n.bench(b, c.frame, c.want, b.N) })
	}
	inner := of(true, udp, 0)
	h := hop{from: s.nodes[1].at, to: n.at, kind: kindForward, key: testKey, port: 50000}
	for _, c := range []struct {
		name  string
		frame []byte
		want  Reason
	}{
		{"once/foreign", foreign.frame(), LocalForeign},
		{"once/own-udp", known.frame(), LocalOwn},
		{"once/forward-udp", of(false, udp, 0).frame(), SentForward},
		{"once/forward-syn", of(false, tcp, syn).frame(), SentForward},
		{"once/unwrap-udp", h.wrap(inner.ip()), LocalForwarded},
	} {
		b.Run(c.name, func(b *testing.B) { n.bench(b, c.frame, c.want, 1) })
	}
}

// bench runs the program b.N times, so many in one system call.
func (n *node) bench(b *testing.B, frame []byte, want Reason, atOnce int) {
	must(b, n.Alive())
	if _, why, _ := n.run(b, frame); why != want {
		b.Fatalf("%v, want %v", why, want)
	}
	err := n.ns.Do(func() error {
		stats, err := ebpf.EnableStats(0)
		if err != nil {
			return err
		}
		defer stats.Close()
		before, err := n.objs.Balance.Stats()
		if err != nil {
			return err
		}
		b.ResetTimer()
		for done := 0; done < b.N; done += atOnce {
			if done%10_000 == 0 {
				if err := n.Alive(); err != nil { // or it would leave its rows to others
					return err
				}
			}
			opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Repeat: uint32(atOnce)}
			if _, err := n.objs.Balance.Run(opts); err != nil {
				return err
			}
		}
		b.StopTimer()
		after, err := n.objs.Balance.Stats()
		if err != nil {
			return err
		}
		ns := float64((after.Runtime - before.Runtime).Nanoseconds()) / float64(after.RunCount-before.RunCount)
		b.ReportMetric(ns, "program-ns")
		b.ReportMetric(1e3/ns, "Mpps/core")
		return nil
	})
	if err != nil {
		b.Fatal(fmt.Errorf("run: %w", err))
	}
}
