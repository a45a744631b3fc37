package agent

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// cluster is an authority and what its fake controllers have heard.
type cluster struct {
	t     *testing.T
	ca    *identity.CA
	token identity.Token
	ttl   time.Duration // of nodes' certificates
	// renewed is the ttl of those that Renew gives.
	renewed time.Duration
	deny    error // what Enroll answers

	mu      sync.Mutex
	enrols  int
	renews  int
	hellos  []*pb.Hello
	notes   []string             // the latest that were heard
	heard   chan *pb.NodeMessage // all but Hellos
	streams []pb.NodeService_SyncServer
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{
		t: t, ca: ca, token: identity.NewToken(ca), ttl: time.Hour, renewed: time.Hour, heard: make(chan *pb.NodeMessage, 1000),
	}
}

// controller is one fake controller of a cluster.
type controller struct {
	pb.UnimplementedEnrollServiceServer
	pb.UnimplementedNodeServiceServer
	*cluster
	addr   string
	server *grpc.Server
}

func (c *cluster) start() *controller {
	c.t.Helper()
	key, request, err := identity.NewRequest()
	if err != nil {
		c.t.Fatal(err)
	}
	subject := identity.Subject{Cluster: "test", Kind: identity.KindController, Name: "c"}
	leaf, err := c.ca.Sign(request, subject, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	creds, err := identity.NewCredentials(leaf, key, []*x509.Certificate{c.ca.Certificate()})
	if err != nil {
		c.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	ctl := &controller{cluster: c, addr: ln.Addr().String()}
	ctl.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(creds.ServerTLSOptional(identity.KindNode))))
	pb.RegisterEnrollServiceServer(ctl.server, ctl)
	pb.RegisterNodeServiceServer(ctl.server, ctl)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctl.server.Serve(ln)
	}()
	c.t.Cleanup(func() {
		ctl.server.Stop()
		<-done
	})
	return ctl
}

func (c *cluster) sign(request []byte, ttl time.Duration) ([]byte, [][]byte, error) {
	leaf, err := c.ca.Sign(request, identity.Subject{Cluster: "test", Kind: identity.KindNode, Name: "n1"}, ttl)
	return leaf, [][]byte{c.ca.Certificate().Raw}, err
}

func (c *controller) Enroll(_ context.Context, r *pb.EnrollRequest) (*pb.EnrollResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enrols++
	if c.deny != nil {
		return nil, c.deny
	}
	if r.GetToken() != c.token.String() {
		return nil, status.Error(codes.Unauthenticated, "unknown token")
	}
	leaf, cas, err := c.sign(r.GetCertificateRequest(), c.ttl)
	return &pb.EnrollResponse{
		NodeId: "n1", Cluster: "test", Certificate: leaf, CaCertificates: cas, Controllers: []string{c.addr},
	}, err
}

func (c *controller) Renew(_ context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renews++
	leaf, cas, err := c.sign(r.GetCertificateRequest(), c.renewed)
	return &pb.RenewResponse{Certificate: leaf, CaCertificates: cas}, err
}

func (c *controller) Sync(stream pb.NodeService_SyncServer) error {
	first := true
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if h := m.GetHello(); h != nil {
			c.mu.Lock()
			c.hellos = append(c.hellos, h)
			c.mu.Unlock()
			if first {
				first = false
				welcome := &pb.Welcome{ControllerId: "c", Controllers: []string{c.addr}}
				if err := stream.Send(&pb.ControllerMessage{
					Body: &pb.ControllerMessage_Welcome{Welcome: welcome},
				}); err != nil {
					return err
				}
				c.mu.Lock()
				c.streams = append(c.streams, stream)
				c.mu.Unlock()
			}
			continue
		}
		if n := m.GetNotes(); n != nil {
			c.mu.Lock()
			c.notes = n.GetNotes()
			c.mu.Unlock()
		}
		select {
		case c.heard <- m:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// stream waits for the n-th Sync stream (from 1).
func (c *cluster) stream(n int) pb.NodeService_SyncServer {
	c.t.Helper()
	var s pb.NodeService_SyncServer
	eventually(c.t, "a Sync stream", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.streams) >= n {
			s = c.streams[n-1]
		}
		return s != nil
	})
	return s
}

func (c *cluster) helloCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.hellos)
}

// send sends a snapshot on a stream and returns the acknowledgement.
func (c *cluster) send(stream pb.NodeService_SyncServer, u *pb.SnapshotUpdate) *pb.SnapshotAck {
	c.t.Helper()
	m := &pb.ControllerMessage{Body: &pb.ControllerMessage_Snapshot{Snapshot: u}}
	if err := stream.Send(m); err != nil {
		c.t.Fatal(err)
	}
	return hear(c, func(m *pb.NodeMessage) *pb.SnapshotAck { return m.GetAck() })
}

// hear returns the next message of a kind.
func hear[M any](c *cluster, kind func(*pb.NodeMessage) *M) *M {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-c.heard:
			if v := kind(m); v != nil {
				return v
			}
		case <-deadline:
			c.t.Fatal("not heard")
		}
	}
}

func update(s stored) *pb.SnapshotUpdate {
	return &pb.SnapshotUpdate{Snapshot: s.raw, Hash: s.hash[:], Revision: s.snapshot.Revision}
}

// eventually waits for what others bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
