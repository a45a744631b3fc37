package access

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// ErrUnknown is what Config's functions return for somebody who does not exist (any more).
var ErrUnknown = errors.New("unknown")

// ErrRevoked is what Config.Node returns for a node that operators have revoked.
var ErrRevoked = errors.New("revoked")

// Config of a Guard. Operator and Node are needed.
type Config struct {
	// Operator returns an operator's role and the hash of his secret, or ErrUnknown.
	Operator func(ctx context.Context, name string) (role v1.Role, secretHash []byte, err error)
	// Node returns nil for a node that may take part, ErrRevoked or ErrUnknown.
	Node func(ctx context.Context, id string) error
	// Audit, if set, is told of every allowed call of a method that changes something, with its
	// outcome, except failures of callers who are nobody: the audit log is bounded, and strangers
	// must not be able to wash it out. It must not block for long: the caller waits.
	Audit func(ctx context.Context, call Call)

	Log     *slog.Logger          // nil: discarded
	Metrics prometheus.Registerer // nil: not registered
}

// Call is a call that has ended.
type Call struct {
	Method            string // full name
	Request, Response any    // Response is nil when Err is not
	Err               error  // a gRPC status
}

// Validate reports what is missing.
func (c Config) Validate() error {
	if c.Operator == nil || c.Node == nil {
		return errors.New("access: Operator and Node must be set")
	}
	return nil
}

// Guard stands before every method of a gRPC server.
type Guard struct {
	cfg   Config
	log   *slog.Logger
	calls *prometheus.CounterVec
}

// New makes a Guard.
func New(cfg Config) (*Guard, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, log: cfg.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.calls = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nearcast_access_calls_total",
		Help: "Calls of the controller's gRPC methods, by method and gRPC code of the outcome.",
	}, []string{"method", "code"})
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(g.calls); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// ServerOptions returns the interceptors, for grpc.NewServer.
func (g *Guard) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.UnaryInterceptor(g.unary), grpc.StreamInterceptor(g.stream)}
}

func (g *Guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	caller, err := g.Authorize(ctx, info.FullMethod)
	defer func() { g.finish(info.FullMethod, caller, began, err) }()
	if err != nil {
		return nil, err
	}
	ctx = WithCaller(ctx, caller)
	defer g.recover(info.FullMethod, &err)
	resp, err = handler(ctx, req)
	err = Status(err)
	if g.cfg.Audit != nil && Lookup(info.FullMethod).Changes && (err == nil || caller.Kind != "") {
		// The caller may have gone away; what he did is recorded all the same.
		g.cfg.Audit(context.WithoutCancel(ctx), Call{info.FullMethod, req, resp, err})
	}
	return resp, err
}

func (g *Guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo,
	handler grpc.StreamHandler) (err error) {
	began := time.Now()
	caller, err := g.Authorize(ss.Context(), info.FullMethod)
	defer func() { g.finish(info.FullMethod, caller, began, err) }()
	if err != nil {
		return err
	}
	defer g.recover(info.FullMethod, &err)
	return Status(handler(srv, &callerStream{ss, WithCaller(ss.Context(), caller)}))
}

// callerStream is a stream whose context knows the caller.
type callerStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *callerStream) Context() context.Context { return s.ctx }

// recover turns a panic of a handler into INTERNAL: one request that nobody foresaw must not take
// the control plane away from everybody else. It is logged as the bug it is.
func (g *Guard) recover(method string, err *error) {
	if p := recover(); p != nil {
		g.log.Error("method panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; the controller's log says more")
	}
}

func (g *Guard) finish(method string, c Caller, began time.Time, err error) {
	code := status.Code(err)
	g.calls.WithLabelValues(shortMethod(method), code.String()).Inc()
	level := slog.LevelDebug
	if code == codes.Unauthenticated || code == codes.PermissionDenied {
		level = slog.LevelWarn
	}
	g.log.Log(context.Background(), level, "call", "method", shortMethod(method), "caller", c.Name,
		"kind", string(c.Kind), "peer", c.Peer, "code", code.String(), "took", time.Since(began), "err", err)
}

// shortMethod returns "AdminService/GetNode" of "/nearcast.v1.AdminService/GetNode". Only methods of
// the table come here, so the label's values are few.
func shortMethod(method string) string {
	return strings.TrimPrefix(method, "/nearcast.v1.")
}

// Authorize finds out who calls and whether he may call the method. Its error is a gRPC status:
// UNAUTHENTICATED when it is not known who he is, PERMISSION_DENIED when he may not, UNAVAILABLE
// when the store could not be asked.
func (g *Guard) Authorize(ctx context.Context, method string) (Caller, error) {
	need := Lookup(method).Need
	caller, subject, err := peerOf(ctx)
	if err != nil {
		return caller, err
	}
	switch need {
	case NeedNothing:
		return caller, nil
	case NeedNode:
		return g.node(ctx, method, caller, subject)
	case NeedViewer, NeedOperator, NeedAdmin:
		return g.operator(ctx, caller, subject, need)
	}
	return caller, status.Errorf(codes.PermissionDenied, "%s is for nobody", method)
}

func (g *Guard) node(ctx context.Context, method string, c Caller, s identity.Subject) (Caller, error) {
	if s.Kind == "" {
		return c, status.Error(codes.Unauthenticated, "a node's certificate is needed")
	}
	c.Kind, c.Name = s.Kind, s.Name
	if s.Kind != identity.KindNode {
		return c, status.Errorf(codes.PermissionDenied, "%v is not a node", s)
	}
	if identity.Expired(*c.TLS) && method != v1.NodeService_Renew_FullMethodName {
		return c, status.Error(codes.Unauthenticated, "certificate has ended: renew it first")
	}
	err := g.cfg.Node(ctx, s.Name)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, ErrRevoked):
		return c, status.Errorf(codes.PermissionDenied, "node %s is revoked", s.Name)
	case errors.Is(err, ErrUnknown):
		return c, status.Errorf(codes.PermissionDenied, "node %s is unknown or was deleted", s.Name)
	}
	return c, status.Errorf(codes.Unavailable, "look up node %s: %v", s.Name, err)
}

// operator authenticates by bearer token if there is one, else by certificate.
func (g *Guard) operator(ctx context.Context, c Caller, s identity.Subject, need Need) (Caller, error) {
	text, err := bearer(ctx)
	if err != nil {
		return c, err
	}
	var token identity.OperatorToken
	switch {
	case text != "":
		if token, err = identity.ParseOperatorToken(text); err != nil {
			return c, status.Errorf(codes.Unauthenticated, "authorization: %v", err)
		}
		c.Name = token.Name
	case s.Kind == identity.KindOperator:
		c.Name = s.Name
	case s.Kind != "":
		c.Kind, c.Name = s.Kind, s.Name
		return c, status.Errorf(codes.PermissionDenied, "%v is not an operator", s)
	default:
		return c, status.Error(codes.Unauthenticated, "an operator's token or certificate is needed")
	}
	role, hash, err := g.cfg.Operator(ctx, c.Name)
	if err != nil && !errors.Is(err, ErrUnknown) {
		return c, status.Errorf(codes.Unavailable, "look up the operator: %v", err)
	}
	// One answer for an unknown name and a wrong secret: names are not to be had by asking.
	if err != nil || text != "" && !identity.SecretMatches(token.Secret, hash) {
		return c, status.Error(codes.Unauthenticated, "unknown operator or wrong secret")
	}
	c.Kind, c.Role = identity.KindOperator, role
	if !Allows(role, need) {
		return c, status.Errorf(codes.PermissionDenied, "operator %s has role %v, which may not do this",
			c.Name, role)
	}
	return c, nil
}

// Allows reports whether a role satisfies an operator's need.
func Allows(role v1.Role, need Need) bool {
	switch need {
	case NeedViewer:
		return role == v1.Role_ROLE_VIEWER || role == v1.Role_ROLE_OPERATOR || role == v1.Role_ROLE_ADMIN
	case NeedOperator:
		return role == v1.Role_ROLE_OPERATOR || role == v1.Role_ROLE_ADMIN
	case NeedAdmin:
		return role == v1.Role_ROLE_ADMIN
	}
	return false
}
