package listen

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// BenchmarkAddresses gives so many addresses to the loopback interface of a namespace, looks at them again as each
// snapshot does, and takes them away.
func BenchmarkAddresses(b *testing.B) {
	for _, n := range []int{1, 256, 4096} {
		for _, first := range []string{"198.51.0.0", "2001:db8::"} {
			b.Run(fmt.Sprintf("%d/%s", n, first), func(b *testing.B) { benchAddresses(b, n, netip.MustParseAddr(first)) })
		}
	}
}

func benchAddresses(b *testing.B, n int, first netip.Addr) {
	ns, err := netns.ForTest(b, "addresses").New("a")
	must(b, err)
	used := map[netip.Addr]bool{}
	for range n {
		used[first] = true
		first = first.Next()
	}
	var add, again, remove float64
	for b.Loop() {
		must(b, ns.Do(func() error {
			var a addresses
			add += seconds(func() error { return a.add(used) }, b)
			again += seconds(func() error { return a.add(used) }, b)
			remove += seconds(func() error { return a.removeOthers(nil) }, b)
			return nil
		}))
	}
	for unit, s := range map[string]float64{"add-ms": add, "again-ms": again, "remove-ms": remove} {
		b.ReportMetric(1e3*s/float64(b.N), unit)
	}
}

func seconds(f func() error, b *testing.B) float64 {
	begin := time.Now()
	if err := f(); err != nil {
		b.Error(err)
	}
	return time.Since(begin).Seconds()
}
