package admin

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// accelerator returns an accelerator with its status of this moment.
func (s *service) accelerator(a model.Accelerator) *v1.Accelerator {
	a.Status = model.InProgress
	if s.cfg.Fleet.Deployed(a) {
		a.Status = model.Deployed
	}
	return model.AcceleratorToProto(a)
}

func (s *service) accelerated(a model.Accelerator, err error) (*v1.Accelerator, error) {
	if err != nil {
		return nil, err
	}
	return s.accelerator(a), nil
}

func (s *service) CreateAccelerator(ctx context.Context,
	req *v1.CreateAcceleratorRequest) (*v1.Accelerator, error) {
	a, err := model.AcceleratorFromProto(req.GetAccelerator())
	if err != nil {
		return nil, err
	}
	return s.accelerated(s.cfg.Catalog.CreateAccelerator(ctx, a,
		catalog.Options{IdempotencyToken: req.GetIdempotencyToken()}))
}

func (s *service) GetAccelerator(ctx context.Context, req *v1.GetRequest) (*v1.Accelerator, error) {
	return s.accelerated(s.cfg.Catalog.Accelerator(ctx, model.AcceleratorID(req.GetId())))
}

func (s *service) ListAccelerators(ctx context.Context,
	req *v1.ListRequest) (*v1.ListAcceleratorsResponse, error) {
	if err := noParent(req); err != nil {
		return nil, err
	}
	list, next, err := listed(ctx, req, s.accelerator, s.cfg.Catalog.ListAccelerators)
	return &v1.ListAcceleratorsResponse{Accelerators: list, NextPageToken: next}, err
}

func (s *service) UpdateAccelerator(ctx context.Context,
	req *v1.UpdateAcceleratorRequest) (*v1.Accelerator, error) {
	change, err := accelerators.change(req.GetAccelerator(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return s.accelerated(s.cfg.Catalog.UpdateAccelerator(ctx, model.AcceleratorID(req.GetAccelerator().GetId()),
		expected(req), change))
}

func (s *service) DeleteAccelerator(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteAccelerator(ctx, model.AcceleratorID(req.GetId()), expected(req)))
}

func (s *service) CreateListener(ctx context.Context, req *v1.CreateListenerRequest) (*v1.Listener, error) {
	l, err := model.ListenerFromProto(req.GetListener())
	if err != nil {
		return nil, err
	}
	return answer(model.ListenerToProto)(s.cfg.Catalog.CreateListener(ctx, l,
		catalog.Options{IdempotencyToken: req.GetIdempotencyToken()}))
}

func (s *service) GetListener(ctx context.Context, req *v1.GetRequest) (*v1.Listener, error) {
	return answer(model.ListenerToProto)(s.cfg.Catalog.Listener(ctx, model.ListenerID(req.GetId())))
}

func (s *service) ListListeners(ctx context.Context, req *v1.ListRequest) (*v1.ListListenersResponse, error) {
	list, next, err := listed(ctx, req, model.ListenerToProto,
		func(ctx context.Context, p catalog.PageOptions) ([]model.Listener, string, error) {
			return s.cfg.Catalog.ListListeners(ctx, model.AcceleratorID(req.GetParent()), p)
		})
	return &v1.ListListenersResponse{Listeners: list, NextPageToken: next}, err
}

func (s *service) UpdateListener(ctx context.Context, req *v1.UpdateListenerRequest) (*v1.Listener, error) {
	change, err := listeners.change(req.GetListener(), req.GetUpdateMask())
	if err != nil {
		return nil, err
	}
	return answer(model.ListenerToProto)(s.cfg.Catalog.UpdateListener(ctx,
		model.ListenerID(req.GetListener().GetId()), expected(req), change))
}

func (s *service) DeleteListener(ctx context.Context, req *v1.DeleteRequest) (*emptypb.Empty, error) {
	return done(s.cfg.Catalog.DeleteListener(ctx, model.ListenerID(req.GetId()), expected(req)))
}

// answer makes a translator of a catalog method's results.
func answer[M, P any](to func(M) P) func(M, error) (P, error) {
	return func(m M, err error) (P, error) {
		if err != nil {
			var none P
			return none, err
		}
		return to(m), nil
	}
}

// done is the answer to a request that has none.
func done(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func expected(req interface{ GetExpectedRevision() uint64 }) catalog.Options {
	return catalog.Options{ExpectedRevision: req.GetExpectedRevision()}
}

// forced is expected for the requests that a guard may refuse.
func forced(req interface {
	GetExpectedRevision() uint64
	GetForce() bool
}) catalog.Options {
	o := expected(req)
	o.Force = req.GetForce()
	return o
}
