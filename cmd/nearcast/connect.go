package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// session is a connection to one controller. It is made at the first call, not before.
type session struct {
	pb.AdminServiceClient
	pb.CustomRoutingServiceClient
	pb.SharingServiceClient
	conn   *grpc.ClientConn
	target contextEntry
	// trouble is why the connection could not be made, as it was before it became a gRPC message.
	trouble atomic.Pointer[error]
}

// admin returns the session of this run.
func (c *cli) admin() (*session, error) {
	if c.session != nil {
		return c.session, nil
	}
	to, err := c.target()
	if err != nil {
		return nil, err
	}
	if to.Server == "" {
		return nil, errors.New("it is not said where the controller is; give --server HOST:7443, or --context NAME")
	}
	roots, err := parseCA(to.CA)
	if err != nil {
		return nil, err
	}
	s := &session{target: to}
	tls := identity.AnonymousTLS(roots, identity.Subject{Kind: identity.KindController})
	// Given as "passthrough", the name is looked up by the dialer alone.
	s.conn, err = grpc.NewClient("passthrough:///"+to.Server,
		grpc.WithTransportCredentials(&watchedTLS{credentials.NewTLS(tls), s}),
		grpc.WithPerRPCCredentials(bearer(to.Token)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := c.dial(ctx, address)
			s.note(err)
			return conn, err
		}),
		grpc.WithUnaryInterceptor(s.call(c)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2*model.SnapshotBytesMax)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to.Server, err)
	}
	s.AdminServiceClient = pb.NewAdminServiceClient(s.conn)
	s.CustomRoutingServiceClient = pb.NewCustomRoutingServiceClient(s.conn)
	s.SharingServiceClient = pb.NewSharingServiceClient(s.conn)
	c.session = s
	return s, nil
}

func (c *cli) close() {
	if c.session != nil {
		c.session.conn.Close()
	}
}

func (s *session) note(err error) {
	if err != nil {
		s.trouble.Store(&err)
	}
}

// call gives every call a deadline, and its error the session that it happened in.
func (s *session) call(c *cli) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
		invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, c.flags.timeout)
		defer cancel()
		if err := invoke(ctx, method, req, reply, conn, opts...); err != nil {
			return &callError{err, s}
		}
		return nil
	}
}

// callError is a call that failed. status.Code sees through it.
type callError struct {
	error
	session *session
}

func (e *callError) Unwrap() error { return e.error }

// bearer is the operator's token in a call's metadata.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if b == "" {
		return nil, nil
	}
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity keeps the token off connections that are not TLS.
func (b bearer) RequireTransportSecurity() bool { return true }

// watchedTLS is the transport's TLS that tells the session why a handshake failed.
type watchedTLS struct {
	credentials.TransportCredentials
	session *session
}

func (w *watchedTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (
	net.Conn, credentials.AuthInfo, error) {
	secured, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, conn)
	if err != nil {
		w.session.note(handshakeError{err})
	} else {
		w.session.trouble.Store(nil) // what fails from here on, the controller says itself
	}
	return secured, info, err
}

func (w *watchedTLS) Clone() credentials.TransportCredentials {
	return &watchedTLS{w.TransportCredentials.Clone(), w.session}
}

type handshakeError struct{ error }

func (e handshakeError) Unwrap() error { return e.error }

// explain says what went wrong and what to do about it.
func (c *cli) explain(err error) string {
	var step *stepError
	if errors.As(err, &step) {
		return fmt.Sprintf("%s %s %s: %s\n%d of %d changes had been made before; mend it and apply again.",
			step.step.Verb, step.step.Kind, printable(step.step.Name), c.explain(step.error), step.done, step.of)
	}
	var call *callError
	if !errors.As(err, &call) {
		return printable(err.Error())
	}
	st, _ := status.FromError(call.error)
	what, where := st.Message(), call.session.target.describe()
	if trouble := call.session.trouble.Load(); st.Code() == codes.Unavailable && trouble != nil {
		return call.session.unreachable(*trouble)
	}
	var violations, reason string
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.BadRequest:
			what, violations = splitViolations(what, d)
		case *errdetails.ErrorInfo:
			reason = d.GetReason()
		}
	}
	text := strings.TrimSuffix(printable(what), ".") + violations
	if hint := hintOf(st.Code(), reason, where); hint != "" {
		text += "\n" + hint
	}
	return text
}

func (e contextEntry) describe() string {
	if e.Name == "" {
		return e.Server
	}
	return e.Server + ", context " + e.Name
}

// splitViolations takes the fields out of a message that ends with all of them, and gives each a line.
func splitViolations(message string, bad *errdetails.BadRequest) (what, lines string) {
	var fields model.FieldErrors
	for _, v := range bad.GetFieldViolations() {
		fields = append(fields, model.FieldError{Field: v.GetField(), Message: v.GetDescription()})
		lines += "\n  " + printable(v.GetField()) + ": " + printable(v.GetDescription())
	}
	if len(fields) == 0 {
		return message, ""
	}
	message = strings.TrimSuffix(strings.TrimSuffix(message, fields.Error()), ": ")
	if message == "" {
		message = "the controller refused it"
	}
	return message + ":", lines
}

// hintOf says how to go on after an answer.
func hintOf(code codes.Code, reason, where string) string {
	switch code {
	case codes.Unauthenticated:
		return "The controller (" + where + ") does not know this token. An administrator makes a new one with\n" +
			"  nearcast operator create NAME --role operator\n" +
			"and you keep it with\n" +
			"  nearcast context add CONTEXT --server HOST:7443 --ca ca.pem --token-file FILE"
	case codes.PermissionDenied:
		return "Your role is shown by: nearcast whoami"
	case codes.Aborted:
		return "Somebody else changed it at the same time: look at it and try again."
	case codes.DeadlineExceeded:
		return "The controller (" + where +
			") did not answer in time: try again, with a longer --timeout if it is busy."
	case codes.Unavailable:
		return "The controller (" + where +
			") cannot work at the moment: try again, and look at its log if it lasts."
	case codes.Unimplemented:
		return "The controller (" + where + ") is older than this tool (" + version + ")."
	case codes.ResourceExhausted:
		return "Limits are shown by: nearcast settings get"
	}
	switch reason { // names as AWS Global Accelerator has them
	case "AcceleratorNotDisabled":
		return "Disable it first with: nearcast accelerator disable NAME (or delete it with --cascade)"
	case "Guard":
		return "So much at once may be a mistake. If it is not, repeat the command with --force."
	case "AssociatedListenerFound", "AssociatedEndpointGroupFound":
		return "Delete what is below it first, or delete it with --cascade."
	}
	return ""
}

// unreachable explains why there is no connection, by the kind of error that the dialer or the TLS
// handshake gave.
func (s *session) unreachable(trouble error) string {
	where := s.target.describe()
	var handshake handshakeError
	var dns *net.DNSError
	switch {
	case errors.As(trouble, &handshake):
		hint := "Is this the controllers' port, and not another service's?"
		var authority x509.UnknownAuthorityError
		if errors.As(trouble, &authority) {
			hint = "The CA certificate is another cluster's, or the cluster was made anew: get a context of today\n" +
				"(on the controller's machine: DATA_DIR/admin-context.yaml)."
		}
		return fmt.Sprintf("the controller (%s) did not prove who it is: %v\n%s", where,
			printable(trouble.Error()), hint)
	case errors.As(trouble, &dns):
		return fmt.Sprintf("the name of the controller (%s) is not known: %v\n"+
			"See where commands go with: nearcast context show", where, dns.Err)
	case errors.Is(trouble, syscall.ECONNREFUSED):
		return fmt.Sprintf("nobody listens at the controller's address (%s): connection refused\n"+
			"Is it running there? On its machine: systemctl status nearcast-controller\n"+
			"Is it the right address? nearcast context show; another one: --server HOST:7443 or --context NAME", where)
	case errors.Is(trouble, context.DeadlineExceeded), errors.Is(trouble, os.ErrDeadlineExceeded),
		errors.Is(trouble, syscall.ETIMEDOUT), errors.Is(trouble, syscall.EHOSTUNREACH),
		errors.Is(trouble, syscall.ENETUNREACH):
		return fmt.Sprintf("the controller (%s) cannot be reached: %v\n"+
			"Is there a route to it, and does a firewall let TCP through? "+
			"Another one: --server HOST:7443 or --context NAME", where, trouble)
	}
	return fmt.Sprintf("the controller (%s) cannot be reached: %v\n"+
		"See where commands go with: nearcast context show", where, printable(trouble.Error()))
}
