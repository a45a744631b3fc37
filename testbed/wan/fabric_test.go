package wan

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTCPArrivesWhole checks every byte of a transfer through 2 % loss, in both families.
func TestTCPArrivesWhole(t *testing.T) {
	f := twoHosts(t, Params{Delay: 2 * time.Millisecond, Loss: 0.02, Rate: 200e6})
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			got, err := transfer(t.Context(), f.NS("a"), f.NS("b"), family.b, data)
			must(t, err)
			if sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("%d bytes of %d arrived, or other ones", len(got), len(data))
			}
		})
	}
	s := f.Stats()
	if c := s.link("a", "b"); c.Lost == 0 || c.Packets < 2*uint64(len(data))/1448 {
		t.Errorf("counters %+v: superpackets are not counted by segments", c)
	}
	if s.Malformed+s.WriteErrors+s.Overflow != 0 {
		t.Errorf("dropped without need: %+v", s)
	}
}

// TestUDPTrainsArriveWhole sends trains of datagrams in one call each (UDP_SEGMENT), through loss and a
// bottleneck which cut them apart, and checks every datagram that arrives, their order, and their number.
func TestUDPTrainsArriveWhole(t *testing.T) {
	const size, train, trains = 1200, 40, 200
	f := twoHosts(t, Params{
		Delay: 3 * time.Millisecond, Jitter: 2 * time.Millisecond, Loss: 0.02, Rate: 400e6, Queue: 64 << 20,
	})
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			before := f.Stats().link("a", "b")
			in, at := sink(t, f.NS("b"), family.b)
			out := dialUDP(t, f.NS("a"), at)
			raw, err := out.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
			}))
			must(t, err)
			b := make([]byte, size*train)
			for i := range trains {
				for j := range train {
					fill(b[j*size:][:size], uint64(i*train+j+1))
				}
				_, err := out.Write(b[:len(b)-i%7*100]) // the last one of a train may be shorter
				if err != nil {
					t.Fatal(err)
				}
			}
			passed := checkTrain(t, f, in, before, size, train, trains)
			t.Logf("%d of %d datagrams arrived", passed, train*trains)
		})
	}
}

func checkTrain(t *testing.T, f *Fabric, in io.Reader, before Counters, size, train, trains int) uint64 {
	t.Helper()
	var c Counters
	until(t, "all are through", func() bool {
		c = f.Stats().link("a", "b")
		return c.Packets+c.Lost+c.QueueDrops-before.Packets-before.Lost-before.QueueDrops == uint64(train*trains)
	})
	passed := c.Packets - before.Packets
	buf := make([]byte, 1<<16)
	var last uint64
	for range passed {
		n, err := in.Read(buf)
		must(t, err)
		seq := binary.BigEndian.Uint64(buf)
		want := make([]byte, size)
		fill(want, seq)
		if i := int(seq-1) / train; int(seq-1)%train == train-1 {
			want = want[:size-i%7*100]
		}
		if string(want) != string(buf[:n]) {
			t.Fatalf("datagram %d is damaged: %d bytes", seq, n)
		}
		if seq <= last {
			t.Fatalf("datagram %d after %d", seq, last)
		}
		last = seq
	}
	return passed
}

// TestCutWorksOneWay cuts one direction. That nothing comes through is shown without waiting: what was sent
// during the cut must not come before what is sent after it.
func TestCutWorksOneWay(t *testing.T) {
	f := twoHosts(t, Params{Delay: time.Millisecond})
	inB, atB := sink(t, f.NS("b"), families[0].b)
	inA, atA := sink(t, f.NS("a"), families[0].a)
	toB, toA := dialUDP(t, f.NS("a"), atB), dialUDP(t, f.NS("b"), atA)
	say := func(c io.Writer, n uint64) {
		t.Helper()
		_, err := c.Write(binary.BigEndian.AppendUint64(nil, n))
		must(t, err)
	}
	must(t, f.Cut("a", "b"))
	// The engine takes a change over at its next round: let one packet wait for it.
	until(t, "the cut holds", func() bool { say(toB, 1); return f.Stats().link("a", "b").Blocked > 0 })
	passed := f.Stats().link("a", "b").Packets
	for range 10 {
		say(toB, 2)
		say(toA, 3)
	}
	say(toA, 9)
	if got := drain(t, inA, 9); len(got) != 10 {
		t.Errorf("the other direction let %v pass", got)
	}
	until(t, "all are dropped", func() bool { return f.Stats().link("a", "b").Blocked >= 11 })
	if now := f.Stats().link("a", "b").Packets; now != passed {
		t.Errorf("%d packets passed the cut", now-passed)
	}
	must(t, f.Restore("a", "b"))
	until(t, "it is restored", func() bool { say(toB, 9); return f.Stats().link("a", "b").Packets > passed })
	if got := drain(t, inB, 9); slices.Contains(got, 2) {
		t.Error("a packet came through the cut")
	}
}

func TestBlockUDPOnly(t *testing.T) {
	f := twoHosts(t, Params{})
	must(t, f.Block("a", "b", UDP))
	got, err := transfer(t.Context(), f.NS("a"), f.NS("b"), families[1].b, []byte("hello"))
	must(t, err)
	if string(got) != "hello" {
		t.Errorf("TCP brought %q", got)
	}
	_, at := sink(t, f.NS("b"), families[1].b)
	c := dialUDP(t, f.NS("a"), at)
	before := f.Stats().link("a", "b").Packets
	blast(t, c, 5, 100, 5, 0)
	until(t, "UDP is blocked", func() bool { return f.Stats().link("a", "b").Blocked == 5 })
	must(t, f.Unblock("a", "b", UDP))
	until(t, "UDP passes again", func() bool {
		blast(t, c, 1, 100, 1, 0)
		return f.Stats().link("a", "b").Packets > before
	})
	if rtt := ping(t, f.NS("a"), families[1].b, 1, 0); len(rtt) != 1 {
		t.Error("no ping")
	}
}

// TestLiveParameters changes delay and loss under traffic.
func TestLiveParameters(t *testing.T) {
	f := twoHosts(t, Params{Delay: time.Millisecond})
	ping(t, f.NS("a"), families[0].b, 1, 0)
	must(t, f.Change(func(c *Change) error {
		return errors.Join(c.Set("a", "b", ms(80)), c.Set("b", "a", ms(40)))
	}))
	if d, _ := f.Delay("a", "b"); d != 80*time.Millisecond {
		t.Errorf("delay is %v", d)
	}
	ping(t, f.NS("a"), families[0].b, 1, 0) // the engine may have slept over the change until now
	if rtt := ping(t, f.NS("a"), families[0].b, 1, 0)[0]; rtt < 120*time.Millisecond-tick {
		t.Errorf("round trip of %v through 80 + 40 ms", rtt)
	}
	must(t, f.Update("a", "b", func(p *Params) { p.Loss = 1 }))
	_, at := sink(t, f.NS("b"), families[0].b)
	c := dialUDP(t, f.NS("a"), at)
	until(t, "all is lost", func() bool { blast(t, c, 1, 50, 1, 0); return f.Stats().link("a", "b").Lost > 20 })
}

// TestAnycast attaches one address to different hosts for different cities, moves it, and spreads it.
func TestAnycast(t *testing.T) {
	any4, any6 := addr("192.0.2.1"), addr("fd00:a::1")
	var attach []Route
	for _, a := range []netip.Addr{any4, any6} {
		attach = append(attach, Route{Prefix: single(a), From: "east", To: []string{"n1"}},
			Route{Prefix: single(a), From: "west", To: []string{"n2"}})
	}
	own := []netip.Prefix{single(any4), single(any6)}
	spec := Spec{Routes: attach, Links: []Link{{From: "*", To: "*", Params: Params{Delay: time.Millisecond}}}}
	for i, name := range []string{"east", "west", "n1", "n2"} {
		spec.Hosts = append(spec.Hosts, Host{Name: name, Addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), addr(fmt.Sprintf("fd00::%d", i+1)),
		}})
	}
	// Two nodes with the same address: not routed by that, only theirs.
	f, _ := ForTest(t, "anycast", spec)
	for _, name := range []string{"n1", "n2"} {
		for _, p := range own {
			must(t, f.NS(name).AddAddr("lo", p))
			echo(t, f.NS(name), netip.AddrPortFrom(p.Addr(), 7), name+":")
		}
	}
	from := func(city string, a netip.Addr) string {
		t.Helper()
		return ask(t, dialUDP(t, f.NS(city), netip.AddrPortFrom(a, 7)))
	}
	for _, a := range []netip.Addr{any4, any6} {
		if e, w := from("east", a), from("west", a); e != "n1:?" || w != "n2:?" {
			t.Errorf("%v is at %s for east, %s for west", a, e, w)
		}
	}
	must(t, f.Attach(Route{Prefix: single(any4), From: "east", To: []string{"n2"}}))
	until(t, "the address has moved", func() bool { return from("east", any4) == "n2:?" })
	if e := from("east", any6); e != "n1:?" {
		t.Errorf("the other family has moved as well: %s", e)
	}
	must(t, f.Attach(Route{Prefix: single(any6), From: "*", To: []string{"n1", "n2"}}))
	must(t, f.Detach(single(any6), "east"))
	seen := map[string]int{}
	until(t, "both hosts get flows", func() bool { seen[from("east", any6)]++; return len(seen) == 2 })
	c := dialUDP(t, f.NS("east"), netip.AddrPortFrom(any6, 7))
	first := ask(t, c)
	for range 20 {
		if again := ask(t, c); again != first {
			t.Fatalf("one flow went to %s and %s", first, again)
		}
	}
}

// TestNoRouteAndMTU counts what has nowhere to go, and what is too big for a line.
func TestNoRouteAndMTU(t *testing.T) {
	f := twoHosts(t, Params{MTU: 1000})
	c := dialUDP(t, f.NS("a"), netip.MustParseAddrPort("203.0.113.5:9"))
	blast(t, c, 3, 100, 3, 0)
	until(t, "no route is counted", func() bool { return f.Stats().NoRoute >= 3 })
	in, at := sink(t, f.NS("b"), families[0].b)
	d := dialUDP(t, f.NS("a"), at)
	blast(t, d, 1, 1000, 1, 0)
	until(t, "the big one is dropped", func() bool { return f.Stats().link("a", "b").TooBig == 1 })
	_, err := d.Write(binary.BigEndian.AppendUint64(nil, 9))
	must(t, err)
	if got := drain(t, in, 9); len(got) != 0 {
		t.Errorf("the black hole let %v pass", got)
	}
}

func TestBuildFailsCleanly(t *testing.T) {
	f := twoHosts(t, Params{})
	if _, err := Build(f.set, Spec{Hosts: []Host{{Name: "a"}}}); err == nil {
		t.Error("built a second core in one set")
	}
	// The first Run is ForTest's, on its way. Were this one earlier, it would go on for ever.
	until(t, "it runs", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.running
	})
	if err := f.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
	if f.NS("c") != nil {
		t.Error("a host that is not there")
	}
}
