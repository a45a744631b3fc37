package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// Three members with certificates of peer-certs become one store, although each dials from 127.0.0.1,
// which is in no certificate: so does a member with two interfaces.
func TestPeerCerts(t *testing.T) {
	dir := t.TempDir()
	peers := map[string]string{"m1": netns.FreeAddr(t), "m2": netns.FreeAddr(t), "m3": netns.FreeAddr(t)}
	member := func(name string) string {
		host, _, err := net.SplitHostPort(peers[name])
		if err != nil {
			t.Fatal(err)
		}
		return name + "=" + host
	}
	for _, args := range [][]string{{member("m1"), member("m2")}, {member("m3")}} {
		cmd := newCommand(os.Stderr)
		cmd.SetArgs(append([]string{"peer-certs", "--out", dir}, args...))
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "m1.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("key: %v, %v", info, err)
	}
	var list []string
	for name, addr := range peers {
		list = append(list, name+"="+addr)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, len(peers))
	var web []string
	for name, addr := range peers {
		web = append(web, netns.FreeAddr(t))
		cmd := newCommand(os.Stderr)
		cmd.SetArgs([]string{"--cluster", "test", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0",
			"--metrics-listen", web[len(web)-1], "--log-level", "error", "--etcd-name", name,
			"--etcd-peer-listen", addr, "--etcd-initial-cluster", strings.Join(list, ","),
			"--etcd-peer-cert", filepath.Join(dir, name+".pem"), "--etcd-peer-key", filepath.Join(dir, name+".key"),
			"--etcd-peer-ca", filepath.Join(dir, "ca.pem")})
		go func() { ended <- cmd.ExecuteContext(ctx) }()
	}
	defer func() {
		stop()
		for range peers {
			if err := <-ended; err != nil {
				t.Errorf("member: %v", err)
			}
		}
	}()
	for _, addr := range web {
		eventuallyReady(t, addr)
	}
	// A stranger without a certificate of theirs is not let in.
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", peers["m1"],
		&tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	var alert tls.AlertError
	if !errors.As(err, &alert) && !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a stranger's connection ended with %v, want a demand for a certificate", err)
	}
}

func eventuallyReady(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		var said []byte
		resp, err := http.Get("http://" + addr + "/readyz")
		if err == nil {
			said, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready after three minutes: %v %s", addr, err, said)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestPeerCertsArguments(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{}, {"m1"}, {"m1="}, {"=h"}, {"m1=h:1"}, {"m1=a,,b"}, {"ca=h"}, {"a/b=h"}} {
		cmd := newCommand(os.Stderr)
		cmd.SetArgs(append([]string{"peer-certs", "--out", dir}, args...))
		if err := cmd.Execute(); err == nil {
			t.Errorf("%q: accepted", args)
		}
	}
	if err := makePeerCerts(dir, []peerMember{{"m1", []string{"::1", "h"}}}); err != nil {
		t.Fatal(err)
	}
	cert, _, err := peerAuthority(dir)
	if err != nil || !cert.IsCA {
		t.Fatalf("%v, %v", cert, err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "m1.pem"), filepath.Join(dir, "m1.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	for _, host := range []string{"h", "[::1]"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Another authority's key beside ours.
	other := t.TempDir()
	if err := makePeerCerts(other, nil); err != nil {
		t.Fatal(err)
	}
	key, _ := os.ReadFile(filepath.Join(other, "ca.key"))
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makePeerCerts(dir, nil); err == nil {
		t.Error("a key that is not the authority's was taken")
	}
}
