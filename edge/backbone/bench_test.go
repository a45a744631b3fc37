package backbone

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/wire"
)

// The benchmarks run both ends of one hop in this process, over loopback. cpu-s/GB is the time of
// both together; BenchmarkPlainTLS is what TLS over TCP costs by itself.

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

// perGB reports the processor time since start, for so many bytes.
func perGB(b *testing.B, start float64, bytes int64) {
	b.ReportMetric((cpuSeconds()-start)*1e9/float64(bytes), "cpu-s/GB")
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	b.ReportMetric(float64(u.Utime.Sec)+float64(u.Utime.Usec)/1e6, "user")
	b.ReportMetric(float64(u.Nvcsw)*1e9/float64(bytes), "vcsw/GB")
}

// A drain takes everything and counts it.
type drain struct {
	n      atomic.Int64
	opened chan struct{}
	done   chan struct{}
	once   sync.Once
}

func newDrain() *drain { return &drain{opened: make(chan struct{}), done: make(chan struct{})} }

func (d *drain) Opened(wire.OpenResult) { close(d.opened) }

func (d *drain) Deliver(p []byte, fin bool) int {
	d.n.Add(int64(len(p)))
	if fin {
		d.once.Do(func() { close(d.done) })
	}
	return len(p)
}

func (d *drain) Reset(wire.ResetReason) { d.once.Do(func() { close(d.done) }) }

func benchWorld(b *testing.B, handle func(*Stream, *wire.Open) Sink) *world {
	w := newWorld(b, handle, func(p *PoolConfig, s *ServerConfig) {
		p.Dial = dialTCP
		p.PingInterval, s.PingInterval = 0, 0
		p.DeadAfter, s.DeadAfter = 0, 0
	})
	w.waitUp(2)
	return w
}

// BenchmarkDownload sends from the gateway to the edge.
func BenchmarkDownload(b *testing.B) {
	for _, c := range []struct {
		name    string
		streams int
		write   int
	}{{"1 stream", 1, 256 << 10}, {"8 streams", 8, 256 << 10}, {"100 streams of 1 KiB writes", 100, 1 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			var sending sync.WaitGroup
			total := max(int64(b.N), int64(c.streams)) * (64 << 10) / int64(c.streams) // bytes a stream
			w := benchWorld(b, func(s *Stream, _ *wire.Open) Sink {
				s.OpenResult(wire.OpenResult{})
				sending.Go(func() {
					p := make([]byte, c.write)
					for left := total; left > 0; left -= int64(len(p)) {
						p = p[:min(int64(len(p)), left)]
						if _, err := s.Write(p); err != nil {
							return
						}
					}
					s.CloseWrite()
				})
				return newDrain()
			})
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			b.ResetTimer()
			start := cpuSeconds()
			var sinks []*drain
			for range c.streams {
				d := newDrain()
				s, err := w.pool.Open("gw-1", wire.Open{}, d)
				if err != nil {
					b.Fatal(err)
				}
				s.CloseWrite()
				sinks = append(sinks, d)
			}
			for _, d := range sinks {
				<-d.done
			}
			perGB(b, start, total*int64(c.streams))
			b.StopTimer()
			sending.Wait()
		})
	}
}

// BenchmarkReadFrom sends what a socket brings: the whole of an edge's upload, and its source.
func BenchmarkReadFrom(b *testing.B) {
	total := int64(b.N) * (64 << 10)
	d := newDrain()
	w := benchWorld(b, func(s *Stream, _ *wire.Open) Sink {
		s.OpenResult(wire.OpenResult{})
		s.CloseWrite()
		return d
	})
	ours, theirs := tcpPair(b)
	defer ours.Close()
	s, err := w.pool.Open("gw-1", wire.Open{}, newDrain())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuSeconds()
	go func() {
		p := make([]byte, 256<<10)
		for left := total; left > 0; left -= int64(len(p)) {
			p = p[:min(int64(len(p)), left)]
			if _, err := theirs.Write(p); err != nil {
				b.Error(err)
				return
			}
		}
		theirs.Close()
	}()
	if _, err := s.ReadFrom(ours); err != nil {
		b.Fatal(err)
	}
	s.CloseWrite()
	<-d.done
	perGB(b, start, total)
}

// BenchmarkPlainTLS is the floor: one connection, large writes, large reads.
func BenchmarkPlainTLS(b *testing.B) {
	total := int64(b.N) * (64 << 10)
	w := &world{t: b, ca: benchCA(b)}
	sc := carrierTLS(w.credentials("gw").ServerTLS("node"))
	cc := carrierTLS(w.credentials("edge").ClientTLS(subjectOf("gw")))
	x, y := tcpPair(b)
	server, client := tls.Server(x, sc), tls.Client(y, cc)
	go func() { _ = server.Handshake() }()
	if err := client.Handshake(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuSeconds()
	go func() {
		p := make([]byte, 64<<10)
		for left := total; left > 0; left -= int64(len(p)) {
			if _, err := server.Write(p[:min(int64(len(p)), left)]); err != nil {
				b.Error(err)
			}
		}
	}()
	if _, err := io.CopyN(discard{}, client, total); err != nil {
		b.Fatal(err)
	}
	perGB(b, start, total)
	b.StopTimer()
	x.Close()
	y.Close()
}

// discard has no ReadFrom, so that the copy's buffer is the usual one.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkRoundTrip sends 100 bytes and waits for them to come back, on one stream.
func BenchmarkRoundTrip(b *testing.B) {
	w := benchWorld(b, func(s *Stream, _ *wire.Open) Sink {
		s.OpenResult(wire.OpenResult{})
		return &echoSink{s: s}
	})
	c := w.open()
	p := make([]byte, 100)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuSeconds()
	for range b.N {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpuSeconds()-start)*1e6/float64(b.N), "cpu-µs/op")
}

// echoSink sends back what comes, from the reader itself: small messages never block.
type echoSink struct{ s *Stream }

func (e *echoSink) Opened(wire.OpenResult) {}
func (e *echoSink) Deliver(p []byte, fin bool) int {
	_, _ = e.s.Write(p)
	if fin {
		e.s.CloseWrite()
	}
	return len(p)
}
func (e *echoSink) Reset(wire.ResetReason) {}

// BenchmarkOpen begins a stream, sends 100 bytes, gets them back, and ends it; 64 at a time.
func BenchmarkOpen(b *testing.B) {
	w := benchWorld(b, func(s *Stream, _ *wire.Open) Sink {
		s.OpenResult(wire.OpenResult{})
		return &echoSink{s: s}
	})
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuSeconds()
	var left atomic.Int64
	left.Store(int64(b.N))
	var working sync.WaitGroup
	for range 64 {
		working.Go(func() {
			p := make([]byte, 100)
			for left.Add(-1) >= 0 {
				d := newDrain()
				s, err := w.pool.Open("gw-1", wire.Open{Listener: "0123abcd", Group: "0123456789ab"}, d)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := s.Write(p); err != nil {
					b.Error(err)
				}
				s.CloseWrite()
				<-d.done
			}
		})
	}
	working.Wait()
	b.ReportMetric((cpuSeconds()-start)*1e6/float64(b.N), "cpu-µs/op")
}

// BenchmarkIdle opens streams and reports the memory of each, both sides together.
func BenchmarkIdle(b *testing.B) {
	w := benchWorld(b, func(s *Stream, _ *wire.Open) Sink {
		s.OpenResult(wire.OpenResult{})
		return &echoSink{s: s}
	})
	before := heap()
	var all []*Stream
	var last *drain
	b.ResetTimer()
	for range b.N {
		last = newDrain()
		s, err := w.pool.Open("gw-1", wire.Open{Listener: "0123abcd", Group: "0123456789ab"}, last)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, s)
	}
	<-last.opened
	b.StopTimer()
	time.Sleep(100 * time.Millisecond)
	b.ReportMetric(float64(heap()-before)/float64(b.N), "heap-B/stream")
	for _, s := range all {
		s.Reset(wire.ResetByPeer)
	}
}

var _ net.Conn = (*faultyConn)(nil)
