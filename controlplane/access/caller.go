package access

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Caller is who makes a call.
type Caller struct {
	Kind identity.Kind  // "" for nobody
	Name string         // a node's id, an operator's name
	Role v1.Role        // an operator's, of this moment
	Peer netip.AddrPort // where the call comes from
	// TLS is the connection, with the certificate that was verified; nil when none was shown.
	TLS *tls.ConnectionState
}

type callerKey struct{}

// FromContext returns who makes the call that ctx belongs to. Outside of a call it is nobody.
func FromContext(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// WithCaller returns a context that belongs to a call of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// peerOf reads what the connection itself tells: address and certificate. The certificate was
// verified in the handshake.
func peerOf(ctx context.Context) (c Caller, subject identity.Subject, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return c, subject, status.Error(codes.Internal, "call without a peer")
	}
	if p.Addr != nil {
		c.Peer, _ = netip.ParseAddrPort(p.Addr.String())
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return c, subject, status.Error(codes.Unauthenticated, "call outside of TLS")
	}
	subject, err = identity.PeerSubject(info.State)
	if errors.Is(err, identity.ErrNoCertificate) {
		return c, identity.Subject{}, nil
	}
	if err != nil {
		return c, subject, status.Errorf(codes.Unauthenticated, "certificate: %v", err)
	}
	c.TLS = &info.State
	return c, subject, nil
}

// bearer returns the bearer token of a call's metadata, or "".
func bearer(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", status.Error(codes.Unauthenticated, "more than one authorization")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "bearer") {
		return "", status.Error(codes.Unauthenticated, `authorization must be "Bearer <token>"`)
	}
	return strings.TrimSpace(token), nil
}
