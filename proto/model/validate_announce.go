package model

import (
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// This file judges the configuration of announcements by itself; see validate_config.go.

func (b *SiteBGP) check(c check) {
	c.asn("local_asn", b.LocalASN)
	if b.RouterID.IsValid() && (!b.RouterID.Is4() || b.RouterID.IsUnspecified()) {
		c.wrong("router_id", "%v is not an IPv4 address; leave it out, and each node uses its own", b.RouterID)
	}
	if c.count("pools", len(b.Pools), SnapshotPoolsMax) {
		for i, p := range b.Pools {
			c.name(index("pools", i), string(p))
			if slices.Contains(b.Pools[:i], p) {
				c.wrong(index("pools", i), "names %s twice; leave one out", show(string(p)))
			}
		}
	}
	c.between("drain_time", b.DrainTime, 0, DrainTimeMax)
	c.atMost("drain_prepends", b.DrainPrepends, PrependsMax)
	c.communities("communities", b.Communities)
}

// Validate judges a session by itself.
func (p BGPPeer) Validate() error {
	c := newCheck("peer")
	p.check(c)
	return c.err()
}

func (p *BGPPeer) check(c check) {
	c.name("site", string(p.Site))
	c.name("name", p.Name)
	c.addr("address", p.Address)
	if p.Address.IsLinkLocalUnicast() {
		c.wrong("address", "%v is link-local; give the router's global address", p.Address)
	}
	c.asn("asn", p.ASN)
	if c.count("nodes", len(p.Nodes), SnapshotNodesMax) {
		for i, n := range p.Nodes {
			c.name(index("nodes", i), n)
			if slices.Contains(p.Nodes[:i], n) {
				c.wrong(index("nodes", i), "names %s twice; leave one out", show(n))
			}
		}
	}
	if len(p.Password) > bgpPasswordMax {
		c.wrong("password", "has %d bytes; at most %d are possible", len(p.Password), bgpPasswordMax)
	}
	p.checkPath(c)
	c.seconds("hold_time", p.HoldTime, HoldTimeMin, HoldTimeMax)
	c.seconds("connect_retry", p.ConnectRetry, ConnectRetryMin, ConnectRetryMax)
	if p.RestartTime != 0 {
		c.seconds("restart_time", p.RestartTime, time.Second, RestartTimeMax)
	}
	c.communities("communities", p.Communities)
	c.atMost("prepends", p.Prepends, PrependsMax)
	if p.MaxPrefixes < 1 {
		c.wrong("max_prefixes", "is %d; use 1 or more, or 0 for the default", p.MaxPrefixes)
	}
	c.between("bfd_interval", p.BFDInterval, BFDIntervalMin, BFDIntervalMax)
	if p.BFDMultiplier < 1 || p.BFDMultiplier > BFDMultiplierMax {
		c.wrong("bfd_multiplier", "is %d; use 1 to %d, or 0 for %d", p.BFDMultiplier, BFDMultiplierMax,
			DefaultBFDMultiplier)
	}
}

// checkPath judges how packets get to the router.
func (p *BGPPeer) checkPath(c check) {
	if p.MultihopTTL != 0 && (p.MultihopTTL < 2 || p.MultihopTTL > 255) {
		c.wrong("multihop_ttl", "is %d; use 2 to 255, or leave it out for a direct neighbour", p.MultihopTTL)
	}
	if p.MultihopTTL != 0 && p.TTLSecurity {
		c.wrong("ttl_security", "does not go together with multihop_ttl; leave one of them out")
	}
	if p.MultihopTTL != 0 && p.BFD {
		c.wrong("bfd", "works with direct neighbours only (RFC 5881); leave out bfd or multihop_ttl")
	}
	if p.LocalAddress.IsValid() {
		c.addr("local_address", p.LocalAddress)
		if p.LocalAddress.Is4() != p.Address.Is4() {
			c.wrong("local_address", "%v is not of the same family as address, %v", p.LocalAddress, p.Address)
		}
	}
}

// aggregates judges the networks that are announced in place of pools' prefixes.
func (c check) aggregates(field string, all []netip.Prefix) {
	if !c.count(field, len(all), AggregatesMax) {
		return
	}
	for i, a := range all {
		if !a.IsValid() || a.Bits() == 0 || a.Addr().IsMulticast() || a != a.Masked() {
			c.wrong(index(field, i), "is not a unicast network; write it like 192.0.2.0/24")
			continue
		}
		for j, earlier := range all[:i] {
			if a.Overlaps(earlier) {
				c.wrong(index(field, i), "%v overlaps with %v; leave one out", a, index(field, j))
			}
		}
	}
}

func (c check) asn(field string, n uint32) {
	switch {
	case n == 0:
		c.wrong(field, "is missing; give the number of the autonomous system, 1 to %d", largestASN)
	case n > largestASN || n == asTrans || n == 65535:
		c.wrong(field, "%d is reserved (RFC 6793, 7300); give the number that you were assigned, "+
			"or a private one of 64512 to 65534", n)
	}
}

func (c check) communities(field string, all []Community) {
	if !c.count(field, len(all), CommunitiesMax) {
		return
	}
	for i, com := range all {
		if _, err := com.Parts(); err != nil {
			c.wrong(index(field, i), "%v", err)
		} else if com == GracefulShutdown {
			c.wrong(index(field, i), "%s is added while draining; leave it out", com)
		} else if slices.Contains(all[:i], com) {
			c.wrong(index(field, i), "names %s twice; leave one out", com)
		}
	}
}

// between checks a duration.
func (c check) between(field string, d, least, most time.Duration) {
	if d < least || d > most {
		c.wrong(field, "is %v; use %v to %v", d, least, most)
	}
}

// seconds is between for what the protocol carries in whole seconds.
func (c check) seconds(field string, d, least, most time.Duration) {
	c.between(field, d, least, most)
	if d%time.Second != 0 {
		c.wrong(field, "is %v; use whole seconds", d)
	}
}

func (c check) atMost(field string, n, most int) {
	if n < 0 || n > most {
		c.wrong(field, "is %s; use 0 to %d", strconv.Itoa(n), most)
	}
}

// announcements judges what a snapshot says about BGP.
func (k snapshotKeys) announcements(c check, s *Snapshot) {
	for i := range s.Sites {
		if b := s.Sites[i].BGP; b != nil {
			bc := c.atKey("sites", string(s.Sites[i].Name)).at("bgp")
			for j, name := range b.Pools {
				if p := k.poolByName[name]; p == nil || p.Kind != PoolAnycast {
					bc.wrong(index("pools", j), "names %s, which is no anycast pool", show(string(name)))
				}
			}
		}
	}
	byKey(c, "bgp_peers", s.BGPPeers, peerKey)
	for i := range s.BGPPeers {
		p := &s.BGPPeers[i]
		pc := c.atKey("bgp_peers", string(p.ID()))
		p.check(pc)
		if site := k.siteByName[p.Site]; site == nil || site.BGP == nil {
			pc.wrong("site", "names the site %s, which has no bgp", show(string(p.Site)))
		}
	}
	c.aggregates("announce_aggregates", s.AnnounceAggregates)
	if s.AnnounceFloor < 0 || s.AnnounceFloor > SnapshotSitesMax {
		c.wrong("announce_floor", "is %d; use 1 to %d, or 0 for %d", s.AnnounceFloor, SnapshotSitesMax,
			DefaultAnnounceFloor)
	}
}
