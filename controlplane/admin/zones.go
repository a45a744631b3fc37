package admin

import (
	"context"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/proto/zonefile"
)

// zone returns a zone as operators see it: without private keys, with the records for the parent.
func zone(z model.Zone) *v1.Zone {
	z = z.Public()
	for i, k := range z.Keys {
		z.Keys[i].DS = strings.ReplaceAll(zonefile.DS(z.Name, k).String(), "\t", " ")
	}
	return model.ZoneToProto(z)
}

func (s *service) CreateZone(ctx context.Context, req *v1.CreateZoneRequest) (*v1.Zone, error) {
	z, err := model.ZoneFromProto(req.GetZone())
	if err != nil {
		return nil, err
	}
	return answer(zone)(s.cfg.Catalog.CreateZone(ctx, z, catalog.Options{}))
}

func (s *service) GetZone(ctx context.Context, req *v1.GetRequest) (*v1.Zone, error) {
	return answer(zone)(s.cfg.Catalog.Zone(ctx, model.ZoneName(req.GetId())))
}

func (s *service) ListZones(ctx context.Context, req *v1.ListRequest) (*v1.ListZonesResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	short := func(z model.Zone) *v1.Zone {
		z.Text = ""
		return zone(z)
	}
	list, next, err := listed(ctx, req, short, s.cfg.Catalog.ListZones)
	return &v1.ListZonesResponse{Zones: list, NextPageToken: next}, err
}

func (s *service) UpdateZone(ctx context.Context, req *v1.UpdateZoneRequest) (*v1.Zone, error) {
	change, err := zones.change(req.GetZone(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(zone)(s.cfg.Catalog.UpdateZone(ctx, model.ZoneName(req.GetZone().GetName()), forced(req), change))
}

func (s *service) DeleteZone(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteZone(ctx, model.ZoneName(req.GetId()), expected(req)))
}

func (s *service) RollZoneKey(ctx context.Context, req *v1.RollZoneKeyRequest) (*v1.Zone, error) {
	steps := map[v1.ZoneKeyStep]catalog.KeyStep{
		v1.ZoneKeyStep_ZONE_KEY_STEP_PUBLISH:  catalog.KeyStepPublish,
		v1.ZoneKeyStep_ZONE_KEY_STEP_ACTIVATE: catalog.KeyStepActivate,
		v1.ZoneKeyStep_ZONE_KEY_STEP_REMOVE:   catalog.KeyStepRemove,
	}
	step, ok := steps[req.GetStep()]
	if !ok {
		return nil, access.Invalid("step", "is missing or unknown; use PUBLISH, ACTIVATE or REMOVE")
	}
	return answer(zone)(s.cfg.Catalog.RollZoneKey(ctx, model.ZoneName(req.GetName()), step,
		catalog.Options{Force: req.GetForce()}))
}

func (s *service) GetSteering(ctx context.Context, _ *emptypb.Empty) (*v1.Steering, error) {
	return answer(model.SteeringToProto)(s.cfg.Catalog.Steering(ctx))
}

func (s *service) UpdateSteering(ctx context.Context, req *v1.UpdateSteeringRequest) (*v1.Steering, error) {
	change, err := steering.change(req.GetSteering(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.SteeringToProto)(s.cfg.Catalog.UpdateSteering(ctx, expected(req), change))
}

// ExplainSteer asks one edge for its DNS answer, and the edge that the answer leads to for its regions.
func (s *service) ExplainSteer(ctx context.Context, req *v1.ExplainSteerRequest) (*v1.ExplainSteerResponse, error) {
	for field, text := range map[string]string{"client": req.GetClient(), "resolver": req.GetResolver()} {
		if _, err := netip.ParseAddr(text); err != nil && (text != "" || field == "client") {
			return nil, access.Invalid(field, "must be an IP address")
		}
	}
	if req.GetPort() > 65535 {
		return nil, access.Invalid("port", "must be 1 to 65535, or left out")
	}
	var ask model.NodeID
	if req.GetNode() != "" {
		n, err := s.cfg.Catalog.Node(ctx, req.GetNode())
		if err != nil {
			return nil, err
		}
		ask = n.ID
	}
	r, err := s.cfg.Fleet.Explain(ctx, ask, req)
	if err == nil && r.GetSource() == "anycast" {
		client, _ := netip.ParseAddr(req.GetClient()) // parsed above
		if at := s.cfg.Fleet.ExplainAnycast(client, r); at != "" && ask == "" {
			if own, err := s.cfg.Fleet.Explain(ctx, at, req); err == nil {
				r.Regions = own.GetRegions()
			}
		}
	}
	if err != nil || r.GetEdge() == "" {
		return r, err
	}
	edge, err := s.cfg.Catalog.Node(ctx, r.GetEdge())
	if err != nil {
		return nil, err
	}
	// The edge's own view of the regions, where it is connected here; else that of the one that was asked.
	if own, err := s.cfg.Fleet.Explain(ctx, edge.ID, req); err == nil {
		r.Regions = own.GetRegions()
	}
	return r, nil
}
