package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func newCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, kind Kind, name string, roots ...*x509.Certificate) *Credentials {
	t.Helper()
	return issueFor(t, ca, kind, name, time.Hour, roots...)
}

func issueFor(t *testing.T, ca *CA, kind Kind, name string, ttl time.Duration,
	roots ...*x509.Certificate) *Credentials {
	t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Sign(csr, Subject{Cluster: ca.Cluster(), Kind: kind, Name: name}, ttl)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCredentials(der, key, append([]*x509.Certificate{ca.Certificate()}, roots...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// handshake runs one TLS handshake over loopback and returns both ends' errors, and whom the
// server saw. A byte crosses both ways, since a TLS 1.3 client learns of a refusal only afterwards.
func handshake(t *testing.T, server, client *tls.Config) (peer Subject, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		raw.SetDeadline(time.Now().Add(time.Minute))
		c := tls.Server(raw, server)
		defer c.Close()
		if serverErr = c.Handshake(); serverErr != nil {
			return
		}
		peer, serverErr = PeerSubject(c.ConnectionState())
		if errors.Is(serverErr, ErrNoCertificate) {
			serverErr = nil
		}
		c.Write([]byte{1})
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(time.Minute))
	c := tls.Client(raw, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	c.Close()
	<-done
	return peer, serverErr, clientErr
}

func TestHandshakes(t *testing.T) {
	ca, other := newCA(t, "prod"), newCA(t, "prod")
	node, ctrl := issue(t, ca, KindNode, "n1"), issue(t, ca, KindController, "c1")
	stranger := issue(t, other, KindNode, "n1")
	operator := issue(t, ca, KindOperator, "alice")
	roots := []*x509.Certificate{ca.Certificate()}
	wantCtrl := Subject{Kind: KindController}

	for name, tc := range map[string]struct {
		server, client *tls.Config
		peer           string // empty: no certificate seen
		refusedBy      string // "", "server", "client"
	}{
		"node to controller": {ctrl.ServerTLS(KindNode), node.ClientTLS(wantCtrl), "spiffe://prod/node/n1", ""},
		"node to node": {node.ServerTLS(KindNode), issue(t, ca, KindNode, "n2").ClientTLS(
			Subject{Kind: KindNode, Name: "n1"}), "spiffe://prod/node/n2", ""},
		"wrong name": {node.ServerTLS(KindNode), issue(t, ca, KindNode, "n2").ClientTLS(
			Subject{Kind: KindNode, Name: "n3"}), "", "client"},
		"wrong kind of server": {node.ServerTLS(KindNode), node.ClientTLS(wantCtrl), "", "client"},
		"wrong kind of client": {ctrl.ServerTLS(KindNode), operator.ClientTLS(wantCtrl), "", "server"},
		"no kind accepted":     {ctrl.ServerTLS(), node.ClientTLS(wantCtrl), "", "server"},
		"another authority's client": {ctrl.ServerTLS(KindNode), func() *tls.Config {
			c := stranger.ClientTLS(wantCtrl)
			c.VerifyConnection = nil
			return c
		}(), "", "server"},
		"another authority's server": {stranger.ServerTLS(KindNode), node.ClientTLS(
			Subject{Kind: KindNode}), "", "client"},
		"no certificate":          {ctrl.ServerTLS(KindNode), AnonymousTLS(roots, wantCtrl), "", "server"},
		"no certificate, allowed": {ctrl.ServerTLSOptional(KindNode), AnonymousTLS(roots, wantCtrl), "", ""},
		"optional but bad": {ctrl.ServerTLSOptional(KindNode), func() *tls.Config {
			c := stranger.ClientTLS(wantCtrl)
			c.VerifyConnection = nil
			return c
		}(), "", "server"},
		"anonymous, wrong cluster": {ctrl.ServerTLSOptional(), AnonymousTLS(roots,
			Subject{Cluster: "test", Kind: KindController}), "", "client"},
		"join":             {ctrl.ServerTLSOptional(), JoinTLS(ca.Hash()), "", ""},
		"join, wrong hash": {ctrl.ServerTLSOptional(), JoinTLS(other.Hash()), "", "client"},
		"join at a node":   {node.ServerTLSOptional(), JoinTLS(ca.Hash()), "", "client"},
		"operator is not a server": {operator.ServerTLSOptional(),
			AnonymousTLS(roots, Subject{Kind: KindOperator}), "", "client"},
		"TLS 1.2": {ctrl.ServerTLSOptional(), &tls.Config{InsecureSkipVerify: true,
			MaxVersion: tls.VersionTLS12}, "", "server"},
	} {
		t.Run(name, func(t *testing.T) {
			peer, serverErr, clientErr := handshake(t, tc.server, tc.client)
			switch tc.refusedBy {
			case "":
				if serverErr != nil || clientErr != nil {
					t.Fatalf("server: %v; client: %v", serverErr, clientErr)
				}
				if tc.peer == "" && peer == (Subject{}) {
					return
				}
				if peer.String() != tc.peer {
					t.Errorf("the server saw %v, want %v", peer, tc.peer)
				}
			case "server":
				if serverErr == nil {
					t.Error("the server accepted")
				}
			case "client":
				if clientErr == nil {
					t.Error("the client accepted")
				}
			}
		})
	}
}

// A chain that holds the right authority beside a leaf of another one must not pass: anybody can
// copy the authority's public certificate.
func TestJoinRefusesBorrowedAuthority(t *testing.T) {
	ca, evil := newCA(t, "prod"), newCA(t, "prod")
	mitm := issue(t, evil, KindController, "c1")
	chain := *mitm.current.Load().tls
	chain.Certificate = [][]byte{mitm.Leaf().Raw, ca.Certificate().Raw}
	server := &tls.Config{Certificates: []tls.Certificate{chain}, MinVersion: tls.VersionTLS13}
	if _, _, err := handshake(t, server, JoinTLS(ca.Hash())); err == nil {
		t.Fatal("the joining machine accepted a leaf of another authority")
	}
}

func TestExpiredLeafIsRefused(t *testing.T) {
	ca := newCA(t, "prod")
	ctrl := issue(t, ca, KindController, "c1")
	node := issueFor(t, ca, KindNode, "n1", time.Nanosecond)
	_, serverErr, _ := handshake(t, ctrl.ServerTLS(KindNode), node.ClientTLS(Subject{Kind: KindController}))
	if serverErr == nil || !strings.Contains(serverErr.Error(), "expired") {
		t.Fatalf("server error %v, want one that says expired", serverErr)
	}
}

// An ended certificate of a node passes ControllerTLS and is told apart there; nobody else's does.
func TestRenewGrace(t *testing.T) {
	ca := newCA(t, "prod")
	ctrl := issue(t, ca, KindController, "c1")
	want := Subject{Kind: KindController}
	node := issueFor(t, ca, KindNode, "n1", time.Nanosecond)
	server := ctrl.ControllerTLS()
	inner := server.VerifyConnection
	var expired bool
	server.VerifyConnection = func(cs tls.ConnectionState) error {
		expired = Expired(cs)
		return inner(cs)
	}
	if _, serverErr, _ := handshake(t, server, node.ClientTLS(want)); serverErr != nil || !expired {
		t.Errorf("ended node: %v, expired %v", serverErr, expired)
	}
	fresh := issue(t, ca, KindNode, "n1")
	if _, serverErr, _ := handshake(t, server, fresh.ClientTLS(want)); serverErr != nil || expired {
		t.Errorf("fresh node: %v, expired %v", serverErr, expired)
	}
	operator := issueFor(t, ca, KindOperator, "alice", time.Nanosecond)
	if _, serverErr, _ := handshake(t, server, operator.ClientTLS(want)); serverErr == nil {
		t.Error("an ended operator's certificate was accepted")
	}
	long := node.Leaf().NotAfter.Add(-RenewGrace)
	leaf := *node.Leaf()
	leaf.NotAfter = long
	if _, err := verify([]*x509.Certificate{&leaf}, node.current.Load().pool, x509.ExtKeyUsageClientAuth,
		RenewGrace); err == nil {
		t.Error("a certificate that ended long ago was accepted")
	}
}

// Rotation: both authorities are trusted everywhere, then leaves move to the new one, then the old
// one goes. Configs made at the very start serve throughout.
func TestRotation(t *testing.T) {
	old, fresh := newCA(t, "prod"), newCA(t, "prod")
	ctrl, node := issue(t, old, KindController, "c1"), issue(t, old, KindNode, "n1")
	server, client := ctrl.ServerTLS(KindNode), node.ClientTLS(Subject{Kind: KindController})
	check := func(step string, ok bool) {
		t.Helper()
		_, serverErr, clientErr := handshake(t, server, client)
		if (serverErr == nil && clientErr == nil) != ok {
			t.Fatalf("%s: server: %v; client: %v", step, serverErr, clientErr)
		}
	}
	reissue := func(c *Credentials, roots ...*x509.Certificate) {
		t.Helper()
		n := issue(t, fresh, c.Subject().Kind, c.Subject().Name).current.Load()
		if err := c.Update(n.leaf.Raw, n.key, roots); err != nil {
			t.Fatal(err)
		}
	}
	both := []*x509.Certificate{old.Certificate(), fresh.Certificate()}
	check("before", true)
	for _, c := range []*Credentials{ctrl, node} {
		if err := c.UpdateRoots(both); err != nil {
			t.Fatal(err)
		}
	}
	check("both trusted", true)
	reissue(ctrl, both...)
	check("controller moved", true)
	reissue(node, fresh.Certificate())
	check("node moved and forgot the old one", true)
	if err := ctrl.UpdateRoots([]*x509.Certificate{fresh.Certificate()}); err != nil {
		t.Fatal(err)
	}
	check("old one gone", true)
	if err := ctrl.UpdateRoots([]*x509.Certificate{old.Certificate()}); err == nil {
		t.Fatal("roots that do not include the leaf's authority were accepted")
	}
	check("after a refused change", true)
}

func TestSign(t *testing.T) {
	ca := newCA(t, "prod")
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	request := func(key crypto.Signer) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			DNSNames: []string{"evil.example"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	forged := request(p256)
	forged[len(forged)-1] ^= 1
	ok := Subject{"prod", KindNode, "n1"}
	for name, tc := range map[string]struct {
		csr []byte
		s   Subject
	}{
		"another cluster":      {csr, Subject{"test", KindNode, "n1"}},
		"no kind":              {csr, Subject{"prod", "", "n1"}},
		"unknown kind":         {csr, Subject{"prod", "root", "n1"}},
		"no name":              {csr, Subject{"prod", KindNode, ""}},
		"name with a slash":    {csr, Subject{"prod", KindNode, "a/b"}},
		"dot dot":              {csr, Subject{"prod", KindNode, ".."}},
		"garbage":              {[]byte("garbage"), ok},
		"empty":                {nil, ok},
		"too large":            {make([]byte, requestBytesMax+1), ok},
		"another curve":        {request(p384), ok},
		"another algorithm":    {request(ed), ok},
		"not signed by itself": {forged, ok},
	} {
		if _, err := ca.Sign(tc.csr, tc.s, time.Hour); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	der, err := ca.Sign(request(p256), ok, 100*365*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.DNSNames) != 0 || leaf.IsCA {
		t.Errorf("the request's own wishes were granted: names %v, authority %v", leaf.DNSNames, leaf.IsCA)
	}
	if leaf.NotAfter.After(ca.Certificate().NotAfter) {
		t.Errorf("leaf lives until %v, after its authority's end %v", leaf.NotAfter, ca.Certificate().NotAfter)
	}
}

func TestCAMarshal(t *testing.T) {
	ca := newCA(t, "prod")
	data, err := ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCA(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Hash() != ca.Hash() || got.Cluster() != "prod" {
		t.Errorf("read back %x of %q", got.Hash(), got.Cluster())
	}
	issue(t, got, KindNode, "n1") // its key signs
	other, _ := newCA(t, "prod").Marshal()
	mixed := append(bytes.Clone(other[:bytes.Index(other, []byte("-----BEGIN CERT"))]),
		data[bytes.Index(data, []byte("-----BEGIN CERT")):]...)
	for name, bad := range map[string][]byte{
		"empty": nil, "garbage": []byte("x"), "twice": append(bytes.Clone(data), data...),
		"without key": data[bytes.Index(data, []byte("-----BEGIN CERT")):], "another's key": mixed,
	} {
		if _, err := ParseCA(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCredentialsOnDisk(t *testing.T) {
	ca, next := newCA(t, "prod"), newCA(t, "prod")
	dir := filepath.Join(t.TempDir(), "identity")
	if _, err := LoadCredentials(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("load from nowhere: %v, want fs.ErrNotExist", err)
	}
	c := issue(t, ca, KindNode, "n1", next.Certificate())
	for range 2 { // the second one replaces
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Subject() != c.Subject() || len(got.Roots()) != 2 || !got.NotAfter().Equal(c.NotAfter()) {
		t.Errorf("read back %v with %d roots", got.Subject(), len(got.Roots()))
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("directory has %d entries (%v), want one", len(entries), err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if !c.RenewAt().Before(c.NotAfter()) {
		t.Errorf("renew at %v, ends %v", c.RenewAt(), c.NotAfter())
	}
	path := filepath.Join(dir, fileName)
	data, _ := os.ReadFile(path)
	if err := os.WriteFile(path, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCredentials(dir); err == nil {
		t.Error("half a file was accepted")
	}
}

func TestParseSubject(t *testing.T) {
	for _, good := range []string{"spiffe://prod/node/n1", "spiffe://a.b-c/operator/alice@example.org"} {
		s, err := ParseSubject(good)
		if err != nil || s.String() != good {
			t.Errorf("%s: %v, %v", good, s, err)
		}
	}
	for _, bad := range []string{"", "prod/node/n1", "spiffe://prod/node", "spiffe://prod/node/n1/x",
		"spiffe:///node/n1", "spiffe://Prod/node/n1", "spiffe://prod/king/n1", "spiffe://prod/node/",
		"spiffe://prod:80/node/n1", "spiffe://u@prod/node/n1", "spiffe://prod/node/n1?x", "spiffe://prod/node/%41",
		"spiffe://-prod/node/n1", "https://prod/node/n1", "spiffe://" + strings.Repeat("a", 64) + "/node/n1"} {
		if s, err := ParseSubject(bad); err == nil {
			t.Errorf("%q: accepted as %v", bad, s)
		}
	}
}

func FuzzParseSubject(f *testing.F) {
	f.Add("spiffe://prod/node/n1")
	f.Add("spiffe://prod/operator/a@b")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSubject(text); err == nil && s.String() != text {
			t.Errorf("%q reads as %q", text, s)
		}
	})
}

// Certificates come from outside before they are verified: reading one must never panic.
func FuzzCertificateSubject(f *testing.F) {
	ca, err := NewCA("prod")
	if err != nil {
		f.Fatal(err)
	}
	_, csr, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	der, err := ca.Sign(csr, Subject{"prod", KindNode, "n1"}, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(csr)
	f.Add(ca.Certificate().Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		requestKey(der)
		if c, err := x509.ParseCertificate(der); err == nil {
			CertificateSubject(c)
			CertificateCluster(c)
		}
	})
}
