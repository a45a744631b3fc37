package access

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// methods returns every method of every service of the API, from the schema itself.
func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var all []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("nearcast.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				all = append(all, s.Methods().Get(j))
			}
		}
		return true
	})
	if len(all) < 50 {
		t.Fatalf("the schema has %d methods, want at least 50: is it all here?", len(all))
	}
	return all
}

func fullMethod(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

func TestEveryMethodHasARow(t *testing.T) {
	var names []string
	for _, m := range methods(t) {
		name := fullMethod(m)
		names = append(names, name)
		if Lookup(name).Need == NeedNever {
			t.Errorf("%s has no row in the table", name)
		}
		if Lookup(name).Need == NeedNothing && name != v1.EnrollService_Enroll_FullMethodName {
			t.Errorf("%s is open to anybody", name)
		}
		reads := slices.ContainsFunc([]string{"Get", "List", "Who", "Explain"}, func(p string) bool {
			return len(m.Name()) > len(p) && string(m.Name())[:len(p)] == p
		})
		if m.Parent().Name() == "AdminService" && reads == Lookup(name).Changes {
			t.Errorf("%s: by its name it changes=%v, the table says %v", name, !reads, Lookup(name).Changes)
		}
		if m.Parent().Name() == "AdminService" && !reads && Lookup(name).Need < NeedOperator {
			t.Errorf("%s changes something and viewers may call it", name)
		}
	}
	for name := range table {
		if !slices.Contains(names, name) {
			t.Errorf("the table has a row for %s, which the schema does not have", name)
		}
	}
	if len(names) != len(table) {
		t.Errorf("%d methods and %d rows", len(names), len(table))
	}
}

// world is a real TLS server with the Guard before services that implement nothing: a call that
// comes through ends with UNIMPLEMENTED.
type world struct {
	ca   *identity.CA
	ctrl *identity.Credentials
	addr string

	mu      sync.Mutex
	audited []string
	nodeErr error
	roleErr error
}

const secret = "0123456789abcdefghij"

func newWorld(t *testing.T) *world {
	t.Helper()
	ca, err := identity.NewCA("prod")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: ca}
	w.ctrl = w.issue(t, identity.KindController, "c1")
	g, err := New(Config{
		Operator: func(_ context.Context, name string) (v1.Role, []byte, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			role := map[string]v1.Role{"vera": v1.Role_ROLE_VIEWER, "oscar": v1.Role_ROLE_OPERATOR,
				"ada": v1.Role_ROLE_ADMIN, "nobody": v1.Role_ROLE_UNSPECIFIED}
			if w.roleErr != nil {
				return 0, nil, w.roleErr
			}
			if _, ok := role[name]; !ok {
				return 0, nil, ErrUnknown
			}
			return role[name], identity.HashSecret(secret), nil
		},
		Node: func(_ context.Context, id string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			switch {
			case w.nodeErr != nil:
				return w.nodeErr
			case id == "revoked":
				return ErrRevoked
			case id != "n1":
				return ErrUnknown
			}
			return nil
		},
		Audit: func(_ context.Context, call Call) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.audited = append(w.audited, call.Method)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials.NewTLS(w.ctrl.ServerTLSOptional(identity.KindNode, identity.KindOperator,
		identity.KindController))
	s := grpc.NewServer(append(g.ServerOptions(), grpc.Creds(creds))...)
	v1.RegisterAdminServiceServer(s, panicky{})
	v1.RegisterCustomRoutingServiceServer(s, v1.UnimplementedCustomRoutingServiceServer{})
	v1.RegisterSharingServiceServer(s, v1.UnimplementedSharingServiceServer{})
	v1.RegisterNodeServiceServer(s, v1.UnimplementedNodeServiceServer{})
	v1.RegisterEnrollServiceServer(s, v1.UnimplementedEnrollServiceServer{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // before it began
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

// panicky is an AdminService with one method that panics.
type panicky struct {
	v1.UnimplementedAdminServiceServer
}

func (panicky) WhoAmI(context.Context, *emptypb.Empty) (*v1.Operator, error) { panic("a bug") }

func (w *world) issue(t *testing.T, kind identity.Kind, name string) *identity.Credentials {
	t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := w.ca.Sign(csr, identity.Subject{Cluster: "prod", Kind: kind, Name: name}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.NewCredentials(der, key, certs(w.ca))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dial connects with a certificate of the kind and name, or with none.
func (w *world) dial(t *testing.T, kind identity.Kind, name string) *grpc.ClientConn {
	t.Helper()
	want := identity.Subject{Kind: identity.KindController}
	cfg := identity.AnonymousTLS(certs(w.ca), want)
	if kind != "" {
		cfg = w.issue(t, kind, name).ClientTLS(want)
	}
	cc, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func call(t *testing.T, cc *grpc.ClientConn, m protoreflect.MethodDescriptor, auth ...string) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, a := range auth {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
	}
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingClient() {
		return status.Code(cc.Invoke(ctx, fullMethod(m), in, out))
	}
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, fullMethod(m))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	return status.Code(s.RecvMsg(out))
}

// Every sort of caller calls every method, over real TLS. What must happen is written here a second
// time, independently of the table: by the method's name and service.
func TestMatrix(t *testing.T) {
	w := newWorld(t)
	anonymous := w.dial(t, "", "")
	callers := map[string]struct {
		cc   *grpc.ClientConn
		auth []string
		rank int // operators: 1 viewer, 2 operator, 3 admin; 0: not an operator
		node bool
		deny codes.Code // what a method that the caller may not use answers
	}{
		"nobody":             {anonymous, nil, 0, false, codes.Unauthenticated},
		"viewer":             {anonymous, []string{"Bearer " + token("vera")}, 1, false, codes.PermissionDenied},
		"operator":           {anonymous, []string{"bearer " + token("oscar")}, 2, false, codes.PermissionDenied},
		"admin":              {anonymous, []string{"Bearer " + token("ada")}, 3, false, codes.PermissionDenied},
		"viewer, by cert":    {w.dial(t, identity.KindOperator, "vera"), nil, 1, false, codes.PermissionDenied},
		"admin, by cert":     {w.dial(t, identity.KindOperator, "ada"), nil, 3, false, codes.PermissionDenied},
		"role unspecified":   {w.dial(t, identity.KindOperator, "nobody"), nil, 0, false, codes.PermissionDenied},
		"deleted operator":   {w.dial(t, identity.KindOperator, "gone"), nil, 0, false, codes.Unauthenticated},
		"node":               {w.dial(t, identity.KindNode, "n1"), nil, 0, true, codes.PermissionDenied},
		"revoked node":       {w.dial(t, identity.KindNode, "revoked"), nil, 0, false, codes.PermissionDenied},
		"deleted node":       {w.dial(t, identity.KindNode, "n9"), nil, 0, false, codes.PermissionDenied},
		"another controller": {w.dial(t, identity.KindController, "c2"), nil, 0, false, codes.PermissionDenied},
	}
	for name, c := range callers {
		t.Run(name, func(t *testing.T) {
			for _, m := range methods(t) {
				got := call(t, c.cc, m, c.auth...)
				want := codes.Unimplemented // it came through
				if m.Name() == "WhoAmI" {
					want = codes.Internal // it came through, and panicked
				}
				if !mayCall(m, c.rank, c.node) {
					want = c.deny
					// Whoever is known, but as something else than the service's callers, is
					// refused by permission; who is not known, for want of authentication.
					nodeService := m.Parent().Name() == "NodeService"
					if nodeService && (c.auth != nil || name == "nobody") {
						want = codes.Unauthenticated
					} else if nodeService {
						want = codes.PermissionDenied
					}
				}
				if got != want {
					t.Errorf("%s: %v, want %v", m.Name(), got, want)
				}
			}
		})
	}
}

// mayCall is the oracle of TestMatrix.
func mayCall(m protoreflect.MethodDescriptor, rank int, node bool) bool {
	name := string(m.Name())
	switch m.Parent().Name() {
	case "EnrollService":
		return true
	case "NodeService":
		return node
	}
	verb := func(vs ...string) bool {
		return slices.ContainsFunc(vs, func(v string) bool { return len(name) > len(v) && name[:len(v)] == v })
	}
	noun := func(ns ...string) bool {
		return slices.ContainsFunc(ns, func(n string) bool {
			return len(name) > len(n) && name[len(name)-len(n):] == n
		})
	}
	switch {
	case verb("Get", "List", "WhoAm", "Explain"):
		return rank >= 1
	case noun("Accelerator", "Listener", "EndpointGroup", "Endpoints", "Target", "Resource",
		"Subnet", "RoutingGroup", "RoutingTraffic", "Attachment", "nRange", "eRange", "wRange"),
		name == "UpdateNode", name == "SetAnnouncing", name == "SetDirectPath":
		return rank >= 2
	}
	return rank >= 3
}

func TestBadCredentials(t *testing.T) {
	w := newWorld(t)
	var get protoreflect.MethodDescriptor
	for _, m := range methods(t) {
		if m.Name() == "GetSettings" {
			get = m
		}
	}
	anonymous, ada := w.dial(t, "", ""), w.dial(t, identity.KindOperator, "ada")
	for name, auth := range map[string][]string{
		"wrong secret":   {"Bearer " + identity.OperatorToken{Name: "ada", Secret: secret + "x"}.String()},
		"unknown name":   {"Bearer " + token("eve")},
		"garbage":        {"Bearer x"},
		"another scheme": {"Basic " + token("ada")},
		"no scheme":      {token("ada")},
		"two":            {"Bearer " + token("ada"), "Bearer " + token("ada")},
		"join token":     {"Bearer " + identity.NewToken(w.ca).String()},
	} {
		if got := call(t, anonymous, get, auth...); got != codes.Unauthenticated {
			t.Errorf("%s: %v, want %v", name, got, codes.Unauthenticated)
		}
		// A good certificate does not heal a bad token.
		if got := call(t, ada, get, auth...); got != codes.Unauthenticated {
			t.Errorf("%s, with a certificate: %v, want %v", name, got, codes.Unauthenticated)
		}
	}
	w.mu.Lock()
	w.roleErr, w.nodeErr = errors.New("no quorum"), errors.New("no quorum")
	w.mu.Unlock()
	if got := call(t, ada, get); got != codes.Unavailable {
		t.Errorf("store away: %v, want %v", got, codes.Unavailable)
	}
}

func TestAuditIsToldOfChangesThatWereAllowed(t *testing.T) {
	w := newWorld(t)
	anonymous := w.dial(t, "", "")
	want := 0
	for _, m := range methods(t) {
		call(t, anonymous, m, "Bearer "+token("oscar"))
		// Strangers' failures are not audited: Enroll came through as nobody and failed.
		if Lookup(fullMethod(m)).Changes && m.Name() != "Enroll" && mayCall(m, 2, false) {
			want++
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.audited) != want || want < 15 {
		t.Errorf("%d calls audited, want %d: %v", len(w.audited), want, w.audited)
	}
}

func TestUnknownMethodIsRefused(t *testing.T) {
	w := newWorld(t)
	cc := w.dial(t, identity.KindOperator, "ada")
	err := cc.Invoke(t.Context(), "/nearcast.v1.AdminService/Destroy", proto.Message(&v1.GetRequest{}),
		&v1.Node{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("%v, want %v", err, codes.Unimplemented)
	}
	if Allows(v1.Role_ROLE_ADMIN, Lookup("/nearcast.v1.AdminService/Destroy").Need) {
		t.Error("an unknown method is allowed")
	}
}

func token(name string) string { return identity.OperatorToken{Name: name, Secret: secret}.String() }

func certs(ca *identity.CA) []*x509.Certificate { return []*x509.Certificate{ca.Certificate()} }
