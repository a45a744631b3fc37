package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// ExplainAnycast completes an explanation for an accelerator whose addresses BGP brings clients to: which sites
// announce them, as the nodes last said, and to which ones clients of that network really came. Routing
// decides among them, and nobody can ask it; what it did before is what is known. It returns the node that most
// of them came to, or "".
func (f *Fleet) ExplainAnycast(client netip.Addr, r *v1.ExplainSteerResponse) (most model.NodeID) {
	p := f.published.Load()
	if p.State == nil {
		return ""
	}
	var addrs []netip.Addr
	for _, text := range r.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a)
		}
	}
	seen, most := f.seenAt(model.ClientNetworkOf(client), p)
	by := map[string]*v1.ExplainedSite{}
	for _, n := range f.Announcements("") {
		why := announces(n, addrs)
		e := by[n.GetSite()]
		if e == nil {
			e = &v1.ExplainedSite{Site: n.GetSite(), DistanceKm: -1, RttMs: -1, Weight: 100}
			by[n.GetSite()] = e
		}
		if why == "" {
			e.Nodes = append(e.Nodes, n.GetName())
		} else {
			e.PassedOver = why
		}
	}
	best, samples := "", 0
	for _, e := range by {
		s := seen[model.SiteName(e.GetSite())]
		switch {
		case s.Samples > 0:
			e.RttMs = float64(s.RTT) / float64(time.Millisecond)
			if s.Samples > samples {
				best, samples = e.GetSite(), s.Samples
			}
			fallthrough
		case len(e.Nodes) > 0:
			e.PassedOver = ""
		}
		if len(e.Nodes) > 0 && s.Samples == 0 && len(seen) > 0 {
			e.PassedOver = "no client of this network came there"
		}
		r.Sites = append(r.Sites, e)
	}
	slices.SortFunc(r.Sites, func(a, b *v1.ExplainedSite) int {
		return cmp.Or(cmp.Compare(seen[model.SiteName(b.Site)].Samples, seen[model.SiteName(a.Site)].Samples),
			cmp.Compare(len(b.Nodes), len(a.Nodes)), cmp.Compare(a.Site, b.Site))
	})
	if best != "" {
		r.Reason = fmt.Sprintf("routing brings the client to an edge that announces the address; clients of %v came to %s (%.1f ms)",
			model.ClientNetworkOf(client), best, by[best].RttMs)
	}
	return most
}

// announces says why a node does not announce all of the addresses, or "".
func announces(n *v1.NodeAnnouncements, addrs []netip.Addr) string {
	if !n.GetConnected() {
		return n.GetName() + " is away"
	}
	for _, a := range addrs {
		why := n.GetName() + " does not announce " + a.String()
		for _, x := range n.GetReport().GetAnnouncements() {
			prefix, err := netip.ParsePrefix(x.GetPrefix())
			if err != nil || !prefix.Contains(a) {
				continue
			}
			if why = ""; x.GetState() != v1.AnnounceState_ANNOUNCE_STATE_ANNOUNCED {
				why = fmt.Sprintf("%s: %s", n.GetName(), x.GetReason())
			}
			break
		}
		if why != "" {
			return why
		}
	}
	return ""
}

// seenAt returns what each site's nodes measured of a network, and the node that measured most.
func (f *Fleet) seenAt(network netip.Prefix, p *Published) (seen map[model.SiteName]model.ClientSite, most model.NodeID) {
	seen = map[model.SiteName]model.ClientSite{}
	best := 0
	f.mirror.mu.Lock()
	defer f.mirror.mu.Unlock()
	for id, r := range f.mirror.clients {
		n := p.nodes[id]
		if n == nil || time.Since(r.at) > clientsAge {
			continue
		}
		i := slices.IndexFunc(r.networks, func(c model.ClientNetwork) bool { return c.Prefix == network })
		if i < 0 || len(r.networks[i].Sites) == 0 {
			continue
		}
		if s := r.networks[i].Sites[0]; s.Samples > seen[n.Site].Samples {
			s.Site = n.Site
			seen[n.Site] = s
		}
		if s := r.networks[i].Sites[0]; s.Samples > best {
			best, most = s.Samples, id
		}
	}
	return seen, most
}
