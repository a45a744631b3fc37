package announce

import (
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Report returns what this node announces, to whom and why, as the controllers are told.
func (a *Announcer) Report() *pb.AnnounceReport {
	s := a.state.Load()
	if s.plan.Off != "" {
		return &pb.AnnounceReport{Reason: s.plan.Off}
	}
	r := &pb.AnnounceReport{LocalAsn: s.plan.BGP.LocalASN, Reason: s.problem, RouterId: s.routerID.String()}
	for _, e := range s.plan.Entries {
		an := &pb.Announcement{
			Prefix: e.Prefix.String(), State: reportState(s, e), Reason: e.Reason, Since: timestamppb.New(e.Since),
			Held: e.Held,
		}
		for _, p := range e.Pools {
			an.Pools = append(an.Pools, string(p))
		}
		r.Announcements = append(r.Announcements, an)
	}
	for _, x := range s.sessions {
		p := &pb.PeerSession{
			Peer: x.Peer.Name, Address: x.Peer.Address.String(), Asn: x.Peer.ASN, State: x.State, Reason: x.Reason,
			Bfd: s.bfd[x.Peer.Address], Received: uint32(max(x.Received, 0)),
		}
		if !x.Since.IsZero() {
			p.Since = timestamppb.New(x.Since)
		}
		for _, prefix := range x.Announced {
			p.Announced = append(p.Announced, prefix.String())
		}
		r.Sessions = append(r.Sessions, p)
	}
	return r
}

func reportState(s *state, e Entry) pb.AnnounceState {
	switch {
	case e.Phase == Withdrawn:
		return pb.AnnounceState_ANNOUNCE_STATE_WITHDRAWN
	case s.plan.BGP.DryRun:
		return pb.AnnounceState_ANNOUNCE_STATE_DRY_RUN
	case e.Phase == Draining:
		return pb.AnnounceState_ANNOUNCE_STATE_DRAINING
	}
	return pb.AnnounceState_ANNOUNCE_STATE_ANNOUNCED
}

// Notes says what of the announcements is not as it should be, for `nearcast status`.
func (a *Announcer) Notes() []string {
	s := a.state.Load()
	if s.plan.Off != "" {
		return nil
	}
	var notes []string
	if s.problem != "" {
		notes = append(notes, "BGP: "+s.problem)
	}
	if len(s.plan.Peers) == 0 {
		notes = append(notes, "BGP: no peer is configured for this node (nearcast peer create)")
	}
	if s.plan.BGP.DryRun {
		notes = append(notes, "BGP: a dry run, nothing is announced")
	}
	for _, e := range s.plan.Entries {
		if e.Held {
			notes = append(notes, fmt.Sprintf("BGP: %v is announced because of the floor: %s", e.Prefix, e.Reason))
		}
	}
	return notes
}

// Status is the state for /status.
type Status struct {
	Off       string         `json:"off,omitempty"` // why nothing is announced at all
	Prefixes  []PrefixStatus `json:"prefixes,omitempty"`
	Sessions  []PeerStatus   `json:"sessions,omitempty"`
	Problem   string         `json:"problem,omitempty"`
	Withdrawn bool           `json:"withdrawn"` // and packets had the time to go elsewhere
}

// PrefixStatus is one prefix.
type PrefixStatus struct {
	Prefix string           `json:"prefix"`
	Pools  []model.PoolName `json:"pools"`
	Phase  string           `json:"phase"`
	Reason string           `json:"reason"`
	Held   bool             `json:"held,omitempty"`
}

// PeerStatus is one session.
type PeerStatus struct {
	Peer      string   `json:"peer"`
	Address   string   `json:"address"`
	State     string   `json:"state"`
	BFD       string   `json:"bfd,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Announced []string `json:"announced,omitempty"`
}

// Status returns the present state.
func (a *Announcer) Status() Status {
	s := a.state.Load()
	out := Status{Off: s.plan.Off, Problem: s.problem, Withdrawn: s.gone}
	for _, e := range s.plan.Entries {
		out.Prefixes = append(out.Prefixes, PrefixStatus{e.Prefix.String(), e.Pools, phaseText[e.Phase], e.Reason, e.Held})
	}
	for _, x := range s.sessions {
		p := PeerStatus{Peer: x.Peer.Name, Address: x.Peer.Address.String(), State: x.State, Reason: x.Reason,
			BFD: s.bfd[x.Peer.Address]}
		for _, prefix := range x.Announced {
			p.Announced = append(p.Announced, prefix.String())
		}
		out.Sessions = append(out.Sessions, p)
	}
	return out
}
