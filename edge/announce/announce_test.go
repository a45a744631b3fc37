package announce

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// TestAnnouncer runs the whole against a router: it announces what can be served, tells others that it
// does, drains when it leaves, and is gone only then.
func TestAnnouncer(t *testing.T) {
	r := newRouter(t)
	s := world()
	peer, err := model.BGPPeerFromProto(nil)
	if err != nil {
		t.Fatal(err)
	}
	peer.Site, peer.Name, peer.Address, peer.Port, peer.ASN = "fra", "up", addr("127.0.0.2"), r.port, 64601
	peer.LocalAddress, peer.ConnectRetry = addr("127.0.0.1"), 2*time.Second
	s.BGPPeers = []model.BGPPeer{peer}
	s.Site("fra").BGP.DrainTime = time.Minute
	changed := make(chan struct{}, 1)
	a, err := New(Config{Self: "n-fra", DataDir: t.TempDir(),
		Doors: func() map[netip.Addr]Doors { return map[netip.Addr]Doors{addr("198.51.100.1"): {Open: 1}} },
		Fleet: func() map[model.NodeID]Member { return nil },
		OnChange: func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	if !a.Gone() {
		t.Error("without a snapshot something is announced")
	}
	a.SetSnapshot(s)
	r.sees(t, "at first", "198.51.100.0/28")
	var told Member
	for end := time.After(patience); told != (Member{Announcing: true}); {
		select {
		case <-changed:
			told = a.Gossip()
		case <-end:
			t.Fatalf("the others were told %+v last, now it is %+v", told, a.Gossip())
		}
	}
	if a.Gone() {
		t.Error("it is said to be gone")
	}
	a.Leave()
	r.sees(t, "leaving", "198.51.100.0/28|65535:0")
	soon := world() // the drain lasts until it was seen, and no longer
	soon.BGPPeers, soon.Site("fra").BGP.DrainTime = s.BGPPeers, time.Millisecond
	a.SetSnapshot(soon)
	r.sees(t, "left")
	for end := time.Now().Add(patience); !a.Gone(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not become gone")
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Run does not end")
	}
}
