package edge

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/netns"
)

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// controller is a control plane that fits into a test: it enrols whoever has the token, sends every
// node the snapshot of the moment, and remembers what they say.
type controller struct {
	pb.UnimplementedEnrollServiceServer
	pb.UnimplementedNodeServiceServer
	t     *testing.T
	ca    *identity.CA
	token identity.Token
	creds *identity.Credentials
	addr  string

	mu       sync.Mutex
	snapshot *model.Snapshot
	changed  chan struct{} // closed when snapshot was replaced
	nodes    map[string]model.Node
	acks     map[string]*pb.SnapshotAck    // the last one by node id
	health   map[string]*pb.EndpointHealth // by node/group/endpoint
}

func newController(t *testing.T) *controller {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{
		t: t, ca: ca, token: identity.NewToken(ca), changed: make(chan struct{}),
		nodes: map[string]model.Node{}, acks: map[string]*pb.SnapshotAck{},
		health: map[string]*pb.EndpointHealth{},
	}
	key, request, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(request, identity.Subject{Cluster: "test", Kind: identity.KindController, Name: "c"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c.creds, err = identity.NewCredentials(leaf, key, []*x509.Certificate{ca.Certificate()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start lets the controller answer, and returns the function that kills it.
func (c *controller) start() (kill func()) {
	c.t.Helper()
	if c.addr == "" {
		c.addr = freeAddr(c.t).String() // it comes back there, while nodes try to connect
	}
	ln, err := net.Listen("tcp", c.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(c.creds.ServerTLSOptional(identity.KindNode))))
	pb.RegisterEnrollServiceServer(server, c)
	pb.RegisterNodeServiceServer(server, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	var once sync.Once
	kill = func() {
		once.Do(func() {
			server.Stop()
			<-done
		})
	}
	c.t.Cleanup(kill)
	return kill
}

func (c *controller) Enroll(_ context.Context, r *pb.EnrollRequest) (*pb.EnrollResponse, error) {
	if r.GetToken() != c.token.String() {
		return nil, status.Error(codes.Unauthenticated, "unknown token")
	}
	node, err := model.NodeFromProto(r.GetNode())
	if err != nil {
		return nil, err
	}
	node.ID = model.NodeID("n-" + node.Name)
	subject := identity.Subject{Cluster: "test", Kind: identity.KindNode, Name: string(node.ID)}
	leaf, err := c.ca.Sign(r.GetCertificateRequest(), subject, time.Hour)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.nodes[node.Name] = node
	c.mu.Unlock()
	return &pb.EnrollResponse{
		NodeId: string(node.ID), Cluster: "test", Certificate: leaf,
		CaCertificates: [][]byte{c.ca.Certificate().Raw}, Controllers: []string{c.addr},
	}, nil
}

func (c *controller) Sync(stream pb.NodeService_SyncServer) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	id := "n-" + m.GetHello().GetNode().GetName()
	if err := stream.Send(&pb.ControllerMessage{Body: &pb.ControllerMessage_Welcome{Welcome: &pb.Welcome{}}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		defer cancel()
		c.listen(id, stream)
	}()
	for {
		c.mu.Lock()
		snapshot, changed := c.snapshot, c.changed
		c.mu.Unlock()
		if snapshot != nil {
			raw, hash, err := model.EncodeSnapshot(snapshot)
			if err != nil {
				return err
			}
			u := &pb.SnapshotUpdate{Snapshot: raw, Hash: hash[:], Revision: snapshot.Revision}
			if err := stream.Send(&pb.ControllerMessage{Body: &pb.ControllerMessage_Snapshot{Snapshot: u}}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (c *controller) listen(id string, stream pb.NodeService_SyncServer) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		c.mu.Lock()
		if ack := m.GetAck(); ack != nil {
			c.acks[id] = ack
		}
		for _, h := range m.GetHealth().GetEndpoints() {
			c.health[id+"/"+h.GetGroupId()+"/"+h.GetEndpointId()] = h
		}
		c.mu.Unlock()
	}
}

// set makes a snapshot the one of the moment, with all nodes that have enrolled.
func (c *controller) set(s *model.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.Nodes == nil {
		for _, n := range c.nodes {
			s.Nodes = append(s.Nodes, n)
		}
	}
	s.Sort()
	c.snapshot = s
	close(c.changed)
	c.changed = make(chan struct{})
}

// applied waits until a node has said what became of a revision.
func (c *controller) applied(name string, revision uint64) *pb.SnapshotAck {
	c.t.Helper()
	var ack *pb.SnapshotAck
	eventually(c.t, name+" acknowledges", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		ack = c.acks["n-"+name]
		return ack != nil && ack.GetRevision() == revision
	})
	return ack
}

// verdict returns what a node has reported of an endpoint.
func (c *controller) verdict(name, group, endpoint string) pb.HealthState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health["n-"+name+"/"+group+"/"+endpoint].GetState()
}

// machine is a node of a test over its restarts.
type machine struct {
	t   *testing.T
	cfg Config

	node *Node
	stop context.CancelFunc
	done chan error
}

// newMachine returns a node's configuration on loopback with ports of its own.
func newMachine(t *testing.T, c *controller, name string, change func(*Config)) *machine {
	t.Helper()
	m := &machine{t: t, cfg: Config{
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", name),
		DataDir: t.TempDir(), Controllers: []string{c.addr}, JoinToken: c.token.String(),
		Name: name, Site: "site-" + name,
		BackboneListen: freeAddr(t), GossipListen: freeAddr(t), MetricsListen: "127.0.0.1:0",
		Version: "test", DrainTimeout: 20 * time.Second,
	}}
	change(&m.cfg)
	t.Cleanup(m.kill)
	return m
}

func (m *machine) start() *machine {
	m.t.Helper()
	cfg := m.cfg
	node, err := New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.node, m.stop, m.done = node, cancel, make(chan error, 1)
	go func(done chan error) { done <- node.Run(ctx) }(m.done)
	return m
}

// ready waits until the node says that it serves.
func (m *machine) ready() {
	m.t.Helper()
	eventually(m.t, m.cfg.Name+" is ready", func() bool { return m.node.Status().Ready })
}

// wait waits for the end of Run.
func (m *machine) wait() {
	m.t.Helper()
	if m.node == nil {
		return
	}
	select {
	case err := <-m.done:
		if err != nil {
			m.t.Errorf("%s: %v", m.cfg.Name, err)
		}
	case <-time.After(2 * patience): // of which DrainTimeout may be waited for
		m.t.Fatalf("%s did not end", m.cfg.Name)
	}
	m.node = nil
}

// kill ends the node without waiting for its flows.
func (m *machine) kill() {
	if m.node != nil {
		m.stop()
		m.node.Abort()
		m.wait()
	}
}

// freeAddr returns an address on loopback whose port was free for TCP and UDP just now.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netns.FreePort(t))
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
