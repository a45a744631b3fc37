package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Run starts the embedded server, or connects to the external one, and serves until ctx ends. It
// returns nil after an orderly end, and an error when the store cannot start or its server gives up.
// A Store runs once.
func (s *Store) Run(ctx context.Context) error {
	defer close(s.stopped)
	if len(s.cfg.Endpoints) > 0 {
		return s.runExternal(ctx)
	}
	member, err := s.startEmbedded(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer member.Close()
	client := v3client.New(member.Server)
	defer client.Close()
	s.metrics.watchMember(member.Server)
	s.serve(client)
	roomCtx, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.keepRoom(roomCtx, client, member.Server)
	}()
	err = s.waitMember(ctx, member)
	end()
	<-ended
	return err
}

// waitMember waits until ctx ends or the member does.
func (s *Store) waitMember(ctx context.Context, member *embed.Etcd) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-member.Err():
		return fmt.Errorf("store server: %w", err)
	case <-member.Server.StopNotify():
		return errors.New("store server stopped by itself")
	}
}

func (s *Store) runExternal(ctx context.Context) error {
	cfg := clientv3.Config{
		Endpoints:            s.cfg.Endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		PermitWithoutStream:  true,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		Logger:               zapLogger(s.cfg.Log),
		Context:              ctx,
		DialOptions:          []grpc.DialOption{grpc.WithDisableServiceConfig()},
	}
	if !s.cfg.ClientTLS.empty() {
		var err error
		if cfg.TLS, err = s.cfg.ClientTLS.load(); err != nil {
			return err
		}
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		return fmt.Errorf("connect to store at %v: %w", s.cfg.Endpoints, err)
	}
	defer client.Close()
	for backoff := newBackoff(); ; {
		if _, err = client.Get(ctx, s.cfg.Prefix, clientv3.WithCountOnly()); err == nil {
			break
		}
		s.cfg.Log.Warn("store does not answer yet", "endpoints", s.cfg.Endpoints, "error", err)
		if backoff.wait(ctx) != nil {
			return nil
		}
	}
	s.serve(client)
	<-ctx.Done()
	return nil
}

// serve lets the waiting operations go.
func (s *Store) serve(client *clientv3.Client) {
	s.client = client
	close(s.ready)
}

// operation returns the client once there is one, and a context for one operation.
func (s *Store) operation(ctx context.Context) (*clientv3.Client, context.Context, context.CancelFunc, error) {
	opCtx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	select {
	case <-s.stopped:
		cancel()
		return nil, nil, nil, fmt.Errorf("%w: it was stopped", ErrUnavailable)
	default:
	}
	select {
	case <-s.ready:
		return s.client, opCtx, cancel, nil
	case <-s.stopped:
	case <-opCtx.Done():
	}
	cancel()
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	return nil, nil, nil, fmt.Errorf("%w: it is not ready", ErrUnavailable)
}

// classify turns an error of etcd into one of this package. ctx is the caller's.
func classify(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	code := status.Code(err)
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		code = known.Code()
	}
	kind := error(nil)
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		kind = ErrNoSpace
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		kind = ErrCompacted
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge):
		kind = ErrTooLarge
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, rpctypes.ErrLeaseNotFound),
		code == codes.Unavailable, code == codes.DeadlineExceeded, code == codes.Canceled,
		code == codes.ResourceExhausted:
		kind = ErrUnavailable
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %v", what, kind, err)
}

// backoff is full-jitter exponential waiting: many who wait for one thing do not come back at once.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: backoffMin} }

// wait sleeps up to the present step and returns ctx's error if it ended.
func (b *backoff) wait(ctx context.Context) error {
	t := time.NewTimer(jitter(b.next))
	defer t.Stop()
	b.next = min(2*b.next, backoffMax)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
