package model

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file converts what operators configure for their users: accelerators, listeners, groups,
// endpoints, health checks and targets. FromProto functions fill defaults, take nil for an empty
// message, and return FieldErrors for what no native value can hold; all else that may be wrong is
// Validate's to say. ToProto functions never fail and share nothing with their argument.

// AcceleratorFromProto converts an accelerator.
func AcceleratorFromProto(p *pb.Accelerator) (Accelerator, error) {
	c := newCheck("accelerator")
	return acceleratorFrom(c, p), c.err()
}

func acceleratorFrom(c check, p *pb.Accelerator) Accelerator {
	a := Accelerator{
		ID:            AcceleratorID(p.GetId()),
		Name:          p.GetName(),
		Enabled:       p.GetEnabled(),
		IPAddressType: ipAddressTypes.from(c, "ip_address_type", p.GetIpAddressType()),
		Addresses:     addrsFrom(c, "addresses", p.GetAddresses(), AddressesMax),
		DNSName:       p.GetDnsName(),
		Status:        acceleratorStatuses.from(c, "status", p.GetStatus()),
		Created:       timeFrom(c, "created_time", p.GetCreatedTime()),
		Modified:      timeFrom(c, "modified_time", p.GetModifiedTime()),
		Tags:          tagsFrom(p.GetTags()),
		Project:       p.GetProject(),
		Type:          acceleratorTypes.from(c, "type", p.GetType()),
		Revision:      p.GetRevision(),
		FlowLogs: FlowLogs{
			Enabled: p.GetFlowLogs().GetEnabled(),
			Bucket:  p.GetFlowLogs().GetBucket(),
			Prefix:  p.GetFlowLogs().GetPrefix(),
		},
	}
	if c.count("pools", len(p.GetPools()), AcceleratorPoolsMax) {
		a.Pools = names[PoolName](p.GetPools())
	}
	if a.Project == "" {
		a.Project = DefaultProject
	}
	return a
}

// AcceleratorToProto converts an accelerator.
func AcceleratorToProto(a Accelerator) *pb.Accelerator {
	p := &pb.Accelerator{
		Id:            string(a.ID),
		Name:          a.Name,
		Enabled:       a.Enabled,
		IpAddressType: ipAddressTypes.to(a.IPAddressType),
		Pools:         names[string](a.Pools),
		Addresses:     stringsTo(a.Addresses),
		DnsName:       a.DNSName,
		Status:        acceleratorStatuses.to(a.Status),
		CreatedTime:   timeTo(a.Created),
		ModifiedTime:  timeTo(a.Modified),
		Tags:          tagsFrom(a.Tags),
		Project:       a.Project,
		Type:          acceleratorTypes.to(a.Type),
		Revision:      a.Revision,
	}
	if f := a.FlowLogs; f != (FlowLogs{}) {
		p.FlowLogs = &pb.FlowLogs{Enabled: f.Enabled, Bucket: f.Bucket, Prefix: f.Prefix}
	}
	return p
}

// ListenerFromProto converts a listener.
func ListenerFromProto(p *pb.Listener) (Listener, error) {
	c := newCheck("listener")
	return listenerFrom(c, p), c.err()
}

func listenerFrom(c check, p *pb.Listener) Listener {
	return Listener{
		ID:                ListenerID(p.GetId()),
		Accelerator:       AcceleratorID(p.GetAcceleratorId()),
		Protocol:          protocols.from(c, "protocol", p.GetProtocol()),
		PortRanges:        listFrom(c, "port_ranges", p.GetPortRanges(), PortRangesMax, portRangeFrom),
		Affinity:          affinities.from(c, "affinity", p.GetAffinity()),
		TCPIdleTimeout:    durationFrom(c, "tcp_idle_timeout", p.GetTcpIdleTimeout(), DefaultTCPIdleTimeout),
		UDPIdleTimeout:    durationFrom(c, "udp_idle_timeout", p.GetUdpIdleTimeout(), DefaultUDPIdleTimeout),
		ProxyProtocolFrom: prefixesFrom(c, "proxy_protocol_from", p.GetProxyProtocolFrom(), ProxyNetworksMax),
		MaxFlows:          p.GetMaxFlows(),
		MaxFlowsPerSource: p.GetMaxFlowsPerSource(),
		Guard:             guardFrom(c.at("guard"), p.GetGuard()),
		Tags:              tagsFrom(p.GetTags()),
		Revision:          p.GetRevision(),
	}
}

func portRangeFrom(c check, field string, p *pb.PortRange) PortRange {
	return PortRange{
		From: portFrom(c, field+".from", p.GetFrom()),
		To:   portFrom(c, field+".to", p.GetTo()),
	}
}

// ListenerToProto converts a listener.
func ListenerToProto(l Listener) *pb.Listener {
	p := &pb.Listener{
		Id:                string(l.ID),
		AcceleratorId:     string(l.Accelerator),
		Protocol:          protocols.to(l.Protocol),
		Affinity:          affinities.to(l.Affinity),
		TcpIdleTimeout:    durationpb.New(l.TCPIdleTimeout),
		UdpIdleTimeout:    durationpb.New(l.UDPIdleTimeout),
		ProxyProtocolFrom: stringsTo(l.ProxyProtocolFrom),
		MaxFlows:          l.MaxFlows,
		MaxFlowsPerSource: l.MaxFlowsPerSource,
		Guard:             guardTo(l.Guard),
		Tags:              tagsFrom(l.Tags),
		Revision:          l.Revision,
	}
	for _, r := range l.PortRanges {
		p.PortRanges = append(p.PortRanges, &pb.PortRange{From: uint32(r.From), To: uint32(r.To)})
	}
	return p
}

// HealthCheckFromProto converts a health check. Port 0 stays 0.
func HealthCheckFromProto(p *pb.HealthCheck) (HealthCheck, error) {
	c := newCheck("health_check")
	return healthCheckFrom(c, p), c.err()
}

func healthCheckFrom(c check, p *pb.HealthCheck) HealthCheck {
	h := HealthCheck{
		Protocol:           healthProtocols.from(c, "protocol", p.GetProtocol()),
		Port:               portFrom(c, "port", p.GetPort()),
		Path:               p.GetPath(),
		Interval:           durationFrom(c, "interval", p.GetInterval(), DefaultHealthInterval),
		HealthyThreshold:   thresholdFrom(p.GetHealthyThreshold()),
		UnhealthyThreshold: thresholdFrom(p.GetUnhealthyThreshold()),
		Host:               p.GetHost(),
		ExpectedCodes:      p.GetExpectedCodes(),
	}
	h.Timeout = durationFrom(c, "timeout", p.GetTimeout(), min(DefaultHealthTimeout, h.Interval))
	if h.Path == "" {
		h.Path = DefaultHealthPath
	}
	if h.ExpectedCodes == "" {
		h.ExpectedCodes = DefaultExpectedCodes
	}
	return h
}

// thresholdFrom keeps numbers that are too large too large, on every size of int.
func thresholdFrom(n uint32) int {
	if n == 0 {
		return DefaultHealthThreshold
	}
	return int(min(n, 1<<30))
}

// HealthCheckToProto converts a health check.
func HealthCheckToProto(h HealthCheck) *pb.HealthCheck {
	return &pb.HealthCheck{
		Protocol:           healthProtocols.to(h.Protocol),
		Port:               uint32(h.Port),
		Path:               h.Path,
		Interval:           durationpb.New(h.Interval),
		Timeout:            durationpb.New(h.Timeout),
		HealthyThreshold:   uint32(h.HealthyThreshold),
		UnhealthyThreshold: uint32(h.UnhealthyThreshold),
		Host:               h.Host,
		ExpectedCodes:      h.ExpectedCodes,
	}
}

// EndpointFromProto converts an endpoint.
func EndpointFromProto(p *pb.Endpoint) (Endpoint, error) {
	c := newCheck("endpoint")
	return endpointFrom(c, p), c.err()
}

func endpointFrom(c check, p *pb.Endpoint) Endpoint {
	e := Endpoint{
		ID:            EndpointID(p.GetId()),
		Weight:        DefaultWeight,
		ClientAddress: clientAddressModes.from(c, "client_address", p.GetClientAddress()),
		Host:          p.GetHost(),
		Health:        healthStates.from(c, "health", p.GetHealth()),
		HealthReason:  p.GetHealthReason(),
	}
	if p != nil && p.Weight != nil {
		if *p.Weight > 255 {
			c.wrong("weight", "is %d; weights are 0 to 255", *p.Weight)
		}
		e.Weight = uint8(min(*p.Weight, 255))
	}
	return e
}

// EndpointToProto converts an endpoint.
func EndpointToProto(e Endpoint) *pb.Endpoint {
	return &pb.Endpoint{
		Id:            string(e.ID),
		Weight:        proto.Uint32(uint32(e.Weight)),
		ClientAddress: clientAddressModes.to(e.ClientAddress),
		Host:          e.Host,
		Health:        healthStates.to(e.Health),
		HealthReason:  e.HealthReason,
	}
}

// EndpointGroupFromProto converts a group with its endpoints.
func EndpointGroupFromProto(p *pb.EndpointGroup) (EndpointGroup, error) {
	c := newCheck("group")
	return groupFrom(c, p), c.err()
}

func groupFrom(c check, p *pb.EndpointGroup) EndpointGroup {
	g := EndpointGroup{
		ID:            GroupID(p.GetId()),
		Listener:      ListenerID(p.GetListenerId()),
		Region:        RegionName(p.GetRegion()),
		TrafficDial:   DefaultTrafficDial,
		HealthCheck:   healthCheckFrom(c.at("health_check"), p.GetHealthCheck()),
		PortOverrides: listFrom(c, "port_overrides", p.GetPortOverrides(), PortOverridesMax, overrideFrom),
		Tags:          tagsFrom(p.GetTags()),
		Revision:      p.GetRevision(),
	}
	if p != nil && p.TrafficDial != nil {
		g.TrafficDial = *p.TrafficDial
	}
	g.Endpoints = listFrom(c, "endpoints", p.GetEndpoints(), EndpointsMax,
		func(c check, field string, p *pb.Endpoint) Endpoint { return endpointFrom(c.at(field), p) })
	return g
}

func overrideFrom(c check, field string, p *pb.PortOverride) PortOverride {
	return PortOverride{
		ListenerPort: portFrom(c, field+".listener_port", p.GetListenerPort()),
		EndpointPort: portFrom(c, field+".endpoint_port", p.GetEndpointPort()),
	}
}

// EndpointGroupToProto converts a group with its endpoints.
func EndpointGroupToProto(g EndpointGroup) *pb.EndpointGroup {
	p := &pb.EndpointGroup{
		Id:          string(g.ID),
		ListenerId:  string(g.Listener),
		Region:      string(g.Region),
		TrafficDial: proto.Float32(g.TrafficDial),
		HealthCheck: HealthCheckToProto(g.HealthCheck),
		Tags:        tagsFrom(g.Tags),
		Revision:    g.Revision,
	}
	for _, o := range g.PortOverrides {
		p.PortOverrides = append(p.PortOverrides,
			&pb.PortOverride{ListenerPort: uint32(o.ListenerPort), EndpointPort: uint32(o.EndpointPort)})
	}
	for _, e := range g.Endpoints {
		p.Endpoints = append(p.Endpoints, EndpointToProto(e))
	}
	return p
}

// TargetFromProto converts a target.
func TargetFromProto(p *pb.Target) (Target, error) {
	return Target{
		Name:     p.GetName(),
		Region:   RegionName(p.GetRegion()),
		Host:     p.GetHost(),
		Project:  p.GetProject(),
		Tags:     tagsFrom(p.GetTags()),
		Revision: p.GetRevision(),
	}, nil
}

// TargetToProto converts a target.
func TargetToProto(t Target) *pb.Target {
	return &pb.Target{
		Name:     t.Name,
		Region:   string(t.Region),
		Host:     t.Host,
		Project:  t.Project,
		Tags:     tagsFrom(t.Tags),
		Revision: t.Revision,
	}
}
