package admin

import (
	"cmp"
	"context"
	"net/netip"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/byoip"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

var attached = answer(model.AttachmentToProto)

func (s *service) CreateAttachment(ctx context.Context, req *v1.CreateAttachmentRequest) (*v1.Attachment, error) {
	a, err := model.AttachmentFromProto(req.GetAttachment())
	if err != nil {
		return nil, err
	}
	return attached(s.cfg.Catalog.CreateAttachment(ctx, a, catalog.Options{IdempotencyToken: req.GetIdempotencyToken()}))
}

func (s *service) GetAttachment(ctx context.Context, req *v1.GetRequest) (*v1.Attachment, error) {
	return attached(s.cfg.Catalog.Attachment(ctx, model.AttachmentID(req.GetId())))
}

func (s *service) ListAttachments(ctx context.Context, req *v1.ListRequest) (*v1.ListAttachmentsResponse, error) {
	list, next, err := listed(ctx, req, model.AttachmentToProto,
		func(ctx context.Context, p catalog.PageOptions) ([]model.Attachment, string, error) {
			return s.cfg.Catalog.ListAttachments(ctx, req.GetParent(), p)
		})
	return &v1.ListAttachmentsResponse{Attachments: list, NextPageToken: next}, err
}

func (s *service) UpdateAttachment(ctx context.Context, req *v1.UpdateAttachmentRequest) (*v1.Attachment, error) {
	change, err := attachments.change(req.GetAttachment(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return attached(s.cfg.Catalog.UpdateAttachment(ctx, model.AttachmentID(req.GetAttachment().GetId()),
		expected(req), change))
}

func (s *service) DeleteAttachment(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteAttachment(ctx, model.AttachmentID(req.GetId()), expected(req)))
}

// recordTo converts a record and says who may sign by it.
func recordTo(r model.RangeRecord) *v1.RangeRecord {
	out := model.RangeRecordToProto(r)
	if signers, err := byoip.ParseDocument(r.Document, r.CIDR); err == nil { // else it would not be stored
		out.Signers = signers.Describe()
	}
	return out
}

func (s *service) SetRangeRecord(ctx context.Context, req *v1.SetRangeRecordRequest) (*v1.RangeRecord, error) {
	r, err := model.RangeRecordFromProto(req.GetRecord())
	if err != nil {
		return nil, err
	}
	return answer(recordTo)(s.cfg.Catalog.SetRangeRecord(ctx, r))
}

func (s *service) ListRangeRecords(ctx context.Context, req *v1.ListRequest) (*v1.ListRangeRecordsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, recordTo, s.cfg.Catalog.ListRangeRecords)
	return &v1.ListRangeRecordsResponse{Records: list, NextPageToken: next}, err
}

func (s *service) DeleteRangeRecord(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	cidr, err := network("id", req.GetId())
	if err != nil {
		return nil, err
	}
	return done(s.cfg.Catalog.DeleteRangeRecord(ctx, cidr, expected(req)))
}

func network(field, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, access.Invalid(field, "must be a network like 192.0.2.0/24")
	}
	return p, nil
}

// ranged makes a range's answer.
func (s *service) ranged(r model.BYOIPRange, err error) (*v1.ByoipRange, error) {
	return answer(s.rangeTo)(r, err)
}

func (s *service) rangeTo(r model.BYOIPRange) *v1.ByoipRange {
	out := model.BYOIPRangeToProto(r)
	out.Applied = s.cfg.Fleet.Applied(r.Revision)
	return out
}

func (s *service) ProvisionRange(ctx context.Context, req *v1.ProvisionRangeRequest) (*v1.ByoipRange, error) {
	cidr, err := network("cidr", req.GetCidr())
	if err != nil {
		return nil, err
	}
	project := cmp.Or(req.GetProject(), model.DefaultProject)
	account, err := s.cfg.Keys.Account(ctx, project)
	if err != nil {
		return nil, err
	}
	return s.ranged(s.cfg.Catalog.ProvisionRange(ctx, project,
		byoip.Request{Account: account, CIDR: cidr, Message: req.GetMessage(), Signature: req.GetSignature()}))
}

func (s *service) ListRanges(ctx context.Context, req *v1.ListRequest) (*v1.ListRangesResponse, error) {
	list, next, err := listed(ctx, req, s.rangeTo,
		func(ctx context.Context, p catalog.PageOptions) ([]model.BYOIPRange, string, error) {
			return s.cfg.Catalog.ListRanges(ctx, req.GetParent(), p)
		})
	return &v1.ListRangesResponse{Ranges: list, NextPageToken: next}, err
}

// changeRange does one of the catalog's steps of a range.
func (s *service) changeRange(ctx context.Context, req *v1.ByoipRangeRequest,
	step func(context.Context, string, netip.Prefix) (model.BYOIPRange, error)) (*v1.ByoipRange, error) {
	cidr, err := network("cidr", req.GetCidr())
	if err != nil {
		return nil, err
	}
	return s.ranged(step(ctx, cmp.Or(req.GetProject(), model.DefaultProject), cidr))
}

func (s *service) AdvertiseRange(ctx context.Context, req *v1.ByoipRangeRequest) (*v1.ByoipRange, error) {
	return s.changeRange(ctx, req, s.cfg.Catalog.AdvertiseRange)
}

func (s *service) WithdrawRange(ctx context.Context, req *v1.ByoipRangeRequest) (*v1.ByoipRange, error) {
	return s.changeRange(ctx, req, s.cfg.Catalog.WithdrawRange)
}

func (s *service) DeprovisionRange(ctx context.Context, req *v1.ByoipRangeRequest) (*v1.ByoipRange, error) {
	return s.changeRange(ctx, req, s.cfg.Catalog.DeprovisionRange)
}

func (s *service) CreateSession(ctx context.Context, req *v1.CreateSessionRequest) (*v1.Session, error) {
	if d := req.GetValid(); d != nil {
		if err := d.CheckValid(); err != nil {
			return nil, access.Invalid("valid", err.Error())
		}
	}
	made, err := s.cfg.Keys.CreateSession(ctx, req.GetKeyId(), req.GetRole(), req.GetValid().AsDuration(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &v1.Session{AccessKeyId: made.ID, Secret: made.Secret, Token: made.Token,
		Expires: timestamppb.New(made.Expires)}, nil
}
