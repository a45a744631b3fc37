package admin

import (
	"context"
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) CreateSubnet(ctx context.Context, req *v1.CreateSubnetRequest) (*v1.Subnet, error) {
	subnet, err := model.SubnetFromProto(req.GetSubnet())
	if err != nil {
		return nil, err
	}
	return answer(model.SubnetToProto)(s.cfg.Catalog.CreateSubnet(ctx, subnet, catalog.Options{}))
}

func (s *service) GetSubnet(ctx context.Context, req *v1.GetRequest) (*v1.Subnet, error) {
	return answer(model.SubnetToProto)(s.cfg.Catalog.Subnet(ctx, model.SubnetName(req.GetId())))
}

func (s *service) ListSubnets(ctx context.Context, req *v1.ListRequest) (*v1.ListSubnetsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.SubnetToProto, s.cfg.Catalog.ListSubnets)
	return &v1.ListSubnetsResponse{Subnets: list, NextPageToken: next}, err
}

func (s *service) UpdateSubnet(ctx context.Context, req *v1.UpdateSubnetRequest) (*v1.Subnet, error) {
	change, err := subnets.change(req.GetSubnet(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.SubnetToProto)(s.cfg.Catalog.UpdateSubnet(ctx,
		model.SubnetName(req.GetSubnet().GetName()), expected(req), change))
}

func (s *service) DeleteSubnet(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteSubnet(ctx, model.SubnetName(req.GetId()), expected(req)))
}

// routed makes a group's answer.
var routed = answer(model.CustomRoutingGroupToProto)

func (s *service) CreateCustomRoutingGroup(ctx context.Context,
	req *v1.CreateCustomRoutingGroupRequest) (*v1.CustomRoutingGroup, error) {
	g, err := model.CustomRoutingGroupFromProto(req.GetGroup())
	if err != nil {
		return nil, err
	}
	return routed(s.cfg.Catalog.CreateCustomRoutingGroup(ctx, g,
		catalog.Options{IdempotencyToken: req.GetIdempotencyToken()}))
}

func (s *service) GetCustomRoutingGroup(ctx context.Context,
	req *v1.GetRequest) (*v1.CustomRoutingGroup, error) {
	return routed(s.cfg.Catalog.CustomRoutingGroup(ctx, model.GroupID(req.GetId())))
}

func (s *service) ListCustomRoutingGroups(ctx context.Context,
	req *v1.ListRequest) (*v1.ListCustomRoutingGroupsResponse, error) {
	list, next, err := listed(ctx, req, model.CustomRoutingGroupToProto,
		func(ctx context.Context, p catalog.PageOptions) ([]model.CustomRoutingGroup, string, error) {
			return s.cfg.Catalog.ListCustomRoutingGroups(ctx, model.ListenerID(req.GetParent()), p)
		})
	return &v1.ListCustomRoutingGroupsResponse{Groups: list, NextPageToken: next}, err
}

func (s *service) DeleteCustomRoutingGroup(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteCustomRoutingGroup(ctx, model.GroupID(req.GetId()), expected(req)))
}

func (s *service) AddCustomRoutingEndpoints(ctx context.Context,
	req *v1.AddCustomRoutingEndpointsRequest) (*v1.CustomRoutingGroup, error) {
	return routed(s.cfg.Catalog.AddSubnets(ctx, model.GroupID(req.GetGroupId()), subnetNames(req)))
}

func (s *service) RemoveCustomRoutingEndpoints(ctx context.Context,
	req *v1.RemoveCustomRoutingEndpointsRequest) (*v1.CustomRoutingGroup, error) {
	return routed(s.cfg.Catalog.RemoveSubnets(ctx, model.GroupID(req.GetGroupId()), subnetNames(req)))
}

func subnetNames(req interface{ GetSubnets() []string }) (names []model.SubnetName) {
	for _, s := range req.GetSubnets() {
		names = append(names, model.SubnetName(s))
	}
	return names
}

func (s *service) SetCustomRoutingTraffic(ctx context.Context,
	req *v1.SetCustomRoutingTrafficRequest) (*v1.CustomRoutingGroup, error) {
	t := catalog.Traffic{Group: model.GroupID(req.GetGroupId()), Subnet: model.SubnetName(req.GetSubnet()),
		Allow: req.GetAllow(), All: req.GetAll()}
	for _, text := range req.GetAddresses() {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, access.Invalid("addresses", "has one that is no IP address")
		}
		t.Addresses = append(t.Addresses, addr)
	}
	for _, port := range req.GetPorts() {
		if port == 0 || port > 65535 {
			return nil, access.Invalid("ports", "has one that is not within 1 to 65535")
		}
		t.Ports = append(t.Ports, uint16(port))
	}
	return routed(s.cfg.Catalog.SetTraffic(ctx, t))
}

func (s *service) ListPortMappings(ctx context.Context,
	req *v1.ListPortMappingsRequest) (*v1.ListPortMappingsResponse, error) {
	p := catalog.PageOptions{Size: int(req.GetPageSize()), Token: req.GetPageToken()}
	var page []catalog.RoutedPort
	var next string
	var err error
	if req.GetAcceleratorId() != "" {
		page, next, err = s.cfg.Catalog.ListPortMappings(ctx, model.AcceleratorID(req.GetAcceleratorId()),
			model.GroupID(req.GetGroupId()), p)
	} else {
		addr, parseErr := netip.ParseAddr(req.GetAddress())
		if parseErr != nil {
			return nil, access.Invalid("address", "must be an IP address of the subnet, where no accelerator is named")
		}
		page, next, err = s.cfg.Catalog.ListPortMappingsOf(ctx, "", model.SubnetName(req.GetSubnet()), addr, p)
	}
	if err != nil {
		return nil, err
	}
	out := &v1.ListPortMappingsResponse{NextPageToken: next}
	for _, r := range page {
		m := model.PortMappingToProto(r.PortMapping)
		m.AcceleratorId, m.GroupId, m.Subnet = string(r.Accelerator), string(r.Group), string(r.Subnet)
		out.Mappings = append(out.Mappings, m)
	}
	return out, nil
}
