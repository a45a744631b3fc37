package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// protocolVersion is the version of the conversation that Hello announces.
const protocolVersion = 1

// sessions holds one session after the other until ctx ends.
func (a *Agent) sessions(ctx context.Context) error {
	retry := backoff{min: retryMin, max: retryMax}
	for {
		addr := a.controllers.next()
		began := time.Now()
		err := a.runSession(ctx, addr)
		if ctx.Err() != nil {
			return nil
		}
		a.metrics.sessionsEnded.Inc()
		level := slog.LevelWarn
		switch status.Code(err) {
		case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
			// Trying again helps only after somebody has mended something.
			level = slog.LevelError
			a.note("controller", "refuses this node: "+status.Convert(err).Message())
		}
		a.cfg.Log.Log(ctx, level, "session with a controller ended", "controller", addr, "error", err)
		if time.Since(began) > steadyAfter {
			retry.reset()
		}
		if !retry.wait(ctx) {
			return nil
		}
	}
}

// session is one Sync stream. Its reader and its writer are a goroutine each.
type session struct {
	*Agent
	addr   string
	id     string // random, so that sessions are told apart
	stream pb.NodeService_SyncClient
}

// runSession talks to one controller until the stream breaks; it always returns an error.
func (a *Agent) runSession(ctx context.Context, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(addr, a.creds.Load().ClientTLS(identity.Subject{Kind: identity.KindController}))
	if err != nil {
		return err
	}
	defer conn.Close()
	// A controller that takes the connection and says nothing must not hold this node for ever.
	slow := time.AfterFunc(connectTimeout, cancel)
	defer slow.Stop()
	stream, err := pb.NewNodeServiceClient(conn).Sync(ctx)
	if err != nil {
		return err
	}
	s := &session{Agent: a, addr: addr, id: rand.Text(), stream: stream}
	if err := s.sendHello(); err != nil {
		return s.cause(err)
	}
	welcome, err := stream.Recv()
	if err != nil {
		return err
	}
	if welcome.GetWelcome() == nil {
		return errors.New("the controller's first message is not Welcome")
	}
	slow.Stop()
	a.note("controller", "")
	s.welcome(welcome.GetWelcome())

	a.mu.Lock()
	a.session = addr
	a.health = map[healthKey]Health{} // the complete report below says it all
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.session = ""
		a.mu.Unlock()
	}()
	a.cfg.Log.Info("session with a controller", "controller", addr, "id", welcome.GetWelcome().GetControllerId())
	var g errgroup.Group
	g.Go(func() error {
		defer cancel()
		return s.write(ctx)
	})
	err = s.read()
	cancel()
	g.Wait() // says less than the reader's error
	return err
}

// cause returns why sending failed: gRPC says io.EOF there, and the reason to whoever receives.
func (s *session) cause(err error) error {
	if errors.Is(err, io.EOF) {
		_, err = s.stream.Recv()
	}
	return err
}

func (s *session) welcome(w *pb.Welcome) {
	s.controllers.learn(w.GetControllers())
	roots, err := identity.ParseCertificates(w.GetCaCertificates())
	if err != nil || len(roots) == 0 {
		return
	}
	creds := s.creds.Load()
	same := slices.EqualFunc(roots, creds.Roots(), (*x509.Certificate).Equal)
	if same {
		return
	}
	if err := creds.UpdateRoots(roots); err != nil {
		s.cfg.Log.Warn("authorities that the controller names", "error", err)
		return
	}
	s.cfg.Log.Info("authorities have changed", "count", len(roots))
	if err := creds.Save(s.identityDir()); err != nil {
		s.note("identity", "changed authorities not saved: "+err.Error())
	}
}

func (s *session) sendHello() error {
	hello := &pb.Hello{
		Version: s.cfg.Version, Protocol: protocolVersion, Node: model.NodeToProto(s.cfg.Node),
		WantsClients: s.cfg.OnClients != nil,
	}
	if c := s.current.Load(); c != nil {
		hello.AppliedRevision, hello.AppliedHash = c.revision, c.hash[:]
	}
	return s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Hello{Hello: hello}})
}

// read takes what the controller says, until the stream ends.
func (s *session) read() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		switch body := m.GetBody().(type) {
		case *pb.ControllerMessage_Welcome:
			s.welcome(body.Welcome)
		case *pb.ControllerMessage_Snapshot:
			s.snapshot(body.Snapshot)
		case *pb.ControllerMessage_Compare:
			s.compare(body.Compare)
		case *pb.ControllerMessage_Explain:
			s.explain(body.Explain)
		case *pb.ControllerMessage_TrafficAck:
			s.trafficAcked(body.TrafficAck)
		case *pb.ControllerMessage_Clients:
			s.clients(body.Clients)
		}
	}
}

// explain answers an operator's question. Beyond a few unsent answers it is dropped: nobody waits so long.
func (s *session) explain(c *pb.ExplainCall) {
	reply := &pb.ExplainReply{Id: c.GetId(), Error: "this node explains nothing"}
	if s.cfg.Explain != nil {
		r, err := s.cfg.Explain(c.GetRequest())
		if reply.Response, reply.Error = r, ""; err != nil {
			reply.Error = err.Error()
		}
	}
	s.mu.Lock()
	if len(s.replies) < repliesMax {
		s.replies = append(s.replies, reply)
	}
	s.mu.Unlock()
	s.poke()
}

// compare asks for a snapshot if the controller has another one. Not for one that was refused:
// it would be refused again.
func (s *session) compare(c *pb.Compare) {
	same := func(a *applied) bool {
		return a != nil && a.revision == c.GetRevision() && string(a.hash[:]) == string(c.GetHash())
	}
	now := s.current.Load()
	s.mu.Lock()
	refused := same(s.rejected)
	s.mu.Unlock()
	if same(now) || refused || now != nil && now.revision > c.GetRevision() {
		return
	}
	s.askAgain()
}

func (s *session) askAgain() {
	s.mu.Lock()
	s.hello = true
	s.mu.Unlock()
	s.poke()
}

// errOlder refuses a snapshot that would take the node back in time.
var errOlder = errors.New("is older than the snapshot in use")

// snapshot takes an update and acknowledges what became of it.
func (s *session) snapshot(u *pb.SnapshotUpdate) {
	err := s.take(u)
	ack := &pb.SnapshotAck{Revision: u.GetRevision(), Hash: u.GetHash(), Applied: err == nil}
	s.mu.Lock()
	if err == nil {
		s.rejected, s.why = nil, ""
	} else {
		s.rejected = &applied{revision: u.GetRevision(), at: time.Now()}
		copy(s.rejected.hash[:], u.GetHash())
		s.why = err.Error()
		ack.Rejections = rejections(err)
	}
	if s.acks = append(s.acks, ack); len(s.acks) > acksMax {
		s.acks = s.acks[1:]
	}
	s.mu.Unlock()
	s.metrics.snapshot(err)
	if err != nil {
		s.cfg.Log.Error("snapshot refused", "revision", u.GetRevision(), "error", err)
	}
	s.poke()
}

// take verifies a snapshot and applies it.
func (s *session) take(u *pb.SnapshotUpdate) (err error) {
	defer func() { // apply has its own; this one is for decoding
		if p := recover(); p != nil {
			err = fmt.Errorf("panic while reading: %v", p)
		}
	}()
	next := stored{raw: u.GetSnapshot(), hash: sha256.Sum256(u.GetSnapshot())}
	if string(next.hash[:]) != string(u.GetHash()) {
		return errors.New("its hash is not that of its bytes")
	}
	if now := s.current.Load(); now != nil {
		if u.GetRevision() < now.revision {
			return fmt.Errorf("revision %d %w, %d", u.GetRevision(), errOlder, now.revision)
		}
		if u.GetRevision() == now.revision && next.hash == now.hash {
			return nil
		}
	}
	if s.trials.suspect(next.hash) {
		return errors.New("it crashed this node and is held back for a while")
	}
	if next.snapshot, err = model.DecodeSnapshot(next.raw); err != nil {
		return err
	}
	if next.snapshot.Revision != u.GetRevision() {
		return fmt.Errorf("it holds revision %d, announced was %d", next.snapshot.Revision, u.GetRevision())
	}
	if cluster := s.creds.Load().Subject().Cluster; next.snapshot.Cluster != cluster {
		return fmt.Errorf("it is of cluster %q, this node of %q", next.snapshot.Cluster, cluster)
	}
	if err := s.apply(next, false); err != nil {
		return err
	}
	s.save(next)
	return nil
}

// rejections turns an error into what a controller shows to people.
func rejections(err error) []*pb.Rejection {
	var fields model.FieldErrors
	if !errors.As(err, &fields) {
		return []*pb.Rejection{{Field: "snapshot", Message: err.Error()}}
	}
	var list []*pb.Rejection
	for _, f := range fields[:min(len(fields), rejectionsMax)] {
		list = append(list, &pb.Rejection{Field: f.Field, Message: f.Message})
	}
	return list
}

// write says what there is to say, until the stream ends.
func (s *session) write(ctx context.Context) error {
	full, paths, seen := time.NewTicker(healthInterval), time.NewTicker(pathsInterval), time.NewTicker(clientsEvery)
	defer seen.Stop()
	var pace clientsPace
	defer full.Stop()
	defer paths.Stop()
	if err := s.sendHealth(s.allHealth(), true); err != nil {
		return err
	}
	var notes []string
	var announced *pb.AnnounceReport
	tellNotes := true
	for {
		if err := s.sendQueued(); err != nil {
			return err
		}
		if err := s.sendTraffic(); err != nil {
			return err
		}
		if now := s.allNotes(); tellNotes || !slices.Equal(now, notes) {
			notes, tellNotes = now, false
			m := &pb.NodeMessage{Body: &pb.NodeMessage_Notes{Notes: &pb.NodeNotes{Notes: notes}}}
			if err := s.stream.Send(m); err != nil {
				return err
			}
		}
		if s.cfg.Announce != nil {
			if now := s.cfg.Announce(); announced == nil || !proto.Equal(now, announced) {
				announced = now
				m := &pb.NodeMessage{Body: &pb.NodeMessage_Announce{Announce: now}}
				if err := s.stream.Send(m); err != nil {
					return err
				}
			}
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-full.C:
			err = s.sendHealth(s.allHealth(), true)
		case <-paths.C:
			err = s.sendPaths()
		case now := <-seen.C:
			err = s.sendClients(&pace, now)
		}
		if err != nil {
			return err
		}
	}
}

// sendQueued sends a Hello that is wanted, acknowledgements, and changed verdicts.
func (s *session) sendQueued() error {
	s.mu.Lock()
	hello, acks, changed := s.hello, s.acks, s.health
	s.hello, s.acks, s.health = false, nil, map[healthKey]Health{}
	replies := s.replies
	s.replies = nil
	s.mu.Unlock()
	for _, r := range replies {
		if err := s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Explained{Explained: r}}); err != nil {
			return err
		}
	}
	for _, ack := range acks {
		if err := s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Ack{Ack: ack}}); err != nil {
			return err
		}
	}
	if hello {
		if err := s.sendHello(); err != nil {
			return err
		}
	}
	if len(changed) == 0 {
		return nil
	}
	list := make([]Health, 0, len(changed))
	for _, h := range changed {
		list = append(list, h)
	}
	return s.sendHealth(list, false)
}

func (s *session) allHealth() []Health {
	if s.cfg.Health == nil {
		return nil
	}
	return s.cfg.Health()
}

func (s *session) allNotes() []string {
	notes := s.Notes()
	if s.cfg.Notes != nil {
		notes = append(notes, s.cfg.Notes()...)
	}
	return notes
}

func (s *session) sendHealth(list []Health, complete bool) error {
	report := &pb.HealthReport{Complete: complete}
	for _, h := range list {
		e := &pb.EndpointHealth{
			GroupId: string(h.Group), EndpointId: string(h.Endpoint),
			State: model.HealthStateToProto(h.State), Reason: h.Reason,
		}
		if !h.Since.IsZero() {
			e.Since = timestamppb.New(h.Since)
		}
		if h.Latency > 0 {
			e.Latency = durationpb.New(h.Latency)
		}
		report.Endpoints = append(report.Endpoints, e)
	}
	return s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Health{Health: report}})
}

func (s *session) sendPaths() error {
	if s.cfg.Paths == nil {
		return nil
	}
	report := new(pb.PathReport)
	for _, p := range s.cfg.Paths() {
		report.Paths = append(report.Paths, &pb.Path{
			Peer: string(p.Peer), Rtt: durationpb.New(p.RTT), Loss: p.Loss,
			Carriers: uint32(max(p.Carriers, 0)), Udp: p.UDP, Up: p.Up,
		})
	}
	return s.stream.Send(&pb.NodeMessage{Body: &pb.NodeMessage_Paths{Paths: report}})
}
