package datagram

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/edge/udpio"
	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/leak"
)

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// real runs an edge and a gateway on real sockets of the loopback device.
type real struct {
	edge, gateway *Transport
	a, b          *Channel
}

func start(t testing.TB, cfg Config) *Transport {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	leak.Run(t, tr.Run)
	return tr
}

func newReal(t testing.TB, listen string, atA, atB func([][]byte)) *real {
	t.Helper()
	r := &real{
		edge:    start(t, Config{Lanes: 2, PayloadMax: 1472, Metrics: prometheus.NewRegistry()}),
		gateway: start(t, Config{Lanes: 1, Listen: netip.MustParseAddrPort(listen), PayloadMax: 1472}),
	}
	var err error
	if r.b, err = r.gateway.Open("edge", testSecret, 1, netip.AddrPort{}, false, atB); err != nil {
		t.Fatal(err)
	}
	to := r.gateway.LocalAddr()
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
	}
	if r.a, err = r.edge.Open("gateway", testSecret, 1, to, true, atA); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Channel{r.a, r.b} {
		up := make(chan struct{})
		var once sync.Once
		c.OnState(func(is bool) {
			if is {
				once.Do(func() { close(up) })
			}
		})
		select {
		case <-up:
		case <-time.After(patience):
			t.Fatalf("not up: %+v", c.Stats())
		}
	}
	return r
}

// Every message comes back, over sockets of either family.
func TestLoopback(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			var b atomic.Pointer[Channel]
			var echoed sync.WaitGroup
			var bad atomic.Int32
			want := message(3, 4, 30000)
			r := newReal(t, listen, func(msgs [][]byte) {
				for _, m := range msgs {
					if string(m[10:]) != string(want[10:10+len(m)-10]) {
						bad.Add(1)
					}
					echoed.Done()
				}
			}, func(msgs [][]byte) { b.Load().Send(msgs) })
			b.Store(r.b)
			for _, n := range []int{0, 1, 1200, 5000, 30000} {
				flows := uint64(8)
				if n > 5000 {
					flows = 2 // what is under way has room in the smallest buffer
				}
				for flow := range flows {
					echoed.Add(1)
					m := append(message(flow, 4, 0), want[10:10+n]...)
					if sent := r.a.Send([][]byte{m}); sent != 1 {
						t.Fatalf("sent %d", sent)
					}
				}
				done := make(chan struct{})
				go func() { echoed.Wait(); close(done) }()
				select {
				case <-done:
				case <-time.After(patience):
					t.Fatalf("%d bytes: not all came back; %+v %+v", n, r.a.Stats(), r.b.Stats())
				}
			}
			if bad.Load() != 0 {
				t.Errorf("%d echoes differ", bad.Load())
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	tr := start(t, Config{Lanes: 1, Metrics: registry})
	if _, err := New(Config{Lanes: 1, Metrics: registry}); err == nil {
		t.Error("two transports share a registry")
	}
	if _, err := tr.Open("x", testSecret, 1, netip.MustParseAddrPort("127.0.0.1:9"), true, nil); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	if got["nearcast_datagram_channels down"] != 1 || got["nearcast_datagram_packets_total sent"] == 0 {
		t.Errorf("metrics: %v", got)
	}
	if _, ok := got["nearcast_datagram_dropped_total forged"]; !ok {
		t.Errorf("no counter of forged packets in %v", got)
	}
}

func TestNoAllocationsInSteadyState(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector has sync.Pool forget things on purpose")
	}
	var came atomic.Int64
	wake := make(chan struct{}, 1)
	var want atomic.Int64
	r := newReal(t, "127.0.0.1:0", func([][]byte) {}, func(msgs [][]byte) {
		if came.Add(int64(len(msgs))) == want.Load() {
			wake <- struct{}{}
		}
	})
	for _, n := range []int{64, 1100, 5000} {
		msgs := make([][]byte, 16)
		for i := range msgs {
			msgs[i] = message(1, i, n)
		}
		round := func() {
			came.Store(0)
			want.Store(int64(len(msgs)))
			if sent := r.a.Send(msgs); sent != len(msgs) {
				t.Fatalf("sent %d", sent)
			}
			select {
			case <-wake:
			case <-time.After(patience):
				t.Fatalf("%d of %d messages came", came.Load(), len(msgs))
			}
		}
		for range 20 {
			round()
		}
		// Keep-alives and collections of the garbage collector allocate now and then: less than one
		// in a round of 16 messages is none a message.
		if allocs := testing.AllocsPerRun(200, round); allocs >= 1 {
			t.Errorf("%d bytes: %v allocations for 16 messages sent, sealed, received and opened", n, allocs)
		}
	}
}

// The whole way over the loopback device: seal, send, receive, open. One message is one op; a window
// of messages is under way.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{64, 1200} {
		for _, batch := range []int{1, 64} {
			b.Run(fmt.Sprintf("%dB/batch=%d", size, batch), func(b *testing.B) {
				var came atomic.Int64
				wake := make(chan struct{}, 1)
				r := newReal(b, "127.0.0.1:0", func([][]byte) {}, func(msgs [][]byte) {
					came.Add(int64(len(msgs)))
					select {
					case wake <- struct{}{}:
					default:
					}
				})
				for r.a.Stats().PayloadMax < 1472 {
					time.Sleep(10 * time.Millisecond)
				}
				msgs := make([][]byte, batch)
				for i := range msgs {
					msgs[i] = message(uint64(i%16), i, size)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				sent := int64(0)
				for sent < int64(b.N) {
					sent += int64(r.a.Send(msgs))
					for sent-came.Load() > 512 {
						<-wake
					}
				}
				for came.Load() < sent {
					<-wake
				}
				b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}

// Sealing and opening without the network.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{64, 1200} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			k := newCapture(b)
			k.c.recv = func([][]byte) {}
			frames := wire.AppendPacketData(nil, message(1, 1, size))
			b.SetBytes(int64(size))
			for i := range uint64(b.N) {
				k.receive(k.packet(0, i, frames))
			}
		})
	}
}

// What a thousand peers that say nothing cost: one op is a look at all of them.
func BenchmarkTick(b *testing.B) {
	t := newTransport(Config{}.withDefaults(), nil, []socket{nowhere{}, nowhere{}})
	for i := range 1000 {
		secret := fmt.Appendf(nil, "a secret of a tunnel %d", i)
		if _, err := t.Open("x", secret, 1, netip.MustParseAddrPort("127.0.0.1:9"), true, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		now := t.now()
		for _, c := range *t.channels.Load() {
			c.tick(now)
		}
	}
}

// nowhere is a socket that takes everything and brings nothing.
type nowhere struct{ socket }

func (nowhere) WriteBatch(pkts []udpio.Packet) (int, error) { return len(pkts), nil }

// Everything at once: senders on both sides, changes of epoch, readers of statistics, and an end in
// the middle of it. For the race detector; that messages are right other tests show.
func TestConcurrentUse(t *testing.T) {
	var bad, came atomic.Int64
	recv := func(msgs [][]byte) {
		for _, m := range msgs {
			var d wire.Datagram
			if err := d.Decode(m); err != nil || len(d.Payload) != int(d.FlowID) {
				bad.Add(1)
			}
			came.Add(1)
		}
	}
	r := newReal(t, "127.0.0.1:0", recv, recv)
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		c := []*Channel{r.a, r.b}[i%2]
		wait.Go(func() {
			msgs := [][]byte{message(0, i, 0), message(100, i, 100), message(3000, i, 3000), message(1300, i, 1300)}
			for {
				select {
				case <-stop:
					return
				default:
					c.Send(msgs)
					c.Stats()
				}
			}
		})
	}
	for epoch := uint32(0); epoch < 20 && !t.Failed(); epoch++ {
		secret := fmt.Appendf(nil, "the secret of epoch %6d", epoch)
		for _, c := range []*Channel{r.b, r.a} {
			if err := c.Rekey(secret, 2+epoch); err != nil {
				t.Error(err)
			}
		}
		end := time.Now().Add(patience)
		for before := came.Load(); came.Load() < before+100; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("epoch %d: nothing comes any more; %+v %+v", 2+epoch, r.a.Stats(), r.b.Stats())
				break
			}
		}
	}
	r.b.Close()
	r.a.Close()
	close(stop)
	wait.Wait()
	if bad.Load() != 0 {
		t.Errorf("%d of %d messages were damaged", bad.Load(), came.Load())
	}
}
