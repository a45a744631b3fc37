package controlplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
	"github.com/nearcast/nearcast/testbed/leak"
	"github.com/nearcast/nearcast/testbed/netns"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is how long a test waits for what must happen; it is a bound and not a measure.
const patience = 60 * time.Second

// testController is a running controller.
type testController struct {
	*Controller
	addr string
	stop func()
}

// start runs a controller until the test ends or stop is called, and waits until it is ready.
func start(t testing.TB, change ...func(*Config)) *testController {
	t.Helper()
	cfg := Config{
		Cluster: "test", DataDir: t.TempDir(), Listen: netns.FreeAddr(t), StopTimeout: 2 * time.Second,
		Version: "test", Store: StoreConfig{NoSync: true, Timeout: patience / 2},
	}
	if os.Getenv("NEARCAST_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	var once sync.Once
	tc := &testController{Controller: c, addr: cfg.Listen}
	tc.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(patience):
				t.Errorf("Run has not ended within %v", patience)
			}
		})
	}
	t.Cleanup(tc.stop)
	eventually(t, "the controller is ready", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("Run: %v", err)
		default:
		}
		return c.ready(ctx)
	})
	return tc
}

// eventually waits until check says nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// operator is a client with an operator's token.
type operator struct {
	v1.AdminServiceClient
	conn  *grpc.ClientConn
	roots []*x509.Certificate
}

// adminOf returns a client with the credentials that the first start left in dir, at addr.
func adminOf(t testing.TB, dir, addr string) *operator {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, contextFile))
	if err != nil {
		t.Fatal(err)
	}
	var file contexts
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		t.Fatal(err)
	}
	roots, err := identity.ParseCertificatesPEM([]byte(file.Contexts[0].CA))
	if err != nil {
		t.Fatal(err)
	}
	return withToken(t, addr, roots, file.Contexts[0].Token)
}

func withToken(t testing.TB, addr string, roots []*x509.Certificate, token string) *operator {
	t.Helper()
	cc := dial(t, addr, identity.AnonymousTLS(roots, identity.Subject{Kind: identity.KindController}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
			invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
			return invoke(ctx, method, req, reply, cc, opts...)
		}))
	return &operator{v1.NewAdminServiceClient(cc), cc, roots}
}

func dial(t testing.TB, addr string, cfg *tls.Config, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(model.SnapshotBytesMax+1<<20)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// must returns a function that passes a value on and fails the test on an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantCode(t testing.TB, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v (%v), want %v", what, got, err, want)
	}
}

// furnish makes sites ams and nyc and two anycast pools.
func (o *operator) furnish(t testing.TB) {
	t.Helper()
	for name, region := range map[string]string{"ams": "eu", "nyc": "us"} {
		must[*v1.Site](t)(o.CreateSite(t.Context(), &v1.CreateSiteRequest{
			Site: &v1.Site{Name: name, Region: region}}))
	}
	for name, prefix := range map[string]string{"a": "198.51.100.0/28", "b": "203.0.113.0/28"} {
		must[*v1.Pool](t)(o.CreatePool(t.Context(), &v1.CreatePoolRequest{Pool: &v1.Pool{
			Name: name, Zone: name, Kind: v1.PoolKind_POOL_KIND_ANYCAST, Prefixes: []string{prefix}}}))
	}
}

// joinToken makes a token that allows everything for an hour, unless change says otherwise.
func (o *operator) joinToken(t testing.TB, change ...func(*v1.JoinToken)) (id, secret string) {
	t.Helper()
	token := &v1.JoinToken{AllowEdge: true, AllowGateway: true}
	for _, f := range change {
		f(token)
	}
	resp := must[*v1.CreateJoinTokenResponse](t)(o.CreateJoinToken(t.Context(),
		&v1.CreateJoinTokenRequest{Token: token}))
	return resp.GetToken().GetId(), resp.GetSecret()
}

// enrollAt asks for an identity as a machine without one does: it knows the token and an address.
func enrollAt(t testing.TB, addr, token string, csr []byte, n *v1.Node) (*v1.EnrollResponse, error) {
	t.Helper()
	parsed, err := identity.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	cc := dial(t, addr, identity.JoinTLS(parsed.CAHash))
	defer cc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return v1.NewEnrollServiceClient(cc).Enroll(ctx, &v1.EnrollRequest{
		Token: token, CertificateRequest: csr, Node: n})
}

// testNode is a machine that has joined.
type testNode struct {
	id    string
	node  *v1.Node
	creds *identity.Credentials
}

// join enrols a node called name at a site.
func (o *operator) join(t testing.TB, addr, name, site string) *testNode {
	t.Helper()
	_, token := o.joinToken(t)
	return o.joinWith(t, addr, token, nodeAt(name, site))
}

// joinWith enrols a node with a token.
func (o *operator) joinWith(t testing.TB, addr, token string, n *v1.Node) *testNode {
	t.Helper()
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	resp := must[*v1.EnrollResponse](t)(enrollAt(t, addr, token, csr, n))
	roots := must[[]*x509.Certificate](t)(identity.ParseCertificates(resp.GetCaCertificates()))
	creds := must[*identity.Credentials](t)(identity.NewCredentials(resp.GetCertificate(), key, roots))
	return &testNode{resp.GetNodeId(), n, creds}
}

var lastAddress = struct {
	sync.Mutex
	n int
}{}

func nodeAt(name, site string) *v1.Node {
	lastAddress.Lock()
	defer lastAddress.Unlock()
	lastAddress.n++
	host := fmt.Sprintf("192.0.2.%d", lastAddress.n)
	return &v1.Node{Name: name, Site: site, Edge: true, Gateway: true,
		BackboneAddresses: []string{host + ":7444"}, GossipAddress: host + ":7445"}
}

func (n *testNode) client(t testing.TB, addr string) v1.NodeServiceClient {
	t.Helper()
	return v1.NewNodeServiceClient(dial(t, addr, n.creds.ClientTLS(
		identity.Subject{Kind: identity.KindController})))
}

// conversation is a node's Sync stream. What the controller says is taken by a goroutine, and each
// snapshot answered by answer.
type conversation struct {
	v1.NodeService_SyncClient
	cancel context.CancelFunc
	sender sync.Mutex // a stream takes one message at a time: the reader's answers and the test's

	mu       sync.Mutex
	cond     *sync.Cond
	welcome  *v1.Welcome
	snapshot *model.Snapshot
	updates  int
	repeats  int // updates that were the one before
	last     []byte
	compares int
	err      error // how it ended
}

// apply acknowledges every snapshot; refuse refuses every one.
func apply(u *v1.SnapshotUpdate) *v1.SnapshotAck {
	return &v1.SnapshotAck{Revision: u.GetRevision(), Hash: u.GetHash(), Applied: true}
}

func refuse(u *v1.SnapshotUpdate) *v1.SnapshotAck {
	return &v1.SnapshotAck{Revision: u.GetRevision(), Hash: u.GetHash(), Rejections: []*v1.Rejection{{
		Field: "listeners[1].port_ranges[0].to", Message: "is odd"}}}
}

// sync opens the node's stream at a controller.
func (n *testNode) sync(t testing.TB, addr string,
	answer func(*v1.SnapshotUpdate) *v1.SnapshotAck) *conversation {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream := must[v1.NodeService_SyncClient](t)(n.client(t, addr).Sync(ctx))
	c := &conversation{NodeService_SyncClient: stream, cancel: cancel}
	c.cond = sync.NewCond(&c.mu)
	hello := &v1.Hello{Version: "1.2.3", Protocol: 1, Node: n.node}
	// io.EOF: the controller has refused already, and the reader is told why.
	err := stream.Send(&v1.NodeMessage{Body: &v1.NodeMessage_Hello{Hello: hello}})
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.read(answer)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

// Send sends a message, from any goroutine.
func (c *conversation) Send(m *v1.NodeMessage) error {
	c.sender.Lock()
	defer c.sender.Unlock()
	return c.NodeService_SyncClient.Send(m)
}

func (c *conversation) read(answer func(*v1.SnapshotUpdate) *v1.SnapshotAck) {
	for {
		m, err := c.Recv()
		c.mu.Lock()
		var ack *v1.SnapshotAck
		switch {
		case err != nil:
			c.err = err
		case m.GetWelcome() != nil:
			c.welcome = m.GetWelcome()
		case m.GetCompare() != nil:
			c.compares++
		case m.GetSnapshot() != nil:
			c.snapshot, c.err = decode(m.GetSnapshot())
			c.updates++
			if bytes.Equal(m.GetSnapshot().GetHash(), c.last) {
				c.repeats++
			}
			c.last = m.GetSnapshot().GetHash()
			if answer != nil {
				ack = answer(m.GetSnapshot())
			}
		}
		c.cond.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
		if ack != nil {
			c.Send(&v1.NodeMessage{Body: &v1.NodeMessage_Ack{Ack: ack}})
		}
	}
}

func decode(u *v1.SnapshotUpdate) (*model.Snapshot, error) {
	if h := sha256.Sum256(u.GetSnapshot()); string(h[:]) != string(u.GetHash()) {
		return nil, fmt.Errorf("hash %x is not %x", u.GetHash(), h)
	}
	s, err := model.DecodeSnapshot(u.GetSnapshot())
	if err == nil && s.Revision != u.GetRevision() {
		err = fmt.Errorf("revision %d in a message of %d", s.Revision, u.GetRevision())
	}
	return s, err
}

// wait waits until ok holds of the conversation.
func (c *conversation) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.AfterFunc(patience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err == nil {
			c.err = context.DeadlineExceeded
		}
		c.cond.Broadcast()
	})
	defer late.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !ok() {
		if c.err != nil {
			t.Fatalf("%s: the conversation ended: %v", what, c.err)
		}
		c.cond.Wait()
	}
}

// end waits until the controller ends the conversation, and returns how.
func (c *conversation) end(t testing.TB) codes.Code {
	t.Helper()
	var code codes.Code
	c.wait(t, "the stream ends", func() bool {
		code = status.Code(c.err)
		return c.err != nil && code != codes.Unknown
	})
	return code
}

// say sends a message.
func (c *conversation) say(t testing.TB, m *v1.NodeMessage) {
	t.Helper()
	if err := c.Send(m); err != nil {
		t.Fatal(err)
	}
}

// hello is the first message of a node that says nothing of itself.
func hello() *v1.NodeMessage {
	return &v1.NodeMessage{Body: &v1.NodeMessage_Hello{Hello: &v1.Hello{Protocol: 1}}}
}
