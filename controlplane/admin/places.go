package admin

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) CreatePool(ctx context.Context, req *v1.CreatePoolRequest) (*v1.Pool, error) {
	p, err := model.PoolFromProto(req.GetPool())
	if err != nil {
		return nil, err
	}
	return answer(model.PoolToProto)(s.cfg.Catalog.CreatePool(ctx, p, catalog.Options{}))
}

func (s *service) GetPool(ctx context.Context, req *v1.GetRequest) (*v1.Pool, error) {
	return answer(model.PoolToProto)(s.cfg.Catalog.Pool(ctx, model.PoolName(req.GetId())))
}

func (s *service) ListPools(ctx context.Context, req *v1.ListRequest) (*v1.ListPoolsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.PoolToProto, s.cfg.Catalog.ListPools)
	return &v1.ListPoolsResponse{Pools: list, NextPageToken: next}, err
}

func (s *service) UpdatePool(ctx context.Context, req *v1.UpdatePoolRequest) (*v1.Pool, error) {
	change, err := pools.change(req.GetPool(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.PoolToProto)(s.cfg.Catalog.UpdatePool(ctx, model.PoolName(req.GetPool().GetName()),
		forced(req), change))
}

func (s *service) DeletePool(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeletePool(ctx, model.PoolName(req.GetId()), expected(req)))
}

func (s *service) CreateSite(ctx context.Context, req *v1.CreateSiteRequest) (*v1.Site, error) {
	site, err := model.SiteFromProto(req.GetSite())
	if err != nil {
		return nil, err
	}
	return answer(model.SiteToProto)(s.cfg.Catalog.CreateSite(ctx, site, catalog.Options{}))
}

func (s *service) GetSite(ctx context.Context, req *v1.GetRequest) (*v1.Site, error) {
	return answer(model.SiteToProto)(s.cfg.Catalog.Site(ctx, model.SiteName(req.GetId())))
}

func (s *service) ListSites(ctx context.Context, req *v1.ListRequest) (*v1.ListSitesResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.SiteToProto, s.cfg.Catalog.ListSites)
	return &v1.ListSitesResponse{Sites: list, NextPageToken: next}, err
}

func (s *service) UpdateSite(ctx context.Context, req *v1.UpdateSiteRequest) (*v1.Site, error) {
	change, err := sites.change(req.GetSite(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.SiteToProto)(s.cfg.Catalog.UpdateSite(ctx, model.SiteName(req.GetSite().GetName()),
		expected(req), change))
}

func (s *service) DeleteSite(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteSite(ctx, model.SiteName(req.GetId()), expected(req)))
}

func (s *service) CreateRegion(ctx context.Context, req *v1.CreateRegionRequest) (*v1.Region, error) {
	r, err := model.RegionFromProto(req.GetRegion())
	if err != nil {
		return nil, err
	}
	return answer(model.RegionToProto)(s.cfg.Catalog.CreateRegion(ctx, r, catalog.Options{}))
}

func (s *service) ListRegions(ctx context.Context, req *v1.ListRequest) (*v1.ListRegionsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.RegionToProto, s.cfg.Catalog.ListRegions)
	return &v1.ListRegionsResponse{Regions: list, NextPageToken: next}, err
}

func (s *service) DeleteRegion(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteRegion(ctx, model.RegionName(req.GetId()), expected(req)))
}

// node returns a node with what is known of its condition.
func (s *service) node(n model.Node) *v1.Node {
	out := model.NodeToProto(n)
	s.cfg.Fleet.Describe(out)
	return out
}

func (s *service) GetNode(ctx context.Context, req *v1.GetRequest) (*v1.Node, error) {
	return answer(s.node)(s.cfg.Catalog.Node(ctx, req.GetId()))
}

func (s *service) ListNodes(ctx context.Context, req *v1.ListRequest) (*v1.ListNodesResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, s.node, s.cfg.Catalog.ListNodes)
	return &v1.ListNodesResponse{Nodes: list, NextPageToken: next}, err
}

// UpdateNode drains, restores and revokes. To revoke is an administrator's: it cannot be undone.
func (s *service) UpdateNode(ctx context.Context, req *v1.UpdateNodeRequest) (*v1.Node, error) {
	change, err := nodes.change(req.GetNode(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	if req.GetNode().GetState() == v1.NodeState_NODE_STATE_REVOKED &&
		!access.Allows(access.FromContext(ctx).Role, access.NeedAdmin) {
		return nil, status.Error(codes.PermissionDenied, "only an administrator may revoke a node")
	}
	n, err := s.cfg.Catalog.Node(ctx, req.GetNode().GetId())
	if err != nil {
		return nil, err
	}
	return answer(s.node)(s.cfg.Catalog.UpdateNode(ctx, n.ID, forced(req), change))
}

func (s *service) DeleteNode(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	n, err := s.cfg.Catalog.Node(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return done(s.cfg.Catalog.DeleteNode(ctx, n.ID, forced(req)))
}
