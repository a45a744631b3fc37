package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Identify returns this node's identity: the one on disk, or else a new one that a controller gives
// for the join token. The token is sent only to a controller that has proved, by the authority's hash
// in the token, that it is the cluster's. Unreachable controllers are tried until ctx ends; an answer
// that trying again would not change is an error.
func (a *Agent) Identify(ctx context.Context) (*identity.Credentials, error) {
	dir := a.identityDir()
	creds, err := identity.LoadCredentials(dir)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w (remove it and give a new join token to enrol again)", err)
	case a.cfg.Token == "":
		return nil, fmt.Errorf("this node has no identity in %s: a join token is needed once", dir)
	default:
		if creds, err = a.enrol(ctx); err != nil {
			return nil, err
		}
	}
	if s := creds.Subject(); s.Kind != identity.KindNode {
		return nil, fmt.Errorf("the identity in %s is %v, not a node's", dir, s)
	}
	a.creds.Store(creds)
	return creds, nil
}

func (a *Agent) identityDir() string { return filepath.Join(a.cfg.DataDir, "identity") }

// enrol trades the join token for an identity.
func (a *Agent) enrol(ctx context.Context) (*identity.Credentials, error) {
	token, err := identity.ParseToken(a.cfg.Token)
	if err != nil {
		return nil, err
	}
	retry := backoff{min: retryMin, max: retryMax}
	for {
		addr := a.controllers.next()
		creds, err := a.enrolAt(ctx, addr, token)
		switch status.Code(err) {
		case codes.OK:
			a.cfg.Log.Info("enrolled", "node", creds.Subject().Name, "cluster", creds.Subject().Cluster)
			return creds, nil
		case codes.Unauthenticated, codes.PermissionDenied, codes.AlreadyExists, codes.InvalidArgument,
			codes.NotFound, codes.FailedPrecondition:
			return nil, fmt.Errorf("enrol at %s: %s", addr, status.Convert(err).Message())
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("enrol: %w", ctx.Err())
		}
		a.cfg.Log.Warn("enrol", "controller", addr, "error", err)
		if !retry.wait(ctx) {
			return nil, fmt.Errorf("enrol: %w", ctx.Err())
		}
	}
}

func (a *Agent) enrolAt(ctx context.Context, addr string, token identity.Token) (*identity.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := dial(addr, identity.JoinTLS(token.CAHash))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, request, err := identity.NewRequest()
	if err != nil {
		return nil, err
	}
	resp, err := pb.NewEnrollServiceClient(conn).Enroll(ctx, &pb.EnrollRequest{
		Token: a.cfg.Token, CertificateRequest: request, Node: model.NodeToProto(a.cfg.Node),
	})
	if err != nil {
		return nil, err
	}
	roots, err := identity.ParseCertificates(resp.GetCaCertificates())
	if err != nil {
		return nil, fmt.Errorf("the controller's answer: %w", err)
	}
	creds, err := identity.NewCredentials(resp.GetCertificate(), key, roots)
	if err != nil {
		return nil, fmt.Errorf("the controller's answer: %w", err)
	}
	a.controllers.learn(resp.GetControllers())
	// Without a disk the node serves all the same, but its token may be good for one use only: say it.
	if err := creds.Save(a.identityDir()); err != nil {
		a.note("identity", "not saved, this node must enrol again after a restart: "+err.Error())
		a.cfg.Log.Error("save the identity", "error", err)
	}
	return creds, nil
}

// renewals keeps the certificate fresh until ctx ends.
func (a *Agent) renewals(ctx context.Context) error {
	creds := a.creds.Load()
	retry := backoff{min: renewRetryMin, max: renewRetryMax}
	var earliest time.Time // of the next renewal
	for {
		if !sleepUntil(ctx, renewal(creds, earliest)) {
			return nil
		}
		for {
			err := a.renew(ctx, creds)
			if err == nil {
				a.note("certificate", "")
				retry.reset()
				earliest = time.Now().Add(renewRetryMin)
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			left := time.Until(creds.NotAfter()).Round(time.Second)
			a.note("certificate", fmt.Sprintf("not renewed, ends in %v: %v", left, err))
			a.cfg.Log.Warn("renew the certificate", "ends", creds.NotAfter(), "left", left, "error", err)
			if !retry.wait(ctx) {
				return nil
			}
		}
	}
}

// renewal returns when a certificate is to be renewed, and not before earliest: by a clock that is far ahead, or when
// its authority is about to end, one that was just made may be due again at once.
func renewal(creds *identity.Credentials, earliest time.Time) time.Time {
	at := creds.RenewAt()
	at = at.Add(time.Duration(rand.Float64() * renewJitter * float64(creds.NotAfter().Sub(at))))
	if at.Before(earliest) {
		return earliest
	}
	return at
}

// sleepUntil waits for a moment by the wall clock and returns false if ctx ended. It looks at the
// clock once a minute, since a machine that slept or whose clock was set would else be late.
func sleepUntil(ctx context.Context, at time.Time) bool {
	for {
		left := time.Until(at)
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

func (a *Agent) renew(ctx context.Context, creds *identity.Credentials) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := dial(a.controllers.next(), creds.ClientTLS(identity.Subject{Kind: identity.KindController}))
	if err != nil {
		return err
	}
	defer conn.Close()
	key, request, err := identity.NewRequest()
	if err != nil {
		return err
	}
	resp, err := pb.NewNodeServiceClient(conn).Renew(ctx, &pb.RenewRequest{CertificateRequest: request})
	if err != nil {
		return err
	}
	roots, err := identity.ParseCertificates(resp.GetCaCertificates())
	if err != nil {
		return fmt.Errorf("the controller's answer: %w", err)
	}
	next, err := identity.NewCredentials(resp.GetCertificate(), key, roots)
	if err != nil {
		return fmt.Errorf("the controller's answer: %w", err)
	}
	if next.Subject() != creds.Subject() {
		return fmt.Errorf("the controller's answer names %v, not %v", next.Subject(), creds.Subject())
	}
	if err := creds.Update(resp.GetCertificate(), key, roots); err != nil {
		return err
	}
	a.cfg.Log.Info("certificate renewed", "ends", creds.NotAfter())
	if err := creds.Save(a.identityDir()); err != nil {
		a.note("identity", "renewed certificate not saved: "+err.Error())
		a.cfg.Log.Error("save the identity", "error", err)
	} else {
		a.note("identity", "")
	}
	return nil
}
