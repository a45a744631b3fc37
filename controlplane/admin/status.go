package admin

import (
	"context"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) ListHealth(ctx context.Context, req *v1.ListRequest) (*v1.ListHealthResponse, error) {
	if req.GetParent() != "" {
		if _, err := s.cfg.Catalog.Group(ctx, model.GroupID(req.GetParent())); err != nil {
			return nil, err
		}
	}
	page, next, err := pageOf(req, s.cfg.Fleet.Health(model.GroupID(req.GetParent())),
		func(h *v1.EndpointHealthStatus) string { return h.GroupId + "\x00" + h.EndpointId })
	return &v1.ListHealthResponse{Endpoints: page, NextPageToken: next}, err
}

func (s *service) ListPaths(ctx context.Context, req *v1.ListRequest) (*v1.ListPathsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	page, next, err := pageOf(req, s.cfg.Fleet.Paths(), (*v1.NodePaths).GetNode)
	return &v1.ListPathsResponse{Nodes: page, NextPageToken: next}, err
}

// GetSnapshot leaves out all secrets: they are the nodes', not the operators'; and the countries' networks.
func (s *service) GetSnapshot(context.Context, *emptypb.Empty) (*v1.Snapshot, error) {
	snap := s.cfg.Fleet.Published().Snapshot
	if snap == nil {
		return nil, status.Error(codes.Unavailable, "there is no snapshot yet")
	}
	out := model.SnapshotToProto(snap)
	for _, p := range out.GetBgpPeers() {
		p.Password = ""
	}
	out.GossipKeys, out.CookieSecrets = nil, nil
	for _, z := range out.Zones {
		for _, k := range z.Keys {
			k.PrivateKey = nil
		}
	}
	for _, l := range out.GetCountryLists() {
		l.Networks = nil // megabytes that nobody reads
	}
	return out, nil
}

// GetStatus answers from what this controller knows, also while the store has no quorum: that is when
// somebody asks.
func (s *service) GetStatus(ctx context.Context, _ *emptypb.Empty) (*v1.StatusResponse, error) {
	p := s.cfg.Fleet.Published()
	resp := &v1.StatusResponse{Cluster: s.cfg.Authority.Cluster(), Revision: p.Revision()}
	if p.Snapshot != nil {
		resp.Hash = p.Hash[:]
	}
	ctx, cancel := context.WithTimeout(ctx, storeAnswerTimeout)
	defer cancel()
	storeErr := s.cfg.Store.Health(ctx)
	leader := ""
	if storeErr == nil {
		leader = s.cfg.Fleet.Leader(ctx)
	}
	resp.Controllers = s.cfg.Fleet.ControllerStatuses(leader)
	if p.State != nil {
		for _, n := range p.State.Nodes {
			resp.Nodes = append(resp.Nodes, s.node(n))
		}
		for _, a := range p.State.Accelerators {
			resp.Accelerators++
			if !s.cfg.Fleet.Deployed(a) {
				resp.AcceleratorsInProgress++
			}
		}
	}
	health := s.cfg.Fleet.Health("")
	for _, h := range health {
		switch h.GetVerdict() {
		case v1.HealthState_HEALTH_STATE_HEALTHY:
			resp.EndpointsHealthy++
		case v1.HealthState_HEALTH_STATE_UNHEALTHY:
			resp.EndpointsUnhealthy++
		default:
			resp.EndpointsInitial++
		}
	}
	w := problems{now: time.Now(), published: p, newest: s.newest(ctx, resp.GetNodes()), nodes: resp.GetNodes()}
	w.store(storeErr)
	w.configuration()
	w.rejections()
	w.groups(health)
	used, troubles := s.cfg.Countries.Status(w.now)
	resp.Countries, w.list = used, append(w.list, troubles...)
	w.condition()
	w.announcements(s.cfg.Fleet.Announcements(""))
	w.certificates(s.cfg.Authority.Roots())
	w.paths(s.cfg.Fleet.Paths())
	resp.Problems = w.list
	return resp, nil
}

// newest returns the revision that no node can be ahead of. Nodes may be ahead of what this status began with: of a
// snapshot that was published since, or that another controller has told them and this one is about to.
func (s *service) newest(ctx context.Context, nodes []*v1.Node) uint64 {
	published := s.cfg.Fleet.Published().Revision()
	if !slices.ContainsFunc(nodes, func(n *v1.Node) bool { return n.GetAppliedRevision() > published }) {
		return published
	}
	stored, err := s.cfg.Fleet.Newest(ctx)
	if err != nil {
		return math.MaxUint64 // not known now
	}
	return max(published, stored)
}
