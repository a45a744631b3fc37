package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file is the fake's half that is about the fleet, and about looking at it.

func (f *fake) ListNodes(_ context.Context, r *pb.ListRequest) (*pb.ListNodesResponse, error) {
	items, next := pageOf(f.nodes, r)
	return &pb.ListNodesResponse{Nodes: items, NextPageToken: next}, nil
}

func (f *fake) UpdateNode(_ context.Context, r *pb.UpdateNodeRequest) (*pb.Node, error) {
	n, err := lookup("node", r.Node.GetId(), f.nodes, func(n *pb.Node) bool { return n.Id == r.Node.GetId() })
	if err == nil {
		n.State = r.Node.GetState()
	}
	return n, err
}

func (f *fake) DeleteNode(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	f.nodes = slices.DeleteFunc(f.nodes, func(n *pb.Node) bool { return n.Id == r.Id })
	return &emptypb.Empty{}, nil
}

func (f *fake) CreateTarget(_ context.Context, r *pb.CreateTargetRequest) (*pb.Target, error) {
	t, err := judged(r.GetTarget(), model.TargetFromProto, model.TargetToProto)
	if err == nil {
		f.targets = append(f.targets, t)
	}
	return t, err
}

func (f *fake) GetTarget(_ context.Context, r *pb.GetRequest) (*pb.Target, error) {
	return lookup("target", r.Id, f.targets, func(t *pb.Target) bool { return t.Name == r.Id })
}

func (f *fake) ListTargets(_ context.Context, r *pb.ListRequest) (*pb.ListTargetsResponse, error) {
	items, next := pageOf(f.targets, r)
	return &pb.ListTargetsResponse{Targets: items, NextPageToken: next}, nil
}

func (f *fake) UpdateTarget(ctx context.Context, r *pb.UpdateTargetRequest) (*pb.Target, error) {
	t, err := f.GetTarget(ctx, &pb.GetRequest{Id: r.Target.GetName()})
	if err == nil {
		applyMask(t, r.Target, r.UpdateMask)
	}
	return t, err
}

func (f *fake) DeleteTarget(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	f.targets = slices.DeleteFunc(f.targets, func(t *pb.Target) bool { return t.Name == r.Id })
	return &emptypb.Empty{}, nil
}

func (f *fake) CreatePool(_ context.Context, r *pb.CreatePoolRequest) (*pb.Pool, error) {
	p, err := judged(r.GetPool(), model.PoolFromProto, model.PoolToProto)
	if err == nil {
		f.pools = append(f.pools, p)
	}
	return p, err
}

func (f *fake) GetPool(_ context.Context, r *pb.GetRequest) (*pb.Pool, error) {
	return lookup("pool", r.Id, f.pools, func(p *pb.Pool) bool { return p.Name == r.Id })
}

func (f *fake) ListPools(_ context.Context, r *pb.ListRequest) (*pb.ListPoolsResponse, error) {
	items, next := pageOf(f.pools, r)
	return &pb.ListPoolsResponse{Pools: items, NextPageToken: next}, nil
}

func (f *fake) UpdatePool(ctx context.Context, r *pb.UpdatePoolRequest) (*pb.Pool, error) {
	p, err := f.GetPool(ctx, &pb.GetRequest{Id: r.Pool.GetName()})
	if err == nil {
		applyMask(p, r.Pool, r.UpdateMask)
	}
	return p, err
}

func (f *fake) DeletePool(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	f.pools = slices.DeleteFunc(f.pools, func(p *pb.Pool) bool { return p.Name == r.Id })
	return &emptypb.Empty{}, nil
}

func (f *fake) CreateSite(_ context.Context, r *pb.CreateSiteRequest) (*pb.Site, error) {
	s, err := judged(r.GetSite(), model.SiteFromProto, model.SiteToProto)
	if err == nil {
		f.sites = append(f.sites, s)
	}
	return s, err
}

func (f *fake) GetSite(_ context.Context, r *pb.GetRequest) (*pb.Site, error) {
	return lookup("site", r.Id, f.sites, func(s *pb.Site) bool { return s.Name == r.Id })
}

func (f *fake) ListSites(_ context.Context, r *pb.ListRequest) (*pb.ListSitesResponse, error) {
	items, next := pageOf(f.sites, r)
	return &pb.ListSitesResponse{Sites: items, NextPageToken: next}, nil
}

func (f *fake) UpdateSite(ctx context.Context, r *pb.UpdateSiteRequest) (*pb.Site, error) {
	s, err := f.GetSite(ctx, &pb.GetRequest{Id: r.Site.GetName()})
	if err == nil {
		applyMask(s, r.Site, r.UpdateMask)
	}
	return s, err
}

func (f *fake) CreateRegion(_ context.Context, r *pb.CreateRegionRequest) (*pb.Region, error) {
	f.regions = append(f.regions, r.Region)
	return r.Region, nil
}

func (f *fake) ListRegions(_ context.Context, r *pb.ListRequest) (*pb.ListRegionsResponse, error) {
	items, next := pageOf(f.regions, r)
	return &pb.ListRegionsResponse{Regions: items, NextPageToken: next}, nil
}

func (f *fake) DeleteRegion(context.Context, *pb.DeleteRequest) (*emptypb.Empty, error) {
	return nil, withReason(codes.FailedPrecondition, "InUse", "region eu-fra-1 is named by site fra")
}

// The fake has neither BGP nor zones.

func (f *fake) ListBgpPeers(context.Context, *pb.ListRequest) (*pb.ListBgpPeersResponse, error) {
	return &pb.ListBgpPeersResponse{}, nil
}

func (f *fake) ListZones(context.Context, *pb.ListRequest) (*pb.ListZonesResponse, error) {
	return &pb.ListZonesResponse{}, nil
}

func (f *fake) GetSteering(context.Context, *emptypb.Empty) (*pb.Steering, error) {
	s, err := model.SteeringFromProto(nil)
	return model.SteeringToProto(s), err
}

func (f *fake) CreateJoinToken(_ context.Context, r *pb.CreateJoinTokenRequest) (*pb.CreateJoinTokenResponse, error) {
	t := r.GetToken()
	t.Id, t.CreatedTime, t.CreatedBy = fmt.Sprintf("tok%d", f.next()), ago(0), "alice"
	if t.Expires == nil {
		t.Expires = ago(-time.Hour)
	}
	f.tokens = append(f.tokens, t)
	return &pb.CreateJoinTokenResponse{Token: t, Secret: "NC1" + strings.Repeat("0", 64) + "." + t.Id + ".secret"}, nil
}

func (f *fake) ListJoinTokens(_ context.Context, r *pb.ListRequest) (*pb.ListJoinTokensResponse, error) {
	items, next := pageOf(f.tokens, r)
	return &pb.ListJoinTokensResponse{Tokens: items, NextPageToken: next}, nil
}

func (f *fake) CreateOperator(_ context.Context, r *pb.CreateOperatorRequest) (*pb.CreateOperatorResponse, error) {
	o := r.GetOperator()
	o.CreatedTime = ago(0)
	f.operators = append(f.operators, o)
	return &pb.CreateOperatorResponse{Operator: o, Secret: "NCO1." + o.Name + ".zyxwvutsrqponmlkjihgfedcba"}, nil
}

func (f *fake) ListOperators(_ context.Context, r *pb.ListRequest) (*pb.ListOperatorsResponse, error) {
	items, next := pageOf(f.operators, r)
	return &pb.ListOperatorsResponse{Operators: items, NextPageToken: next}, nil
}

func (f *fake) DeleteOperator(context.Context, *pb.DeleteRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.PermissionDenied, "operator alice has role ROLE_VIEWER, which may not do this")
}

func (f *fake) TagResource(_ context.Context, r *pb.TagResourceRequest) (*emptypb.Empty, error) {
	for _, a := range f.accs {
		if a.Id == r.Id {
			a.Tags = r.Tags
			return &emptypb.Empty{}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "%s does not exist", r.Id)
}

func (f *fake) UntagResource(_ context.Context, r *pb.UntagResourceRequest) (*emptypb.Empty, error) {
	for _, a := range f.accs {
		if a.Id == r.Id {
			for _, k := range r.Keys {
				delete(a.Tags, k)
			}
		}
	}
	return &emptypb.Empty{}, nil
}

func (f *fake) GetSettings(context.Context, *emptypb.Empty) (*pb.Settings, error) {
	return f.settings, nil
}

func (f *fake) UpdateSettings(_ context.Context, r *pb.UpdateSettingsRequest) (*pb.Settings, error) {
	applyMask(f.settings, r.Settings, r.UpdateMask)
	return f.settings, nil
}

func (f *fake) ListHealth(_ context.Context, r *pb.ListRequest) (*pb.ListHealthResponse, error) {
	var all []*pb.EndpointHealthStatus
	for _, g := range f.grps {
		for i, e := range g.Endpoints {
			h := &pb.EndpointHealthStatus{
				GroupId: g.Id, EndpointId: e.Id, Verdict: pb.HealthState_HEALTH_STATE_HEALTHY, Since: ago(time.Hour),
				Reports: []*pb.ProberReport{{Prober: "n-01", Health: &pb.EndpointHealth{
					State: pb.HealthState_HEALTH_STATE_HEALTHY, Latency: durationpb.New(2500 * time.Microsecond)}}},
			}
			if i == 1 {
				h.Verdict, h.Reason = pb.HealthState_HEALTH_STATE_UNHEALTHY, "connect: connection refused"
				h.Reports[0].Health = &pb.EndpointHealth{State: pb.HealthState_HEALTH_STATE_UNHEALTHY}
			}
			if r.Parent == "" || r.Parent == g.Id {
				all = append(all, h)
			}
		}
	}
	items, next := pageOf(all, r)
	return &pb.ListHealthResponse{Endpoints: items, NextPageToken: next}, nil
}

func (f *fake) ListPaths(context.Context, *pb.ListRequest) (*pb.ListPathsResponse, error) {
	return &pb.ListPathsResponse{Nodes: []*pb.NodePaths{{Node: "n-01", Time: ago(0), Paths: []*pb.Path{
		{Peer: "n-02", Rtt: durationpb.New(80 * time.Millisecond), Loss: 0.0125, Carriers: 2, Udp: true, Up: true},
		{Peer: "n-77"},
	}}}}, nil
}

func (f *fake) GetStatus(context.Context, *emptypb.Empty) (*pb.StatusResponse, error) {
	hash := sha256.Sum256([]byte("snapshot"))
	return &pb.StatusResponse{
		Cluster: "prod", Revision: f.rev, Hash: hash[:], Nodes: f.nodes, Problems: f.problems,
		Controllers:  []*pb.ControllerStatus{{Id: "ctl-1", Address: "192.0.2.201:7443", Leader: true}},
		Accelerators: uint32(len(f.accs)), EndpointsHealthy: 3, EndpointsInitial: 1,
	}, nil
}

func (f *fake) GetSnapshot(context.Context, *emptypb.Empty) (*pb.Snapshot, error) {
	return &pb.Snapshot{Revision: f.rev, Cluster: "prod", Format: 1, Accelerators: f.accs}, nil
}

func (f *fake) ListAudit(_ context.Context, r *pb.ListRequest) (*pb.ListAuditResponse, error) {
	var all []*pb.AuditEntry
	for i := range 5 {
		all = append(all, &pb.AuditEntry{
			Time: ago(time.Duration(i) * time.Minute), Operator: "alice", Method: "CreateListener",
			Object: fmt.Sprintf("listener/%d", i), Outcome: "ok", Peer: "192.0.2.7:1234",
		})
	}
	items, next := pageOf(all, r)
	return &pb.ListAuditResponse{Entries: items, NextPageToken: next}, nil
}

func (f *fake) WhoAmI(context.Context, *emptypb.Empty) (*pb.Operator, error) {
	return f.operators[0], nil
}

// ListGains has one row of each kind: measured, estimated, and where acceleration does not pay.
func (f *fake) ListGains(_ context.Context, r *pb.ListGainsRequest) (*pb.ListGainsResponse, error) {
	ms := func(n float64) *durationpb.Duration {
		return durationpb.New(time.Duration(n * float64(time.Millisecond)))
	}
	all := []*pb.Gain{{
		Network: "192.0.2.0/24", Region: "eu-fra-1", Site: "fra", Flows: 12, Client: ms(12), Backbone: ms(0), Connect: ms(1),
		Direct: ms(12.5), DirectSource: pb.DirectSource_DIRECT_SOURCE_PROBE, FirstByteDirect: ms(25), FirstByte: ms(26),
	}, {
		Network: "198.51.100.0/24", Region: "eu-fra-1", Site: "sin", Flows: 900, Client: ms(20), Backbone: ms(180),
		Connect: ms(0.5), Direct: ms(200), DirectSource: pb.DirectSource_DIRECT_SOURCE_PROBE, FirstByteDirect: ms(400),
		FirstByte: ms(221), Down: 10 << 20, DownDirect: 2 << 20, Pays: true,
	}, {
		Network: "2001:db8:7::/48", Region: "us-iad-1", Site: "iad", Flows: 40, Client: ms(30), Backbone: ms(0),
		Connect: ms(0.5), Direct: ms(70), DirectSource: pb.DirectSource_DIRECT_SOURCE_COUNTRY, FirstByteDirect: ms(140),
		FirstByte: ms(61), Pays: true,
	}}
	if r.Region == "" {
		return &pb.ListGainsResponse{Gains: all}, nil
	}
	return &pb.ListGainsResponse{Gains: slices.DeleteFunc(all, func(g *pb.Gain) bool { return g.Region != r.Region })}, nil
}
