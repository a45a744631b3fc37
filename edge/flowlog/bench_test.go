package flowlog

import (
	"context"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/edge/meter"
	"github.com/nearcast/nearcast/proto/model"
)

// BenchmarkFlow prints what counting one short flow costs, in CPU time of the whole process, without flow logs
// and with them written to the spool.
func BenchmarkFlow(b *testing.B) {
	for _, on := range []bool{false, true} {
		name := "off"
		if on {
			name = "on"
		}
		b.Run(name, func(b *testing.B) {
			l := newLog(b, Config{Dir: b.TempDir(), Destination: Directory(b.TempDir())})
			cfg := meter.Config{}
			if on {
				cfg.Wanted, cfg.Window = l.Wanted, l.Record
			}
			m, err := meter.New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			listener := m.Listener(&model.Listener{ID: "4fd0ab12", Accelerator: accelerator})
			group := &model.EndpointGroup{ID: "0123456789ab", Region: "ap-northeast-1"}
			client, to := netip.MustParseAddr("139.162.106.181"), netip.MustParseAddrPort("75.2.76.16:80")
			path := meter.Path{Endpoint: netip.MustParseAddrPort("172.31.21.192:8080"), Source: netip.MustParseAddrPort("10.0.0.9:41000")}
			before := cpu()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var a meter.Account
				a.Begin(listener, model.TCP, netip.AddrPortFrom(client, uint16(i)), to)
				a.Via(path)
				a.Serve(group)
				a.Close(meter.Sample{PacketsIn: 6, PacketsOut: 5, BytesIn: 300, BytesOut: 4000, Options: 12}, meter.Ended)
				for i%8192 == 8191 && len(l.queue) > 0 { // so that none is dropped
					time.Sleep(100 * time.Microsecond)
				}
			}
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
			if l.spooled.Load() > 0 != on || l.lost.Load() {
				b.Errorf("%d bytes are in the spool; windows were dropped: %v", l.spooled.Load(), l.lost.Load())
			}
		})
	}
}

// cpu is the CPU time of this process.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
