package admin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/enroll"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) CreateJoinToken(ctx context.Context,
	req *v1.CreateJoinTokenRequest) (*v1.CreateJoinTokenResponse, error) {
	asked := req.GetToken()
	t := enroll.Token{
		Description: asked.GetDescription(), SingleUse: asked.GetSingleUse(),
		Site: model.SiteName(asked.GetSite()), NodeName: asked.GetNodeName(),
		AllowEdge: asked.GetAllowEdge(), AllowGateway: asked.GetAllowGateway(),
		CreatedBy: access.FromContext(ctx).Name,
	}
	if asked.GetExpires() != nil {
		if err := asked.GetExpires().CheckValid(); err != nil {
			return nil, access.Invalid("token.expires", err.Error())
		}
		t.Expires = asked.GetExpires().AsTime()
	}
	if t.Site != "" {
		if _, err := s.cfg.Catalog.Site(ctx, t.Site); err != nil {
			return nil, err
		}
	}
	t, secret, err := s.cfg.Tokens.Create(ctx, t)
	if err != nil {
		return nil, err
	}
	return &v1.CreateJoinTokenResponse{Token: tokenTo(t), Secret: secret}, nil
}

func (s *service) ListJoinTokens(ctx context.Context,
	req *v1.ListRequest) (*v1.ListJoinTokensResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	all, err := s.cfg.Tokens.List(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := pageOf(req, all, func(t enroll.Token) string { return timeKey(t.Created, t.ID) })
	if err != nil {
		return nil, err
	}
	resp := &v1.ListJoinTokensResponse{NextPageToken: next}
	for _, t := range page {
		resp.Tokens = append(resp.Tokens, tokenTo(t))
	}
	return resp, nil
}

func (s *service) DeleteJoinToken(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Tokens.Delete(ctx, req.GetId(), req.GetExpectedRevision()))
}

func tokenTo(t enroll.Token) *v1.JoinToken {
	return &v1.JoinToken{
		Id: t.ID, Description: t.Description, Expires: timestamppb.New(t.Expires), SingleUse: t.SingleUse,
		Site: string(t.Site), NodeName: t.NodeName, AllowEdge: t.AllowEdge, AllowGateway: t.AllowGateway,
		Uses: uint32(max(t.Uses, 0)), CreatedTime: timestamppb.New(t.Created), CreatedBy: t.CreatedBy,
	}
}

func (s *service) CreateOperator(ctx context.Context,
	req *v1.CreateOperatorRequest) (*v1.CreateOperatorResponse, error) {
	op, secret, err := s.cfg.Operators.Create(ctx, req.GetOperator().GetName(), req.GetOperator().GetRole())
	if err != nil {
		return nil, err
	}
	return &v1.CreateOperatorResponse{Operator: operatorTo(op), Secret: secret}, nil
}

func (s *service) ListOperators(ctx context.Context, req *v1.ListRequest) (*v1.ListOperatorsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	all, err := s.cfg.Operators.List(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := pageOf(req, all, func(o access.Operator) string { return timeKey(o.Created, o.Name) })
	if err != nil {
		return nil, err
	}
	resp := &v1.ListOperatorsResponse{NextPageToken: next}
	for _, o := range page {
		resp.Operators = append(resp.Operators, operatorTo(o))
	}
	return resp, nil
}

func (s *service) DeleteOperator(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Operators.Delete(ctx, req.GetId(), req.GetExpectedRevision()))
}

func (s *service) WhoAmI(ctx context.Context, _ *emptypb.Empty) (*v1.Operator, error) {
	caller := access.FromContext(ctx)
	op, err := s.cfg.Operators.Get(ctx, caller.Name)
	if errors.Is(err, store.ErrUnavailable) {
		return &v1.Operator{Name: caller.Name, Role: caller.Role}, nil // all that is known without it
	}
	if err != nil {
		return nil, err
	}
	return operatorTo(op), nil
}

func operatorTo(o access.Operator) *v1.Operator {
	return &v1.Operator{
		Name: o.Name, Role: o.Role, CreatedTime: timestamppb.New(o.Created), Revision: o.Revision}
}

func (s *service) GetSettings(ctx context.Context, _ *emptypb.Empty) (*v1.Settings, error) {
	return answer(model.SettingsToProto)(s.cfg.Catalog.Settings(ctx))
}

func (s *service) UpdateSettings(ctx context.Context, req *v1.UpdateSettingsRequest) (*v1.Settings, error) {
	change, err := settings.change(req.GetSettings(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.SettingsToProto)(s.cfg.Catalog.UpdateSettings(ctx, catalog.Options{}, change))
}

// timeKey sorts by time, then by id, as text.
func timeKey(t time.Time, id string) string {
	return fmt.Sprintf("%019d/%s", min(max(t.UnixNano(), 0), math.MaxInt64), id)
}
