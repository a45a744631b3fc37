package model

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Client networks have these lengths: as long as one line's customers commonly share a way through the
// internet, and as ECS tells (RFC 7871 11.1).
const (
	ClientBits4, ClientBits6 = 24, 48
	// ClientNetworksMax bounds the networks that a node reports, and ClientNetworksKnown those that all
	// nodes are told: the busiest ones. A network needs some 40 bytes of a message, and up to 600 of memory.
	ClientNetworksMax, ClientNetworksKnown = 2_048, 16_384
	clientSitesMax, clientRegionsMax       = 64, 8
	clientRTTMax                           = 10 * time.Second
)

// ClientNetworkOf returns the network of a client.
func ClientNetworkOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := ClientBits4
	if a.Is6() {
		bits = ClientBits6
	}
	p, _ := a.Prefix(bits) // fails only where a is not valid, and then p is not
	return p
}

// ClientNetwork is what is measured of a client network.
type ClientNetwork struct {
	Prefix  netip.Prefix
	Sites   []ClientSite
	Regions []ClientRegion // a node's own word only
}

// ClientSite is the round trip between a network and a site.
type ClientSite struct {
	Site    SiteName
	RTT     time.Duration // smoothed
	Samples int
}

// ClientRegion is what an edge saw of a network's flows to a region.
type ClientRegion struct {
	Region   RegionName
	Flows    int
	Open     time.Duration // from asking the gateway until the endpoint's connection stood
	Backbone time.Duration // round trip to the gateway; 0: the edge dialled itself
	Down     uint64        // bytes a second to the client while there was something to send; 0: not known
	Direct   time.Duration // estimated round trip without acceleration; 0: not known
	DirectBy DirectSource
}

// DirectSource says where a direct round trip is known from.
type DirectSource uint8

// The sources.
const (
	DirectUnknown  DirectSource = iota
	DirectProbe                 // measured by `nearcast probe`
	DirectOperator              // given
	DirectPlace                 // estimated, by coordinates
	DirectCountry               // estimated, by the middle of a country
	DirectPath                  // estimated: as long as the way through the edge
)

var directSources = enumTable[pb.DirectSource, DirectSource]{
	{pb.DirectSource_DIRECT_SOURCE_UNSPECIFIED, DirectUnknown},
	{pb.DirectSource_DIRECT_SOURCE_PROBE, DirectProbe},
	{pb.DirectSource_DIRECT_SOURCE_OPERATOR, DirectOperator},
	{pb.DirectSource_DIRECT_SOURCE_PLACE, DirectPlace},
	{pb.DirectSource_DIRECT_SOURCE_COUNTRY, DirectCountry},
	{pb.DirectSource_DIRECT_SOURCE_PATH, DirectPath},
}

// DirectSourceToProto converts a source.
func DirectSourceToProto(s DirectSource) pb.DirectSource { return directSources.to(s) }

// ClientNetworksFromProto converts client networks, at most so many.
func ClientNetworksFromProto(p *pb.ClientNetworks, most int) ([]ClientNetwork, error) {
	c := newCheck("clients")
	list := listFrom(c, "networks", p.GetNetworks(), most, clientNetworkFrom)
	return list, c.err()
}

func clientNetworkFrom(c check, field string, p *pb.ClientNetwork) ClientNetwork {
	c = c.at(field)
	var n ClientNetwork
	switch b := p.GetPrefix(); len(b) {
	case ClientBits4 / 8:
		n.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2]}), ClientBits4)
	case ClientBits6 / 8:
		var a [16]byte
		copy(a[:], b)
		n.Prefix = netip.PrefixFrom(netip.AddrFrom16(a), ClientBits6)
	default:
		c.wrong("prefix", "has %d bytes; use 3 (IPv4) or 6 (IPv6)", len(b))
	}
	n.Sites = listFrom(c, "sites", p.GetSites(), clientSitesMax, func(c check, field string, s *pb.ClientSite) ClientSite {
		c = c.at(field)
		c.name("site", s.GetSite())
		return ClientSite{Site: SiteName(s.GetSite()), RTT: clientTime(c, "rtt", s.GetRtt()),
			Samples: int(min(s.GetSamples(), 1<<30))}
	})
	n.Regions = listFrom(c, "regions", p.GetRegions(), clientRegionsMax, clientRegionFrom)
	return n
}

func clientRegionFrom(c check, field string, p *pb.ClientRegion) ClientRegion {
	c = c.at(field)
	c.name("region", p.GetRegion())
	return ClientRegion{
		Region: RegionName(p.GetRegion()), Flows: int(min(p.GetFlows(), 1<<30)),
		Open: clientTime(c, "open", p.GetOpen()), Backbone: clientTime(c, "backbone", p.GetBackbone()),
		Down: p.GetDown(), Direct: clientTime(c, "direct", p.GetDirect()),
		DirectBy: directSources.from(c, "direct_source", p.GetDirectSource()),
	}
}

func clientTime(c check, field string, microseconds uint32) time.Duration {
	d := time.Duration(microseconds) * time.Microsecond
	if d > clientRTTMax {
		c.wrong(field, "is %v; at most %v are possible", d, clientRTTMax)
	}
	return d
}

// ClientNetworksToProto converts client networks.
func ClientNetworksToProto(list []ClientNetwork) *pb.ClientNetworks {
	us := func(d time.Duration) uint32 { return uint32(min(max(d, 0), clientRTTMax) / time.Microsecond) }
	p := &pb.ClientNetworks{Networks: make([]*pb.ClientNetwork, 0, len(list))}
	for _, n := range list {
		e := &pb.ClientNetwork{Prefix: n.Prefix.Addr().AsSlice()[:n.Prefix.Bits()/8]}
		for _, s := range n.Sites {
			e.Sites = append(e.Sites, &pb.ClientSite{Site: string(s.Site), Rtt: us(s.RTT), Samples: uint32(s.Samples)})
		}
		for _, r := range n.Regions {
			e.Regions = append(e.Regions, &pb.ClientRegion{
				Region: string(r.Region), Flows: uint32(r.Flows), Open: us(r.Open), Backbone: us(r.Backbone),
				Down: r.Down, Direct: us(r.Direct), DirectSource: directSources.to(r.DirectBy),
			})
		}
		p.Networks = append(p.Networks, e)
	}
	return p
}

// DirectWay is what a client network has to a region without acceleration.
type DirectWay struct {
	Network   netip.Prefix
	Region    RegionName
	RTT       time.Duration
	FirstByte time.Duration // 0: not measured
	Down, Up  uint64        // bytes a second; 0: not measured
	Source    DirectSource  // DirectProbe or DirectOperator
	Time      time.Time
}

// DirectPathFromProto converts a direct path.
func DirectPathFromProto(p *pb.DirectPath) (DirectWay, error) {
	c := newCheck("path")
	d := DirectWay{
		Region: RegionName(p.GetRegion()), RTT: durationFrom(c, "rtt", p.GetRtt(), 0),
		FirstByte: durationFrom(c, "first_byte", p.GetFirstByte(), 0), Down: p.GetDown(), Up: p.GetUp(),
		Source: directSources.from(c, "source", p.GetSource()), Time: timeFrom(c, "time", p.GetTime()),
	}
	c.name("region", p.GetRegion())
	network, err := netip.ParsePrefix(p.GetNetwork())
	switch {
	case err != nil:
		c.wrong("network", "%s is not a network; write it like 192.0.2.0/24", show(p.GetNetwork()))
	case network.Addr().Is4() && network.Bits() > ClientBits4, network.Addr().Is6() && network.Bits() > ClientBits6:
		c.wrong("network", "%v is longer than what is measured; use %v", network, ClientNetworkOf(network.Addr()))
	default:
		d.Network = network.Masked()
	}
	if d.RTT <= 0 || d.RTT > clientRTTMax {
		c.wrong("rtt", "is %v; use more than 0 and at most %v", d.RTT, clientRTTMax)
	}
	if d.FirstByte < 0 || d.FirstByte > time.Minute {
		c.wrong("first_byte", "is %v; use 0 to 1m", d.FirstByte)
	}
	if d.Source != DirectProbe && d.Source != DirectOperator {
		c.wrong("source", "must be PROBE or OPERATOR")
	}
	return d, c.err()
}

// DirectPathToProto converts a direct path.
func DirectPathToProto(d DirectWay) *pb.DirectPath {
	return &pb.DirectPath{Network: d.Network.String(), Region: string(d.Region), Rtt: durationpb.New(d.RTT),
		FirstByte: durationpb.New(d.FirstByte), Down: d.Down, Up: d.Up, Source: directSources.to(d.Source),
		Time: timeTo(d.Time)}
}
