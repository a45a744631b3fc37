package enroll

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Config of a Service. All but Log are needed.
type Config struct {
	Authority *Authority
	Tokens    *Tokens
	Catalog   *catalog.Catalog
	// Controllers returns "host:port" of every controller known, for the new node.
	Controllers func() []string

	Log *slog.Logger // nil: discarded
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Authority == nil || c.Tokens == nil || c.Catalog == nil || c.Controllers == nil {
		return errors.New("enroll: Authority, Tokens, Catalog and Controllers must be set")
	}
	return nil
}

// Service is EnrollService. Anybody may call it, so it does little before the token has proved good,
// and for few at once.
type Service struct {
	v1.UnimplementedEnrollServiceServer
	cfg   Config
	log   *slog.Logger
	slots chan struct{}
}

// NewService makes a Service.
func NewService(cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg, log: log, slots: make(chan struct{}, concurrentMax)}, nil
}

// Enroll trades a join token and a certificate request for a node's identity.
func (s *Service) Enroll(ctx context.Context, req *v1.EnrollRequest) (*v1.EnrollResponse, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	token, err := identity.ParseToken(req.GetToken())
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	keyHash, err := identity.RequestKeyHash(req.GetCertificateRequest())
	if err != nil {
		return nil, model.FieldErrors{{Field: "certificate_request", Message: err.Error()}}
	}
	node, err := model.NodeFromProto(req.GetNode())
	if err != nil {
		return nil, err
	}
	id, err := s.join(ctx, token, keyHash[:], node)
	if err != nil {
		s.log.Warn("a machine was not enrolled", "token", token, "node", node.Name, "err", err)
		return nil, err
	}
	der, err := s.cfg.Authority.SignNode(req.GetCertificateRequest(), string(id))
	if err != nil {
		return nil, err
	}
	s.log.Info("node enrolled", "node", id, "name", node.Name, "site", node.Site, "token", token)
	return &v1.EnrollResponse{
		NodeId:         string(id),
		Cluster:        s.cfg.Authority.Cluster(),
		Certificate:    der,
		CaCertificates: identity.CertificatesDER(s.cfg.Authority.Roots()),
		Controllers:    s.cfg.Controllers(),
	}, nil
}

// join counts a use of the token and registers the node, or finds the node that an earlier call with
// the same token and key has registered.
func (s *Service) join(ctx context.Context, token identity.Token, keyHash []byte,
	node model.Node) (model.NodeID, error) {
	claim := use{KeyHash: keyHash, Claim: identity.NewSecret(), Time: time.Now()}
	var known model.NodeID
	err := s.cfg.Tokens.update(ctx, token.ID, func(t *storedToken) (bool, error) {
		if err := t.authenticate(token, claim.Time); err != nil {
			return false, err
		}
		if err := t.allows(node); err != nil {
			return false, err
		}
		if known = t.nodeOf(keyHash); known != "" {
			return false, nil
		}
		return true, t.use(claim)
	})
	if errors.Is(err, store.ErrNotFound) {
		return "", errBadToken
	}
	if err != nil {
		return "", err
	}
	if known != "" {
		return known, s.checkKnown(ctx, known, node)
	}
	node.ID, node.State = "", model.NodeActive
	registered, err := s.cfg.Catalog.RegisterNode(ctx, node)
	if err != nil {
		registered.ID = ""
	}
	s.settle(ctx, token.ID, claim.Claim, registered.ID)
	return registered.ID, err
}

// checkKnown says whether a node may get its identity a second time.
func (s *Service) checkKnown(ctx context.Context, id model.NodeID, asked model.Node) error {
	n, err := s.cfg.Catalog.Node(ctx, string(id))
	if err != nil {
		return err
	}
	if n.ID != id || n.Name != asked.Name || n.State == model.NodeRevoked {
		return status.Error(codes.PermissionDenied, "the token was used by this key for another node")
	}
	return nil
}

// settle completes a counted use: with the node that it made, or by taking it back. The caller may be
// gone by now; the token must tell the truth all the same.
func (s *Service) settle(ctx context.Context, tokenID, claim string, node model.NodeID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	err := s.cfg.Tokens.update(ctx, tokenID, func(t *storedToken) (bool, error) {
		i := slices.IndexFunc(t.Last, func(u use) bool { return u.Claim == claim })
		switch {
		case i < 0:
			return false, nil // somebody took it over
		case node == "":
			t.Last = slices.Delete(t.Last, i, i+1)
			t.Uses--
		default:
			t.Last[i].Node = node
		}
		return true, nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		s.log.Warn("the use of a join token is not settled", "token", tokenID, "node", node, "err", err)
	}
}

// errBadToken does not say whether the id is known: whoever has no secret learns nothing.
var errBadToken = status.Error(codes.Unauthenticated, "the join token is unknown or was revoked")

// authenticate checks the secret, the authority and, for whoever knows the secret, the end.
func (t *storedToken) authenticate(token identity.Token, now time.Time) error {
	if !identity.SecretMatches(token.Secret, t.SecretHash) ||
		subtle.ConstantTimeCompare(token.CAHash[:], t.CAHash) != 1 {
		return errBadToken
	}
	if !now.Before(t.Expires) {
		return status.Errorf(codes.Unauthenticated, "the join token ended %v", t.Expires.Format(time.RFC3339))
	}
	return nil
}

// allows checks the scope: site, name, roles.
func (t *storedToken) allows(n model.Node) error {
	deny := func(format string, args ...any) error {
		return status.Error(codes.PermissionDenied, "the join token is not "+fmt.Sprintf(format, args...))
	}
	switch {
	case !n.Edge && !n.Gateway:
		return model.FieldErrors{{Field: "node.edge", Message: "or node.gateway must be set"}}
	case t.Site != "" && t.Site != n.Site:
		return deny("for site %q: it is for %q", n.Site, t.Site)
	case t.NodeName != "" && t.NodeName != n.Name:
		return deny("for a node called %q: it is for %q", n.Name, t.NodeName)
	case n.Edge && !t.AllowEdge:
		return deny("for an edge")
	case n.Gateway && !t.AllowGateway:
		return deny("for a gateway")
	}
	return nil
}

// find returns the index of the use by a key, or -1.
func (t *storedToken) find(keyHash []byte) int {
	return slices.IndexFunc(t.Last, func(u use) bool { return bytes.Equal(u.KeyHash, keyHash) })
}

// nodeOf returns the node that a key has enrolled, or "".
func (t *storedToken) nodeOf(keyHash []byte) model.NodeID {
	if i := t.find(keyHash); i >= 0 {
		return t.Last[i].Node
	}
	return ""
}

// use counts a use. One by the same key that was never settled is taken over, if so old that whoever
// counted it must have died.
func (t *storedToken) use(claim use) error {
	if i := t.find(claim.KeyHash); i >= 0 {
		if claim.Time.Sub(t.Last[i].Time) < claimTimeout {
			return status.Error(codes.Aborted, "the same machine is being enrolled; try again")
		}
		t.Last[i] = claim
		return nil
	}
	if t.SingleUse && t.Uses > 0 {
		return status.Error(codes.Unauthenticated, "the join token is for one use and was used")
	}
	t.Uses++
	t.Last = append(t.Last, claim)
	if extra := len(t.Last) - usesKept; extra > 0 {
		t.Last = slices.Delete(t.Last, 0, extra)
	}
	return nil
}
