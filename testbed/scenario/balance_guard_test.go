package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/load"
)

// guardedPort is that of the listener whose rules change; the site's flows have others.
const guardedPort = 8090

// guardedSite is a site whose nodes balance and guard on the same interfaces: the router brings a flow to any node,
// and the rules hold where it is taken.
type guardedSite struct {
	*deployment
	listener string
	at       [2]netip.AddrPort // IPv4, IPv6
}

// listen creates the listener, with an accelerator of its own.
func (g *guardedSite) listen(t *testing.T) {
	var made struct {
		ID        string       `json:"id"`
		Addresses []netip.Addr `json:"addresses"`
	}
	g.run(t, &made, "accelerator", "create", "guarded", "--dual-stack") // two listeners do not share a port of endpoints
	for _, a := range made.Addresses {
		family := 0
		if a.Is6() {
			family = 1
		}
		g.at[family] = netip.AddrPortFrom(a, guardedPort)
	}
	g.run(t, &made, "listener", "create", "--accelerator", "guarded", "--protocol", "tcp", "--ports", fmt.Sprint(guardedPort))
	g.listener = made.ID
	g.run(t, &made, "group", "create", "--listener", g.listener, "--region", g.app.Home, "--health-protocol", "http",
		"--health-port", fmt.Sprint(load.PortHTTP), "--health-path", "/health", "--health-interval", "1s",
		"--port-override", fmt.Sprintf("%d:%d", guardedPort, load.PortHTTP),
		"--endpoint", g.EndpointAddr(g.app.Home, 0).String())
	eventually(t, 60*time.Second, "the listener serves", func() error {
		_, err := g.fetchAll(g.host(), 12)
		return err
	})
}

// host are the addresses of the city's own machine.
func (g *guardedSite) host() [2]netip.Addr {
	h := g.Host("london")
	return [2]netip.Addr{h.V4, h.V6}
}

// fetchAll asks n times, at once, by turns over IPv4 and IPv6 (an address that isn't there is left out), and returns
// how many were answered with the right bytes, with the error of one that wasn't.
func (g *guardedSite) fetchAll(from [2]netip.Addr, n int) (ok int, err error) {
	var mu sync.Mutex // guards ok and err
	var all sync.WaitGroup
	for i := range n {
		family := i % 2
		if !from[family].IsValid() {
			family = 1 - family
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(g.ctx, 20*time.Second)
			defer cancel()
			dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
				return g.NS("london").Dial(ctx, network, netip.AddrPortFrom(from[family], 0), g.at[family])
			}
			_, e := load.Fetch(ctx, dial, g.at[family], 20_000)
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				err = fmt.Errorf("from %v: %w", from[family], e)
			} else {
				ok++
			}
		})
	}
	all.Wait()
	return ok, err
}

// silent tries n connections at once, and returns how many were not answered for so long.
func (g *guardedSite) silent(from [2]netip.Addr, n int, long time.Duration) int {
	var silent atomic.Int64
	var all sync.WaitGroup
	for i := range n {
		family := i % 2
		if !from[family].IsValid() {
			family = 1 - family
		}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(g.ctx, long)
			defer cancel()
			c, err := g.NS("london").Dial(ctx, "tcp", netip.AddrPortFrom(from[family], 0), g.at[family])
			var timeout net.Error
			switch {
			case err == nil:
				c.Close()
			case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
				silent.Add(1)
			}
		})
	}
	all.Wait()
	return int(silent.Load())
}

// counted adds up a counter of a kernel program over the nodes that run.
func (g *guardedSite) counted(t *testing.T, program, verdict, reason string) (sum int) {
	t.Helper()
	want := fmt.Sprintf("nearcast_kernel_%s_packets_total{reason=%q,verdict=%q} ", program, reason, verdict)
	for name, p := range g.Nodes {
		if p.PID() == 0 {
			continue
		}
		text := metrics(t, p)
		_, value, found := strings.Cut(text, want)
		if !found {
			t.Fatalf("%s has no %s", name, want)
		}
		value, _, _ = strings.Cut(value, "\n")
		n, err := strconv.ParseFloat(value, 64)
		g.do(t, err)
		sum += int(n)
	}
	return sum
}

// denied: who is denied gets no answer wherever the router brings it, and nobody else is in its way.
func (g *guardedSite) denied(t *testing.T) {
	network := g.CityClients("london")
	bad := [2]netip.Addr{network.Addr().Next(), g.host()[1]}
	good := [2]netip.Addr{g.host()[0]}
	g.run(t, nil, "listener", "update", g.listener, "--deny-from",
		fmt.Sprintf("%v,%v", network, netip.PrefixFrom(bad[1], 128)))
	eventually(t, 60*time.Second, "the rules hold at all nodes", func() error {
		if n := g.silent(bad, 12, silent); n < 12 {
			return fmt.Errorf("%d of 12 connections are not answered", n)
		}
		return nil
	})
	const tries = 40
	eventually(t, 60*time.Second, "enough SYNs come in to show something", func() error { // a busy machine sends them late
		dropped, came := g.counted(t, "guard", "drop", "denied"), g.counted(t, "balance", "local", "forwarded")
		if n := g.silent(bad, tries, silent); n < tries {
			t.Errorf("%d of %d connections of who is denied were answered", tries-n, tries)
		}
		dropped, came = g.counted(t, "guard", "drop", "denied")-dropped, g.counted(t, "balance", "local", "forwarded")-came
		t.Logf("%d connections of who is denied: %d packets dropped; %d packets of all came in at another node", tries, dropped, came)
		if dropped < tries || came < tries/4 {
			return fmt.Errorf("%d connections: %d packets dropped, %d came in at another node", tries, dropped, came)
		}
		return nil
	})
	if n, err := g.fetchAll(good, 12); n < 12 {
		t.Errorf("who is not denied: %d of 12 were answered: %v", n, err)
	}
	g.run(t, nil, "listener", "update", g.listener, "--deny-from", "")
	eventually(t, 60*time.Second, "who was denied is served again", func() error {
		_, err := g.fetchAll(bad, 12)
		return err
	})
}

// often: at each node a source has as many new connections as its rate allows.
func (g *guardedSite) often(t *testing.T) {
	const burst, tries = 5, 60
	g.run(t, nil, "listener", "update", g.listener, "--source-rate", fmt.Sprintf("1/%d", burst))
	client := g.CityClients("london").Addr()
	// Each try is another source, whose buckets are full.
	eventually(t, 60*time.Second, "the rate holds at all nodes", func() error {
		client = client.Next()
		before := g.counted(t, "guard", "drop", "source")
		n := tries - g.silent([2]netip.Addr{client}, tries, silent/3) // the next SYN comes after a second
		dropped := g.counted(t, "guard", "drop", "source") - before
		t.Logf("%d connections of one source at once: %d were taken, %d packets dropped", tries, n, dropped)
		if most := 3 * (burst + 2); n > most || n < 3 || dropped < tries/2 {
			return fmt.Errorf("%d of %d connections were taken, want 3 to %d; %d packets were dropped", n, tries, most, dropped)
		}
		return nil
	})
	if _, err := g.fetchAll([2]netip.Addr{client.Next()}, 1); err != nil {
		t.Errorf("another source: %v", err)
	}
	g.run(t, nil, "listener", "update", g.listener, "--source-rate", "")
	eventually(t, 60*time.Second, "there is no rate any more", func() error {
		_, err := g.fetchAll([2]netip.Addr{client}, 30)
		return err
	})
}

// flooded: under forged SYNs the nodes that own them answer with cookies, wherever they come in, and who means it gets
// the right bytes.
func (g *guardedSite) flooded(t *testing.T) {
	for node := range g.Nodes { // cookies also while the queue has room, which this machine can't fill three times
		g.do(t, g.NS(node).Sysctl("net.ipv4.tcp_syncookies", "2"))
	}
	g.run(t, nil, "listener", "update", g.listener, "--syn-cookies-above", "10/10")
	eventually(t, 60*time.Second, "cookies at all nodes", func() error {
		before := g.counted(t, "guard", "answer", "answered")
		if _, err := g.fetchAll(g.host(), 60); err != nil {
			return err
		}
		if n := g.counted(t, "guard", "answer", "answered") - before; n < 10 {
			return fmt.Errorf("%d of 60", n)
		}
		return nil
	})
	answered, came := g.counted(t, "guard", "answer", "answered"), g.counted(t, "balance", "local", "forwarded")
	ctx, stop := context.WithTimeout(g.ctx, 4*time.Second)
	defer stop()
	var forged int
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, err := g.forge(ctx, 1500)
		if err != nil {
			t.Error(err)
		}
		forged = n
	}()
	fetched, all := 0, 0
	for ctx.Err() == nil {
		n, err := g.fetchAll(g.host(), 4)
		if fetched, all = fetched+n, all+4; err != nil {
			t.Errorf("under forged SYNs: %v", err)
		}
	}
	<-done
	answered, came = g.counted(t, "guard", "answer", "answered")-answered, g.counted(t, "balance", "local", "forwarded")-came
	t.Logf("%d forged SYNs: %d cookies, %d packets came in at another node; %d of %d clients got their bytes", forged, answered,
		came, fetched, all)
	// A third of all would be those that come in where they belong.
	if answered*10 < forged*6 || came < forged/3 {
		t.Errorf("of %d forged SYNs %d were answered with cookies, and %d packets came in at another node", forged, answered, came)
	}
	g.run(t, nil, "listener", "update", g.listener, "--syn-cookies-above", "")
}

// forge sends SYNs of sources that do not exist from the city, so many a second, by turns over IPv4 and IPv6, until
// ctx ends.
func (g *guardedSite) forge(ctx context.Context, perSecond int) (sent int, err error) {
	err = g.NS("london").Do(func() error {
		var fds [2]int
		for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			fds[i] = fd
		}
		to4 := &unix.SockaddrInet4{Addr: g.at[0].Addr().As4()}
		to6 := &unix.SockaddrInet6{Addr: g.at[1].Addr().As16()}
		rnd := rand.New(rand.NewPCG(5, 6))
		for began := time.Now(); ctx.Err() == nil; time.Sleep(time.Millisecond) {
			due := int(time.Since(began).Seconds() * float64(perSecond))
			for due = min(due, sent+20); sent < due; sent++ { // no queue on the way is longer after a pause
				var to unix.Sockaddr = to4
				source := netip.AddrFrom4([4]byte{198, 18 + byte(rnd.IntN(2)), byte(rnd.IntN(256)), byte(1 + rnd.IntN(254))})
				if sent%2 == 1 {
					to = to6
					source = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 13: byte(rnd.IntN(256)), 14: byte(rnd.IntN(256)), 15: 1})
				}
				syn := forgedSYN(netip.AddrPortFrom(source, uint16(1024+rnd.IntN(60000))), g.at[sent%2], rnd.Uint32())
				if err := unix.Sendto(fds[sent%2], syn, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
					return err
				}
			}
		}
		return nil
	})
	return sent, err
}

// forgedSYN is an IP packet that asks for a connection.
func forgedSYN(from, to netip.AddrPort, seq uint32) []byte {
	be := binary.BigEndian
	tcp := be.AppendUint16(be.AppendUint16(nil, from.Port()), to.Port())
	tcp = be.AppendUint32(be.AppendUint32(tcp, seq), 0)
	tcp = append(tcp, 6<<4, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xa0) // SYN, the window, an MSS
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, tcp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(be.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	be.PutUint16(tcp[16:], ^uint16(sum))
	var ip []byte
	if from.Addr().Is4() { // the kernel fills in length and checksum
		ip = []byte{0x45, 0, 0, byte(20 + len(tcp)), 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}
	} else {
		ip = []byte{0x60, 0, 0, 0, 0, byte(len(tcp)), unix.IPPROTO_TCP, 64}
	}
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(ip, tcp...)
}
