package dispatch

import (
	"time"

	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/nearcast/nearcast/testbed/netns"
)

// A process is what one daemon has of the dispatcher: its Dispatcher and its sockets.
type process struct {
	name string
	d    *Dispatcher
	tcp  net.Listener
	udp  *net.UDPConn
}

// start takes over as a new daemon does.
func (w *world) start(t *testing.T, name, pins string) *process {
	t.Helper()
	p := &process{name: name, d: w.load(t, Config{PinDir: pins})}
	p.tcp, p.udp = w.tcp(t, name, loopback4), w.udp(t, name, loopback4)
	must(t, p.d.SetSockets([]Group{{0, TCP, IPv4, conns(t, p.tcp)}, {0, UDP, IPv4, conns(t, p.udp)}}))
	return p
}

func TestPinsOutliveTheDaemon(t *testing.T) {
	w, pins := newWorld(t), pinDir(t)
	first := w.start(t, "first", pins)
	must(t, first.d.Update([]Rule{{accelerated4, Ports{1, 1000}, TCP, 0}, {accelerated4, Ports{80, 80}, UDP, 0}}))
	must(t, first.d.Close())
	w.wantAnswer(t, addrPort(v4, 80), "first") // its sockets are open: that is enough
	first.tcp.Close()
	w.wantAnswer(t, addrPort(v4, 80), "refused")

	second := w.start(t, "second", pins) // no Update: the rules are still there
	w.wantAnswer(t, addrPort(v4, 80), "second")
	if s, err := second.d.Stats(); err != nil || s.Prefixes != 2 || s.Ranges != 2 {
		t.Errorf("stats of what was found: %+v, %v", s, err)
	}
	must(t, second.d.Update([]Rule{{accelerated4, Ports{443, 443}, TCP, 0}}))
	w.wantAnswer(t, addrPort(v4, 443), "second")
	w.wantAnswer(t, addrPort(v4, 80), "refused")

	must(t, second.d.Close())
	must(t, Remove(pins))
	must(t, Remove(pins))
	// The kernel detaches a link whose last reference has gone a moment later, from a work queue.
	for end := time.Now().Add(patience); w.ask(t, addrPort(v4, 443)) != "refused" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	w.wantAnswer(t, addrPort(v4, 443), "refused")
	third := w.start(t, "third", pins)
	w.wantAnswer(t, addrPort(v4, 443), "refused")
	if s, err := third.d.Stats(); err != nil || s.Prefixes != 0 || s.Selected != 0 {
		t.Errorf("stats of a new start: %+v, %v", s, err)
	}
}

func TestOnlyTheLiveProcessChangesRules(t *testing.T) {
	w, pins := newWorld(t), pinDir(t)
	first := w.start(t, "first", pins)
	rules := []Rule{{accelerated4, everyPort, TCP, 0}}
	must(t, first.d.Update(rules))
	early := w.load(t, Config{PinDir: pins})
	if err := early.Update(nil); !errors.Is(err, ErrTakenOver) {
		t.Errorf("a process without sockets changed the rules: %v", err)
	}
	second := w.start(t, "second", pins)
	if err := first.d.Update(nil); !errors.Is(err, ErrTakenOver) {
		t.Errorf("a process that was taken over changed the rules: %v", err)
	}
	if err := first.d.SetSockets(nil); !errors.Is(err, ErrTakenOver) {
		t.Errorf("a process that was taken over took back: %v", err)
	}
	for p, want := range map[*process]bool{first: false, second: true} {
		if live, err := p.d.Live(); err != nil || live != want {
			t.Errorf("%s live: %v, %v", p.name, live, err)
		}
	}
	w.wantAnswer(t, addrPort(v4, 80), "second")
}

func TestPinsOfAnotherNamespaceAreRefused(t *testing.T) {
	w, pins := newWorld(t), pinDir(t)
	w.start(t, "first", pins)
	d, err := Load(Config{PinDir: pins, NetNS: w.client.Path()})
	must(t, err)
	defer d.Close()
	if err := d.Attach(); err == nil {
		t.Error("attached to a namespace that the pins are not for")
	}
	if _, err := Load(Config{PinDir: t.TempDir()}); err == nil {
		t.Error("a directory that is on no BPF file system was accepted")
	}
}

// UDP flows that a process holds stay with it through several hand-overs, until it releases them.
func TestHeldFlows(t *testing.T) {
	w, pins := newWorld(t), pinDir(t)
	dst := addrPort(v4, 4433)
	dial := func() net.Conn {
		c, err := w.client.Dial(context.Background(), "udp", netip.AddrPort{}, dst)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	say := func(c net.Conn, what string) {
		t.Helper()
		_, err := io.WriteString(c, what)
		must(t, err)
	}
	first := w.start(t, "first", pins)
	must(t, first.d.Update([]Rule{{accelerated4, everyPort, UDP, 0}}))
	old, dropped := dial(), dial()
	say(old, "1")
	flow := Flow{Remote: wantDatagram(t, first.udp, "1"), Local: dst}
	say(dropped, "2")
	wantDatagram(t, first.udp, "2")
	must(t, first.d.Hold([]Flow{flow}))

	second := w.start(t, "second", pins)
	say(old, "3")
	wantDatagram(t, first.udp, "3")
	say(dropped, "4")
	wantDatagram(t, second.udp, "4")
	young := dial()
	say(young, "5")
	must(t, second.d.Hold([]Flow{{Remote: wantDatagram(t, second.udp, "5"), Local: dst}}))

	third := w.start(t, "third", pins)
	say(old, "6")
	wantDatagram(t, first.udp, "6")
	say(young, "7")
	wantDatagram(t, second.udp, "7")
	must(t, first.d.Release([]Flow{flow, flow}))
	say(old, "8")
	wantDatagram(t, third.udp, "8")
	say(young, "9")
	wantDatagram(t, second.udp, "9")
	second.udp.Close() // the holder dies: its flows are the live process's
	say(young, "10")
	wantDatagram(t, third.udp, "10")

	s, err := third.d.Stats()
	must(t, err)
	if s.Held != 4 {
		t.Errorf("held %d datagrams, want 4", s.Held)
	}
}

// Twenty daemons follow each other under load: no connection fails, no SYN is sent twice.
func TestTwentyHandOvers(t *testing.T) {
	w, pins := newWorld(t), pinDir(t)
	running := w.start(t, "daemon0", pins)
	must(t, running.d.Update([]Rule{{accelerated4, everyPort, TCP, 0}, {accelerated4, everyPort, UDP, 0}}))
	watch := w.watchSYNs(t)

	run, stop := context.WithCancel(context.Background())
	defer stop()
	var connected atomic.Int64
	clients, ctx := errgroup.WithContext(run)
	for range 3 {
		clients.Go(func() error {
			for ctx.Err() == nil {
				if got := w.ask(t, addrPort(v4, 443)); len(got) < 6 || got[:6] != "daemon" {
					return fmt.Errorf("connect: %s", got)
				}
				connected.Add(1)
			}
			return nil
		})
	}
	flow, err := w.client.Dial(ctx, "udp", netip.AddrPort{}, addrPort(v4, 53))
	must(t, err)
	defer flow.Close()
	io.WriteString(flow, "first")
	holder := running
	must(t, holder.d.Hold([]Flow{{Remote: wantDatagram(t, holder.udp, "first"), Local: addrPort(v4, 53)}}))

	old := []*process{}
	for i := range 20 {
		next := w.start(t, fmt.Sprint("daemon", i+1), pins)
		old = append(old, running)
		running = next
		for goal := connected.Load() + 20; connected.Load() < goal; {
			if live, err := running.d.Live(); !live || err != nil {
				t.Fatalf("daemon %d is not live: %v", i+1, err)
			}
			if ctx.Err() != nil {
				t.Fatalf("with daemon %d: %v", i+1, clients.Wait())
			}
		}
		if i < generations-1 {
			io.WriteString(flow, "again")
			wantDatagram(t, holder.udp, "again")
		}
		if len(old) > generations-1 { // the oldest one has drained
			old[0].tcp.Close()
			old[0].udp.Close()
			must(t, old[0].d.Close())
			old = old[1:]
		}
	}
	stop()
	must(t, clients.Wait())
	watch.check(t)
	t.Logf("%d connections during 20 hand-overs", connected.Load())
}

// TestNamespaceGone: a container that is made anew finds the pins of the one before, whose namespace took the
// attachment with it.
func TestNamespaceGone(t *testing.T) {
	dir := pinDir(t)
	set := netns.ForTest(t, "sk_lookup")
	ns, err := set.New("gone")
	must(t, err)
	d, err := Load(Config{PinDir: dir, NetNS: ns.Path()})
	must(t, err)
	must(t, d.Attach())
	must(t, d.Close())
	must(t, set.Delete("gone"))
	w := newWorld(t)
	l := w.tcp(t, "edge", loopback4)
	// One worker of the kernel lets go of all namespaces of the machine, one after the other.
	for deadline := time.Now().Add(4 * patience); ; time.Sleep(20 * time.Millisecond) {
		again, err := Load(Config{PinDir: dir, NetNS: w.server.Path()})
		must(t, err)
		if err = again.Attach(); err != nil && time.Now().Before(deadline) {
			must(t, again.Close())
			continue
		}
		t.Cleanup(func() { again.Close() })
		must(t, err)
		must(t, again.SetSockets([]Group{{0, TCP, IPv4, conns(t, l)}}))
		must(t, again.Update([]Rule{{accelerated4, everyPort, TCP, 0}}))
		break
	}
	w.wantAnswer(t, addrPort(v4, 443), "edge")
}
