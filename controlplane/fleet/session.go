package fleet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// session is one Sync stream of one node.
type session struct {
	f      *Fleet
	id     model.NodeID
	key    string // random: tells this session's record from a later one's
	stream v1.NodeService_SyncServer
	cancel context.CancelCauseFunc
	log    *slog.Logger

	inbox    chan *v1.NodeMessage
	ended    chan error               // capacity 2: why the reader and the writer ended
	again    chan []byte              // capacity 1: the node says Hello again, having this hash
	traffic  chan model.TrafficReport // capacity trafficMax: for the sink
	acks     chan *v1.TrafficAck      // capacity trafficMax: for the node
	dirty    chan struct{}            // capacity 1: there is something to store
	calls    chan *v1.ExplainCall     // operators' questions to the node
	stored   chan struct{}            // closed when the storing goroutine has ended
	revision uint64                   // of the node's object when the stream began
	attached bool                     // it is, or was, the node's session

	applied atomic.Uint64 // revision that the node has
	wants   bool          // what is measured of clients' networks; set before it is written to

	mu      sync.Mutex
	record  nodeRecord
	changed bool // record is to be stored
	reports reports
	paths   *v1.NodePaths      // to be stored; nil: nothing new
	clients *v1.ClientNetworks // to be stored; nil: nothing new

	// Owned by the storing goroutine.
	wrote       uint64 // revision of the record's last write; 0: not written yet
	swept       bool   // records of earlier sessions were looked at
	pathsStored time.Time
	clientsNext time.Time // not written again before
}

// read moves messages from the stream to the inbox until the stream ends.
func (x *session) read(ctx context.Context) {
	defer x.f.streams.Done()
	for {
		m, err := x.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil // the node has nothing more to say: an orderly end
			}
			x.ended <- err
			return
		}
		select {
		case x.inbox <- m:
		case <-ctx.Done():
			return
		}
	}
}

// write tells the node what it should know: Welcome, then the newest snapshot whenever the node does
// not have it, and Compare on a timer.
func (x *session) write(ctx context.Context, has []byte) {
	defer x.f.streams.Done()
	if err := x.tell(ctx, has); err != nil {
		x.ended <- err
	}
}

func (x *session) tell(ctx context.Context, has []byte) error {
	welcome, err := x.welcome(nil)
	var sent time.Time
	var told *knownClients
	for err == nil {
		known := x.f.known.Load()
		if x.wants && known != told && known.message != nil {
			told, err = known, x.stream.Send(known.message)
			continue
		}
		p := x.f.published.Load()
		if p.Snapshot != nil && !bytes.Equal(has, p.Hash[:]) && p.Revision() >= x.applied.Load() {
			has, sent = p.Hash[:], time.Now()
			err = x.send(p)
			continue // it may have taken long: look again
		}
		timer := time.NewTimer(jitter(x.f.cfg.Compare))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-p.next:
		case <-known.next:
		case ack := <-x.acks:
			err = x.stream.Send(&v1.ControllerMessage{Body: &v1.ControllerMessage_TrafficAck{TrafficAck: ack}})
		case <-timer.C:
			if welcome, err = x.welcome(welcome); err == nil {
				err = x.compare(p)
			}
		case call := <-x.calls:
			err = x.stream.Send(&v1.ControllerMessage{Body: &v1.ControllerMessage_Explain{Explain: call}})
		case hash := <-x.again:
			// A node that refused this snapshot must not make it travel over and over.
			if !bytes.Equal(has, p.Hash[:]) || time.Since(sent) > resendAfter {
				has = hash
			}
		}
		timer.Stop()
	}
	return err
}

// welcome sends Welcome unless it says what the last one said: controllers come and go, and
// authorities rotate, during a stream.
func (x *session) welcome(last *v1.Welcome) (*v1.Welcome, error) {
	w := &v1.Welcome{
		ControllerId:   x.f.cfg.ID,
		Controllers:    x.f.Controllers(),
		CaCertificates: identity.CertificatesDER(x.f.cfg.Authority.Roots()),
	}
	if last != nil && proto.Equal(w, last) {
		return last, nil
	}
	return w, x.stream.Send(&v1.ControllerMessage{Body: &v1.ControllerMessage_Welcome{Welcome: w}})
}

func (x *session) send(p *Published) error {
	x.f.metrics.sent.Inc()
	return x.stream.Send(&v1.ControllerMessage{Body: &v1.ControllerMessage_Snapshot{
		Snapshot: &v1.SnapshotUpdate{Snapshot: p.Bytes, Hash: p.Hash[:], Revision: p.Revision()}}})
}

func (x *session) compare(p *Published) error {
	if p.Snapshot == nil {
		return nil
	}
	return x.stream.Send(&v1.ControllerMessage{Body: &v1.ControllerMessage_Compare{
		Compare: &v1.Compare{Revision: p.Revision(), Hash: p.Hash[:]}}})
}

// serve takes what the node says until the stream ends or must end.
func (x *session) serve(ctx context.Context) error {
	for {
		p := x.f.published.Load()
		if err := x.mayStay(p); err != nil {
			x.f.metrics.cut.Inc()
			x.log.Warn("node is cut off", "err", err)
			return err
		}
		select {
		case m := <-x.inbox:
			if err := x.take(ctx, m); err != nil {
				return err
			}
		case err := <-x.ended:
			return err
		case <-p.next:
		case <-x.f.stopped:
			return status.Error(codes.Unavailable, "the controller is stopping")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mayStay says why the node's stream must end. The stream was allowed when it began, so a state that
// is older than the node's object then proves nothing.
func (x *session) mayStay(p *Published) error {
	if p.State == nil || p.State.Revision < x.revision {
		return nil
	}
	n := p.nodes[x.id]
	switch {
	case n == nil:
		return status.Errorf(codes.PermissionDenied, "node %s was deleted", x.id)
	case n.State == model.NodeRevoked:
		return status.Errorf(codes.PermissionDenied, "node %s is revoked", x.id)
	}
	return nil
}

// take handles one message.
func (x *session) take(ctx context.Context, m *v1.NodeMessage) error {
	switch body := m.GetBody().(type) {
	case *v1.NodeMessage_Hello:
		if _, err := x.f.checkHello(ctx, x.id, body.Hello); err != nil {
			return err
		}
		x.applied.Store(body.Hello.GetAppliedRevision())
		x.change(func(r *nodeRecord) {
			r.AppliedRevision = body.Hello.GetAppliedRevision()
			r.AppliedHash = clipHash(body.Hello.GetAppliedHash())
		})
		select {
		case <-x.again:
		default:
		}
		x.again <- body.Hello.GetAppliedHash() // only this goroutine sends, and there is room now
	case *v1.NodeMessage_Ack:
		x.acknowledged(body.Ack)
	case *v1.NodeMessage_Health:
		x.mu.Lock()
		dropped := x.reports.merge(body.Health)
		x.mu.Unlock()
		x.f.metrics.dropped.Add(float64(dropped))
		x.poke()
	case *v1.NodeMessage_Paths:
		x.tookPaths(body.Paths)
	case *v1.NodeMessage_Clients:
		x.tookClients(body.Clients)
	case *v1.NodeMessage_Announce:
		x.tookAnnouncements(body.Announce)
	case *v1.NodeMessage_Traffic:
		x.tookTraffic(body.Traffic)
	case *v1.NodeMessage_Explained:
		x.f.explained(body.Explained)
	case *v1.NodeMessage_Notes:
		x.change(func(r *nodeRecord) {
			r.Notes = nil
			for _, n := range body.Notes.GetNotes()[:min(len(body.Notes.GetNotes()), notesMax)] {
				r.Notes = append(r.Notes, clip(n, textMax))
			}
		})
	}
	return nil // an unknown message is a newer node's, and harmless
}

func (x *session) acknowledged(ack *v1.SnapshotAck) {
	if ack.GetApplied() {
		x.applied.Store(ack.GetRevision())
		x.change(func(r *nodeRecord) {
			r.AppliedRevision, r.AppliedHash = ack.GetRevision(), clipHash(ack.GetHash())
			if r.RejectedRevision <= ack.GetRevision() {
				r.RejectedRevision, r.Rejections = 0, nil
			}
		})
		return
	}
	x.f.metrics.rejected.Inc()
	rejections := make([]*v1.Rejection, 0, len(ack.GetRejections()))
	for _, r := range ack.GetRejections()[:min(len(ack.GetRejections()), rejectionsMax)] {
		rejections = append(rejections, &v1.Rejection{
			Field: clip(r.GetField(), textMax), Message: clip(r.GetMessage(), textMax)})
	}
	if len(rejections) == 0 {
		rejections = append(rejections, &v1.Rejection{Field: "snapshot", Message: "refused without a reason"})
	}
	x.log.Warn("node refused a snapshot", "revision", ack.GetRevision(), "first", rejections[0])
	x.change(func(r *nodeRecord) {
		r.RejectedRevision, r.Rejections = ack.GetRevision(), rejections
	})
}

func (x *session) tookPaths(report *v1.PathReport) {
	paths := report.GetPaths()
	if extra := len(paths) - pathsMax; extra > 0 {
		x.f.metrics.dropped.Add(float64(extra))
		paths = paths[:pathsMax]
	}
	for _, p := range paths {
		p.Peer = clip(p.GetPeer(), idMax)
	}
	x.mu.Lock()
	x.paths = &v1.NodePaths{Node: string(x.id), Paths: paths, Time: now()}
	x.mu.Unlock()
	x.poke()
}

// change alters the node's record, which is stored soon.
func (x *session) change(alter func(*nodeRecord)) {
	x.mu.Lock()
	alter(&x.record)
	x.changed = true
	x.mu.Unlock()
	x.poke()
}

func (x *session) poke() {
	select {
	case x.dirty <- struct{}{}:
	default:
	}
}

func clipHash(h []byte) []byte {
	if len(h) > 32 {
		return nil
	}
	return bytes.Clone(h)
}

func sameAddresses(a, b model.Node) bool {
	return slices.Equal(a.BackboneAddresses, b.BackboneAddresses) && a.GossipAddress == b.GossipAddress &&
		slices.Equal(a.ServiceAddresses, b.ServiceAddresses) &&
		a.BalanceAddress == b.BalanceAddress && a.BalanceWeight == b.BalanceWeight
}
