package fleet

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// tookAnnouncements keeps what a node says that it announces.
func (x *session) tookAnnouncements(report *v1.AnnounceReport) {
	r := proto.CloneOf(report)
	if extra := max(0, len(r.GetAnnouncements())-announcementsMax) +
		max(0, len(r.GetSessions())-bgpSessionsMax); extra > 0 {
		x.f.metrics.dropped.Add(float64(extra))
	}
	r.Announcements = r.Announcements[:min(len(r.Announcements), announcementsMax)]
	r.Sessions = r.Sessions[:min(len(r.Sessions), bgpSessionsMax)]
	r.Reason, r.RouterId = clip(r.Reason, textMax), clip(r.RouterId, idMax)
	for _, a := range r.Announcements {
		a.Prefix, a.Reason = clip(a.Prefix, idMax), clip(a.Reason, textMax)
		a.Pools = a.Pools[:min(len(a.Pools), announcementsMax)]
		for i := range a.Pools {
			a.Pools[i] = clip(a.Pools[i], idMax)
		}
	}
	for _, p := range r.Sessions {
		p.Peer, p.Address, p.State = clip(p.Peer, idMax), clip(p.Address, idMax), clip(p.State, idMax)
		p.Reason, p.Bfd = clip(p.Reason, textMax), clip(p.Bfd, idMax)
		p.Announced = p.Announced[:min(len(p.Announced), announcementsMax)]
		for i := range p.Announced {
			p.Announced[i] = clip(p.Announced[i], idMax)
		}
	}
	bytes, err := proto.Marshal(r)
	if err != nil || len(bytes) > announceBytesMax { // a name that is no UTF-8 cannot get here: gRPC refused it
		x.f.metrics.dropped.Inc()
		return
	}
	x.change(func(n *nodeRecord) { n.Announce = bytes })
}

// Announcements returns what the edges of a site, or all with an empty one, say that they announce,
// sorted by node.
func (f *Fleet) Announcements(site model.SiteName) []*v1.NodeAnnouncements {
	p := f.published.Load()
	if p.State == nil {
		return nil
	}
	var list []*v1.NodeAnnouncements
	for _, n := range p.State.Nodes {
		if !n.Edge || n.State == model.NodeRevoked || site != "" && n.Site != site {
			continue
		}
		r, connected := f.mirror.node(n.ID)
		a := &v1.NodeAnnouncements{Node: string(n.ID), Name: n.Name, Site: string(n.Site), Connected: connected}
		if len(r.Announce) > 0 {
			report := new(v1.AnnounceReport)
			if proto.Unmarshal(r.Announce, report) == nil {
				a.Report = report
			}
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b *v1.NodeAnnouncements) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return list
}
