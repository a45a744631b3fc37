package dispatch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

var everyPort = Ports{1, 65535}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func TestEveryPortOfAPrefixOnOneSocket(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	tcp4, tcp6 := w.tcp(t, "edge", loopback4), w.tcp(t, "edge6", loopback6)
	udp4, udp6 := w.udp(t, "edge", loopback4), w.udp(t, "edge6", loopback6)
	w.tcp(t, "ssh", netip.MustParseAddrPort("0.0.0.0:22"))
	w.wantAnswer(t, addrPort(v4, 22), "ssh")
	w.wantAnswer(t, addrPort(v4, 443), "refused")

	must(t, d.SetSockets([]Group{
		{0, TCP, IPv4, conns(t, tcp4)}, {0, TCP, IPv6, conns(t, tcp6)},
		{0, UDP, IPv4, conns(t, udp4)}, {0, UDP, IPv6, conns(t, udp6)},
	}))
	must(t, d.Update([]Rule{
		{accelerated4, everyPort, TCP, 0}, {accelerated6, everyPort, TCP, 0},
		{accelerated4, Ports{1000, 65535}, UDP, 0}, {accelerated6, everyPort, UDP, 0},
	}))
	for _, port := range []uint16{1, 22, 443, 32768, 65535} {
		w.wantAnswer(t, addrPort(v4, port), "edge")
		w.wantAnswer(t, addrPort(v6, port), "edge6")
		w.send(t, addrPort(v6, port), fmt.Sprint("to ", port))
		wantDatagram(t, udp6, fmt.Sprint("to ", port))
	}
	w.wantAnswer(t, addrPort(netip.MustParseAddr("198.51.100.255"), 80), "edge")
	w.send(t, addrPort(v4, 999), "nobody's")
	w.send(t, addrPort(v4, 1000), "edge's")
	wantDatagram(t, udp4, "edge's")

	// The machine's own address is none of our business, on any port.
	own := netip.MustParseAddr("10.9.0.2")
	w.wantAnswer(t, addrPort(own, 22), "ssh")
	w.wantAnswer(t, addrPort(own, 443), "refused")

	// All but the port of SSH: the machine's own service on the accelerated address is left alone.
	must(t, d.Update([]Rule{{accelerated4, Ports{1, 21}, TCP, 0}, {accelerated4, Ports{23, 65535}, TCP, 0}}))
	w.wantAnswer(t, addrPort(v4, 21), "edge")
	w.wantAnswer(t, addrPort(v4, 22), "ssh")
	w.wantAnswer(t, addrPort(v4, 23), "edge")
	w.wantAnswer(t, addrPort(v6, 80), "refused")
}

func TestProtocolsOnOnePortGoApart(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	tcpSlot, udpSlot := w.tcp(t, "one", loopback4), w.udp(t, "two", loopback4)
	must(t, d.SetSockets([]Group{{1, TCP, IPv4, conns(t, tcpSlot)}, {2, UDP, IPv4, conns(t, udpSlot)}}))
	only := netip.PrefixFrom(v4, 32)
	must(t, d.Update([]Rule{{only, Ports{53, 53}, TCP, 1}, {only, Ports{53, 53}, UDP, 2}}))
	w.wantAnswer(t, addrPort(v4, 53), "one")
	w.send(t, addrPort(v4, 53), "query")
	wantDatagram(t, udpSlot, "query")
	w.wantAnswer(t, addrPort(v4.Next(), 53), "refused")
}

func TestDualStackSocketServesBothFamilies(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	both := w.tcp(t, "both", netip.MustParseAddrPort("[::]:0"))
	must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, both)}, {0, TCP, IPv6, conns(t, both)}}))
	must(t, d.Update([]Rule{{accelerated4, everyPort, TCP, 0}, {accelerated6, everyPort, TCP, 0}}))
	w.wantAnswer(t, addrPort(v4, 80), "both")
	w.wantAnswer(t, addrPort(v6, 80), "both")
}

func TestConnectionsSpreadOverSockets(t *testing.T) {
	for name, steer := range map[string]Steer{"hash": SteerHash, "cpu": SteerCPU} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			d := w.load(t, Config{Steer: steer})
			var sockets []any
			for i := range 4 {
				sockets = append(sockets, w.tcp(t, fmt.Sprint("socket", i), loopback4))
			}
			must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, sockets...)}}))
			must(t, d.Update([]Rule{{accelerated4, everyPort, TCP, 0}}))
			seen := map[string]int{}
			for range 200 {
				seen[w.ask(t, addrPort(v4, 80))]++
			}
			if steer == SteerHash && len(seen) != 4 {
				t.Errorf("200 connections met %v", seen)
			}
			for answer, n := range seen {
				if len(answer) < 6 || answer[:6] != "socket" || (steer == SteerHash && n < 20) {
					t.Errorf("%d connections met %q", n, answer)
				}
			}
		})
	}
}

// A rule whose sockets are gone refuses: a wildcard service must not answer for the accelerator.
func TestGoneSocketsRefuse(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	w.tcp(t, "ssh", netip.MustParseAddrPort("0.0.0.0:22"))
	edge, spare := w.tcp(t, "edge", loopback4), w.tcp(t, "spare", loopback4)
	must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, edge, spare)}}))
	must(t, d.Update([]Rule{{accelerated4, everyPort, TCP, 0}}))
	spare.Close()
	for range 20 { // half of them were the closed socket's
		w.wantAnswer(t, addrPort(v4, 22), "edge")
	}
	edge.Close()
	w.wantAnswer(t, addrPort(v4, 22), "refused")
	s, err := d.Stats()
	must(t, err)
	if s.NoSocket < 1 || s.Selected < 20 || s.Unfit != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestRefusesWhatCannotListen(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{})
	l := w.tcp(t, "edge", loopback4)
	if err := d.SetSockets([]Group{{Slots, TCP, IPv4, nil}}); err == nil {
		t.Error("a slot that does not exist was accepted")
	}
	if err := d.SetSockets([]Group{{0, TCP, IPv4, nil}, {0, TCP, IPv4, nil}}); err == nil {
		t.Error("a group named twice was accepted")
	}
	l.Close()
	if err := d.SetSockets([]Group{{0, TCP, IPv4, conns(t, l)}}); err == nil {
		t.Error("a closed socket was accepted")
	}
}

// Listeners come, go and change while connections are made: no SYN may meet a moment without a rule.
func TestChangesLoseNoSYN(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{RangesMax: 4096})
	edge := w.tcp(t, "edge", loopback4)
	must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, edge)}}))
	rules := func(step int) []Rule {
		rules := []Rule{{netip.PrefixFrom(v4, 32), Ports{443, 443}, TCP, 0}}
		for i := range uint16(step * 37 % 100) { // the address's other ports come and go, its extent moves
			rules = append(rules, Rule{netip.PrefixFrom(v4, 32), Ports{1000 + 2*i, 1000 + 2*i}, TCP, 0})
		}
		if step%2 == 0 { // so does a wider prefix, and another address
			rules = append(rules, Rule{accelerated4, everyPort, TCP, 0},
				Rule{netip.PrefixFrom(v4.Next(), 32), Ports{80, 90}, TCP, 0})
		}
		return rules
	}
	must(t, d.Update(rules(0)))
	watch := w.watchSYNs(t)

	ctx, stop := context.WithCancel(context.Background())
	var changes atomic.Int64
	var changing sync.WaitGroup
	changing.Go(func() {
		for ; ctx.Err() == nil; changes.Add(1) {
			step := int(changes.Load())
			if err := d.Update(rules(step)); err != nil {
				t.Error(err)
				return
			}
			if step%5 == 0 { // and now and then all sockets move
				if err := d.SetSockets([]Group{{0, TCP, IPv4, conns(t, edge)}}); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var connected atomic.Int64
	var clients errgroup.Group
	for range 4 {
		clients.Go(func() error {
			for n := 0; n < 500 || changes.Load() < 40; n++ {
				if ctx.Err() != nil || t.Failed() {
					return errors.New("changes ended early")
				}
				connected.Add(1)
				if got := w.ask(t, addrPort(v4, 443)); got != "edge 198.51.100.7:443" {
					return fmt.Errorf("connect: %s", got)
				}
			}
			return nil
		})
	}
	err := clients.Wait()
	stop()
	changing.Wait()
	must(t, err)
	watch.check(t)
	t.Logf("%d connections during %d changes", connected.Load(), changes.Load())
}

func TestFullTablesChangeNothing(t *testing.T) {
	w := newWorld(t)
	d := w.load(t, Config{PrefixesMax: 2, RangesMax: 4})
	edge := w.tcp(t, "edge", loopback4)
	must(t, d.SetSockets([]Group{{0, TCP, IPv4, conns(t, edge)}}))
	host := func(n int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 32) }
	must(t, d.Update([]Rule{{host(7), Ports{1, 1}, TCP, 0}, {host(7), Ports{3, 3}, TCP, 0}}))
	tooManyRanges := []Rule{{host(7), Ports{1, 1}, TCP, 0}, {host(8), Ports{1, 1}, TCP, 0},
		{host(8), Ports{3, 3}, TCP, 0}, {host(8), Ports{5, 5}, TCP, 0}}
	tooManyPrefixes := []Rule{{host(1), everyPort, TCP, 0}, {host(2), everyPort, TCP, 0},
		{host(3), everyPort, TCP, 0}}
	for _, rules := range [][]Rule{tooManyRanges, tooManyPrefixes} {
		if err := d.Update(rules); !errors.Is(err, ErrFull) {
			t.Fatalf("error %v, want ErrFull", err)
		}
		w.wantAnswer(t, addrPort(v4, 3), "edge")
		w.wantAnswer(t, addrPort(v4, 5), "refused")
	}
	for i := range 50 { // what is freed can be used again
		must(t, d.Update([]Rule{{host(i), everyPort, TCP, 0}, {host(7), Ports{1, 1}, UDP, 0}}))
	}
	s, err := d.Stats()
	must(t, err)
	if s.Prefixes != 2 || s.Ranges != 2 || s.PrefixesMax != 2 || s.RangesMax != 4 {
		t.Errorf("stats %+v", s)
	}
}
