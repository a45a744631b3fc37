package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Session runs fn with a lease that lives as long as fn runs and at most ttl beyond the store's last
// word from here: keys written with PutLeased say "somebody is alive". fn's context ends when the lease
// is lost, and Session then returns ErrUnavailable; otherwise it returns what fn returned. ttl counts in
// whole seconds, at least 2.
func (s *Store) Session(ctx context.Context, ttl time.Duration,
	fn func(ctx context.Context, lease LeaseID) error) error {
	return s.session(ctx, ttl, func(ctx context.Context, _ *clientv3.Client, id clientv3.LeaseID) error {
		return fn(ctx, LeaseID(id))
	})
}

func (s *Store) session(ctx context.Context, ttl time.Duration,
	fn func(context.Context, *clientv3.Client, clientv3.LeaseID) error) error {
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	lease, err := client.Grant(opCtx, int64(max(ttl, sessionTTLMin)/time.Second))
	if err != nil {
		return classify(ctx, "begin session", err)
	}
	fnCtx, end := context.WithCancelCause(ctx)
	kept := make(chan struct{})
	go s.keepAlive(fnCtx, client, lease.ID, end, kept)

	err = fn(fnCtx, client, lease.ID)
	lost := errors.Is(context.Cause(fnCtx), errSessionLost)
	end(nil)
	<-kept
	// Without this the keys stay for a ttl. The caller's context may be over, which is no reason.
	revokeCtx, cancelRevoke := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancelRevoke()
	if _, revokeErr := client.Revoke(revokeCtx, lease.ID); revokeErr != nil && !lost {
		s.cfg.Log.Warn("store session not ended, its keys go when it expires", "error", revokeErr)
	}
	if lost {
		return fmt.Errorf("%w: session lost", ErrUnavailable)
	}
	return err
}

var errSessionLost = errors.New("session lost")

// keepAlive renews a lease until ctx ends, and ends ctx when it cannot.
func (s *Store) keepAlive(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID,
	end context.CancelCauseFunc, kept chan<- struct{}) {
	defer close(kept)
	answers, err := client.KeepAlive(ctx, id)
	if err != nil {
		end(errSessionLost)
		return
	}
	for {
		select {
		case _, open := <-answers:
			if !open {
				if ctx.Err() == nil {
					end(errSessionLost)
				}
				return
			}
		case <-ctx.Done():
			return
		case <-s.stopped:
			end(errSessionLost)
			return
		}
	}
}

// Elect campaigns for the leadership called name until ctx ends, and runs lead whenever this process
// has it. At most one process leads; value tells everybody who (see Leader). lead's context ends when
// leadership is lost; since that may be noticed late, what it writes should be conditional on the
// Fence. When lead returns nil, another process gets its turn; so too when it returns ErrUnavailable,
// ErrConflict or a context's error, which losing leadership brings, or ErrNoSpace: a store that is full
// grants no leases, and nobody leads until there is room. Any other error ends Elect.
func (s *Store) Elect(ctx context.Context, name, value string,
	lead func(ctx context.Context, fence Fence) error) error {
	backoff := newBackoff()
	for {
		led := false
		err := s.session(ctx, electionTTL, func(ctx context.Context, client *clientv3.Client,
			lease clientv3.LeaseID) error {
			fence, err := s.campaign(ctx, client, lease, name, value)
			if err != nil {
				return classify(ctx, "campaign for "+name, err)
			}
			led = true
			s.cfg.Log.Info("leading", "election", name)
			defer s.cfg.Log.Info("not leading any more", "election", name)
			return lead(ctx, fence)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !isAny(err, ErrUnavailable, ErrNoSpace, ErrConflict, context.Canceled,
			context.DeadlineExceeded) {
			return err
		}
		if led {
			backoff = newBackoff()
		}
		if err := backoff.wait(ctx); err != nil {
			return err
		}
	}
}

// campaign puts up a key that lives as long as the lease, and waits until every older one is gone.
//
// etcd's own recipe (concurrency.Election) is not used: when its context ends while the store is away, it
// waits for the store, and so would whoever waits for Elect to end.
func (s *Store) campaign(ctx context.Context, client *clientv3.Client, lease clientv3.LeaseID,
	name, value string) (Fence, error) {
	prefix := s.electionKey(name) + "/"
	key := fmt.Sprintf("%s%x", prefix, lease)
	put, err := client.Put(ctx, key, value, clientv3.WithLease(lease))
	if err != nil {
		return Fence{}, err
	}
	mine := put.Header.Revision
	for {
		older, err := client.Get(ctx, prefix, append(clientv3.WithLastCreate(),
			clientv3.WithMaxCreateRev(mine-1))...)
		if err != nil {
			return Fence{}, err
		}
		if len(older.Kvs) == 0 {
			return Fence{Cond{key: key[len(s.cfg.Prefix):], kind: condCreated, revision: uint64(mine)}}, nil
		}
		if err := s.gone(ctx, client, string(older.Kvs[0].Key), older.Header.Revision); err != nil {
			return Fence{}, err
		}
	}
}

// gone waits until something happens to key after revision, or for a while: the caller looks again.
func (s *Store) gone(ctx context.Context, client *clientv3.Client, key string, revision int64) error {
	watchCtx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), electionLook)
	defer cancel()
	events := client.Watch(watchCtx, key, clientv3.WithRev(revision+1))
	select {
	case <-events:
	case <-watchCtx.Done():
	case <-s.stopped:
		return ErrUnavailable
	}
	return ctx.Err()
}

func (s *Store) electionKey(name string) string { return s.cfg.Prefix + "elections/" + name }

// Leader returns the value of the process that leads name now. Errors: ErrNotFound if nobody does.
func (s *Store) Leader(ctx context.Context, name string) (string, error) {
	client, opCtx, cancel, err := s.operation(ctx)
	if err != nil {
		return "", err
	}
	defer cancel()
	r, err := client.Get(opCtx, s.electionKey(name)+"/", clientv3.WithFirstCreate()...)
	switch {
	case err != nil:
		return "", classify(ctx, "find leader of "+name, err)
	case len(r.Kvs) == 0:
		return "", fmt.Errorf("leader of %s: %w", name, ErrNotFound)
	}
	return string(r.Kvs[0].Value), nil
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
