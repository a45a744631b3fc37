package udpio

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
	any4      = netip.MustParseAddrPort("0.0.0.0:0")
	any6      = netip.MustParseAddrPort("[::]:0")
)

// patience bounds waits that end at once unless something is broken.
const patience = 30 * time.Second

// until waits until done is true.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// next waits for what a channel brings.
func next[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return v
}

// nobodys is an address whose port nobody else is given, also when nobody listens there.
func nobodys(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(loopback4.Addr(), netns.FreePort(t))
}

func mustListen(t testing.TB, local netip.AddrPort, o Options) *Conn {
	t.Helper()
	c, err := Listen(local, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustDial(t testing.TB, remote netip.AddrPort, o Options) *Conn {
	t.Helper()
	c, err := Dial(netip.AddrPort{}, remote, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// readN reads n packets, with their bytes copied.
func readN(t testing.TB, c *Conn, n int) []Packet {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var got []Packet
	batch := make([]Packet, 7) // smaller than a train, so that trains are handed out in parts
	for len(got) < n {
		k, err := c.ReadBatch(batch)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", len(got), n, err)
		}
		for _, p := range batch[:k] {
			p.Data = bytes.Clone(p.Data)
			got = append(got, p)
		}
	}
	return got
}

func writeAll(t testing.TB, c *Conn, pkts []Packet) {
	t.Helper()
	for len(pkts) > 0 {
		n, err := c.WriteBatch(pkts)
		if err != nil && !Full(err) {
			t.Fatal(err)
		}
		pkts = pkts[n:]
	}
}

func on(a netip.Addr, c *Conn) netip.AddrPort { return netip.AddrPortFrom(a, c.LocalAddr().Port()) }

func TestEveryFamilyCarriesBytesAddressesAndTOS(t *testing.T) {
	v4, v6 := loopback4.Addr(), loopback6.Addr()
	other4 := netip.MustParseAddr("127.0.0.9")
	cases := []struct {
		name             string
		server, client   netip.AddrPort
		dst              netip.Addr // where the client sends to, and what the server replies from
		connected, noGSO bool
	}{
		{"v4", any4, any4, other4, false, false},
		{"v6", loopback6, loopback6, v6, false, false},
		{"v4 to dual stack", any6, any4, other4, false, false},
		{"dual stack to v4", any4, any6, other4, false, false},
		{"v6 to dual stack", any6, loopback6, v6, false, false},
		{"dual stack both", any6, any6, v4, false, false},
		{"connected v4", any4, any4, v4, true, false},
		{"connected v6", any6, any4, v6, true, false},
		{"singly", any4, any4, other4, false, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{NoGSO: tc.noGSO, NoGRO: tc.noGSO}
			server := mustListen(t, tc.server, o)
			var client *Conn
			if tc.connected {
				client = mustDial(t, on(tc.dst, server), o)
			} else {
				client = mustListen(t, tc.client, o)
			}
			sizes := []int{0, 1, 1200, 1200, 1200, 700, 0, 0, 65507, 1, 2, 3, 9000, 9000}
			var out []Packet
			for i, size := range sizes {
				p := Packet{Data: pattern(i, size), TOS: uint8(i / 2 * 4)}
				if !tc.connected {
					p.Remote = on(tc.dst, server)
				}
				out = append(out, p)
			}
			writeAll(t, client, out)
			in := readN(t, server, len(out))
			for i := range out {
				check(t, i, in[i], out[i], tc.dst)
			}
			// Back from the address that the client meant; the client sees it as the sender.
			for i := range in {
				if in[i].Remote.Port() != client.LocalAddr().Port() {
					t.Fatalf("packet %d from %v", i, in[i].Remote)
				}
			}
			writeAll(t, server, in)
			for i, p := range readN(t, client, len(in)) {
				if p.Remote != on(tc.dst, server) {
					t.Fatalf("reply %d from %v, want %v", i, p.Remote, on(tc.dst, server))
				}
				check(t, i, p, in[i], netip.Addr{})
			}
			if s := server.Stats(); s.KernelDrops != 0 || s.Truncated != 0 {
				t.Errorf("lost: %+v", s)
			}
		})
	}
}

func pattern(seed, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(seed + i*7)
	}
	return b
}

func check(t *testing.T, i int, got, want Packet, local netip.Addr) {
	t.Helper()
	if !bytes.Equal(got.Data, want.Data) {
		t.Fatalf("packet %d: %d bytes, want %d, or they differ", i, len(got.Data), len(want.Data))
	}
	if got.TOS != want.TOS {
		t.Fatalf("packet %d: TOS %#x, want %#x", i, got.TOS, want.TOS)
	}
	if local.IsValid() && got.Local != local {
		t.Fatalf("packet %d: to %v, want %v", i, got.Local, local)
	}
}

// Random batches: whatever trains are made of them, the far side sees the same packets in order.
func TestTrainsKeepPacketsAndOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	server := mustListen(t, any6, Options{})
	client := mustListen(t, any6, Options{})
	dsts := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), loopback6.Addr()}
	for round := range 50 {
		var out []Packet
		size, dst, tos := 100, dsts[0], uint8(0)
		for range 1 + rng.IntN(300) {
			switch rng.IntN(20) {
			case 0:
				size = rng.IntN(3000)
			case 1:
				dst = dsts[rng.IntN(len(dsts))]
			case 2:
				tos = uint8(rng.IntN(256))
			case 3:
				size = max(0, size-1)
			}
			out = append(out, Packet{Data: pattern(len(out), size), Remote: on(dst, server), TOS: tos})
		}
		for at := 0; at < len(out); { // never more at once than a socket's smallest buffer holds
			end, room := at, 150_000
			for ; end < len(out) && room > 0; end++ {
				room -= len(out[end].Data) + 800
			}
			writeAll(t, client, out[at:end])
			for i, p := range readN(t, server, end-at) {
				check(t, at+i, p, out[at+i], out[at+i].Remote.Addr())
			}
			at = end
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
}

func TestTrain(t *testing.T) {
	a, b := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2")
	p := func(size int, remote netip.AddrPort, tos uint8) Packet {
		return Packet{Data: make([]byte, size), Remote: remote, TOS: tos}
	}
	many := make([]Packet, 100)
	for i := range many {
		many[i] = p(10, a, 0)
	}
	large := make([]Packet, 100)
	for i := range large {
		large[i] = p(1400, a, 0)
	}
	cases := []struct {
		name    string
		pkts    []Packet
		sizeMax int
		want    int
	}{
		{"one", []Packet{p(5, a, 0)}, 1 << 16, 1},
		{"alike", []Packet{p(5, a, 0), p(5, a, 0)}, 1 << 16, 2},
		{"shorter last ends it", []Packet{p(5, a, 0), p(4, a, 0), p(4, a, 0)}, 1 << 16, 2},
		{"longer does not join", []Packet{p(5, a, 0), p(6, a, 0)}, 1 << 16, 1},
		{"empty does not join", []Packet{p(5, a, 0), p(0, a, 0)}, 1 << 16, 1},
		{"empty is alone", []Packet{p(0, a, 0), p(0, a, 0)}, 1 << 16, 1},
		{"other remote", []Packet{p(5, a, 0), p(5, b, 0)}, 1 << 16, 1},
		{"other TOS", []Packet{p(5, a, 0), p(5, a, 1)}, 1 << 16, 1},
		{"too large for trains", []Packet{p(5, a, 0), p(5, a, 0)}, 4, 1},
		{"count", many, 1 << 16, trainPackets},
		{"bytes", large, 1 << 16, trainBytes / 1400},
	}
	for _, tc := range cases {
		if got := train(tc.pkts, tc.sizeMax, false); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// A train of packets larger than the device's MTU is refused and goes singly, fragmented.
func TestTrainsLargerThanMTUGoSingly(t *testing.T) {
	server := mustListen(t, any4, Options{})
	client := mustListen(t, any4, Options{})
	if !client.refuseTrains(unix.EINVAL, 9000) || client.trainMax.Load() != 8999 {
		t.Fatalf("after a refusal of 9000 the limit is %d", client.trainMax.Load())
	}
	if !client.refuseTrains(unix.EMSGSIZE, 9001) || client.trainMax.Load() != 8999 {
		t.Fatalf("a refusal of 9001 changed the limit to %d", client.trainMax.Load())
	}
	if client.refuseTrains(unix.ECONNREFUSED, 1) {
		t.Error("an ICMP error was taken for a refusal of trains")
	}
	out := make([]Packet, 20)
	for i := range out {
		out[i] = Packet{Data: pattern(i, 9000), Remote: on(loopback4.Addr(), server)}
	}
	w := NewWriter()
	n, err := w.singly(client, out)
	if n != len(out) || err != nil {
		t.Fatal(n, err)
	}
	for i, p := range readN(t, server, len(out)) {
		check(t, i, p, out[i], loopback4.Addr())
	}
	if !client.refuseTrains(unix.EIO, 1000) || client.Stats().Trains {
		t.Error("EIO did not end trains")
	}
}

func TestRefusedDoesNotEndTheSocket(t *testing.T) {
	server := mustListen(t, nobodys(t), Options{})
	addr := server.LocalAddr()
	client := mustDial(t, addr, Options{})
	server.Close()
	writeAll(t, client, []Packet{{Data: []byte("x")}})
	client.SetReadDeadline(time.Now().Add(patience))
	if _, err := client.ReadBatch(make([]Packet, 1)); !Refused(err) {
		t.Fatalf("read after ICMP port unreachable: %v", err)
	}
	server = mustListen(t, addr, Options{})
	writeAll(t, client, []Packet{{Data: []byte("y")}})
	if got := readN(t, server, 1); string(got[0].Data) != "y" {
		t.Fatalf("got %q", got[0].Data)
	}
}

func TestErrors(t *testing.T) {
	c := mustListen(t, loopback4, Options{})
	if n, err := c.WriteBatch([]Packet{{Remote: netip.MustParseAddrPort("[::1]:9")}}); n != 0 || err == nil {
		t.Errorf("an IPv6 remote on an IPv4 socket: %d, %v", n, err)
	}
	if n, err := c.WriteBatch([]Packet{{}}); n != 0 || err == nil {
		t.Errorf("no remote: %d, %v", n, err)
	}
	big := Packet{Data: make([]byte, PayloadMax+1), Remote: c.LocalAddr()}
	if n, err := c.WriteBatch([]Packet{big}); n != 0 || !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too large: %d, %v", n, err)
	}
	if _, err := Dial(loopback6, loopback4, Options{}); err == nil {
		t.Error("dialled across families")
	}
	if _, err := Listen(netip.AddrPort{}, Options{}); err == nil {
		t.Error("listened on no address")
	}
	if _, err := Listen(c.LocalAddr(), Options{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second listener: %v", err)
	}
	c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := c.ReadBatch(make([]Packet, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past deadline: %v", err)
	}
}

func TestCloseEndsReadsAndWrites(t *testing.T) {
	c := mustListen(t, loopback4, Options{})
	done := make(chan error, 1)
	go func() {
		_, err := c.ReadBatch(make([]Packet, 1))
		done <- err
	}()
	c.Close()
	if err := next(t, done); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := c.WriteBatch([]Packet{{Remote: c.LocalAddr()}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestListenGroupSharesOnePort(t *testing.T) {
	group, err := ListenGroup(loopback4, 4, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 1000)
	var readers sync.WaitGroup
	for i, c := range group {
		if c.LocalAddr() != group[0].LocalAddr() {
			t.Fatalf("socket %d at %v, not %v", i, c.LocalAddr(), group[0].LocalAddr())
		}
		readers.Go(func() {
			pkts := make([]Packet, 10)
			for {
				n, err := c.ReadBatch(pkts)
				if err != nil {
					return
				}
				for range n {
					got <- i
				}
			}
		})
	}
	defer readers.Wait()
	defer func() {
		for _, c := range group {
			c.Close()
		}
	}()
	seen := map[int]int{}
	for range 64 {
		c := mustDial(t, group[0].LocalAddr(), Options{})
		writeAll(t, c, []Packet{{Data: []byte("x")}})
		seen[next(t, got)]++
	}
	if len(seen) < 2 {
		t.Errorf("64 flows all went to one socket: %v", seen)
	}
}

func TestFreeBindTakesAForeignAddress(t *testing.T) {
	for _, a := range []string{"192.0.2.77:0", "[2001:db8::77]:0"} {
		if _, err := Listen(netip.MustParseAddrPort(a), Options{}); err == nil {
			t.Errorf("%s is an address of this machine", a)
		}
		mustListen(t, netip.MustParseAddrPort(a), Options{FreeBind: true})
	}
}

func TestNoAllocationsPerPacket(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
	}{{"trains", Options{}}, {"singly", Options{NoGSO: true, NoGRO: true}}} {
		t.Run(tc.name, func(t *testing.T) {
			server := mustListen(t, any6, tc.o)
			client := mustListen(t, any6, tc.o)
			out := make([]Packet, 32)
			for i := range out {
				out[i] = Packet{Data: pattern(i, 200), Remote: on(loopback6.Addr(), server), TOS: 2,
					Local: loopback6.Addr()}
			}
			in := make([]Packet, 64)
			allocs := testing.AllocsPerRun(100, func() {
				if n, err := client.WriteBatch(out); n != len(out) || err != nil {
					t.Fatal(n, err)
				}
				for n := 0; n < len(out); {
					k, err := server.ReadBatch(in)
					if err != nil {
						t.Fatal(err)
					}
					n += k
				}
			})
			if allocs >= 1 {
				t.Errorf("%v allocations for 32 packets out and in", allocs)
			}
		})
	}
}

func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{64, 1200} {
		for _, trains := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dB/trains=%v", size, trains), func(b *testing.B) {
				o := Options{NoGSO: !trains, NoGRO: !trains}
				server := mustListen(b, loopback4, o)
				client := mustDial(b, server.LocalAddr(), o)
				out := make([]Packet, 64)
				for i := range out {
					out[i].Data = make([]byte, size)
				}
				in := make([]Packet, 128)
				b.ReportAllocs()
				for i := 0; i < b.N; i += len(out) {
					writeAll(b, client, out)
					for n := 0; n < len(out); {
						k, err := server.ReadBatch(in)
						if err != nil {
							b.Fatal(err)
						}
						n += k
					}
				}
			})
		}
	}
}
