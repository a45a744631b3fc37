package guard

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/blast"
	"github.com/nearcast/nearcast/testbed/load"
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
	forged   = netip.MustParsePrefix("32.0.0.0/3") // where package blast's sources are
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
func (w *world) flood(ctx context.Context, perSecond int) (sent int, err error) {
	ours, err := w.attacker.MAC("wire")
	if err != nil {
		return 0, err
	}
	theirs, err := w.server.MAC("attack")
	if err != nil {
		return 0, err
	}
	stream := blast.Stream{TCP: true, From: ours, To: theirs, Destination: service, Networks: blast.NetworksMax}
	return blast.Flood{Stream: stream, PerSecond: perSecond}.Run(ctx, w.attacker, "wire")
}

// patience bounds waits that end at once unless something is broken. knocksMin connections show something.
const (
	patience  = 30 * time.Second
	knocksMin = 20
)

// floodFullEnv makes TestSYNFlood long enough to compare latencies ("1"), which takes a quiet machine.
const floodFullEnv = "NEARCAST_FLOOD_FULL"

// Legitimate connections succeed while SYNs from forged sources come at 100,000 a second (or what this machine
// can send): the queue is full at once, and from then on the program answers with cookies. Phases of quiet and of
// flood take turns. With NEARCAST_FLOOD_FULL=1 they are longer, and what one connection of a hundred takes in the
// flood is at most twice what it takes in quiet, in half of the rounds or more.
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
		must(t, w.ask(patience)) // no flood: no cookies
	}
	if n := counted(t, g, Answered); n != 0 {
		t.Errorf("%d cookies in peace", n)
	}
	full := os.Getenv(floodFullEnv) == "1"
	rounds, lasts := 2, 700*time.Millisecond
	if full {
		rounds, lasts = 5, 3*time.Second
	}
	var quiet, flood, ratios []float64
	for range rounds {
		q, f := w.knock(t, g, lasts, 0), w.knock(t, g, lasts, 100_000)
		quiet, flood, ratios = append(quiet, q), append(flood, f), append(ratios, f/q)
	}
	for _, list := range [][]float64{quiet, flood, ratios} {
		slices.Sort(list)
	}
	t.Logf("p99, medians of %d rounds: quiet %.0f µs, in the flood %.0f µs; ratio %.2f (%.2f to %.2f)", rounds,
		quiet[rounds/2], flood[rounds/2], ratios[rounds/2], ratios[0], ratios[rounds-1])
	if full && ratios[rounds/2] > 2 {
		t.Errorf("one connection of a hundred takes %.2f times as long in the flood", ratios[rounds/2])
	}
}

// knock makes connections for a while, with so many forged SYNs a second, and returns their p99 in µs.
func (w *world) knock(t *testing.T, g *Guard, lasts time.Duration, perSecond int) float64 {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var sent int
	done := make(chan error, 1)
	before := counted(t, g, Answered)
	if perSecond == 0 {
		done <- nil
	} else {
		go func() {
			var err error
			sent, err = w.flood(ctx, perSecond)
			done <- err
		}()
		eventually(t, "cookies", func() bool { return counted(t, g, Answered) > before+1000 })
	}
	began := time.Now()
	// A SYN that this machine was too busy to receive is sent again after 1, 2, 4 seconds and so on.
	k := load.Knocks{Addr: service, Every: 2 * time.Millisecond, Timeout: 2 * patience}
	must(t, w.client.Do(func() error {
		for k.Attempts() < knocksMin && time.Since(began) < 4*patience {
			run, stop := context.WithTimeout(ctx, lasts)
			k.Run(run)
			stop()
		}
		return nil
	}))
	stop()
	must(t, <-done)
	for _, err := range k.Errs {
		t.Log(err)
	}
	if len(k.Errs)*100 > k.Attempts() || k.Attempts() < knocksMin {
		t.Errorf("%d of %d connections failed with %d SYNs a second", len(k.Errs), k.Attempts(), perSecond)
	}
	q := func(share float64) time.Duration { return load.Quantile(k.FirstByte, share).Round(time.Microsecond) }
	t.Logf("%6d SYNs in %v, %6d answered with cookies: %d connections, %d failed, p50 %v, p99 %v", sent,
		time.Since(began).Round(10*time.Millisecond), counted(t, g, Answered)-before, k.Attempts(), len(k.Errs), q(0.5), q(0.99))
	return float64(q(0.99).Microseconds())
}

func counted(tb testing.TB, g *Guard, r Reason) uint64 {
	tb.Helper()
	counts, err := g.Counts()
	must(tb, err)
	return counts[r].Packets
}

func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited %v for %s", patience, what)
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
	must(t, w.ask(patience))
	must(t, next.Update(closed))
	if !refused() {
		t.Error("the program is not the new daemon's")
	}
	must(t, next.Close())
	must(t, Remove(cfg.PinDir))
	must(t, w.ask(patience))
	must(t, Remove(cfg.PinDir))
}
