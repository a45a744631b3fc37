package admin

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/access"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (s *service) CreateAccessKey(ctx context.Context, req *v1.CreateAccessKeyRequest) (*v1.AccessKeySecret, error) {
	asked := req.GetKey()
	return keyed(s.cfg.Keys.Create(ctx, access.AccessKey{
		Description: asked.GetDescription(), Role: asked.GetRole(), Project: asked.GetProject(),
		Account: asked.GetAccountId(), CreatedBy: access.FromContext(ctx).Name,
	}))
}

func (s *service) ListAccessKeys(ctx context.Context, req *v1.ListRequest) (*v1.ListAccessKeysResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	all, err := s.cfg.Keys.List(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := pageOf(req, all, func(k access.AccessKey) string { return timeKey(k.Created, k.ID) })
	if err != nil {
		return nil, err
	}
	resp := &v1.ListAccessKeysResponse{NextPageToken: next}
	for _, k := range page {
		resp.Keys = append(resp.Keys, keyTo(k))
	}
	return resp, nil
}

func (s *service) RotateAccessKey(ctx context.Context, req *v1.RotateAccessKeyRequest) (*v1.AccessKeySecret, error) {
	if d := req.GetGrace(); d != nil {
		if err := d.CheckValid(); err != nil {
			return nil, access.Invalid("grace", err.Error())
		}
	}
	return keyed(s.cfg.Keys.Rotate(ctx, req.GetId(), req.GetGrace().AsDuration(), access.FromContext(ctx).Name))
}

func (s *service) DeleteAccessKey(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Keys.Delete(ctx, req.GetId(), req.GetExpectedRevision()))
}

func keyed(k access.AccessKey, secret string, err error) (*v1.AccessKeySecret, error) {
	if err != nil {
		return nil, err
	}
	return &v1.AccessKeySecret{Key: keyTo(k), Secret: secret}, nil
}

func keyTo(k access.AccessKey) *v1.AccessKey {
	out := &v1.AccessKey{
		Id: k.ID, Description: k.Description, Role: k.Role, Project: k.Project, AccountId: k.Account,
		CreatedTime: timestamppb.New(k.Created), CreatedBy: k.CreatedBy, Revision: k.Revision,
	}
	if !k.Expires.IsZero() {
		out.Expires = timestamppb.New(k.Expires)
	}
	return out
}
