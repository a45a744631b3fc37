package balance

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// A table that is filled beyond its room forgets, and what it forgets is counted, by why entries were made.
func TestFullTable(t *testing.T) {
	const room, own, sent = 1024, 3000, 500
	s := newSiteOf(t, 2, false, Config{FlowsMax: room})
	n := s.nodes[0]
	made := map[EntryKind]uint64{}
	flows := func(proto byte, mine bool, count int, kind EntryKind) {
		p := packet{dst: netip.MustParseAddrPort("192.0.2.7:443"), proto: proto, size: 8}
		for i := 0; count > 0; i++ {
			p.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1000)
			if (s.owner(t, p) == n) != mine {
				continue
			}
			if proto == udp || !mine {
				made[kind]++
			}
			must(t, n.Alive())
			run(t, n, p)
			count--
		}
	}
	check := func(what string, least uint64) Flows {
		t.Helper()
		n.flows.at = time.Time{} // count again
		f, err := n.Flows()
		must(t, err)
		there := 0
		var key balanceFlow
		var value balancePlace
		for it := n.objs.Flows.Iterate(); it.Next(&key, &value); {
			there++
		}
		if there != f.Used+f.Silent {
			t.Errorf("%s: %d entries are there: %+v", what, there, f)
		}
		for k := range entryKinds {
			if f.Made[k] != made[k] || f.Refused[k] != 0 {
				t.Errorf("%s: %d entries of kind %v made and %d refused, not %d and 0", what, f.Made[k], k, f.Refused[k], made[k])
			}
		}
		total := made[EntryForward] + made[EntryAsk] + made[EntryOwn]
		if uint64(f.Used+f.Silent)+f.Forgotten+f.Removed != total || f.Room != room || f.Used > room || f.Forgotten < least {
			t.Errorf("%s: %d entries were made: %+v", what, total, f)
		}
		return f
	}
	flows(udp, true, 200, EntryOwn)
	if f := check("not full", 0); f.Used != 200 || f.Forgotten != 0 {
		t.Errorf("not full: %+v", f)
	}
	flows(tcp, true, 50, EntryOwn) // this node's TCP flows are known by their sockets
	check("TCP", 0)
	flows(tcp, false, sent, EntryForward)
	check("others' flows", 0)
	flows(udp, true, own, EntryOwn) // 200 of these are there
	made[EntryOwn] -= 200
	if f := check("full", own+sent-room); f.Used < room/2 {
		t.Errorf("full: %+v", f)
	}
}

func run(t *testing.T, n *node, p packet) {
	t.Helper()
	opts := &ebpf.RunOptions{Data: p.frame(), DataOut: make([]byte, 512), Repeat: 1}
	must(t, n.ns.Do(func() error {
		_, err := n.objs.Balance.Run(opts)
		return err
	}))
}

// Entries that were made long ago and not seen since are silent.
func TestSilentFlows(t *testing.T) {
	s := newSiteOf(t, 1, false, Config{FlowsMax: 5000})
	n := s.nodes[0]
	for i := range 4500 { // more than are read at once
		key := balanceFlow{Protocol: udp, Family: 2, ClientPort: uint16(i)}
		seen := monotonic()
		if i%3 == 0 {
			seen -= uint64(flowsFresh + time.Second)
		}
		must(t, n.objs.Flows.Put(key, balancePlace{SeenNs: seen}))
	}
	f, err := n.Flows()
	must(t, err)
	if f.Used != 3000 || f.Silent != 1500 || f.Forgotten != 0 {
		t.Errorf("%+v", f)
	}
}

// BenchmarkFlows counts a table of 200,000 entries.
func BenchmarkFlows(b *testing.B) {
	n := newSiteOf(b, 1, false, Config{FlowsMax: DefaultFlowsMax}).nodes[0]
	for i := range 200_000 {
		must(b, n.objs.Flows.Put(balanceFlow{Client: [4]uint32{uint32(i)}}, balancePlace{SeenNs: uint64(i)}))
	}
	for b.Loop() {
		if _, silent, err := countPlaces(n.objs.Flows, monotonic()); err != nil || silent < 190_000 {
			b.Fatal(silent, err)
		}
	}
}
