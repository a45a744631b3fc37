package listen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/netns"
)

// dispatcher attaches one to this namespace. Its rules are for loopback addresses that only this test uses.
func dispatcher(t testing.TB) *dispatch.Dispatcher {
	t.Helper()
	netns.RequireRoot(t, "attach an sk_lookup program")
	d, err := dispatch.Load(dispatch.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	return d
}

// ownLoopback is an address of 127.0.0.0/8 that no other test process uses.
func ownLoopback(n byte) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(64 + pid>>8&63), byte(pid), n})
}

func everyPort(a netip.Addr, p flow.Proto) Binding {
	return Binding{Listener: "l", Proto: p, Addr: a, Ports: model.PortRange{From: 1, To: 65535}}
}

// TestEveryPort: listeners of all ports cost a few sockets, keep the original destination, answer from it,
// and leave the machine's other services alone.
func TestEveryPort(t *testing.T) {
	d := dispatcher(t)
	f := start(t, Config{Dispatch: d})
	a, b := ownLoopback(1), ownLoopback(2)
	before := openFiles(t)
	must(t, f.Check([]Binding{everyPort(a, flow.TCP), everyPort(a, flow.UDP)}))
	must(t, f.Apply([]Binding{everyPort(a, flow.TCP), everyPort(a, flow.UDP)}))
	if n := openFiles(t) - before; n > 80 {
		t.Errorf("all ports of an address cost %d descriptors", n)
	}
	unused := freePorts(t, 1).From // by the machine's other services, which the kernel finds when nobody else serves
	for _, port := range []uint16{1, 22, unused, 33333, 65535} {
		at := netip.AddrPortFrom(a, port)
		if got, err := greet(at); err != nil || got != at.String() {
			t.Errorf("tcp %v says %q, %v", at, got, err)
		}
		for i := range 3 { // a connected client refuses answers from elsewhere
			payload := fmt.Sprintf("hello %d", i)
			if got, err := echo(at, payload); err != nil || got != at.String()+" "+payload {
				t.Errorf("udp %v says %q, %v", at, got, err)
			}
		}
	}
	// An address that is not accelerated, also on a port that is.
	own, err := net.Listen("tcp4", netip.AddrPortFrom(b, freePorts(t, 1).From).String())
	must(t, err)
	defer own.Close()
	at := own.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		if c, err := own.Accept(); err == nil {
			fmt.Fprint(c, "the machine's own")
			c.Close()
		}
	}()
	if got, err := greet(at); err != nil || got != "the machine's own" {
		t.Errorf("another service says %q, %v", got, err)
	}
	if _, err := greet(netip.AddrPortFrom(b, unused)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an address that is not accelerated answers: %v", err)
	}
	f.stop()
	if _, err := greet(netip.AddrPortFrom(a, unused)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a stopped Set answers: %v", err)
	}
	if s, err := d.Stats(); err != nil || s.Prefixes != 0 {
		t.Errorf("a stopped Set leaves rules: %+v, %v", s, err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestChangesLoseNothing: clients connect to ports that stay while others come and go.
func TestChangesLoseNothing(t *testing.T) {
	f := start(t, Config{Dispatch: dispatcher(t)})
	a := ownLoopback(3)
	ports := func(from, to uint16) Binding {
		return Binding{Listener: "l", Proto: flow.TCP, Addr: a, Ports: model.PortRange{From: from, To: to}}
	}
	must(t, f.Apply([]Binding{ports(80, 80)}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var connected atomic.Int32
	go func() {
		for ctx.Err() == nil {
			if got, err := greet(netip.AddrPortFrom(a, 80)); err != nil || got != netip.AddrPortFrom(a, 80).String() {
				done <- fmt.Errorf("says %q: %w", got, err)
				return
			}
			connected.Add(1)
		}
		done <- nil
	}()
	for changes := 0; changes < 200 || connected.Load() < 100; changes++ {
		must(t, f.Apply([]Binding{ports(80, uint16(80+changes%1000)), ports(2000, 2000)}))
		if len(done) > 0 {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAnswerSockets: those that nobody uses are closed, those of a flow are not.
func TestAnswerSockets(t *testing.T) {
	var a answers
	defer a.close()
	at := netip.AddrPortFrom(ownLoopback(4), 4444)
	used, err := a.at(at)
	must(t, err)
	used.Use()
	idle, err := a.at(netip.AddrPortFrom(at.Addr(), 4445))
	must(t, err)
	if again, _ := a.at(at); again != used {
		t.Error("the same address and port has two sockets")
	}
	a.sweep(time.Now().Add(answerIdle / 2))
	if n := a.count.Load(); n != 2 {
		t.Errorf("%d sockets before any was idle", n)
	}
	a.sweep(time.Now().Add(2 * answerIdle))
	if n := a.count.Load(); n != 1 {
		t.Errorf("%d sockets, want the used one", n)
	}
	if _, err := idle.WriteBatch(nil); err != nil {
		t.Error(err)
	}
	used.Unuse()
	a.sweep(time.Now().Add(2 * answerIdle))
	if n := a.count.Load(); n != 0 {
		t.Errorf("%d sockets are left", n)
	}
	a.count.Store(answersMax)
	if _, err := a.at(at); err != errAnswersFull {
		t.Errorf("one too many: %v", err)
	}
	a.count.Store(0)
}

// TestSharedIPv6 also sends a datagram of no bytes, and one in fragments.
func TestSharedIPv6(t *testing.T) {
	f := start(t, Config{Dispatch: dispatcher(t)})
	at := netip.AddrPortFrom(lo6, freePorts(t, 1).From)
	one := model.PortRange{From: at.Port(), To: at.Port()}
	must(t, f.Apply([]Binding{{Listener: "l", Proto: flow.TCP, Addr: lo6, Ports: one}, {Listener: "l", Proto: flow.UDP, Addr: lo6, Ports: one}}))
	if got, err := greet(at); err != nil || got != at.String() {
		t.Errorf("tcp says %q, %v", got, err)
	}
	c, err := net.Dial("udp", at.String())
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	for _, payload := range [][]byte{nil, bytes.Repeat([]byte("x"), 20_000), []byte("last")} {
		_, err := c.Write(payload)
		must(t, err)
		buf := make([]byte, 32<<10)
		n, err := c.Read(buf)
		want := append([]byte(at.String()+" "), payload...)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("%d bytes came back of %d, %v", n, len(want), err)
		}
	}
}
