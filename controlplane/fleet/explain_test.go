package fleet

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestExplainAnycast: who announces the address and who does not, and where clients of that network came.
func TestExplainAnycast(t *testing.T) {
	f := &Fleet{mirror: newMirror(slog.New(slog.DiscardHandler))}
	p := &Published{State: &catalog.State{}, nodes: map[model.NodeID]*model.Node{}}
	say := func(id, site string, state v1.AnnounceState, rtt time.Duration) {
		n := model.Node{ID: model.NodeID(id), Name: id, Site: model.SiteName(site), Edge: true}
		p.State.Nodes = append(p.State.Nodes, n)
		p.nodes[n.ID] = &n
		report, err := proto.Marshal(&v1.AnnounceReport{Announcements: []*v1.Announcement{
			{Prefix: "203.0.113.0/24", State: state, Reason: "the site is drained"}}})
		if err != nil {
			t.Fatal(err)
		}
		f.mirror.nodes[n.ID] = nodeRecord{Announce: report}
		f.mirror.connections[n.ID] = map[string]bool{"c": true}
		if rtt > 0 {
			f.mirror.clients[n.ID] = clientsReport{at: time.Now(), networks: []model.ClientNetwork{{
				Prefix: netip.MustParsePrefix("198.51.100.0/24"), Sites: []model.ClientSite{{RTT: rtt, Samples: 5}}}}}
		}
	}
	say("fra-1", "fra", v1.AnnounceState_ANNOUNCE_STATE_ANNOUNCED, 12*time.Millisecond)
	say("iad-1", "iad", v1.AnnounceState_ANNOUNCE_STATE_ANNOUNCED, 0)
	say("sin-1", "sin", v1.AnnounceState_ANNOUNCE_STATE_DRAINING, 0)
	f.published.Store(p)
	r := &v1.ExplainSteerResponse{Addresses: []string{"203.0.113.7"}}
	node := f.ExplainAnycast(netip.MustParseAddr("198.51.100.9"), r)
	if node != "fra-1" || len(r.Sites) != 3 || r.Sites[0].Site != "fra" || r.Sites[0].RttMs != 12 || r.Sites[0].PassedOver != "" ||
		!strings.Contains(r.Reason, "came to fra (12.0 ms)") {
		t.Errorf("%q %v", node, r)
	}
	if s := r.Sites[1]; s.Site != "iad" || !strings.Contains(s.PassedOver, "no client") || s.RttMs >= 0 {
		t.Errorf("%v", s)
	}
	if s := r.Sites[2]; s.Site != "sin" || !strings.Contains(s.PassedOver, "drained") {
		t.Errorf("%v", s)
	}
	// Nobody of that network has ever come: all that announce are possible.
	r = &v1.ExplainSteerResponse{Addresses: []string{"203.0.113.7"}}
	if node := f.ExplainAnycast(netip.MustParseAddr("192.0.2.9"), r); node != "" || r.Sites[0].PassedOver != "" ||
		r.Sites[1].PassedOver != "" || r.Sites[2].PassedOver == "" || r.Reason != "" {
		t.Errorf("%q %v", node, r)
	}
}
