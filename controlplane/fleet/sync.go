package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/controlplane/access"
	"github.com/nearcast/nearcast/controlplane/catalog"
	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// protocol is the version of the Sync conversation that this controller speaks.
const protocol = 1

// NodeService is the service that nodes call. It needs access.Guard before it.
type NodeService struct {
	v1.UnimplementedNodeServiceServer
	f *Fleet
}

// Service returns the fleet's NodeService.
func (f *Fleet) Service() *NodeService { return &NodeService{f: f} }

// Authorize is access.Config.Node: whether a node exists and is not revoked, asked of the catalog.
func (f *Fleet) Authorize(ctx context.Context, id string) error {
	n, err := f.cfg.Catalog.Node(ctx, id)
	switch {
	case catalog.CodeOf(err) == catalog.NotFound && err != nil, err == nil && string(n.ID) != id:
		return access.ErrUnknown
	case err != nil:
		return err
	case n.State == model.NodeRevoked:
		return access.ErrRevoked
	}
	return nil
}

// Renew gives the calling node a fresh certificate for a new key.
func (s *NodeService) Renew(ctx context.Context, req *v1.RenewRequest) (*v1.RenewResponse, error) {
	id := access.FromContext(ctx).Name
	if _, err := identity.RequestKeyHash(req.GetCertificateRequest()); err != nil {
		return nil, model.FieldErrors{{Field: "certificate_request", Message: err.Error()}}
	}
	der, err := s.f.cfg.Authority.SignNode(req.GetCertificateRequest(), id)
	if err != nil {
		return nil, err
	}
	s.f.renewed(ctx, model.NodeID(id), time.Now().Add(identity.LeafLifetime))
	s.f.log.Info("node's certificate renewed", "node", id)
	return &v1.RenewResponse{
		Certificate:    der,
		CaCertificates: identity.CertificatesDER(s.f.cfg.Authority.Roots()),
	}, nil
}

// Sync is the lasting conversation with one node. This goroutine owns the session: it takes what the
// node says, and ends the stream when it must. Reading, writing and storing are goroutines of
// their own, because each may block for as long as a slow peer or store likes, and a revoked node must
// go at once.
func (s *NodeService) Sync(stream v1.NodeService_SyncServer) error {
	f := s.f
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	x, err := f.begin(ctx, cancel, stream)
	if err != nil {
		return err
	}
	defer f.end(x)
	if err := x.greet(ctx); err != nil {
		x.log.Warn("node is not served", "err", err)
		return err
	}
	err = x.serve(ctx)
	x.log.Info("node disconnected", "err", err)
	return err
}

// begin makes a session and starts its reader.
func (f *Fleet) begin(ctx context.Context, cancel context.CancelCauseFunc,
	stream v1.NodeService_SyncServer) (*session, error) {
	caller := access.FromContext(ctx)
	if caller.Name == "" || caller.TLS == nil {
		return nil, status.Error(codes.Internal, "a node's stream without a node")
	}
	x := &session{
		f: f, id: model.NodeID(caller.Name), key: identity.NewSecret(), stream: stream, cancel: cancel,
		log: f.log.With("node", caller.Name), inbox: make(chan *v1.NodeMessage, inboxMessages),
		ended: make(chan error, 2), again: make(chan []byte, 1), dirty: make(chan struct{}, 1),
		calls:  make(chan *v1.ExplainCall),
		stored: make(chan struct{}), traffic: make(chan model.TrafficReport, trafficMax),
		acks: make(chan *v1.TrafficAck, trafficMax),
	}
	x.record.CertificateExpires = caller.TLS.PeerCertificates[0].NotAfter.UTC()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopping {
		return nil, status.Error(codes.Unavailable, "the controller is stopping")
	}
	f.streams.Add(2) // the reader, and the handler itself: see end
	go x.read(ctx)
	return x, nil
}

var errSuperseded = status.Error(codes.Aborted, "the node has opened another stream")

// attach makes x the one session of its node at this controller; an older one is cut, since a node
// that lost its connection comes back before the loss is noticed here.
func (f *Fleet) attach(x *session) {
	f.mu.Lock()
	old := f.sessions[x.id]
	f.sessions[x.id] = x
	n := len(f.sessions)
	f.mu.Unlock()
	f.metrics.streams.Set(float64(n))
	if old != nil {
		f.metrics.cut.Inc()
		old.cancel(errSuperseded)
	}
	f.presence.set(x.id, true)
}

// end forgets a session, after its last words are stored.
func (f *Fleet) end(x *session) {
	defer f.streams.Done()
	x.cancel(errStreamOver)
	if x.attached {
		<-x.stored
	}
	f.mu.Lock()
	mine := f.sessions[x.id] == x
	if mine {
		delete(f.sessions, x.id)
	}
	n := len(f.sessions)
	f.mu.Unlock()
	f.metrics.streams.Set(float64(n))
	if mine {
		f.presence.set(x.id, false)
	}
}

var errStreamOver = errors.New("stream is over")

// renewed notes a node's new certificate: in its session, or in its record, if it has its stream to
// another controller, whose session then takes the note over (see lostRecord).
func (f *Fleet) renewed(ctx context.Context, id model.NodeID, expires time.Time) {
	f.mu.Lock()
	x := f.sessions[id]
	f.mu.Unlock()
	if x != nil {
		x.change(func(r *nodeRecord) { r.CertificateExpires = expires.UTC() })
		return
	}
	if err := f.noteExpiry(ctx, id, expires); err != nil {
		f.log.Warn("the end of a node's certificate is not noted", "node", id, "err", err)
	}
}

func (f *Fleet) noteExpiry(ctx context.Context, id model.NodeID, expires time.Time) error {
	key := nodesPrefix + string(id)
	kv, err := f.cfg.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil // it has never connected, and says it when it does
	}
	if err != nil {
		return err
	}
	var r nodeRecord
	if err := json.Unmarshal(kv.Value, &r); err != nil {
		return err
	}
	r.CertificateExpires = expires.UTC()
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = f.cfg.Store.Txn(ctx, []store.Cond{store.Unchanged(key, kv.Modified)}, store.Put(key, value))
	return err
}

// greet waits for Hello and checks it, and makes the session the node's.
func (x *session) greet(ctx context.Context) error {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	var hello *v1.Hello
	select {
	case m := <-x.inbox:
		hello = m.GetHello()
	case err := <-x.ended:
		return err
	case <-timer.C:
		return status.Error(codes.DeadlineExceeded, "no hello came")
	case <-x.f.stopped:
		return status.Error(codes.Unavailable, "the controller is stopping")
	}
	if hello == nil {
		return status.Error(codes.InvalidArgument, "the first message must be hello")
	}
	if hello.GetProtocol() != protocol {
		return status.Errorf(codes.FailedPrecondition, "protocol %d is not spoken here, but %d",
			hello.GetProtocol(), protocol)
	}
	node, err := x.f.checkHello(ctx, x.id, hello)
	if err != nil {
		return err
	}
	x.revision = node.Revision
	x.change(func(r *nodeRecord) {
		r.Session, r.Controller = x.key, x.f.cfg.ID
		r.Version = clip(hello.GetVersion(), textMax)
		r.AppliedRevision, r.AppliedHash = hello.GetAppliedRevision(), clipHash(hello.GetAppliedHash())
	})
	x.applied.Store(hello.GetAppliedRevision())
	x.wants = hello.GetWantsClients()
	x.attached = true
	x.f.attach(x)
	x.f.streams.Add(3)
	go x.write(ctx, hello.GetAppliedHash())
	go x.store(ctx)
	go x.keepTraffic(ctx)
	x.log.Info("node connected", "name", node.Name, "version", x.record.Version,
		"applied", hello.GetAppliedRevision())
	return nil
}

// checkHello compares what a node says of itself with what it was enrolled as, and takes over where it
// can be reached now.
func (f *Fleet) checkHello(ctx context.Context, id model.NodeID, hello *v1.Hello) (model.Node, error) {
	node, err := f.cfg.Catalog.Node(ctx, string(id))
	if err != nil || hello.GetNode() == nil {
		return node, err
	}
	says, err := model.NodeFromProto(hello.GetNode())
	if err != nil {
		return node, err
	}
	if says.Name != node.Name || says.Site != node.Site || says.Edge != node.Edge ||
		says.Gateway != node.Gateway {
		return node, status.Errorf(codes.FailedPrecondition,
			"enrolled as %s, but says it is %s: delete the node and enrol it anew to change that",
			describe(node), describe(says))
	}
	if sameAddresses(node, says) {
		return node, nil
	}
	return f.cfg.Catalog.UpdateNode(ctx, id, catalog.Options{}, func(n *model.Node) error {
		n.BackboneAddresses, n.GossipAddress = says.BackboneAddresses, says.GossipAddress
		n.ServiceAddresses = says.ServiceAddresses
		n.BalanceAddress, n.BalanceWeight = says.BalanceAddress, says.BalanceWeight
		return nil
	})
}

func describe(n model.Node) string {
	return fmt.Sprintf("%q at site %q (edge %v, gateway %v)", n.Name, n.Site, n.Edge, n.Gateway)
}
