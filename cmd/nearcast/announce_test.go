package main

import (
	"strings"
	"testing"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// TestAnnounceWhy: a prefix that waits for a session says so, and what the session ended of.
func TestAnnounceWhy(t *testing.T) {
	rows := func(p *pb.PeerSession) []announceRow {
		return (&cli{}).announceRows(&pb.NodeAnnouncements{Name: "fra-1", Connected: true, Report: &pb.AnnounceReport{
			Sessions: []*pb.PeerSession{p},
			Announcements: []*pb.Announcement{{Prefix: "198.51.100.0/28", Reason: "served here",
				State: pb.AnnounceState_ANNOUNCE_STATE_ANNOUNCED}},
		}})
	}
	for _, c := range []struct {
		peer        *pb.PeerSession
		state, want string
	}{
		{&pb.PeerSession{Address: "192.0.2.1", State: "established", Announced: []string{"198.51.100.0/28"}},
			"announced", "served here"},
		{&pb.PeerSession{Address: "192.0.2.1", State: "established"}, "pending", "served here"},
		{&pb.PeerSession{Address: "192.0.2.1", State: "active"}, "pending", "served here; the session is not established"},
		{&pb.PeerSession{Address: "192.0.2.1", State: "idle", Reason: "hold timer expired"}, "pending",
			"served here; the session is not established (hold timer expired)"},
	} {
		got := rows(c.peer)
		if len(got) != 1 || !strings.EqualFold(got[0].state, c.state) || got[0].reason != c.want {
			t.Errorf("%v: %+v, want %s: %s", c.peer, got, c.state, c.want)
		}
	}
}
