package model

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file converts what operators configure for the fleet (pools, regions, sites, nodes, settings)
// and the snapshot that nodes are told.

// PoolFromProto converts a pool.
func PoolFromProto(p *pb.Pool) (Pool, error) {
	c := newCheck("pool")
	return poolFrom(c, p), c.err()
}

func poolFrom(c check, p *pb.Pool) Pool {
	pool := Pool{
		Name:     PoolName(p.GetName()),
		Kind:     poolKinds.from(c, "kind", p.GetKind()),
		Zone:     p.GetZone(),
		Prefixes: prefixesFrom(c, "prefixes", p.GetPrefixes(), PoolPrefixesMax),
		Project:  p.GetProject(),
		Withheld: p.GetWithheld(),
		Revision: p.GetRevision(),
	}
	if c.count("sites", len(p.GetSites()), SnapshotSitesMax) {
		pool.Sites = names[SiteName](p.GetSites())
	}
	return pool
}

// PoolToProto converts a pool.
func PoolToProto(p Pool) *pb.Pool {
	return &pb.Pool{
		Name:     string(p.Name),
		Kind:     poolKinds.to(p.Kind),
		Zone:     p.Zone,
		Prefixes: stringsTo(p.Prefixes),
		Sites:    names[string](p.Sites),
		Project:  p.Project,
		Withheld: p.Withheld,
		Revision: p.Revision,
	}
}

// RegionFromProto converts a region.
func RegionFromProto(p *pb.Region) (Region, error) {
	return Region{
		Name: RegionName(p.GetName()), Description: p.GetDescription(), Revision: p.GetRevision(),
	}, nil
}

// RegionToProto converts a region.
func RegionToProto(r Region) *pb.Region {
	return &pb.Region{Name: string(r.Name), Description: r.Description, Revision: r.Revision}
}

// SiteFromProto converts a site.
func SiteFromProto(p *pb.Site) (Site, error) {
	c := newCheck("site")
	return siteFrom(c, p), c.err()
}

func siteFrom(c check, p *pb.Site) Site {
	return Site{
		Name:      SiteName(p.GetName()),
		Region:    RegionName(p.GetRegion()),
		Latitude:  p.GetLatitude(),
		Longitude: p.GetLongitude(),
		BGP:       siteBGPFrom(c.at("bgp"), p.GetBgp()),
		Revision:  p.GetRevision(),
	}
}

// SiteToProto converts a site.
func SiteToProto(s Site) *pb.Site {
	return &pb.Site{
		Name:      string(s.Name),
		Region:    string(s.Region),
		Latitude:  s.Latitude,
		Longitude: s.Longitude,
		Bgp:       siteBGPTo(s.BGP),
		Revision:  s.Revision,
	}
}

// NodeFromProto converts a node's identity and addresses; what is known about its present condition
// has no place in the native value and is left out.
func NodeFromProto(p *pb.Node) (Node, error) {
	c := newCheck("node")
	return nodeFrom(c, p), c.err()
}

func nodeFrom(c check, p *pb.Node) Node {
	n := Node{
		ID:      NodeID(p.GetId()),
		Name:    p.GetName(),
		Site:    SiteName(p.GetSite()),
		Edge:    p.GetEdge(),
		Gateway: p.GetGateway(),
		State:   nodeStates.from(c, "state", p.GetState()),
		BackboneAddresses: listFrom(c, "backbone_addresses", p.GetBackboneAddresses(), NodeAddressesMax,
			addrPortFrom),
		ServiceAddresses: addrsFrom(c, "service_addresses", p.GetServiceAddresses(), NodeAddressesMax),
		BalanceWeight:    int(p.GetBalanceWeight()),
		AnnounceDrained:  p.GetAnnounceDrained(),
		Revision:         p.GetRevision(),
	}
	if s := p.GetGossipAddress(); s != "" {
		n.GossipAddress = addrPortFrom(c, "gossip_address", s)
	}
	if s := p.GetBalanceAddress(); s != "" {
		n.BalanceAddress = addrPortFrom(c, "balance_address", s)
	}
	return n
}

// NodeToProto converts a node's identity and addresses.
func NodeToProto(n Node) *pb.Node {
	return &pb.Node{
		Id:                string(n.ID),
		Name:              n.Name,
		Site:              string(n.Site),
		Edge:              n.Edge,
		Gateway:           n.Gateway,
		State:             nodeStates.to(n.State),
		BackboneAddresses: stringsTo(n.BackboneAddresses),
		GossipAddress:     addrPortTo(n.GossipAddress),
		ServiceAddresses:  stringsTo(n.ServiceAddresses),
		BalanceAddress:    addrPortTo(n.BalanceAddress),
		BalanceWeight:     uint32(n.BalanceWeight),
		AnnounceDrained:   n.AnnounceDrained,
		Revision:          n.Revision,
	}
}

// SettingsFromProto converts settings; each 0 becomes its default.
func SettingsFromProto(p *pb.Settings) (Settings, error) {
	c := newCheck("settings")
	or := func(n uint32, def int) int {
		if n == 0 {
			return def
		}
		return int(min(n, 1<<30)) // stays too large where it is, on every size of int
	}
	s := Settings{
		AcceleratorsMax:            or(p.GetAcceleratorsMax(), DefaultAcceleratorsMax),
		ListenersPerAcceleratorMax: or(p.GetListenersPerAcceleratorMax(), DefaultListenersPerAcceleratorMax),
		GroupsPerAcceleratorMax:    or(p.GetGroupsPerAcceleratorMax(), DefaultGroupsPerAcceleratorMax),
		PortRangesPerListenerMax:   or(p.GetPortRangesPerListenerMax(), DefaultPortRangesPerListenerMax),
		PortOverridesPerGroupMax:   or(p.GetPortOverridesPerGroupMax(), DefaultPortOverridesPerGroupMax),
		EndpointsPerGroupMax:       or(p.GetEndpointsPerGroupMax(), DefaultEndpointsPerGroupMax),
		TagsPerResourceMax:         or(p.GetTagsPerResourceMax(), DefaultTagsPerResourceMax),
		MaxEjectionPercent:         or(p.GetMaxEjectionPercent(), DefaultMaxEjectionPercent),
		EndpointAllowNetworks: prefixesFrom(c, "endpoint_allow_networks", p.GetEndpointAllowNetworks(),
			SnapshotNetworksMax),
		DNSSuffix:                    p.GetDnsSuffix(),
		AnnounceAggregates:           prefixesFrom(c, "announce_aggregates", p.GetAnnounceAggregates(), AggregatesMax),
		AnnounceFloor:                or(p.GetAnnounceFloor(), DefaultAnnounceFloor),
		Revision:                     p.GetRevision(),
		CustomRoutingAcceleratorsMax: or(p.GetCustomRoutingAcceleratorsMax(), DefaultCustomRoutingAcceleratorsMax),
		AttachmentsMax:               or(p.GetAttachmentsMax(), DefaultAttachmentsMax),
		PrincipalsPerAttachmentMax:   or(p.GetPrincipalsPerAttachmentMax(), DefaultPrincipalsPerAttachmentMax),
		BYOIPRangesMax:               or(p.GetByoipRangesMax(), DefaultBYOIPRangesMax),
	}
	if s.DNSSuffix == "" {
		s.DNSSuffix = DefaultDNSSuffix
	}
	return s, c.err()
}

// SettingsToProto converts settings.
func SettingsToProto(s Settings) *pb.Settings {
	return &pb.Settings{
		AcceleratorsMax:              uint32(s.AcceleratorsMax),
		ListenersPerAcceleratorMax:   uint32(s.ListenersPerAcceleratorMax),
		GroupsPerAcceleratorMax:      uint32(s.GroupsPerAcceleratorMax),
		PortRangesPerListenerMax:     uint32(s.PortRangesPerListenerMax),
		PortOverridesPerGroupMax:     uint32(s.PortOverridesPerGroupMax),
		EndpointsPerGroupMax:         uint32(s.EndpointsPerGroupMax),
		TagsPerResourceMax:           uint32(s.TagsPerResourceMax),
		MaxEjectionPercent:           uint32(s.MaxEjectionPercent),
		EndpointAllowNetworks:        stringsTo(s.EndpointAllowNetworks),
		DnsSuffix:                    s.DNSSuffix,
		AnnounceAggregates:           stringsTo(s.AnnounceAggregates),
		AnnounceFloor:                uint32(s.AnnounceFloor),
		Revision:                     s.Revision,
		CustomRoutingAcceleratorsMax: uint32(s.CustomRoutingAcceleratorsMax),
		AttachmentsMax:               uint32(s.AttachmentsMax),
		PrincipalsPerAttachmentMax:   uint32(s.PrincipalsPerAttachmentMax),
		ByoipRangesMax:               uint32(s.BYOIPRangesMax),
	}
}

// SnapshotFromProto converts a snapshot. It refuses a format that this version does not know and
// lists beyond the limits; it does not look at how objects refer to each other (see Consistent).
func SnapshotFromProto(p *pb.Snapshot) (*Snapshot, error) {
	c := newCheck("")
	if p.GetFormat() != SnapshotFormat {
		c.wrong("format", "is %d, and this version knows %d only; upgrade the older side",
			p.GetFormat(), SnapshotFormat)
		return nil, c.err()
	}
	s := &Snapshot{Revision: p.GetRevision(), Cluster: p.GetCluster()}
	s.Accelerators = keyedFrom(c, "accelerators", p.GetAccelerators(), SnapshotAcceleratorsMax,
		(*pb.Accelerator).GetId, acceleratorFrom)
	s.Listeners = keyedFrom(c, "listeners", p.GetListeners(), SnapshotListenersMax,
		(*pb.Listener).GetId, listenerFrom)
	s.Groups = keyedFrom(c, "groups", p.GetGroups(), SnapshotGroupsMax,
		(*pb.EndpointGroup).GetId, groupFrom)
	s.Pools = keyedFrom(c, "pools", p.GetPools(), SnapshotPoolsMax, (*pb.Pool).GetName, poolFrom)
	s.Regions = keyedFrom(c, "regions", p.GetRegions(), SnapshotRegionsMax, (*pb.Region).GetName,
		func(_ check, p *pb.Region) Region { r, _ := RegionFromProto(p); return r })
	s.Sites = keyedFrom(c, "sites", p.GetSites(), SnapshotSitesMax, (*pb.Site).GetName,
		siteFrom)
	s.Nodes = keyedFrom(c, "nodes", p.GetNodes(), SnapshotNodesMax, (*pb.Node).GetId, nodeFrom)
	s.GossipKeys = listFrom(c, "gossip_keys", p.GetGossipKeys(), SnapshotGossipKeysMax,
		func(_ check, _ string, k []byte) []byte { return bytes.Clone(k) })
	s.EndpointAllowNetworks = prefixesFrom(c, "endpoint_allow_networks", p.GetEndpointAllowNetworks(),
		SnapshotNetworksMax)
	s.BGPPeers = keyedFrom(c, "bgp_peers", p.GetBgpPeers(), SnapshotPeersMax, (*pb.BgpPeer).GetId, bgpPeerFrom)
	s.AnnounceAggregates = prefixesFrom(c, "announce_aggregates", p.GetAnnounceAggregates(), AggregatesMax)
	s.AnnounceFloor = smallInt(p.GetAnnounceFloor())
	s.Subnets = keyedFrom(c, "subnets", p.GetSubnets(), SnapshotSubnetsMax, (*pb.Subnet).GetName, subnetFrom)
	s.CustomRoutingGroups = keyedFrom(c, "custom_routing_groups", p.GetCustomRoutingGroups(), SnapshotGroupsMax,
		(*pb.CustomRoutingGroup).GetId, customRoutingGroupFrom)
	s.Zones = keyedFrom(c, "zones", p.GetZones(), SnapshotZonesMax, (*pb.Zone).GetName, zoneFrom)
	if p.GetSteering() != nil {
		s.Steering = steeringFrom(c.at("steering"), p.GetSteering())
	}
	s.DNSSuffix = p.GetDnsSuffix()
	s.CookieSecrets = listFrom(c, "cookie_secrets", p.GetCookieSecrets(), SnapshotCookiesMax,
		func(_ check, _ string, k []byte) []byte { return bytes.Clone(k) })
	s.CountryLists = keyedFrom(c, "country_lists", p.GetCountryLists(), CountriesMax, (*pb.CountryList).GetCountry,
		countryListFrom)
	if err := c.err(); err != nil {
		return nil, err
	}
	return s, nil
}

// keyedFrom converts one list of a snapshot, naming each entry by its key.
func keyedFrom[P, M any](
	c check, list string, in []P, limit int, key func(P) string, from func(check, P) M,
) []M {
	if len(in) == 0 || !c.count(list, len(in), limit) {
		return nil
	}
	out := make([]M, len(in))
	for i := range in {
		out[i] = from(c.atKey(list, key(in[i])), in[i])
	}
	return out
}

// SnapshotToProto converts a snapshot.
func SnapshotToProto(s *Snapshot) *pb.Snapshot {
	p := &pb.Snapshot{
		Revision:              s.Revision,
		Cluster:               s.Cluster,
		Accelerators:          listTo(s.Accelerators, AcceleratorToProto),
		Listeners:             listTo(s.Listeners, ListenerToProto),
		Groups:                listTo(s.Groups, EndpointGroupToProto),
		Pools:                 listTo(s.Pools, PoolToProto),
		Regions:               listTo(s.Regions, RegionToProto),
		Sites:                 listTo(s.Sites, SiteToProto),
		Nodes:                 listTo(s.Nodes, NodeToProto),
		EndpointAllowNetworks: stringsTo(s.EndpointAllowNetworks),
		Format:                SnapshotFormat,
		BgpPeers:              listTo(s.BGPPeers, BGPPeerToProto),
		AnnounceAggregates:    stringsTo(s.AnnounceAggregates),
		AnnounceFloor:         uint32(max(s.AnnounceFloor, 0)),
		Subnets:               listTo(s.Subnets, SubnetToProto),
		CustomRoutingGroups:   listTo(s.CustomRoutingGroups, CustomRoutingGroupToProto),
	}
	for _, k := range s.GossipKeys {
		p.GossipKeys = append(p.GossipKeys, bytes.Clone(k))
	}
	p.Zones, p.DnsSuffix = listTo(s.Zones, ZoneToProto), s.DNSSuffix
	if s.Steering.TTL != 0 {
		p.Steering = SteeringToProto(s.Steering)
	}
	for _, k := range s.CookieSecrets {
		p.CookieSecrets = append(p.CookieSecrets, bytes.Clone(k))
	}
	p.CountryLists = listTo(s.CountryLists, countryListTo)
	return p
}

func listTo[M, P any](in []M, to func(M) P) []P {
	if len(in) == 0 {
		return nil
	}
	out := make([]P, len(in))
	for i := range in {
		out[i] = to(in[i])
	}
	return out
}

// EncodeSnapshot returns the bytes of a snapshot as they are sent and stored, and their SHA-256.
// Equal snapshots have equal bytes. A snapshot larger than SnapshotBytesMax is an error.
func EncodeSnapshot(s *Snapshot) ([]byte, [sha256.Size]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(SnapshotToProto(s))
	if err != nil {
		return nil, [sha256.Size]byte{}, fmt.Errorf("encode snapshot %d: %w", s.Revision, err)
	}
	if len(b) > SnapshotBytesMax {
		return nil, [sha256.Size]byte{}, FieldErrors{{"snapshot",
			fmt.Sprintf("has %d bytes; at most %d are possible", len(b), SnapshotBytesMax)}}
	}
	return b, sha256.Sum256(b), nil
}

// DecodeSnapshot reads what EncodeSnapshot wrote and checks all of it: size, format, every object,
// and that they are Consistent. It looks at the number of objects before it makes any, since a few
// bytes of nothing become many of memory. Errors that the sender can mend are FieldErrors.
func DecodeSnapshot(b []byte) (*Snapshot, error) {
	if err := measureSnapshot(b); err != nil {
		return nil, err
	}
	var p pb.Snapshot
	if err := proto.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("decode snapshot: %w", err)
	}
	s, err := SnapshotFromProto(&p)
	if err != nil {
		return nil, err
	}
	if err := s.Consistent(); err != nil {
		return nil, err
	}
	return s, nil
}

// measureSnapshot counts the objects in a serialised snapshot without making them.
func measureSnapshot(b []byte) error {
	c := newCheck("")
	if len(b) > SnapshotBytesMax {
		c.wrong("snapshot", "has %d bytes; at most %d are possible", len(b), SnapshotBytesMax)
		return c.err()
	}
	limits := []struct {
		field protowire.Number // of message Snapshot
		max   int
	}{
		{3, SnapshotAcceleratorsMax}, {4, SnapshotListenersMax}, {5, SnapshotGroupsMax},
		{6, SnapshotPoolsMax}, {7, SnapshotRegionsMax}, {8, SnapshotSitesMax}, {9, SnapshotNodesMax},
		{10, SnapshotGossipKeysMax}, {11, SnapshotNetworksMax}, {50, SnapshotPeersMax}, {51, AggregatesMax},
		{10, SnapshotGossipKeysMax}, {11, SnapshotNetworksMax},
		{70, SnapshotSubnetsMax}, {71, SnapshotGroupsMax},
		{60, SnapshotZonesMax}, {63, SnapshotCookiesMax}, {160, CountriesMax},
	}
	const groups, groupEndpoints, customGroups = 5, 7, 71
	counts, endpoints, inner := map[protowire.Number]int{}, 0, 0
	err := eachField(b, func(field protowire.Number, value []byte) {
		counts[field]++
		// What is malformed inside is Unmarshal's to say.
		_ = eachField(value, func(innerField protowire.Number, innerValue []byte) {
			inner++
			if field == customGroups { // whose endpoints have lists
				_ = eachField(innerValue, func(protowire.Number, []byte) { inner++ })
			}
			if field == groups && innerField == groupEndpoints {
				endpoints++
			}
		})
	})
	if err != nil {
		return fmt.Errorf("decode snapshot: %w", err)
	}
	fields := (&pb.Snapshot{}).ProtoReflect().Descriptor().Fields()
	for _, l := range limits {
		c.count(string(fields.ByNumber(l.field).Name()), counts[l.field], l.max)
	}
	c.count("groups.endpoints", endpoints, SnapshotEndpointsMax)
	c.count("snapshot", inner, snapshotFieldsMax)
	return c.err()
}

// eachField calls f with each field of a serialised message, with the value of those that have a
// length.
func eachField(b []byte, f func(field protowire.Number, value []byte)) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
			return protowire.ParseError(n)
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b)
		}
		f(field, value)
		b = b[n:]
	}
	return nil
}
