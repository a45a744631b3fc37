package catalog

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/proto/model"
)

// CreateBGPPeer adds a session to a site that has BGP.
func (c *Catalog) CreateBGPPeer(ctx context.Context, p model.BGPPeer, _ Options) (model.BGPPeer, error) {
	p = peerKind.clone(p)
	err := c.change(ctx, func(ch *change) error {
		if err := invalid(p.Validate()); err != nil {
			return err
		}
		if ch.peers.get(p.ID()) != nil {
			return exists(ReasonNone, "site %s has a peer %q already", p.Site, p.Name)
		}
		return ch.putPeer(p)
	})
	if err != nil {
		return model.BGPPeer{}, err
	}
	return c.BGPPeer(ctx, p.ID())
}

// BGPPeer returns one, with its password.
func (c *Catalog) BGPPeer(ctx context.Context, id model.PeerID) (model.BGPPeer, error) {
	return get(c, ctx, peersTable, id, plain(peerKind))
}

// ListBGPPeers returns a page of a site's sessions, or of all with an empty site.
func (c *Catalog) ListBGPPeers(ctx context.Context, site model.SiteName,
	p PageOptions) ([]model.BGPPeer, string, error) {
	keep := func(p *model.BGPPeer) bool { return site == "" || p.Site == site }
	return list(c, ctx, p, peersTable, keep, plain(peerKind))
}

func peersTable(o *objects) *table[model.PeerID, model.BGPPeer] { return &o.peers }

// UpdateBGPPeer lets edit alter everything but Site and Name; see UpdateAccelerator.
func (c *Catalog) UpdateBGPPeer(ctx context.Context, id model.PeerID, o Options,
	edit func(*model.BGPPeer) error) (model.BGPPeer, error) {
	err := c.change(ctx, func(ch *change) error {
		before, err := ch.peers.need(id)
		if err != nil {
			return err
		}
		p, changed, err := update(&ch.peers, id, before.Revision, o, edit, peerFixed)
		if err != nil || !changed {
			return err
		}
		if err := invalid(p.Validate()); err != nil {
			return err
		}
		return ch.putPeer(p)
	})
	if err != nil {
		return model.BGPPeer{}, err
	}
	return c.BGPPeer(ctx, id)
}

var peerFixed = map[string]func(a, b *model.BGPPeer) bool{
	"peer.site": func(a, b *model.BGPPeer) bool { return a.Site == b.Site },
	"peer.name": func(a, b *model.BGPPeer) bool { return a.Name == b.Name },
}

// DeleteBGPPeer removes a session.
func (c *Catalog) DeleteBGPPeer(ctx context.Context, id model.PeerID, o Options) error {
	return c.change(ctx, func(ch *change) error {
		p, err := ch.peers.need(id)
		if err != nil {
			return err
		}
		if err := expect(o, peerKind.name, string(id), p.Revision); err != nil {
			return err
		}
		remove(ch, &ch.peers, id)
		return nil
	})
}

// putPeer stages a valid session and checks it against everything else.
func (ch *change) putPeer(p model.BGPPeer) error {
	site := ch.sites.get(p.Site)
	if site == nil {
		e := notFound(ReasonSiteNotFound, siteKind.name, string(p.Site))
		e.Fields = model.FieldErrors{{Field: "peer.site", Message: "there is no such site; create it first"}}
		return e
	}
	if site.BGP == nil {
		return field(ReasonNone, "peer.site", "site %s has no BGP; give it an autonomous system first: "+
			"nearcast site update %s --asn N", p.Site, p.Site)
	}
	if p.LocalPreference != 0 && p.ASN != site.BGP.LocalASN {
		return field(ReasonNone, "peer.local_preference", "does not travel to another autonomous system "+
			"(RFC 4271 5.1.5); use prepends, med or communities")
	}
	if pool := ch.poolHolding(p.Address); pool != nil {
		return field(ReasonInUse, "peer.address", "%v is in pool %s: announcing the pool would cut the session",
			p.Address, pool.Name)
	}
	for i, name := range p.Nodes {
		there := func(n *model.Node) bool { return n.Name == name && n.Site == p.Site && n.Edge }
		if len(slices.Collect(where(ch.nodes.all(), there))) == 0 {
			return field(ReasonNone, fmt.Sprintf("peer.nodes[%d]", i),
				"there is no edge %s at site %s; name nodes that have enrolled", name, p.Site)
		}
	}
	for _, other := range inOrder(ch.peers.all(), peerKind.key) {
		if other.Site == p.Site && other.Name != p.Name && other.Address == p.Address && shareNode(other, &p) {
			return field(ReasonInUse, "peer.address", "%v is peer %s already", p.Address, other.Name)
		}
	}
	return put(ch, &ch.peers, p)
}

func shareNode(a, b *model.BGPPeer) bool {
	return len(a.Nodes) == 0 || len(b.Nodes) == 0 ||
		slices.ContainsFunc(a.Nodes, func(n string) bool { return slices.Contains(b.Nodes, n) })
}

// checkSiteBGP checks a site's announcements against everything else. before is nil for a new site.
func (ch *change) checkSiteBGP(before *model.Site, s *model.Site) error {
	if s.BGP == nil {
		for _, p := range inOrder(ch.peers.all(), peerKind.key) {
			if p.Site == s.Name {
				return precondition(ReasonInUse, "peer %s needs the site's bgp; delete it first", p.ID())
			}
		}
		return nil
	}
	for i, name := range s.BGP.Pools {
		if p := ch.pools.get(name); p == nil || p.Kind != model.PoolAnycast {
			return field(ReasonPoolNotFound, fmt.Sprintf("site.bgp.pools[%d]", i),
				"there is no anycast pool %q", name)
		}
	}
	if before == nil || before.BGP == nil || before.BGP.LocalASN == s.BGP.LocalASN {
		return nil
	}
	for _, p := range inOrder(ch.peers.all(), peerKind.key) {
		if p.Site == s.Name && p.LocalPreference != 0 {
			return precondition(ReasonInUse, "peer %s has a local preference, which internal BGP alone carries",
				p.ID())
		}
	}
	return nil
}

// checkAggregates checks what would be announced in place of pools' prefixes: like a pool, it must not
// hold what the fleet needs, and zones stay independent only while nothing joins them.
func (ch *change) checkAggregates(aggregates []netip.Prefix) error {
	for i, a := range aggregates {
		path := fmt.Sprintf("settings.announce_aggregates[%d]", i)
		zones := map[string]bool{}
		for _, p := range inOrder(ch.pools.all(), poolKind.key) {
			for _, q := range p.Prefixes {
				switch {
				case !a.Overlaps(q):
				case q.Bits() < a.Bits():
					return field(ReasonNone, path, "%v is a part of %v of pool %s; an aggregate holds whole prefixes",
						a, q, p.Name)
				default:
					zones[p.Zone] = true
				}
			}
		}
		if len(zones) > 1 {
			return field(ReasonNone, path, "%v holds prefixes of %d zones, which would then fail together; "+
				"give each zone an aggregate of its own", a, len(zones))
		}
		for _, n := range inOrder(ch.nodes.all(), nodeKind.key) {
			for _, addr := range nodeAddresses(n) {
				if a.Contains(addr) {
					return field(ReasonInUse, path, "%v holds %v, an address of node %s, which announcing it would cut off",
						a, addr, n.Name)
				}
			}
		}
		for _, p := range inOrder(ch.peers.all(), peerKind.key) {
			if a.Contains(p.Address) {
				return field(ReasonInUse, path, "%v holds %v, the address of peer %s", a, p.Address, p.ID())
			}
		}
	}
	return nil
}

// announceHolding says what is announced that holds an address, or "".
func (ch *change) announceHolding(addr netip.Addr) string {
	for _, a := range ch.settings().AnnounceAggregates {
		if a.Contains(addr) {
			return "announced aggregate " + a.String()
		}
	}
	return ""
}

// SetSiteAnnouncing drains a site's announcements or lets them come back.
func (c *Catalog) SetSiteAnnouncing(ctx context.Context, name model.SiteName, drained bool, o Options) error {
	return c.change(ctx, func(ch *change) error {
		before, err := ch.sites.need(name)
		if err != nil {
			return err
		}
		if before.BGP == nil {
			return precondition(ReasonNone, "site %s has no BGP: it announces nothing", name)
		}
		if before.BGP.Drained == drained {
			return nil
		}
		announced := ch.announced()
		s := siteKind.clone(*before)
		s.BGP.Drained = drained
		if err := put(ch, &ch.sites, s); err != nil {
			return err
		}
		return ch.guardAnnounced(announced, o)
	})
}

// SetNodeAnnouncing drains a node's announcements or lets them come back.
func (c *Catalog) SetNodeAnnouncing(ctx context.Context, id model.NodeID, drained bool, o Options) error {
	return c.change(ctx, func(ch *change) error {
		before, err := ch.nodes.need(id)
		if err != nil {
			return err
		}
		if site := ch.sites.get(before.Site); !before.Edge || site == nil || site.BGP == nil {
			return precondition(ReasonNone, "node %s is no edge of a site with BGP: it announces nothing", before.Name)
		}
		if before.AnnounceDrained == drained {
			return nil
		}
		announced := ch.announced()
		n := nodeKind.clone(*before)
		n.AnnounceDrained = drained
		if err := put(ch, &ch.nodes, n); err != nil {
			return err
		}
		return ch.guardAnnounced(announced, o)
	})
}

// announced returns the sites that are meant to announce each anycast pool.
func (ch *change) announced() map[model.PoolName][]string {
	edges := map[model.SiteName]bool{}
	for n := range ch.nodes.all() {
		if n.Edge && n.State == model.NodeActive && !n.AnnounceDrained {
			edges[n.Site] = true
		}
	}
	sites := map[model.PoolName][]string{}
	for _, s := range inOrder(ch.sites.all(), siteKind.key) {
		if s.BGP == nil || s.BGP.Drained || s.BGP.DryRun || !edges[s.Name] {
			continue
		}
		for p := range ch.pools.all() {
			if s.BGP.Announces(p) {
				sites[p.Name] = append(sites[p.Name], string(s.Name))
			}
		}
	}
	return sites
}

// guardAnnounced refuses a change after which no site is meant to announce a pool that one was before
// (R-BG1): nodes would refuse it anyway, up to the floor.
func (ch *change) guardAnnounced(before map[model.PoolName][]string, o Options) error {
	if o.Force {
		return nil
	}
	after := ch.announced()
	for _, p := range inOrder(ch.pools.all(), poolKind.key) {
		if len(before[p.Name]) > 0 && len(after[p.Name]) == 0 {
			return guarded("pool %s would be announced nowhere; it is by %s only", p.Name,
				strings.Join(before[p.Name], ", "))
		}
	}
	return nil
}
