package clients

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/proto/model"
)

func newTable(t testing.TB) *Table {
	t.Helper()
	table, err := New(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func addr(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i)<<8|uint32(i)%200)
	return netip.AddrFrom4(b)
}

// TestTable: what comes out is what went in, by network and region.
func TestTable(t *testing.T) {
	table, now := newTable(t), time.Unix(1e9, 0)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		base := time.Duration(10+i) * time.Millisecond
		for range 50 {
			noise := time.Duration(rng.IntN(2000)) * time.Microsecond
			table.Saw(Sight{Client: addr(i), RTT: base + noise, Region: "eu", Open: 80*time.Millisecond + noise,
				Backbone: 70 * time.Millisecond, Sent: 4 << 20, Busy: 2 * time.Second}, now)
		}
	}
	table.Saw(Sight{Client: addr(7), Region: "eu"}, now) // no round trip
	list := table.Networks("fra", 1000, now)
	if len(list) != 100 {
		t.Fatalf("%d networks", len(list))
	}
	for i, n := range list {
		base := time.Duration(10+i) * time.Millisecond
		if n.Prefix != model.ClientNetworkOf(addr(i)) || n.Sites[0].Site != "fra" || n.Sites[0].Samples != 50 ||
			(n.Sites[0].RTT-base-time.Millisecond).Abs() > time.Millisecond {
			t.Errorf("network %d: %+v, the truth is %v", i, n, base)
		}
		if r := n.Regions[0]; r.Flows != 50 || r.Down < 2<<20-9 || r.Down > 2<<20+9 || r.Backbone != 70*time.Millisecond {
			t.Errorf("network %d: %+v", i, r)
		}
	}
	if few := table.Networks("fra", 3, now); len(few) != 3 {
		t.Errorf("%d networks of at most 3", len(few))
	}
	if old := table.Networks("fra", 1000, now.Add(keep+time.Second)); len(old) != 0 || table.Len() != 0 {
		t.Errorf("%d networks after a day without flows", len(old))
	}
}

// TestRestore: another process goes on where this one was.
func TestRestore(t *testing.T) {
	before, now := newTable(t), time.Unix(1e9, 0)
	for i := range 30 {
		before.Saw(Sight{Client: addr(i), RTT: time.Duration(i+1) * time.Millisecond, Region: "eu", Open: 9 * time.Millisecond,
			Backbone: 8 * time.Millisecond, Sent: 8 << 20, Busy: time.Second}, now)
	}
	told := before.Networks("fra", 100, now)
	after := newTable(t)
	after.Restore(told, now)
	if d := cmp.Diff(told, after.Networks("fra", 100, now.Add(time.Hour)), cmpopts.EquateComparable(netip.Prefix{})); d != "" {
		t.Error(d)
	}
	after.Saw(Sight{Client: addr(3), RTT: 4 * time.Millisecond}, now)
	if n := after.Networks("fra", 100, now)[3].Sites[0]; n.Samples != 2 {
		t.Errorf("%+v", n)
	}
	if old := after.Networks("fra", 100, now.Add(keep+time.Second)); len(old) != 0 {
		t.Errorf("%d networks although they are old", len(old))
	}
}

// TestRegionsBounded: a network remembers a few regions, and what follows costs no memory.
func TestRegionsBounded(t *testing.T) {
	table, now := newTable(t), time.Unix(1e9, 0)
	for i := range 20 {
		table.Saw(Sight{Client: addr(1), RTT: 1, Open: 1, Region: model.RegionName(rune('a' + i))}, now)
	}
	if n := table.Networks("s", 9, now); len(n) != 1 || len(n[0].Regions) != regionsMax {
		t.Errorf("%+v", n)
	}
}

// TestBounded: a flood of networks does not make the table grow beyond its bound, and the busy network that
// is seen again and again outlives it.
func TestBounded(t *testing.T) {
	table, now := newTable(t), time.Unix(1e9, 0)
	busy := netip.MustParseAddr("192.0.2.1")
	for i := range networksMax * 5 / 4 {
		now = now.Add(time.Millisecond)
		table.Saw(Sight{Client: addr(i), RTT: time.Millisecond}, now)
		if i%100 == 0 {
			table.Saw(Sight{Client: busy, RTT: 5 * time.Millisecond}, now)
		}
	}
	if n := table.Len(); n > networksMax {
		t.Errorf("%d networks, at most %d are allowed", n, networksMax)
	}
	if table.evicted.Load() < networksMax/8 {
		t.Errorf("%d were evicted", table.evicted.Load())
	}
	if top := table.Networks("s", 1, now); top[0].Prefix != model.ClientNetworkOf(busy) {
		t.Errorf("the busiest network is %+v", top[0])
	}
}

func TestConcurrent(t *testing.T) {
	table, now := newTable(t), time.Unix(1e9, 0)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				table.Saw(Sight{Client: addr(i % 50), RTT: time.Millisecond, Region: "r", Open: 1}, now)
				if i%500 == g {
					table.Networks("s", 10, now)
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for _, n := range table.Networks("s", 100, now) {
		total += n.Sites[0].Samples
	}
	if total != 8000 {
		t.Errorf("%d of 8000 samples", total)
	}
}

func TestSawAllocatesNothing(t *testing.T) {
	table, now := newTable(t), time.Unix(1e9, 0)
	x := Sight{Client: addr(3), RTT: time.Millisecond, Region: "r", Open: 1}
	table.Saw(x, now)
	if n := testing.AllocsPerRun(100, func() { table.Saw(x, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSaw(b *testing.B) {
	table, now := newTable(b), time.Unix(1e9, 0)
	for i := 0; b.Loop(); i++ {
		table.Saw(Sight{Client: addr(i & 1023), RTT: time.Millisecond, Region: "r", Open: 1}, now)
	}
}
