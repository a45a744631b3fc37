package admin

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// group returns a group with the verdicts of this moment.
func (s *service) group(g model.EndpointGroup) *v1.EndpointGroup {
	verdicts := s.cfg.Fleet.Published().Verdicts
	out := model.EndpointGroupToProto(g)
	for i, e := range out.GetEndpoints() {
		v := verdicts[health.Key{Group: g.ID, Endpoint: g.Endpoints[i].ID}]
		e.Health, e.HealthReason = model.HealthStateToProto(v.State), v.Reason
	}
	return out
}

func (s *service) grouped(g model.EndpointGroup, err error) (*v1.EndpointGroup, error) {
	if err != nil {
		return nil, err
	}
	return s.group(g), nil
}

func (s *service) CreateEndpointGroup(ctx context.Context,
	req *v1.CreateEndpointGroupRequest) (*v1.EndpointGroup, error) {
	g, err := model.EndpointGroupFromProto(req.GetGroup())
	if err != nil {
		return nil, err
	}
	return s.grouped(s.cfg.Catalog.CreateGroup(ctx, g,
		catalog.Options{IdempotencyToken: req.GetIdempotencyToken()}))
}

func (s *service) GetEndpointGroup(ctx context.Context, req *v1.GetRequest) (*v1.EndpointGroup, error) {
	return s.grouped(s.cfg.Catalog.Group(ctx, model.GroupID(req.GetId())))
}

func (s *service) ListEndpointGroups(ctx context.Context,
	req *v1.ListRequest) (*v1.ListEndpointGroupsResponse, error) {
	list, next, err := listed(ctx, req, s.group,
		func(ctx context.Context, p catalog.PageOptions) ([]model.EndpointGroup, string, error) {
			return s.cfg.Catalog.ListGroups(ctx, model.ListenerID(req.GetParent()), p)
		})
	return &v1.ListEndpointGroupsResponse{Groups: list, NextPageToken: next}, err
}

func (s *service) UpdateEndpointGroup(ctx context.Context,
	req *v1.UpdateEndpointGroupRequest) (*v1.EndpointGroup, error) {
	change, err := groups.change(req.GetGroup(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return s.grouped(s.cfg.Catalog.UpdateGroup(ctx, model.GroupID(req.GetGroup().GetId()), forced(req),
		change))
}

func (s *service) DeleteEndpointGroup(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteGroup(ctx, model.GroupID(req.GetId()), expected(req)))
}

func (s *service) AddEndpoints(ctx context.Context, req *v1.AddEndpointsRequest) (*v1.EndpointGroup, error) {
	endpoints, err := endpointsFrom(req.GetEndpoints())
	if err != nil {
		return nil, err
	}
	return s.grouped(s.cfg.Catalog.AddEndpoints(ctx, model.GroupID(req.GetGroupId()), endpoints,
		catalog.Options{}))
}

// UpdateEndpoints leaves alone what a request does not say: an absent weight, an unspecified mode.
func (s *service) UpdateEndpoints(ctx context.Context,
	req *v1.UpdateEndpointsRequest) (*v1.EndpointGroup, error) {
	endpoints, err := endpointsFrom(req.GetEndpoints())
	if err != nil {
		return nil, err
	}
	changes := make([]catalog.EndpointChange, len(endpoints))
	for i, asked := range req.GetEndpoints() {
		changes[i].ID = endpoints[i].ID
		if asked.Weight != nil {
			changes[i].Weight = &endpoints[i].Weight
		}
		if asked.GetClientAddress() != v1.ClientAddressMode_CLIENT_ADDRESS_MODE_UNSPECIFIED {
			changes[i].ClientAddress = &endpoints[i].ClientAddress
		}
	}
	return s.grouped(s.cfg.Catalog.UpdateEndpoints(ctx, model.GroupID(req.GetGroupId()), changes,
		catalog.Options{}))
}

func (s *service) RemoveEndpoints(ctx context.Context,
	req *v1.RemoveEndpointsRequest) (*v1.EndpointGroup, error) {
	ids := make([]model.EndpointID, len(req.GetEndpointIds()))
	for i, id := range req.GetEndpointIds() {
		ids[i] = model.EndpointID(id)
	}
	return s.grouped(s.cfg.Catalog.RemoveEndpoints(ctx, model.GroupID(req.GetGroupId()), ids,
		catalog.Options{Force: req.GetForce()}))
}

func endpointsFrom(list []*v1.Endpoint) ([]model.Endpoint, error) {
	out := make([]model.Endpoint, len(list))
	var wrong model.FieldErrors
	for i, p := range list {
		e, err := model.EndpointFromProto(p)
		if fields, ok := err.(model.FieldErrors); ok {
			wrong = append(wrong, fields.At(fmt.Sprintf("endpoints[%d]", i))...)
		} else if err != nil {
			return nil, err
		}
		out[i] = e
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return out, nil
}

func (s *service) CreateTarget(ctx context.Context, req *v1.CreateTargetRequest) (*v1.Target, error) {
	t, err := model.TargetFromProto(req.GetTarget())
	if err != nil {
		return nil, err
	}
	return answer(model.TargetToProto)(s.cfg.Catalog.CreateTarget(ctx, t, catalog.Options{}))
}

func (s *service) GetTarget(ctx context.Context, req *v1.GetRequest) (*v1.Target, error) {
	return answer(model.TargetToProto)(s.cfg.Catalog.Target(ctx, req.GetId()))
}

func (s *service) ListTargets(ctx context.Context, req *v1.ListRequest) (*v1.ListTargetsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.TargetToProto, s.cfg.Catalog.ListTargets)
	return &v1.ListTargetsResponse{Targets: list, NextPageToken: next}, err
}

func (s *service) UpdateTarget(ctx context.Context, req *v1.UpdateTargetRequest) (*v1.Target, error) {
	change, err := targets.change(req.GetTarget(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.TargetToProto)(s.cfg.Catalog.UpdateTarget(ctx, req.GetTarget().GetName(),
		expected(req), change))
}

func (s *service) DeleteTarget(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteTarget(ctx, req.GetId(), expected(req)))
}

func (s *service) TagResource(ctx context.Context, req *v1.TagResourceRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.Tag(ctx, req.GetId(), req.GetTags()))
}

func (s *service) UntagResource(ctx context.Context, req *v1.UntagResourceRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.Untag(ctx, req.GetId(), req.GetKeys()))
}
