package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// TestClientsPace: news is told soon, nothing is told twice, and much is told seldom.
func TestClientsPace(t *testing.T) {
	var p clientsPace
	now := time.Unix(1e9, 0)
	list := func(n int, rtt time.Duration) (all []model.ClientNetwork) {
		for i := range n {
			all = append(all, model.ClientNetwork{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24),
				Sites: []model.ClientSite{{Site: "fra", RTT: rtt, Samples: 1}}})
		}
		return all
	}
	if p.due(nil, now) != nil {
		t.Error("nothing is a report")
	}
	if r := p.due(list(3, time.Millisecond), now); len(r.GetNetworks()) != 3 {
		t.Fatalf("the first report: %v", r)
	}
	if p.due(list(3, 2*time.Millisecond), now.Add(clientsEvery-1)) != nil {
		t.Error("too soon")
	}
	now = now.Add(clientsEvery)
	if p.due(list(3, time.Millisecond), now) != nil {
		t.Error("the same again")
	}
	if p.due(list(3, 2*time.Millisecond), now) == nil {
		t.Error("news is not told")
	}
	now = now.Add(time.Minute)
	if p.due(list(model.ClientNetworksMax, time.Millisecond), now) == nil {
		t.Fatal("many are not told")
	}
	if wait := p.next.Sub(now); wait <= clientsEvery || wait > 2*time.Minute {
		t.Errorf("after %d bytes the next report waits %v", len(p.last), wait)
	}
	now = p.next
	if r := p.due(nil, now); r == nil || len(r.GetNetworks()) != 0 {
		t.Errorf("that all are forgotten is news: %v", r)
	}
}
