package backbone

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
	"github.com/nearcast/nearcast/testbed/wan"
)

// The benchmarks here put a tunnel over an emulated wide area network and report what users would
// feel. They need root. 80 ms, 100 Mbit/s: facts of the design were measured on the same path.

const (
	wanRTT  = 80 * time.Millisecond
	wanRate = 100e6 // bit/s
)

// newWanWorld is a world whose edge and gateway are on two ends of a WAN.
func newWanWorld(b *testing.B, loss float64, handle func(*Stream, *wire.Open) Sink, options ...option) (*world, *wan.Fabric) {
	edge, gateway := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.2.0.1")
	sysctls := map[string]string{"net.ipv4.tcp_slow_start_after_idle": "0"}
	f, _ := wan.ForTest(b, "a tunnel over a WAN", wan.Spec{
		Hosts: []wan.Host{
			{Name: "edge", Addrs: []netip.Addr{edge}, Sysctls: sysctls},
			{Name: "gateway", Addrs: []netip.Addr{gateway}, Sysctls: sysctls},
		},
		Links: wan.Both("edge", "gateway", wan.Params{Delay: wanRTT / 2, Loss: loss, Rate: wanRate}),
		Seed:  7,
	})
	w := newWorld(b, handle, func(p *PoolConfig, s *ServerConfig) {
		p.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return f.NS("edge").Dial(ctx, "tcp", netip.AddrPort{}, addr)
		}
		s.Listener.Close()
		l, err := f.NS("gateway").Listen(context.Background(), "tcp", netip.AddrPortFrom(gateway, 0))
		if err != nil {
			b.Fatal(err)
		}
		s.Listener = l
		p.PingInterval, s.PingInterval = 0, 0
		p.DeadAfter, s.DeadAfter = 0, 0
		for _, o := range options {
			o(p, s)
		}
	})
	w.waitUp(2)
	return w, f
}

// settle gives carriers a moment to warm up and find out about the path.
func settle() { time.Sleep(25 * time.Second) }

func quantiles(b *testing.B, d []time.Duration, unit string) {
	slices.Sort(d)
	at := func(q float64) float64 {
		return float64(d[min(len(d)-1, int(q*float64(len(d))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "p50-"+unit)
	b.ReportMetric(at(0.9), "p90-"+unit)
	b.ReportMetric(at(0.99), "p99-"+unit)
}

func (w *world) report(b *testing.B) {
	s, _ := w.pool.Peer("gw-1")
	b.ReportMetric(float64(s.Carriers), "carriers")
	b.ReportMetric(float64(s.Loss)*100, "loss-%")
	sent := count(w.pool.env.metrics.sent) + count(w.server.env.metrics.sent)
	again := count(w.pool.env.metrics.reinjected) + count(w.server.env.metrics.reinjected)
	b.ReportMetric(100*again/sent, "reinjected-%")
}

// BenchmarkWANDownload asks for a file and waits for its end. The floor is a round trip and the
// time the bytes take on the line: 163 ms for 1 MB.
func BenchmarkWANDownload(b *testing.B) {
	for _, loss := range []float64{0, 0.005, 0.01} {
		for _, size := range []int{100 << 10, 1 << 20, 10 << 20} {
			b.Run(fmt.Sprintf("%.1f%%loss/%dKiB", loss*100, size>>10), func(b *testing.B) {
				var sending sync.WaitGroup
				w, _ := newWanWorld(b, loss, func(s *Stream, _ *wire.Open) Sink {
					s.OpenResult(wire.OpenResult{})
					sending.Go(func() { _, _ = s.Write(make([]byte, size)); s.CloseWrite() })
					return newDrain()
				})
				settle()
				var took []time.Duration
				b.ResetTimer()
				for range 24 * b.N {
					d := newDrain()
					begin := time.Now()
					s, err := w.pool.Open("gw-1", wire.Open{}, d)
					if err != nil {
						b.Fatal(err)
					}
					s.CloseWrite()
					<-d.done
					took = append(took, time.Since(begin))
					time.Sleep(200 * time.Millisecond)
				}
				quantiles(b, took, "ms")
				w.report(b)
				sending.Wait()
			})
		}
	}
}

// BenchmarkWANMessages sends 10 KB messages at 20 Mbit/s, each on a stream of its own, and reports
// how long they take one way: the floor is 41 ms.
func BenchmarkWANMessages(b *testing.B) {
	for _, loss := range []float64{0, 0.001, 0.005, 0.01} {
		b.Run(fmt.Sprintf("%.1f%%loss", loss*100), func(b *testing.B) {
			var mu sync.Mutex
			var took []time.Duration
			w, _ := newWanWorld(b, loss, func(s *Stream, o *wire.Open) Sink {
				s.OpenResult(wire.OpenResult{})
				s.CloseWrite()
				begin := time.Unix(0, int64(o.Revision))
				return &whenDone{f: func() {
					mu.Lock()
					took = append(took, time.Since(begin))
					mu.Unlock()
				}}
			})
			p := make([]byte, 10_000)
			var failed atomic.Int32
			send := func(n int) {
				tick := time.NewTicker(4 * time.Millisecond)
				defer tick.Stop()
				for range n {
					<-tick.C
					s, err := w.pool.Open("gw-1", wire.Open{Revision: uint64(time.Now().UnixNano())}, newDrain())
					if err != nil {
						failed.Add(1)
						continue
					}
					_, _ = s.Write(p)
					s.CloseWrite()
				}
			}
			settle()
			send(2000) // until loss is known
			mu.Lock()
			took = nil
			mu.Unlock()
			b.ResetTimer()
			send(5000 * b.N)
			waitFor(b, "messages", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return len(took)+int(failed.Load()) >= 5000*b.N
			})
			late := 0
			for _, d := range took {
				if d > 80*time.Millisecond {
					late++
				}
			}
			b.ReportMetric(100*float64(late)/float64(len(took)), "late-%")
			b.ReportMetric(float64(failed.Load()), "failed")
			quantiles(b, took, "ms")
			w.report(b)
		})
	}
}

// whenDone calls f at the end.
type whenDone struct{ f func() }

func (w *whenDone) Opened(wire.OpenResult) {}
func (w *whenDone) Reset(wire.ResetReason) {}
func (w *whenDone) Deliver(p []byte, fin bool) int {
	if fin {
		w.f()
	}
	return len(p)
}
