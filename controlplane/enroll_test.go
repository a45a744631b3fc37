package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/proto/identity"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func newCSR(t testing.TB) []byte {
	t.Helper()
	_, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestEnrollScope(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	edgeOnly := func(n *v1.Node) { n.Gateway = false }
	for name, tc := range map[string]struct {
		token func(*v1.JoinToken)
		node  func(*v1.Node)
		want  codes.Code
	}{
		"any":                {nil, nil, codes.OK},
		"the site":           {func(j *v1.JoinToken) { j.Site = "ams" }, nil, codes.OK},
		"another site":       {func(j *v1.JoinToken) { j.Site = "nyc" }, nil, codes.PermissionDenied},
		"another name":       {func(j *v1.JoinToken) { j.NodeName = "somebody" }, nil, codes.PermissionDenied},
		"no gateway allowed": {func(j *v1.JoinToken) { j.AllowGateway = false }, nil, codes.PermissionDenied},
		"no edge allowed":    {func(j *v1.JoinToken) { j.AllowEdge = false }, nil, codes.PermissionDenied},
		"edge only":          {func(j *v1.JoinToken) { j.AllowGateway = false }, edgeOnly, codes.OK},
		"no role":            {nil, func(n *v1.Node) { n.Edge, n.Gateway = false, false }, codes.InvalidArgument},
		"no name":            {nil, func(n *v1.Node) { n.Name = "" }, codes.InvalidArgument},
		"unknown site":       {nil, func(n *v1.Node) { n.Site = "atlantis" }, codes.NotFound},
		"ended": {func(j *v1.JoinToken) {
			j.Expires = timestamppb.New(time.Now().Add(3 * time.Second))
		}, nil, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.token == nil {
				tc.token = func(*v1.JoinToken) {}
			}
			id, secret := o.joinToken(t, tc.token)
			n := nodeAt(strings.NewReplacer(" ", "-").Replace("n-"+name), "ams")
			if tc.node != nil {
				tc.node(n)
			}
			if name == "ended" {
				eventually(t, "the token ends", func() error {
					if len(o.tokens(t, id)) == 1 && time.Now().After(o.tokens(t, id)[0].GetExpires().AsTime()) {
						return nil
					}
					return errors.New("not yet")
				})
			}
			resp, err := enrollAt(t, c.addr, secret, newCSR(t), n)
			wantCode(t, "enrol", err, tc.want)
			uses := uint32(0)
			if tc.want == codes.OK {
				uses = 1
				if got := resp.GetControllers(); len(got) != 1 || got[0] != c.addr {
					t.Errorf("controllers %v, want %s", got, c.addr)
				}
			}
			if got := o.tokens(t, id)[0].GetUses(); got != uses {
				t.Errorf("the token was used %d times, want %d", got, uses)
			}
		})
	}
}

// tokens returns the join tokens with an id.
func (o *operator) tokens(t testing.TB, id string) []*v1.JoinToken {
	t.Helper()
	var found []*v1.JoinToken
	list := must[*v1.ListJoinTokensResponse](t)(o.ListJoinTokens(t.Context(), &v1.ListRequest{PageSize: 1000}))
	for _, j := range list.GetTokens() {
		if j.GetId() == id {
			found = append(found, j)
		}
	}
	return found
}

func TestTokenUses(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)

	id, secret := o.joinToken(t, func(j *v1.JoinToken) { j.SingleUse = true })
	csr, n := newCSR(t), nodeAt("first", "ams")
	// A use that fails is not counted.
	bad := nodeAt("first", "atlantis")
	_, err := enrollAt(t, c.addr, secret, csr, bad)
	wantCode(t, "unknown site", err, codes.NotFound)
	first := must[*v1.EnrollResponse](t)(enrollAt(t, c.addr, secret, csr, n))
	// The answer was lost: the same key asks again and is the same node.
	again := must[*v1.EnrollResponse](t)(enrollAt(t, c.addr, secret, csr, n))
	if first.GetNodeId() != again.GetNodeId() {
		t.Errorf("the same machine became %s and %s", first.GetNodeId(), again.GetNodeId())
	}
	_, err = enrollAt(t, c.addr, secret, newCSR(t), nodeAt("second", "ams"))
	wantCode(t, "a second use", err, codes.Unauthenticated)
	if uses := o.tokens(t, id)[0].GetUses(); uses != 1 {
		t.Errorf("%d uses, want 1", uses)
	}

	// Names are unique, and the refused use is given back.
	id, secret = o.joinToken(t)
	_, err = enrollAt(t, c.addr, secret, newCSR(t), nodeAt("first", "ams"))
	wantCode(t, "a name that is taken", err, codes.AlreadyExists)
	if uses := o.tokens(t, id)[0].GetUses(); uses != 0 {
		t.Errorf("%d uses after a refusal, want 0", uses)
	}

	if _, err := o.DeleteJoinToken(t.Context(), &v1.DeleteRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	_, err = enrollAt(t, c.addr, secret, newCSR(t), nodeAt("third", "ams"))
	wantCode(t, "a revoked token", err, codes.Unauthenticated)
	_, err = o.DeleteJoinToken(t.Context(), &v1.DeleteRequest{Id: id})
	wantCode(t, "revoke again", err, codes.NotFound)

	_, secret = o.joinToken(t)
	_, err = enrollAt(t, c.addr, secret+"x", newCSR(t), nodeAt("x", "ams"))
	wantCode(t, "a wrong secret", err, codes.Unauthenticated)
}

// Many machines use a single-use token at the same moment: one of them gets in.
func TestSingleUseIsAtomic(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	_, secret := o.joinToken(t, func(j *v1.JoinToken) { j.SingleUse = true })
	const machines = 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[codes.Code]int{}
	for i := range machines {
		csr, n := newCSR(t), nodeAt("n"+string(rune('a'+i)), "ams")
		wg.Go(func() {
			_, err := enrollAt(t, c.addr, secret, csr, n)
			mu.Lock()
			defer mu.Unlock()
			got[status.Code(err)]++
		})
	}
	wg.Wait()
	if got[codes.OK] != 1 || got[codes.OK]+got[codes.Unauthenticated]+got[codes.Aborted] != machines {
		t.Errorf("outcomes %v, want one OK", got)
	}
	nodes := must[*v1.ListNodesResponse](t)(o.ListNodes(t.Context(), &v1.ListRequest{}))
	if len(nodes.GetNodes()) != 1 {
		t.Errorf("%d nodes, want 1", len(nodes.GetNodes()))
	}
}

// A machine in the middle that has a certificate of its own authority gets a handshake and no secret.
func TestSecretStaysWithImpostor(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	_, secret := o.joinToken(t)

	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(ca.Sign(csr, identity.Subject{Cluster: "test", Kind: identity.KindController,
		Name: "c1"}, time.Hour))
	creds := must[*identity.Credentials](t)(identity.NewCredentials(der, key, certsOf(ca)))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			heard <- err.Error()
			return
		}
		defer raw.Close()
		cfg := creds.ControllerTLS()
		cfg.NextProtos = []string{"h2"}
		data, _ := io.ReadAll(tls.Server(raw, cfg))
		heard <- string(data)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	parsed := must[identity.Token](t)(identity.ParseToken(secret))
	cc := dial(t, l.Addr().String(), identity.JoinTLS(parsed.CAHash))
	_, err = v1.NewEnrollServiceClient(cc).Enroll(ctx, &v1.EnrollRequest{Token: secret})
	cc.Close()
	l.Close()
	wantCode(t, "enrol at an impostor", err, codes.Unavailable)
	if !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
	if data := <-heard; strings.Contains(data, parsed.Secret) {
		t.Error("the impostor was sent the secret")
	} else if data != "" {
		t.Errorf("the impostor was sent %q", data)
	}
}

// A node whose certificate has ended may renew it, and nothing else.
func TestRenew(t *testing.T) {
	c := start(t)
	o := adminOf(t, c.cfg.DataDir, c.addr)
	o.furnish(t)
	n := o.join(t, c.addr, "n1", "ams")
	renew := func() (*v1.RenewResponse, error) {
		return n.client(t, c.addr).Renew(t.Context(), &v1.RenewRequest{CertificateRequest: newCSR(t)})
	}
	if _, err := renew(); err != nil {
		t.Fatal(err)
	}
	_, err := n.client(t, c.addr).Renew(t.Context(), &v1.RenewRequest{CertificateRequest: []byte("x")})
	wantCode(t, "a bad request", err, codes.InvalidArgument)

	key, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(c.authority.CA().Sign(csr, n.creds.Subject(), time.Nanosecond))
	if err := n.creds.Update(der, key, n.creds.Roots()); err != nil {
		t.Fatal(err)
	}
	if got := n.sync(t, c.addr, apply).end(t); got != codes.Unauthenticated {
		t.Errorf("sync with a certificate that has ended: %v", got)
	}
	if _, err := renew(); err != nil {
		t.Errorf("renew a certificate that has ended: %v", err)
	}

	_, err = o.UpdateNode(t.Context(), &v1.UpdateNodeRequest{Node: &v1.Node{Id: n.id,
		State: v1.NodeState_NODE_STATE_REVOKED}, UpdateMask: mask("state")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = renew()
	wantCode(t, "a revoked node renews", err, codes.PermissionDenied)
}
