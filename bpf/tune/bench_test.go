package tune

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/wan"
)

// BenchmarkDownload measures downloads over the client leg alone, from connect to last byte, over a line of
// 20 ms and 100 Mbit/s (the floor is 40 ms and 84 or 8.4 ms of line time: 124 and 48 ms).
//
//	off      without the program
//	first    the network is unknown at each download
//	known    the network has been seen
//	alternate-slow, -shallow, -lossy: "known" beside "off", on a line that is not what was learned: each
//	download finds a window of 512 that an other line taught
//	lossy-known, lossy-off: a line that loses 2 % of packets at random, and has taught that itself
func BenchmarkDownload(b *testing.B) {
	slow := wan.Params{Delay: 10 * time.Millisecond, Rate: 10e6}
	shallow := wan.Params{Delay: 10 * time.Millisecond, Rate: 20e6, Queue: 40_000}
	lossy := wan.Params{Delay: 10 * time.Millisecond, Rate: 100e6, Loss: 0.02}
	for _, cc := range []string{"cubic", "bbr"} {
		for _, kb := range []int{100, 1000} {
			for _, c := range []struct {
				name string
				line wan.Params
				mode mode
			}{
				{"off", access, off}, {"first", access, forget}, {"known", access, known},
				{"changed-slow/off", slow, off}, {"changed-slow/on", slow, lied},
				{"changed-shallow/off", shallow, off}, {"changed-shallow/on", shallow, lied},
				{"changed-lossy/off", lossy, off}, {"changed-lossy/on", lossy, lied},
				{"slow/off", slow, off}, {"slow/on", slow, known},
				{"shallow/off", shallow, off}, {"shallow/on", shallow, known},
				{"lossy/off", lossy, off}, {"lossy/on", lossy, known},
			} {
				b.Run(fmt.Sprintf("%s/%dKB/%s", cc, kb, c.name), func(b *testing.B) {
					benchDownload(b, cc, kb, c.line, c.mode)
				})
			}
		}
	}
}

type mode int

const (
	off    mode = iota // windows are left alone
	forget             // each download is the network's first
	known              // the network teaches as it goes
	lied               // each download finds a large window that this line never showed
)

func benchDownload(b *testing.B, cc string, kb int, line wan.Params, m mode) {
	policy := Policy{CongestionControl: cc, WindowMax: DefaultWindowMax}
	if m == off {
		policy.WindowMax = 0
	}
	t := attached(b, Config{}, policy)
	w := newWorld(b, t)
	w.setLine(b, line)
	ended := uint64(0)
	once := func() time.Duration {
		took := w.download(b, w.listener, kb)
		ended++
		settled(b, t, ended)
		time.Sleep(30 * time.Millisecond) // the bucket of what may be sent at once is full again
		return took
	}
	if m == known {
		for range 3 {
			once()
		}
	}
	b.ResetTimer()
	times := make([]time.Duration, 0, b.N)
	for range b.N {
		switch m {
		case forget:
			must(b, t.Forget(clientAddr))
		case lied:
			must(b, t.objs.Networks.Put(networkOf(clientAddr),
				tuneNetwork{Window: 512, RttUs: 20000, UpdatedNs: now(b)}))
		}
		times = append(times, once())
	}
	b.StopTimer()
	slices.Sort(times)
	n, _, _ := t.Network(clientAddr)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1e3, "p50-ms")
	b.ReportMetric(float64(times[len(times)*9/10].Microseconds())/1e3, "p90-ms")
	b.ReportMetric(float64(n.Window), "window")
	b.ReportMetric(0, "ns/op")
}
