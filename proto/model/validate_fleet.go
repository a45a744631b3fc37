package model

import (
	"net/netip"
	"slices"
)

// This file judges one object of the fleet's configuration by itself; see validate_config.go.

// Validate judges a pool by itself.
func (p Pool) Validate() error {
	c := newCheck("pool")
	p.check(c)
	return c.err()
}

func (p *Pool) check(c check) {
	c.name("name", string(p.Name))
	switch p.Kind {
	case PoolAnycast:
		c.name("zone", p.Zone)
		if len(p.Prefixes) == 0 {
			c.wrong("prefixes", "is empty; an anycast pool needs at least one network, like 192.0.2.0/24")
		}
		if len(p.Sites) != 0 {
			c.wrong("sites", "is for node pools; anycast addresses are served by every site, leave it out")
		}
	case PoolNode:
		if p.Zone != "" {
			c.wrong("zone", "is for anycast pools; leave it out")
		}
		if len(p.Prefixes) != 0 {
			c.wrong("prefixes", "is for anycast pools; here each node's own addresses serve, leave it out")
		}
	default:
		c.wrong("kind", "is missing or unknown; use ANYCAST or NODE")
	}
	if c.count("prefixes", len(p.Prefixes), PoolPrefixesMax) {
		p.checkPrefixes(c)
	}
	if c.count("sites", len(p.Sites), SnapshotSitesMax) {
		seen := make(map[SiteName]bool, len(p.Sites))
		for i, s := range p.Sites {
			c.name(index("sites", i), string(s))
			if seen[s] {
				c.wrong(index("sites", i), "names %s twice; leave one out", show(string(s)))
			}
			seen[s] = true
		}
	}
}

func (p *Pool) checkPrefixes(c check) {
	for i, n := range p.Prefixes {
		field := index("prefixes", i)
		switch {
		case !n.IsValid():
			c.wrong(field, "is missing; write it like 192.0.2.0/24")
			continue
		case n != n.Masked() || n.Addr().Is4In6():
			c.wrong(field, "%v has bits below its length; write %v", n, n.Masked())
			continue
		case n.Addr().IsMulticast() || n.Bits() == 0:
			c.wrong(field, "%v has addresses that no machine can have; give a unicast network", n)
			continue
		}
		for j, earlier := range p.Prefixes[:i] {
			if n.Overlaps(earlier) {
				c.wrong(field, "%v overlaps with prefixes[%d], %v; leave one out", n, j, earlier)
			}
		}
	}
}

// Validate judges a region by itself.
func (r Region) Validate() error {
	c := newCheck("region")
	r.check(c)
	return c.err()
}

func (r *Region) check(c check) {
	c.name("name", string(r.Name))
	c.text("description", r.Description, DescriptionMax)
}

// Validate judges a site by itself.
func (s Site) Validate() error {
	c := newCheck("site")
	s.check(c)
	return c.err()
}

func (s *Site) check(c check) {
	c.name("name", string(s.Name))
	c.name("region", string(s.Region))
	if !(s.Latitude >= -90 && s.Latitude <= 90) { // written so that NaN is refused
		c.wrong("latitude", "is %v; give degrees from -90 to 90, north positive", s.Latitude)
	}
	if !(s.Longitude >= -180 && s.Longitude <= 180) {
		c.wrong("longitude", "is %v; give degrees from -180 to 180, east positive", s.Longitude)
	}
	if s.BGP != nil {
		s.BGP.check(c.at("bgp"))
	}
}

// Validate judges a node's identity and addresses by themselves.
func (n Node) Validate() error {
	c := newCheck("node")
	n.check(c)
	return c.err()
}

func (n *Node) check(c check) {
	c.idOrNone("id", string(n.ID))
	c.name("name", n.Name)
	c.name("site", string(n.Site))
	if !n.Edge && !n.Gateway {
		c.wrong("", "has no role; let it be edge, gateway or both")
	}
	if n.State > NodeRevoked {
		c.wrong("state", "has the unknown value %d; use ACTIVE, DRAINING or REVOKED", n.State)
	}
	if c.count("backbone_addresses", len(n.BackboneAddresses), NodeAddressesMax) {
		for i, a := range n.BackboneAddresses {
			field := index("backbone_addresses", i)
			c.addrPort(field, a)
			if slices.Contains(n.BackboneAddresses[:i], a) {
				c.wrong(field, "names %v twice; leave one out", a)
			}
		}
	}
	if n.GossipAddress.IsValid() {
		c.addrPort("gossip_address", n.GossipAddress)
	}
	if n.BalanceAddress.IsValid() {
		c.addrPort("balance_address", n.BalanceAddress)
	}
	if n.BalanceWeight < 0 || n.BalanceWeight > BalanceWeightMax {
		c.wrong("balance_weight", "is %d; use 1 to %d, or 0 for %d", n.BalanceWeight, BalanceWeightMax, BalanceWeightDefault)
	}
	if c.count("service_addresses", len(n.ServiceAddresses), NodeAddressesMax) {
		for i, a := range n.ServiceAddresses {
			field := index("service_addresses", i)
			c.addr(field, a)
			if slices.Contains(n.ServiceAddresses[:i], a) {
				c.wrong(field, "names %v twice; leave one out", a)
			}
		}
	}
}

// Validate judges settings by themselves. Each limit may be raised up to what a snapshot can hold.
func (s Settings) Validate() error {
	c := newCheck("settings")
	for _, l := range []struct {
		field  string
		n, max int
	}{
		{"accelerators_max", s.AcceleratorsMax, SnapshotAcceleratorsMax},
		{"listeners_per_accelerator_max", s.ListenersPerAcceleratorMax, SnapshotListenersMax},
		{"groups_per_accelerator_max", s.GroupsPerAcceleratorMax, SnapshotGroupsMax},
		{"port_ranges_per_listener_max", s.PortRangesPerListenerMax, PortRangesMax},
		{"port_overrides_per_group_max", s.PortOverridesPerGroupMax, PortOverridesMax},
		{"endpoints_per_group_max", s.EndpointsPerGroupMax, EndpointsMax},
		{"tags_per_resource_max", s.TagsPerResourceMax, TagsMax},
		{"custom_routing_accelerators_max", s.CustomRoutingAcceleratorsMax, SnapshotAcceleratorsMax},
		{"attachments_max", s.AttachmentsMax, AttachmentsMax},
		{"principals_per_attachment_max", s.PrincipalsPerAttachmentMax, PrincipalsMax},
		{"byoip_ranges_max", s.BYOIPRangesMax, SnapshotPoolsMax},
		{"max_ejection_percent", s.MaxEjectionPercent, 100},
		{"announce_floor", s.AnnounceFloor, SnapshotSitesMax},
	} {
		if l.n < 1 || l.n > l.max {
			c.wrong(l.field, "is %d; use 1 to %d, or 0 for the default", l.n, l.max)
		}
	}
	if c.count("endpoint_allow_networks", len(s.EndpointAllowNetworks), SnapshotNetworksMax) {
		for i, p := range s.EndpointAllowNetworks {
			if !p.IsValid() {
				c.wrong(index("endpoint_allow_networks", i), "is missing; write it like 192.0.2.0/24")
			}
		}
	}
	c.aggregates("announce_aggregates", s.AnnounceAggregates)
	if _, err := netip.ParseAddr(s.DNSSuffix); err == nil {
		c.wrong("dns_suffix", "%s is an address; give a DNS name like nearcast.example.com", show(s.DNSSuffix))
	} else {
		c.host("dns_suffix", s.DNSSuffix)
	}
	return c.err()
}
