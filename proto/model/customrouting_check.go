package model

import (
	"bytes"
	"cmp"
	"slices"
	"unicode/utf8"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file converts and judges the objects of custom routing; see convert_config.go, validate_config.go
// and consistent.go for what that means.

// SubnetFromProto converts a subnet.
func SubnetFromProto(p *pb.Subnet) (Subnet, error) {
	c := newCheck("subnet")
	return subnetFrom(c, p), c.err()
}

func subnetFrom(c check, p *pb.Subnet) Subnet {
	s := Subnet{
		Name:          SubnetName(p.GetName()),
		Region:        RegionName(p.GetRegion()),
		ClientAddress: ClientAddressTransparent,
		Project:       p.GetProject(),
		Tags:          tagsFrom(p.GetTags()),
		Revision:      p.GetRevision(),
	}
	if p.GetClientAddress() != pb.ClientAddressMode_CLIENT_ADDRESS_MODE_UNSPECIFIED {
		s.ClientAddress = clientAddressModes.from(c, "client_address", p.GetClientAddress())
	}
	if p.GetPrefix() != "" { // Validate says that it is missing
		s.Prefix = prefixFrom(c, "prefix", p.GetPrefix())
	}
	return s
}

// SubnetToProto converts a subnet.
func SubnetToProto(s Subnet) *pb.Subnet {
	p := &pb.Subnet{
		Name:          string(s.Name),
		Region:        string(s.Region),
		ClientAddress: clientAddressModes.to(s.ClientAddress),
		Project:       s.Project,
		Tags:          tagsFrom(s.Tags),
		Revision:      s.Revision,
	}
	if s.Prefix.IsValid() {
		p.Prefix = s.Prefix.String()
	}
	return p
}

// CustomRoutingGroupFromProto converts a group of custom routing.
func CustomRoutingGroupFromProto(p *pb.CustomRoutingGroup) (CustomRoutingGroup, error) {
	c := newCheck("group")
	return customRoutingGroupFrom(c, p), c.err()
}

func customRoutingGroupFrom(c check, p *pb.CustomRoutingGroup) CustomRoutingGroup {
	return CustomRoutingGroup{
		ID:       GroupID(p.GetId()),
		Listener: ListenerID(p.GetListenerId()),
		Region:   RegionName(p.GetRegion()),
		Destinations: listFrom(c, "destinations", p.GetDestinations(), CustomRoutingDestinationsMax,
			func(c check, field string, d *pb.CustomRoutingDestination) CustomRoutingDestination {
				return CustomRoutingDestination{PortRange{portFrom(c, field+".from", d.GetFrom()),
					portFrom(c, field+".to", d.GetTo())}, protocols.from(c, field+".protocol", d.GetProtocol())}
			}),
		Endpoints: listFrom(c, "endpoints", p.GetEndpoints(), CustomRoutingEndpointsMax,
			func(c check, field string, e *pb.CustomRoutingEndpoint) CustomRoutingEndpoint {
				return CustomRoutingEndpoint{Subnet: SubnetName(e.GetSubnet()), Allowed: allowedFrom(e.GetAllowed()),
					Ports: listFrom(c, field+".ports", e.GetPorts(), MappingRangesMax, portRangeFrom)}
			}),
		Tags:     tagsFrom(p.GetTags()),
		Revision: p.GetRevision(),
	}
}

// allowedFrom copies bits without zero bytes at the end, so that equal sets have equal bytes.
func allowedFrom(b []byte) []byte {
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// CustomRoutingGroupToProto converts a group of custom routing.
func CustomRoutingGroupToProto(g CustomRoutingGroup) *pb.CustomRoutingGroup {
	p := &pb.CustomRoutingGroup{
		Id:         string(g.ID),
		ListenerId: string(g.Listener),
		Region:     string(g.Region),
		Tags:       tagsFrom(g.Tags),
		Revision:   g.Revision,
	}
	for _, d := range g.Destinations {
		p.Destinations = append(p.Destinations, &pb.CustomRoutingDestination{From: uint32(d.From),
			To: uint32(d.To), Protocol: protocols.to(d.Protocol)})
	}
	for _, e := range g.Endpoints {
		out := &pb.CustomRoutingEndpoint{Subnet: string(e.Subnet), Allowed: allowedFrom(e.Allowed)}
		for _, r := range e.Ports {
			out.Ports = append(out.Ports, &pb.PortRange{From: uint32(r.From), To: uint32(r.To)})
		}
		p.Endpoints = append(p.Endpoints, out)
	}
	return p
}

// PortMappingToProto converts what a mapping says; what it belongs to is the caller's to add.
func PortMappingToProto(m PortMapping) *pb.PortMapping {
	return &pb.PortMapping{Port: uint32(m.Port), Address: m.Destination.Addr().String(),
		DestinationPort: uint32(m.Destination.Port()), Protocol: protocols.to(m.Protocol), Allowed: m.Allowed}
}

// Validate judges a subnet by itself.
func (s Subnet) Validate() error {
	c := newCheck("subnet")
	s.check(c)
	return c.err()
}

func (s *Subnet) check(c check) {
	name := string(s.Name)
	if name == "" || utf8.RuneCountInString(name) > TargetNameMax || !isToken(name) {
		c.wrong("name", "%s is missing, too long or has spaces or unprintable characters; "+
			"give 1–%d printable characters without spaces", show(name), TargetNameMax)
	}
	c.name("region", string(s.Region))
	if s.Project != "" {
		c.name("project", s.Project)
	}
	c.tags(s.Tags)
	switch p := s.Prefix; {
	case !p.IsValid():
		c.wrong("prefix", "is missing; write it like 10.0.4.0/24")
	case !p.Addr().Is4() || p.Bits() < SubnetBitsMin:
		c.wrong("prefix", "%v is not an IPv4 network of /%d to /32", p, SubnetBitsMin)
	case p != p.Masked():
		c.wrong("prefix", "%v has bits below its length; write %v", p, p.Masked())
	}
	if s.ClientAddress > ClientAddressTransparent || s.ClientAddress == ClientAddressProxyV1 {
		c.wrong("client_address", "must be NONE, PROXY_V2 or TRANSPARENT")
	}
}

// Validate judges a group of custom routing by itself.
func (g CustomRoutingGroup) Validate() error {
	c := newCheck("group")
	g.check(c)
	return c.err()
}

func (g *CustomRoutingGroup) check(c check) {
	c.idOrNone("id", string(g.ID))
	c.id("listener_id", string(g.Listener))
	c.name("region", string(g.Region))
	c.tags(g.Tags)
	if len(g.Destinations) == 0 {
		c.wrong("destinations", "is empty; name the ports that the subnets' machines listen on")
	}
	if !c.count("destinations", len(g.Destinations), CustomRoutingDestinationsMax) ||
		!c.count("endpoints", len(g.Endpoints), CustomRoutingEndpointsMax) {
		return
	}
	for i, d := range g.Destinations {
		dc := c.atIndex("destinations", i)
		if d.From == 0 || d.From > d.To {
			dc.wrong("to", "%d-%d is no range of ports; from is at least 1 and at most to", d.From, d.To)
		}
		if d.Protocol == 0 || d.Protocol > TCPUDP {
			dc.wrong("protocol", "is missing or unknown; use TCP, UDP or TCP_UDP")
		}
		for j, earlier := range g.Destinations[:i] {
			if d.Overlaps(earlier.PortRange) && d.Protocol&earlier.Protocol != 0 {
				dc.wrong("", "%v %d-%d overlaps with destinations[%d]; join them or part them",
					d.Protocol&earlier.Protocol, d.From, d.To, j)
			}
		}
	}
	seen := make(map[SubnetName]bool, len(g.Endpoints))
	for i := range g.Endpoints {
		e := &g.Endpoints[i]
		ec := c.atIndex("endpoints", i)
		if e.Subnet == "" || seen[e.Subnet] {
			ec.wrong("subnet", "%s is missing or in the group twice", show(string(e.Subnet)))
		}
		seen[e.Subnet] = true
		if len(e.Allowed) > 1<<13 {
			ec.wrong("allowed", "has %d bytes; an accelerator has 65536 ports, one bit each", len(e.Allowed))
		}
		ec.count("ports", len(e.Ports), MappingRangesMax)
	}
}

// checkCustomRouting adds what a listener of a custom routing accelerator must be beside valid.
func (l *Listener) checkCustomRouting(c check) {
	if l.Protocol != TCPUDP {
		c.wrong("protocol", "must be TCP_UDP on a custom routing accelerator")
	}
	if l.Affinity != AffinityNone || len(l.ProxyProtocolFrom) > 0 {
		c.wrong("", "is of a custom routing accelerator; leave out affinity and proxy_protocol_from")
	}
	for i, r := range l.PortRanges {
		if r.Len() < CustomRoutingRangeMin {
			c.wrong(index("port_ranges", i), "%d-%d has %d ports; a range of a custom routing listener has at least %d",
				r.From, r.To, r.Len(), CustomRoutingRangeMin)
		}
	}
}

// ValidateCustomRouting judges a listener of a custom routing accelerator by itself.
func (l Listener) ValidateCustomRouting() error {
	c := newCheck("listener")
	l.check(c)
	l.checkCustomRouting(c)
	return c.err()
}

// customRouting checks subnets, groups of custom routing and that each has the ports it should have.
func (k snapshotKeys) customRouting(c check, s *Snapshot) {
	subnets := byKey(c, "subnets", s.Subnets, subnetKey)
	for i := range s.Subnets {
		sc := c.atKey("subnets", string(s.Subnets[i].Name))
		s.Subnets[i].check(sc)
		k.needRegion(sc, s.Subnets[i].Region)
	}
	byKey(c, "custom_routing_groups", s.CustomRoutingGroups, customRoutingGroupKey)
	standard := make(map[ListenerID]bool, len(s.Groups))
	for i := range s.Groups {
		standard[s.Groups[i].Listener] = true
	}
	taken := map[ListenerID][]PortRange{}
	for i := range s.CustomRoutingGroups {
		g := &s.CustomRoutingGroups[i]
		gc := c.atKey("custom_routing_groups", string(g.ID))
		g.check(gc)
		k.needRegion(gc, g.Region)
		l := k.listenerByID[g.Listener]
		if l == nil {
			gc.wrong("listener_id", "names the listener %s, which is not there", show(string(g.Listener)))
			continue
		}
		if a := k.acceleratorByID[l.Accelerator]; a == nil || a.Type != CustomRouting || standard[l.ID] {
			gc.wrong("listener_id", "names the listener %s, which is not of custom routing", show(string(l.ID)))
		}
		for j := range g.Endpoints {
			e, ec := &g.Endpoints[j], gc.atIndex("endpoints", j)
			subnet := subnets[e.Subnet]
			if subnet == nil {
				ec.wrong("subnet", "names the subnet %s, which is not there", show(string(e.Subnet)))
				continue
			}
			g.checkPorts(ec, e, subnet, l)
			taken[l.ID] = append(taken[l.ID], e.Ports...)
		}
	}
	for _, id := range sortedKeys(taken) {
		ports := taken[id]
		slices.SortFunc(ports, func(a, b PortRange) int { return cmp.Compare(a.From, b.From) })
		for i := 1; i < len(ports); i++ {
			if ports[i-1].Overlaps(ports[i]) {
				c.atKey("listeners", string(id)).wrong("", "port %d leads to two subnets", ports[i].From)
			}
		}
	}
}

// checkPorts checks that an endpoint has as many of the listener's ports as it needs.
func (g *CustomRoutingGroup) checkPorts(c check, e *CustomRoutingEndpoint, s *Subnet, l *Listener) {
	n := 0
	for i, r := range e.Ports {
		n += r.Len()
		if r.From == 0 || r.From > r.To || !slices.ContainsFunc(l.PortRanges, func(of PortRange) bool {
			return of.Contains(r.From) && of.Contains(r.To)
		}) {
			c.wrong(index("ports", i), "%d-%d is not within one range of listener %s", r.From, r.To, l.ID)
		}
	}
	if s.Region != g.Region {
		c.wrong("subnet", "%s is in region %s, the group in %s", show(string(s.Name)), s.Region, g.Region)
	}
	if _, machines := s.Machines(); n != machines*g.MachinePorts() {
		c.wrong("ports", "has %d ports; %d machines with %d ports each need %d",
			n, machines, g.MachinePorts(), machines*g.MachinePorts())
	}
}
