package admin

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/fleet"
	"github.com/nearcast/nearcast/controlplane/gains"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) ListGains(_ context.Context, req *v1.ListGainsRequest) (*v1.ListGainsResponse, error) {
	var within netip.Prefix
	if text := req.GetNetwork(); text != "" {
		var err error
		if within, err = netip.ParsePrefix(text); err != nil {
			addr, addrErr := netip.ParseAddr(text)
			if addrErr != nil {
				return nil, access.Invalid("network", "must be an address or a network, like 192.0.2.0/24")
			}
			within = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		}
	}
	var list []*v1.Gain
	for _, g := range s.cfg.Fleet.Gains() {
		if req.GetRegion() != "" && string(g.Region) != req.GetRegion() || within.IsValid() && !within.Overlaps(g.Network) {
			continue
		}
		list = append(list, gain(&g))
	}
	slices.SortFunc(list, func(a, b *v1.Gain) int { return strings.Compare(gainKey(a), gainKey(b)) })
	page, next, err := pageOf(&v1.ListRequest{PageSize: req.GetPageSize(), PageToken: req.GetPageToken()}, list, gainKey)
	return &v1.ListGainsResponse{Gains: page, NextPageToken: next}, err
}

func gainKey(g *v1.Gain) string { return g.GetNetwork() + " " + g.GetRegion() + " " + g.GetSite() }

func gain(g *gains.Gain) *v1.Gain {
	return &v1.Gain{
		Network: g.Network.String(), Region: string(g.Region), Site: string(g.Site), Flows: uint64(g.Flows),
		Client: durationpb.New(g.Client), Backbone: durationpb.New(g.Backbone), Connect: durationpb.New(g.Connect),
		Direct: durationpb.New(g.Direct), DirectSource: model.DirectSourceToProto(g.DirectBy),
		FirstByteDirect: durationpb.New(g.FirstByteDirect()), FirstByte: durationpb.New(g.FirstByte()),
		Down: g.Down, DownDirect: g.DownDirect, Pays: g.Pays(),
	}
}

func (s *service) SetDirectPath(ctx context.Context, req *v1.SetDirectPathRequest) (*v1.DirectPath, error) {
	if req.GetRemove() && req.GetPath() != nil { // what is left out of a removal does not matter
		req.Path.Rtt, req.Path.Source = durationpb.New(time.Millisecond), v1.DirectSource_DIRECT_SOURCE_OPERATOR
	}
	d, err := model.DirectPathFromProto(req.GetPath())
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Catalog.Region(ctx, d.Region); err != nil {
		return nil, err
	}
	d.Time = time.Now().UTC()
	switch err := s.cfg.Fleet.SetDirect(ctx, d, req.GetRemove()); {
	case errors.Is(err, fleet.ErrDirectFull):
		return nil, access.Invalid("path.network", err.Error())
	case err != nil:
		return nil, err
	}
	return model.DirectPathToProto(d), nil
}
