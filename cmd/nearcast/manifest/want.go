package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// problems collects what is wrong with a file, each with the path of its field.
type problems struct{ list model.FieldErrors }

func (p *problems) add(path, format string, args ...any) {
	p.list = append(p.list, model.FieldError{Field: path, Message: fmt.Sprintf(format, args...)})
}

// addErr adds what the model says about an object, under its path in the file.
func (p *problems) addErr(path string, err error) {
	var fields model.FieldErrors
	if errors.As(err, &fields) {
		p.list = append(p.list, fields.At(path)...)
	} else if err != nil {
		p.add(path, "%v", err)
	}
}

func (p *problems) err() error {
	if len(p.list) == 0 {
		return nil
	}
	return p.list
}

// enum reads a word of an enum; the empty one is UNSPECIFIED, which means the default.
func enum[E interface {
	~int32
	protoreflect.Enum
}](p *problems, path, word string) (e E) {
	if word == "" {
		return e
	}
	n, err := ParseEnum(e.Descriptor(), word)
	if err != nil {
		p.add(path, "%v", err)
	}
	return E(n)
}

// normal fills the defaults of a message and judges it, by way of the model.
func normal[P proto.Message, M interface{ Validate() error }](
	p *problems, path string, m P, from func(P) (M, error), to func(M) P,
) P {
	v, err := from(m)
	if err == nil {
		err = v.Validate()
	}
	p.addErr(path, err)
	return to(v)
}

// unknownID stands for the id of a parent that does not exist yet, so that an object can be judged.
const unknownID = "new"

func wantRegion(p *problems, path string, r Region) *pb.Region {
	m := &pb.Region{Name: r.Name, Description: r.Description}
	return normal(p, path, m, model.RegionFromProto, model.RegionToProto)
}

func wantSite(p *problems, path string, s Site) *pb.Site {
	m := &pb.Site{Name: s.Name, Region: s.Region, Latitude: s.Latitude, Longitude: s.Longitude}
	if s.BGP != nil && !s.BGP.none {
		m.Bgp = wantSiteBGP(s.BGP)
	}
	return normal(p, path, m, model.SiteFromProto, model.SiteToProto)
}

func wantPool(p *problems, path string, pool Pool) *pb.Pool {
	m := &pb.Pool{
		Name: pool.Name, Kind: enum[pb.PoolKind](p, path+".kind", pool.Kind), Zone: pool.Zone,
		Prefixes: pool.Prefixes, Sites: pool.Sites,
	}
	if pool.Kind == "" {
		m.Kind = pb.PoolKind_POOL_KIND_NODE
		if pool.Zone != "" || len(pool.Prefixes) > 0 {
			m.Kind = pb.PoolKind_POOL_KIND_ANYCAST
		}
	}
	return normal(p, path, m, model.PoolFromProto, model.PoolToProto)
}

func wantTarget(p *problems, path string, t Target) *pb.Target {
	m := &pb.Target{Name: t.Name, Host: t.Host, Region: t.Region, Tags: t.Tags}
	return normal(p, path, m, model.TargetFromProto, model.TargetToProto)
}

func wantAccelerator(p *problems, path string, a Accelerator) *pb.Accelerator {
	m := &pb.Accelerator{
		Name: a.Name, Enabled: a.Enabled == nil || *a.Enabled, Pools: a.Pools, Addresses: a.Addresses,
		IpAddressType: enum[pb.IPAddressType](p, path+".ip_address_type", a.IPAddressType),
		Project:       a.Project, Tags: a.Tags,
	}
	return normal(p, path, m, model.AcceleratorFromProto, model.AcceleratorToProto)
}

func wantListener(p *problems, path string, l Listener) *pb.Listener {
	m := &pb.Listener{
		AcceleratorId:     unknownID,
		Protocol:          enum[pb.Protocol](p, path+".protocol", l.Protocol),
		Affinity:          enum[pb.Affinity](p, path+".affinity", l.Affinity),
		TcpIdleTimeout:    duration(l.TCPIdleTimeout),
		UdpIdleTimeout:    duration(l.UDPIdleTimeout),
		ProxyProtocolFrom: l.ProxyProtocolFrom,
		MaxFlows:          l.MaxFlows,
		MaxFlowsPerSource: l.MaxFlowsPerSource,
		Guard:             wantGuard(p, path+".guard", l.Guard),
		Tags:              l.Tags,
	}
	if l.Protocol == "" {
		m.Protocol = pb.Protocol_PROTOCOL_TCP
	}
	if len(l.Ports) > 0 {
		ranges, err := ParsePorts(strings.Join(l.Ports, ","))
		if err != nil {
			p.add(path+".ports", "%v", err)
			ranges = []*pb.PortRange{{From: 1, To: 1}} // so that the rest can be judged
		}
		m.PortRanges = ranges
	}
	m = normal(p, path, m, model.ListenerFromProto, model.ListenerToProto)
	m.AcceleratorId = ""
	return m
}

func wantGroup(p *problems, path string, g Group) *pb.EndpointGroup {
	m := &pb.EndpointGroup{ListenerId: unknownID, Region: g.Region, TrafficDial: g.TrafficDial, Tags: g.Tags}
	if h := g.HealthCheck; h != nil {
		m.HealthCheck = &pb.HealthCheck{
			Protocol: enum[pb.HealthProtocol](p, path+".health_check.protocol", h.Protocol),
			Port:     h.Port, Path: h.Path, Interval: duration(h.Interval), Timeout: duration(h.Timeout),
			HealthyThreshold: h.HealthyThreshold, UnhealthyThreshold: h.UnhealthyThreshold,
			Host: h.Host, ExpectedCodes: h.ExpectedCodes,
		}
	}
	for _, o := range g.PortOverrides {
		m.PortOverrides = append(m.PortOverrides,
			&pb.PortOverride{ListenerPort: o.ListenerPort, EndpointPort: o.EndpointPort})
	}
	for i, e := range g.Endpoints {
		m.Endpoints = append(m.Endpoints, &pb.Endpoint{
			Id: e.ID, Weight: e.Weight,
			ClientAddress: enum[pb.ClientAddressMode](p, fmt.Sprintf("%s.endpoints[%d].client_address", path, i),
				e.ClientAddress),
		})
	}
	m = normal(p, path, m, model.EndpointGroupFromProto, model.EndpointGroupToProto)
	m.ListenerId = ""
	return m
}

func duration(d Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

// FromState is the file of what is there. only, if not empty, names the accelerators to write, and
// leaves out all that is no accelerator.
func FromState(s *State, only ...string) *File {
	f := &File{}
	if len(only) == 0 {
		for _, r := range s.Regions {
			f.Regions = append(f.Regions, Region{r.GetName(), r.GetDescription()})
		}
		for _, x := range s.Sites {
			site := Site{x.GetName(), x.GetRegion(), x.GetLatitude(), x.GetLongitude(), siteBGPFile(x.GetBgp()), nil}
			for _, b := range s.peersOf(x.GetName()) {
				site.Peers = append(site.Peers, peerFile(b))
			}
			f.Sites = append(f.Sites, site)
		}
		for _, p := range s.Pools {
			f.Pools = append(f.Pools, Pool{p.GetName(), EnumText(p.GetKind()), p.GetZone(), p.GetPrefixes(),
				p.GetSites()})
		}
		for _, t := range s.Targets {
			f.Targets = append(f.Targets, Target{t.GetName(), t.GetHost(), t.GetRegion(), t.GetTags()})
		}
		f.Steering = steeringFile(s.Steering)
		for _, z := range s.Zones {
			f.Zones = append(f.Zones, s.zoneFile(z))
		}
	}
	for _, a := range s.Accelerators {
		if len(only) == 0 || slices.Contains(only, a.GetName()) || slices.Contains(only, a.GetId()) {
			f.Accelerators = append(f.Accelerators, s.acceleratorFile(a))
		}
	}
	return f
}

func (s *State) acceleratorFile(a *pb.Accelerator) Accelerator {
	out := Accelerator{
		Name: a.GetName(), Pools: a.GetPools(), Addresses: a.GetAddresses(), Tags: a.GetTags(),
		Listeners: []Listener{},
	}
	if !a.GetEnabled() {
		out.Enabled = proto.Bool(false)
	}
	if a.GetIpAddressType() == pb.IPAddressType_IP_ADDRESS_TYPE_DUAL_STACK {
		out.IPAddressType = EnumText(a.GetIpAddressType())
	}
	if a.GetProject() != model.DefaultProject {
		out.Project = a.GetProject()
	}
	for _, l := range s.Listeners {
		if l.GetAcceleratorId() == a.GetId() {
			out.Listeners = append(out.Listeners, s.listenerFile(l))
		}
	}
	return out
}

func (s *State) listenerFile(l *pb.Listener) Listener {
	out := Listener{
		Protocol: EnumText(l.GetProtocol()), ProxyProtocolFrom: l.GetProxyProtocolFrom(), Tags: l.GetTags(),
		TCPIdleTimeout: unlessDefault(l.GetTcpIdleTimeout(), model.DefaultTCPIdleTimeout),
		UDPIdleTimeout: unlessDefault(l.GetUdpIdleTimeout(), model.DefaultUDPIdleTimeout),
		MaxFlows:       l.GetMaxFlows(), MaxFlowsPerSource: l.GetMaxFlowsPerSource(), Groups: []Group{},
		Guard: guardFile(l.GetGuard()),
	}
	for _, r := range l.GetPortRanges() {
		out.Ports = append(out.Ports, portRangeText(r))
	}
	if l.GetAffinity() == pb.Affinity_AFFINITY_SOURCE_IP {
		out.Affinity = EnumText(l.GetAffinity())
	}
	for _, g := range s.Groups {
		if g.GetListenerId() == l.GetId() {
			out.Groups = append(out.Groups, groupFile(g, l))
		}
	}
	return out
}

func groupFile(g *pb.EndpointGroup, l *pb.Listener) Group {
	out := Group{Region: g.GetRegion(), Tags: g.GetTags(), Endpoints: []Endpoint{}}
	if g.TrafficDial != nil && *g.TrafficDial != model.DefaultTrafficDial {
		out.TrafficDial = proto.Float32(*g.TrafficDial)
	}
	if h := healthFile(g.GetHealthCheck(), l); h != (HealthCheck{}) {
		out.HealthCheck = &h
	}
	for _, o := range g.GetPortOverrides() {
		out.PortOverrides = append(out.PortOverrides, PortOverride{o.GetListenerPort(), o.GetEndpointPort()})
	}
	for _, e := range g.GetEndpoints() {
		end := Endpoint{ID: e.GetId()}
		if e.Weight != nil && *e.Weight != model.DefaultWeight {
			end.Weight = proto.Uint32(*e.Weight)
		}
		if e.GetClientAddress() > pb.ClientAddressMode_CLIENT_ADDRESS_MODE_NONE {
			end.ClientAddress = EnumText(e.GetClientAddress())
		}
		out.Endpoints = append(out.Endpoints, end)
	}
	return out
}

func healthFile(h *pb.HealthCheck, l *pb.Listener) HealthCheck {
	out := HealthCheck{Host: h.GetHost(), Interval: unlessDefault(h.GetInterval(), model.DefaultHealthInterval)}
	if h.GetProtocol() > pb.HealthProtocol_HEALTH_PROTOCOL_TCP {
		out.Protocol = EnumText(h.GetProtocol())
	}
	if h.GetPort() != firstPort(l) {
		out.Port = h.GetPort()
	}
	if h.GetPath() != model.DefaultHealthPath {
		out.Path = h.GetPath()
	}
	timeout := model.DefaultHealthTimeout
	if h.GetInterval() != nil {
		timeout = min(timeout, h.GetInterval().AsDuration())
	}
	out.Timeout = unlessDefault(h.GetTimeout(), timeout)
	if h.GetHealthyThreshold() != model.DefaultHealthThreshold {
		out.HealthyThreshold = h.GetHealthyThreshold()
	}
	if h.GetUnhealthyThreshold() != model.DefaultHealthThreshold {
		out.UnhealthyThreshold = h.GetUnhealthyThreshold()
	}
	if h.GetExpectedCodes() != model.DefaultExpectedCodes {
		out.ExpectedCodes = h.GetExpectedCodes()
	}
	return out
}

func unlessDefault(d *durationpb.Duration, def time.Duration) Duration {
	if d == nil || d.AsDuration() == def {
		return 0
	}
	return Duration(d.AsDuration())
}

func firstPort(l *pb.Listener) uint32 {
	if len(l.GetPortRanges()) == 0 {
		return 0
	}
	return l.GetPortRanges()[0].GetFrom()
}
