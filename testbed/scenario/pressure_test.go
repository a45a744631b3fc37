package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestPressure has some clients take more than their share and looks at what the others see.
func TestPressure(t *testing.T) {
	d := raise(t, "main", nil, world.Options{NodeArgs: []string{"--memory-max", "512MB"}})
	t.Run("limits of a listener and a source", d.limits)
	t.Run("idle and trickling connections", d.slowloris)
	t.Run("a million UDP sources", d.udpSources)
}

// Sizes of the slow-client scenario. A process has at most 20,000 descriptors here, and this one
// holds the clients' sockets too.
const (
	idleClients     = 10_000
	tricklers       = 3_000
	trickleInterval = 10 * time.Second
)

// slowloris: connections that say nothing and connections that say one byte in ten seconds must not
// slow the others down. The machine may be slower by then than before them: what connections past Nearcast
// tell of that is taken off, and a time that others spoiled is taken again.
func (d *deployment) slowloris(t *testing.T) {
	before, past := d.pace(t, "alone", 5*time.Second)
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	conns := d.manyConnections(t, idleClients+tricklers, load.PortEcho)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { trickle(ctx, conns[idleClients:]) })
	time.Sleep(trickleInterval / 2) // every trickler is somewhere in its interval
	for try := 1; ; try++ {
		after, pastNow := d.pace(t, fmt.Sprintf("beside %d idle and %d trickling connections", idleClients, tricklers),
			trickleInterval)
		slower := stepsBeside * max(0, pastNow-past)
		t.Logf("p99 %v alone, %v beside them: %.2f ×; %.2f × without what the machine was slower", before.Round(time.Millisecond),
			after.Round(time.Millisecond), float64(after)/float64(before), float64(after-min(slower, after))/float64(before))
		if after <= 2*before+slower {
			break
		}
		if try == pressureTries {
			t.Errorf("others' p99 is more than twice what it was")
			break
		}
	}
}

// pressureTries is how often others' times are taken.
const pressureTries = 3

// pace makes new connections for so long, of which none may fail, and returns the p99 of what they took, and of
// connections past Nearcast in the same seconds. Only on a machine that is seconds late for those, too, may some time
// out: they took as long as a client waits.
func (d *deployment) pace(t *testing.T, what string, lasts time.Duration) (of, past time.Duration) {
	t.Helper()
	beside := d.direct("jakarta", "us-iad-1", 10*time.Millisecond)
	defer beside.end()
	as := d.steadyRateUpTo(underWayAtUpgrade, "jakarta", 10*time.Millisecond, func() { time.Sleep(lasts) })
	say(t, what, as)
	took := beside.took()
	// Seconds late past Nearcast as well: the machine has no time for anybody.
	starved := load.Quantile(took, 1) > attemptTimeout/stepsBeside
	for i, a := range as {
		var timeout net.Error
		switch {
		case a.Err == nil:
		case starved && errors.As(a.Err, &timeout) && timeout.Timeout():
			as[i].Times.Total, as[i].Err = attemptTimeout, nil
		default:
			t.Errorf("a new flow failed: %v", a.Err)
		}
	}
	return p99(as), load.Quantile(took, 0.99)
}

func p99(as []load.Attempt) time.Duration {
	var took []time.Duration
	for _, a := range as {
		if a.Err == nil {
			took = append(took, a.Times.Total)
		}
	}
	return load.Quantile(took, 0.99)
}

// manyConnections opens n connections from many source addresses of the city, some at a time.
func (d *deployment) manyConnections(t *testing.T, n, port int) []net.Conn {
	t.Helper()
	conns, errs := make([]net.Conn, n), make([]error, n)
	sources := d.CityClients("jakarta")
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				local := netip.AddrPortFrom(nthAddr(sources, int(i%200)+1), 0)
				ctx, cancel := context.WithTimeout(d.ctx, 30*time.Second)
				conns[i], errs[i] = d.NS("jakarta").Dial(ctx, "tcp", local, d.at(port))
				cancel()
			}
		})
	}
	wg.Wait()
	failed := 0
	for i, err := range errs {
		if err != nil {
			if failed == 0 {
				t.Errorf("connection %d: %v", i, err)
			}
			failed++
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d connections failed", failed, n)
	}
	return conns
}

// nthAddr returns the n-th address of an IPv4 prefix of 16 bits.
func nthAddr(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	b[2], b[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(b)
}

// trickle sends one byte on each connection, evenly over the interval, until ctx ends.
func trickle(ctx context.Context, conns []net.Conn) {
	tick := time.NewTicker(trickleInterval / time.Duration(len(conns)))
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % len(conns) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = conns[i].Write([]byte("x"))
		}
	}
}

// udpSources sends one datagram each from a million addresses and ports: tables are bounded, so the
// node's memory is too, and a real client is still served.
func (d *deployment) udpSources(t *testing.T) {
	const sources = 1_000_000
	edge := d.Nodes["sin-1"]
	before := metric(t, edge, "process_resident_memory_bytes")
	prefix := d.CityClients("jakarta")
	sent, begin := 0, time.Now()
	for range sources / 60_000 {
		c, err := d.NS("jakarta").ListenPacket(d.ctx, "udp4", netip.MustParseAddrPort("0.0.0.0:0"))
		if err != nil {
			t.Fatal(err)
		}
		p := ipv4.NewPacketConn(c)
		to := net.UDPAddrFromAddrPort(d.at(load.PortUDP))
		for n := range 62_500 {
			cm := &ipv4.ControlMessage{Src: nthAddr(prefix, n+1).AsSlice()}
			if _, err := p.WriteTo([]byte("one of a million"), cm, to); err == nil {
				sent++
			}
		}
		c.Close()
	}
	took := time.Since(begin)
	after := metric(t, edge, "process_resident_memory_bytes")
	t.Logf("%d datagrams from as many sources in %.1f s; the edge's memory went from %s to %s", sent, took.Seconds(),
		mib(before), mib(after))
	if sent < sources*9/10 {
		t.Errorf("only %d were sent", sent)
	}
	if after > 512<<20 {
		t.Errorf("the edge uses more than its cap of 512 MiB")
	}
	eventually(t, 60*time.Second, "a real client is served", func() error {
		ctx, cancel := context.WithTimeout(d.ctx, 2*time.Second)
		defer cancel()
		_, err := load.EchoDatagram(ctx, d.Dial("jakarta"), d.at(load.PortUDP), []byte("me too"), time.Second)
		return err
	})
}
