package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// fakeToken is the only token that a fake knows.
const fakeToken = "NCO1.alice.abcdefghijklmnopqrstuvwxyz"

// fakeNow is what all clocks of a fake and its clients show.
var fakeNow = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// fake is an admin API in memory: enough of one to see what this tool asks for and how it shows the
// answers, with ids and times that are the same in every run. The rules are the real controller's, in
// real_test.go.
type fake struct {
	pb.UnimplementedAdminServiceServer

	mu        sync.Mutex
	accs      []*pb.Accelerator
	listeners []*pb.Listener
	grps      []*pb.EndpointGroup
	targets   []*pb.Target
	pools     []*pb.Pool
	sites     []*pb.Site
	regions   []*pb.Region
	nodes     []*pb.Node
	tokens    []*pb.JoinToken
	operators []*pb.Operator
	settings  *pb.Settings
	problems  []string
	rev       uint64
	ids       int
	polls     int // how often GetAccelerator says IN_PROGRESS before DEPLOYED
	// touchOnRead lets somebody else change every accelerator right after it was listed.
	touchOnRead bool
}

func newFake() *fake {
	return &fake{
		rev: 100,
		nodes: []*pb.Node{{
			Id: "n-01", Name: "fra-1", Site: "fra", Edge: true, Gateway: true, State: pb.NodeState_NODE_STATE_ACTIVE,
			BackboneAddresses: []string{"203.0.113.1:7444"}, GossipAddress: "203.0.113.1:7445",
			ServiceAddresses: []string{"203.0.113.1"}, Version: "v1.0.0", LastSeen: ago(2 * time.Second),
			AppliedRevision: 100, CertificateExpires: ago(-20 * time.Hour), Connected: true,
			Notes: []string{"no BBR congestion control: CUBIC is used"},
		}, {
			Id: "n-02", Name: "iad-1", Site: "iad", Edge: true, State: pb.NodeState_NODE_STATE_ACTIVE,
			Version: "v0.9.0", LastSeen: ago(3 * time.Minute), AppliedRevision: 90,
		}},
		operators: []*pb.Operator{{Name: "alice", Role: pb.Role_ROLE_ADMIN, CreatedTime: ago(72 * time.Hour)}},
		settings:  settingsOf(),
	}
}

func settingsOf() *pb.Settings {
	s, _ := model.SettingsFromProto(nil)
	return model.SettingsToProto(s)
}

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(fakeNow.Add(-d)) }

// serve runs the fake over real TLS on loopback until the test ends, and returns a context for it.
func (f *fake) serve(t testing.TB) contextEntry {
	t.Helper()
	creds := testIdentity(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.ControllerTLS())), grpc.UnaryInterceptor(f.guard))
	pb.RegisterAdminServiceServer(s, f)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-ended
	})
	return contextEntry{
		Name: "test", Server: l.Addr().String(), Token: fakeToken,
		CA: string(identity.MarshalCertificates(creds.Roots())),
	}
}

// testIdentity makes a new cluster's controller.
func testIdentity(t testing.TB) *identity.Credentials {
	t.Helper()
	ca, err := identity.NewCA("prod")
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(csr, identity.Subject{Cluster: "prod", Kind: identity.KindController, Name: "ctl-1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := identity.NewCredentials(leaf, key, []*x509.Certificate{ca.Certificate()})
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func (f *fake) guard(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := metadata.ValueFromIncomingContext(ctx, "authorization"); len(got) != 1 || got[0] != "Bearer "+fakeToken {
		return nil, status.Error(codes.Unauthenticated, "unknown operator or wrong secret")
	}
	return h(ctx, req)
}

// refuse is an INVALID_ARGUMENT as the controller makes it.
func refuse(err error) error {
	fields := err.(model.FieldErrors)
	bad := &errdetails.BadRequest{}
	for _, e := range fields {
		bad.FieldViolations = append(bad.FieldViolations,
			&errdetails.BadRequest_FieldViolation{Field: e.Field, Description: e.Message})
	}
	s, _ := status.New(codes.InvalidArgument, "the request is wrong: "+fields.Error()).WithDetails(bad)
	return s.Err()
}

// judged fills defaults and validates, like a controller.
func judged[P proto.Message, M interface{ Validate() error }](p P, from func(P) (M, error), to func(M) P) (P, error) {
	v, err := from(p)
	if err == nil {
		err = v.Validate()
	}
	if err != nil {
		return p, refuse(err)
	}
	return to(v), nil
}

func (f *fake) next() int { f.ids++; return f.ids }

func (f *fake) touch(accelerator string) {
	f.rev++
	for _, a := range f.accs {
		if a.Id == accelerator {
			a.Revision, a.Status = f.rev, pb.AcceleratorStatus_ACCELERATOR_STATUS_IN_PROGRESS
		}
	}
}

// pageOf cuts a list into pages of two, so that a client which forgets the rest is found out.
func pageOf[T any](all []T, r *pb.ListRequest) (items []T, next string) {
	from := 0
	_, _ = fmt.Sscanf(r.GetPageToken(), "at-%d", &from)
	to := min(len(all), from+min(2, int(r.GetPageSize())))
	if to < len(all) {
		next = fmt.Sprintf("at-%d", to)
	}
	return slices.Clone(all[from:to]), next
}

func lookup[T any](kind, id string, all []T, match func(T) bool) (found T, err error) {
	for _, o := range all {
		if match(o) {
			return o, nil
		}
	}
	return found, status.Errorf(codes.NotFound, "%s %s does not exist", kind, id)
}

func applyMask(to, from proto.Message, mask *fieldmaskpb.FieldMask) {
	for _, path := range mask.GetPaths() {
		t, f := to.ProtoReflect(), from.ProtoReflect()
		for {
			head, rest, nested := strings.Cut(path, ".")
			fd := t.Descriptor().Fields().ByName(protoreflect.Name(head))
			if nested {
				t, f, path = t.Mutable(fd).Message(), f.Get(fd).Message(), rest
				continue
			}
			if f.Has(fd) {
				t.Set(fd, f.Get(fd))
			} else {
				t.Clear(fd)
			}
			break
		}
	}
}

func (f *fake) CreateAccelerator(_ context.Context, r *pb.CreateAcceleratorRequest) (*pb.Accelerator, error) {
	a, err := judged(r.GetAccelerator(), model.AcceleratorFromProto, model.AcceleratorToProto)
	if err != nil {
		return nil, err
	}
	n := f.next()
	a.Id = fmt.Sprintf("00000000-0000-4000-8000-%012x", n)
	a.DnsName = fmt.Sprintf("a%016x.nearcast.internal", n)
	if len(a.Pools) == 0 {
		a.Pools = []string{"any-a", "any-b"}
	}
	if len(a.Addresses) == 0 && a.Pools[0] != "edges" {
		a.Addresses = []string{fmt.Sprintf("192.0.2.%d", n), fmt.Sprintf("198.51.100.%d", n)}
	}
	a.CreatedTime, a.ModifiedTime = ago(0), ago(0)
	f.accs = append(f.accs, a)
	f.touch(a.Id)
	return a, nil
}

func (f *fake) findAcc(id string) (*pb.Accelerator, error) {
	return lookup("accelerator", id, f.accs, func(a *pb.Accelerator) bool { return a.Id == id })
}

func (f *fake) GetAccelerator(_ context.Context, r *pb.GetRequest) (*pb.Accelerator, error) {
	a, err := f.findAcc(r.GetId())
	if err != nil {
		return nil, err
	}
	if f.polls--; f.polls < 0 {
		a.Status = pb.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED
	}
	if f.polls == 1 { // on the way: the first node has applied it
		f.nodes[0].AppliedRevision = f.rev
	}
	return a, nil
}

func (f *fake) ListAccelerators(_ context.Context, r *pb.ListRequest) (*pb.ListAcceleratorsResponse, error) {
	items, next := pageOf(f.accs, r)
	for i := range items {
		items[i] = proto.Clone(items[i]).(*pb.Accelerator)
	}
	for _, a := range f.accs {
		if f.touchOnRead {
			f.touch(a.Id)
		}
	}
	return &pb.ListAcceleratorsResponse{Accelerators: items, NextPageToken: next}, nil
}

func (f *fake) UpdateAccelerator(_ context.Context, r *pb.UpdateAcceleratorRequest) (*pb.Accelerator, error) {
	a, err := f.findAcc(r.GetAccelerator().GetId())
	if err != nil {
		return nil, err
	}
	if r.ExpectedRevision != 0 && r.ExpectedRevision != a.Revision {
		return nil, status.Errorf(codes.Aborted, "accelerator is at revision %d, not %d", a.Revision, r.ExpectedRevision)
	}
	applyMask(a, r.GetAccelerator(), r.GetUpdateMask())
	f.touch(a.Id)
	return a, nil
}

func withReason(code codes.Code, reason, message string) error {
	s, _ := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "nearcast"})
	return s.Err()
}

func (f *fake) DeleteAccelerator(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	a, err := f.findAcc(r.GetId())
	if err != nil {
		return nil, err
	}
	if a.Enabled {
		return nil, withReason(codes.FailedPrecondition, "AcceleratorNotDisabled", "accelerator is enabled")
	}
	if slices.ContainsFunc(f.listeners, func(l *pb.Listener) bool { return l.AcceleratorId == a.Id }) {
		return nil, withReason(codes.FailedPrecondition, "AssociatedListenerFound", "accelerator has listeners")
	}
	f.accs = slices.DeleteFunc(f.accs, func(o *pb.Accelerator) bool { return o == a })
	return &emptypb.Empty{}, nil
}

func (f *fake) CreateListener(_ context.Context, r *pb.CreateListenerRequest) (*pb.Listener, error) {
	l, err := judged(r.GetListener(), model.ListenerFromProto, model.ListenerToProto)
	if err != nil {
		return nil, err
	}
	l.Id = fmt.Sprintf("%08x", 0xa0000000+f.next())
	f.listeners = append(f.listeners, l)
	f.touch(l.AcceleratorId)
	return l, nil
}

func (f *fake) GetListener(_ context.Context, r *pb.GetRequest) (*pb.Listener, error) {
	return lookup("listener", r.Id, f.listeners, func(l *pb.Listener) bool { return l.Id == r.Id })
}

func (f *fake) ListListeners(_ context.Context, r *pb.ListRequest) (*pb.ListListenersResponse, error) {
	all := filter(f.listeners, func(l *pb.Listener) bool { return r.Parent == "" || r.Parent == l.AcceleratorId })
	items, next := pageOf(all, r)
	return &pb.ListListenersResponse{Listeners: items, NextPageToken: next}, nil
}

func (f *fake) UpdateListener(ctx context.Context, r *pb.UpdateListenerRequest) (*pb.Listener, error) {
	l, err := f.GetListener(ctx, &pb.GetRequest{Id: r.GetListener().GetId()})
	if err != nil {
		return nil, err
	}
	applyMask(l, r.GetListener(), r.GetUpdateMask())
	f.touch(l.AcceleratorId)
	return l, nil
}

func (f *fake) DeleteListener(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	if slices.ContainsFunc(f.grps, func(g *pb.EndpointGroup) bool { return g.ListenerId == r.Id }) {
		return nil, withReason(codes.FailedPrecondition, "AssociatedEndpointGroupFound", "listener has endpoint groups")
	}
	f.listeners = slices.DeleteFunc(f.listeners, func(l *pb.Listener) bool { return l.Id == r.Id })
	return &emptypb.Empty{}, nil
}

func (f *fake) CreateEndpointGroup(_ context.Context, r *pb.CreateEndpointGroupRequest) (*pb.EndpointGroup, error) {
	g, err := judged(r.GetGroup(), model.EndpointGroupFromProto, model.EndpointGroupToProto)
	if err != nil {
		return nil, err
	}
	g.Id = fmt.Sprintf("%012x", 0xb00000000000+f.next())
	f.grps = append(f.grps, g)
	return f.findGroup(g.Id)
}

// findGroup is asked before each change of a group, so it counts as one.
func (f *fake) findGroup(id string) (*pb.EndpointGroup, error) {
	for _, g := range f.grps {
		for _, l := range f.listeners {
			if g.Id == id && l.Id == g.ListenerId {
				f.touch(l.AcceleratorId)
			}
		}
	}
	return lookup("endpoint group", id, f.grps, func(g *pb.EndpointGroup) bool { return g.Id == id })
}

func (f *fake) ListEndpointGroups(_ context.Context, r *pb.ListRequest) (*pb.ListEndpointGroupsResponse, error) {
	all := filter(f.grps, func(g *pb.EndpointGroup) bool { return r.Parent == "" || r.Parent == g.ListenerId })
	items, next := pageOf(all, r)
	return &pb.ListEndpointGroupsResponse{Groups: items, NextPageToken: next}, nil
}

func (f *fake) UpdateEndpointGroup(_ context.Context, r *pb.UpdateEndpointGroupRequest) (*pb.EndpointGroup, error) {
	g, err := f.findGroup(r.GetGroup().GetId())
	if err != nil {
		return nil, err
	}
	after := proto.Clone(g).(*pb.EndpointGroup)
	applyMask(after, r.GetGroup(), r.GetUpdateMask())
	if err := guarded(g, len(after.Endpoints), r.Force); err != nil {
		return nil, err
	}
	applyMask(g, r.GetGroup(), r.GetUpdateMask())
	return g, nil
}

func (f *fake) DeleteEndpointGroup(_ context.Context, r *pb.DeleteRequest) (*emptypb.Empty, error) {
	f.grps = slices.DeleteFunc(f.grps, func(g *pb.EndpointGroup) bool { return g.Id == r.Id })
	return &emptypb.Empty{}, nil
}

func (f *fake) AddEndpoints(_ context.Context, r *pb.AddEndpointsRequest) (*pb.EndpointGroup, error) {
	g, err := f.findGroup(r.GetGroupId())
	if err != nil {
		return nil, err
	}
	for _, e := range r.GetEndpoints() {
		if slices.ContainsFunc(g.Endpoints, func(o *pb.Endpoint) bool { return o.Id == e.Id }) {
			return nil, status.Errorf(codes.AlreadyExists, "endpoint %s is in the group already", e.Id)
		}
		full, err := judged(e, model.EndpointFromProto, model.EndpointToProto)
		if err != nil {
			return nil, err
		}
		g.Endpoints = append(g.Endpoints, full)
	}
	return g, nil
}

func (f *fake) UpdateEndpoints(_ context.Context, r *pb.UpdateEndpointsRequest) (*pb.EndpointGroup, error) {
	g, err := f.findGroup(r.GetGroupId())
	if err != nil {
		return nil, err
	}
	for _, e := range r.GetEndpoints() {
		for _, o := range g.Endpoints {
			if o.Id == e.Id && e.Weight != nil {
				o.Weight = e.Weight
			}
			if o.Id == e.Id && e.ClientAddress != 0 {
				o.ClientAddress = e.ClientAddress
			}
		}
	}
	return g, nil
}

func (f *fake) RemoveEndpoints(_ context.Context, r *pb.RemoveEndpointsRequest) (*pb.EndpointGroup, error) {
	g, err := f.findGroup(r.GetGroupId())
	if err != nil {
		return nil, err
	}
	left := filter(g.Endpoints, func(e *pb.Endpoint) bool { return !slices.Contains(r.EndpointIds, e.Id) })
	if err := guarded(g, len(left), r.Force); err != nil {
		return nil, err
	}
	g.Endpoints = left
	return g, nil
}

// guarded refuses what takes away too many of a group's endpoints, like a controller.
func guarded(g *pb.EndpointGroup, left int, force bool) error {
	if was := len(g.Endpoints); !force && was >= 2 && 2*left < was {
		return withReason(codes.FailedPrecondition, "Guard", fmt.Sprintf(
			"this would leave %d of %d endpoints in group %s; force it if that is meant", left, was, g.Id))
	}
	return nil
}
