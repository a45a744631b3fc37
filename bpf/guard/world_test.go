package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

// The world of these tests: a server with two wires, to a client and to an attacker, from behind which every
// address may come.
type world struct {
	client, attacker, server *netns.NS
}

var (
	service  = at("192.0.2.7:80")
	attacked = netip.MustParsePrefix("192.0.2.0/24")
	forged   = netip.MustParsePrefix("198.18.0.0/15")
)

func newWorld(tb testing.TB) *world {
	tb.Helper()
	set := netns.ForTest(tb, "XDP")
	w := &world{}
	for name, ns := range map[string]**netns.NS{"client": &w.client, "attack": &w.attacker, "server": &w.server} {
		var err error
		*ns, err = set.New(name)
		must(tb, err)
	}
	for i, outside := range []*netns.NS{w.client, w.attacker} {
		dev := []string{"client", "attack"}[i]
		must(tb, netns.Veth(netns.End{NS: outside, Dev: "wire"}, netns.End{NS: w.server, Dev: dev}))
		ours, theirs := fmt.Sprintf("10.9.%d.1", i), fmt.Sprintf("10.9.%d.2", i)
		must(tb, w.server.AddAddr(dev, netip.PrefixFrom(netip.MustParseAddr(ours), 24)))
		must(tb, outside.AddAddr("wire", netip.PrefixFrom(netip.MustParseAddr(theirs), 24)))
		must(tb, outside.AddRoute(netns.Route{Dst: attacked, Dev: "wire", Via: netip.MustParseAddr(ours)}))
		must(tb, w.server.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0"))
	}
	must(tb, w.server.AddRoute(netns.Route{Dst: attacked, Local: true}))
	mac, err := w.attacker.MAC("wire")
	must(tb, err)
	hop := netip.MustParseAddr("10.9.1.9") // nobody who answers: the attacker only throws away
	must(tb, w.server.AddNeighbour("attack", hop, mac))
	must(tb, w.server.AddRoute(netns.Route{Dst: forged, Dev: "attack", Via: hop}))
	return w
}

// attach guards both wires.
func (w *world) attach(tb testing.TB, g *Guard, mode Mode) {
	tb.Helper()
	must(tb, w.server.Do(func() error {
		for _, dev := range []string{"client", "attack"} {
			i, err := net.InterfaceByName(dev)
			if err != nil {
				return err
			}
			if _, err := g.Attach(i.Index, mode); err != nil {
				return err
			}
		}
		return nil
	}))
}

// passOutside attaches a program that passes everything at the far ends of the wires: without one, what a native
// program sends back on a veth stays in its ring.
func (w *world) passOutside(tb testing.TB) {
	tb.Helper()
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
	must(tb, err)
	tb.Cleanup(func() { pass.Close() })
	for _, ns := range []*netns.NS{w.client, w.attacker} {
		must(tb, ns.Do(func() error {
			dev, err := net.InterfaceByName("wire")
			if err != nil {
				return err
			}
			l, err := link.AttachXDP(link.XDPOptions{Program: pass, Interface: dev.Index, Flags: link.XDPDriverMode})
			if err == nil {
				tb.Cleanup(func() { l.Close() })
			}
			return err
		}))
	}
}

// serve answers every connection with one byte.
func (w *world) serve(tb testing.TB) {
	tb.Helper()
	l, err := w.server.Listen(context.Background(), "tcp", service)
	must(tb, err)
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write([]byte("x"))
			}()
		}
	}()
}

// ask connects and waits for the byte.
func (w *world) ask(timeout time.Duration) error {
	ctx, stop := context.WithTimeout(context.Background(), timeout)
	defer stop()
	c, err := w.client.Dial(ctx, "tcp", netip.AddrPort{}, service)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// flood sends SYNs with forged sources, up to so many a second, until ctx ends, and returns how many.
func (w *world) flood(ctx context.Context, tb testing.TB, perSecond int) (sent int) {
	tb.Helper()
	ours, err := w.attacker.MAC("wire")
	must(tb, err)
	theirs, err := w.server.MAC("attack")
	must(tb, err)
	err = w.attacker.Do(func() error {
		dev, err := net.InterfaceByName("wire")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: 0x0008}
		rnd := rand.New(rand.NewPCG(3, 4))
		began := time.Now()
		for ctx.Err() == nil {
			due := int(time.Since(began).Seconds() * float64(perSecond))
			for range min(due-sent, 2000) {
				src := forged.Addr().As4()
				src[1] += byte(rnd.Uint32() & 1)
				src[2], src[3] = byte(rnd.Uint32()), byte(rnd.Uint32())
				frame := packet{src: netip.AddrPortFrom(netip.AddrFrom4(src), uint16(1024+rnd.IntN(60000))),
					dst: service, proto: TCP, seq: rnd.Uint32(), options: []byte{2, 4, 5, 0xb4}}.bytes()
				copy(frame, theirs)
				copy(frame[6:], ours)
				if err := unix.Sendto(fd, frame, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
					return err
				}
				sent++
			}
			if due <= sent {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	must(tb, err)
	return sent
}

// Legitimate connections succeed while SYNs from forged sources come at 100,000 a second (or what this machine
// can send): the queue is full at once, and from then on the program answers with cookies.
func TestSYNFlood(t *testing.T) {
	w := newWorld(t)
	w.passOutside(t)
	for _, mode := range []Mode{Generic, Native} {
		t.Run(mode.String(), func(t *testing.T) {
			w.floodWith(t, mode)
		})
	}
}

func (w *world) floodWith(t *testing.T, mode Mode) {
	rules := Rules{
		Addresses: []Address{{Prefix: attacked, Exclusive: true}},
		Listeners: []Listener{{Name: "web", Prefixes: []netip.Prefix{attacked}, Ports: []Ports{{80, 80}}, Proto: TCP,
			Flood: Rate{PerSecond: 1000, Burst: 200}}},
	}
	g := loaded(t, rules, Config{})
	w.attach(t, g, mode)
	w.serve(t)
	for range 20 {
		must(t, w.ask(5*time.Second)) // no flood: no cookies
	}
	if n := counted(t, g, Answered); n != 0 {
		t.Errorf("%d cookies in peace", n)
	}
	ctx, stop := context.WithTimeout(context.Background(), 4*time.Second)
	defer stop()
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		sent.Store(int64(w.flood(ctx, t, 100_000)))
	}()
	eventually(t, "cookies", func() bool { return counted(t, g, Answered) > 1000 })
	var took []time.Duration
	failed := 0
	for ctx.Err() == nil {
		began := time.Now()
		if err := w.ask(5 * time.Second); err != nil {
			failed++
			t.Log(err)
		}
		took = append(took, time.Since(began))
		time.Sleep(2 * time.Millisecond)
	}
	<-done
	if len(took) < 20 || failed*100 > len(took) {
		t.Errorf("%d of %d connections failed", failed, len(took))
	}
	slices.Sort(took)
	t.Logf("%d SYNs in 4 s, %d answered with cookies; %d connections, %d failed, p50 %v, p99 %v", sent.Load(),
		counted(t, g, Answered), len(took), failed, took[len(took)/2], took[len(took)*99/100])
}

func counted(tb testing.TB, g *Guard, r Reason) uint64 {
	tb.Helper()
	counts, err := g.Counts()
	must(tb, err)
	return counts[r].Packets
}

func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited 20 s for %s", what)
		}
	}
}

// A pinned program goes on when its daemon is gone, and the next one takes its place without a gap.
func TestPinnedProgramOutlivesTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	must(t, os.Mkdir(dir, 0o700))
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	cfg := Config{PinDir: filepath.Join(dir, "nearcast")}
	closed := Rules{Addresses: []Address{{Prefix: attacked, Exclusive: true}}}
	open := closed
	open.Listeners = []Listener{{Name: "web", Prefixes: []netip.Prefix{attacked}, Ports: []Ports{{80, 80}}, Proto: TCP}}

	g := loaded(t, closed, cfg)
	w.attach(t, g, Auto)
	refused := func() bool { return w.ask(300*time.Millisecond) != nil }
	if !refused() {
		t.Error("no listener, and yet an answer")
	}
	must(t, g.Close())
	if !refused() {
		t.Error("the program ended with its daemon")
	}
	next := loaded(t, open, cfg)
	w.attach(t, next, Auto)
	must(t, w.ask(5*time.Second))
	must(t, next.Update(closed))
	if !refused() {
		t.Error("the program is not the new daemon's")
	}
	must(t, next.Close())
	must(t, Remove(cfg.PinDir))
	must(t, w.ask(5*time.Second))
	must(t, Remove(cfg.PinDir))
}
