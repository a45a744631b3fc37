package admin

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) CreateBgpPeer(ctx context.Context, req *v1.CreateBgpPeerRequest) (*v1.BgpPeer, error) {
	p, err := model.BGPPeerFromProto(req.GetPeer())
	if err != nil {
		return nil, err
	}
	return answer(model.BGPPeerToAnswer)(s.cfg.Catalog.CreateBGPPeer(ctx, p, catalog.Options{}))
}

func (s *service) GetBgpPeer(ctx context.Context, req *v1.GetRequest) (*v1.BgpPeer, error) {
	return answer(model.BGPPeerToAnswer)(s.cfg.Catalog.BGPPeer(ctx, model.PeerID(req.GetId())))
}

func (s *service) ListBgpPeers(ctx context.Context, req *v1.ListRequest) (*v1.ListBgpPeersResponse, error) {
	if err := s.siteParent(ctx, req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, model.BGPPeerToAnswer,
		func(ctx context.Context, p catalog.PageOptions) ([]model.BGPPeer, string, error) {
			return s.cfg.Catalog.ListBGPPeers(ctx, model.SiteName(req.GetParent()), p)
		})
	return &v1.ListBgpPeersResponse{Peers: list, NextPageToken: next}, err
}

// siteParent refuses a listing of a site that is not there.
func (s *service) siteParent(ctx context.Context, req *v1.ListRequest) error {
	if req.GetParent() == "" {
		return nil
	}
	_, err := s.cfg.Catalog.Site(ctx, model.SiteName(req.GetParent()))
	return err
}

func (s *service) UpdateBgpPeer(ctx context.Context, req *v1.UpdateBgpPeerRequest) (*v1.BgpPeer, error) {
	change, err := bgpPeers.change(req.GetPeer(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.BGPPeerToAnswer)(s.cfg.Catalog.UpdateBGPPeer(ctx, model.PeerID(req.GetPeer().GetId()),
		expected(req), change))
}

func (s *service) DeleteBgpPeer(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteBGPPeer(ctx, model.PeerID(req.GetId()), expected(req)))
}

func (s *service) ListAnnouncements(ctx context.Context,
	req *v1.ListRequest) (*v1.ListAnnouncementsResponse, error) {
	if err := s.siteParent(ctx, req); err != nil {
		return nil, err
	}
	page, next, err := pageOf(req, s.cfg.Fleet.Announcements(model.SiteName(req.GetParent())),
		(*v1.NodeAnnouncements).GetNode)
	return &v1.ListAnnouncementsResponse{Nodes: page, NextPageToken: next}, err
}

func (s *service) SetAnnouncing(ctx context.Context,
	req *v1.SetAnnouncingRequest) (*v1.ListAnnouncementsResponse, error) {
	site, o := model.SiteName(req.GetSite()), catalog.Options{Force: req.GetForce()}
	switch {
	case (req.GetSite() == "") == (req.GetNode() == ""):
		return nil, access.Invalid("site", "give exactly one of site and node")
	case req.GetSite() != "":
		if err := s.cfg.Catalog.SetSiteAnnouncing(ctx, site, req.GetDrained(), o); err != nil {
			return nil, err
		}
	default:
		n, err := s.cfg.Catalog.Node(ctx, req.GetNode())
		if err != nil {
			return nil, err
		}
		if err := s.cfg.Catalog.SetNodeAnnouncing(ctx, n.ID, req.GetDrained(), o); err != nil {
			return nil, err
		}
		site = n.Site
	}
	return &v1.ListAnnouncementsResponse{Nodes: s.cfg.Fleet.Announcements(site)}, nil
}
