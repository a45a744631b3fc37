package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// made runs a command that must succeed and decodes what it prints.
func (w *world) made(t *testing.T, out any, args ...string) {
	t.Helper()
	if err := json.Unmarshal([]byte(w.must(t, append(args, "-o", "json")...)), out); err != nil {
		t.Fatal(err)
	}
}

// wants runs a command and looks for words in what it prints.
func (w *world) wants(t *testing.T, words string, args ...string) {
	t.Helper()
	out := w.must(t, args...)
	for word := range strings.SplitSeq(words, "|") {
		if !strings.Contains(out, word) {
			t.Errorf("nearcast %s: no %q in\n%s", strings.Join(args, " "), word, out)
		}
	}
}

// TestSharing has what projects own, lend and bring through the tool and a real controller: attachments, a range from
// its record to its end, custom routing, temporary credentials.
func TestSharing(t *testing.T) {
	w := realController(t)
	w.must(t, "pool", "create", "a", "--zone", "a", "--prefix", "198.51.100.0/24")
	w.must(t, "pool", "create", "b", "--zone", "b", "--prefix", "203.0.113.0/24")
	t.Run("attachments", w.attachments)
	t.Run("range", w.bringRange)
	t.Run("custom routing", w.customRouting)
	t.Run("session", w.session)
}

func (w *world) attachments(t *testing.T) {
	var made struct{ ID string }
	w.must(t, "target", "create", "i-0123abcd", "--host", "10.0.0.1", "--project", "shop")
	w.made(t, &made, "accelerator", "create", "blog", "--project", "blog")
	w.must(t, "listener", "create", "--accelerator", "blog", "--ports", "443")
	group := []string{"group", "create", "--listener", "blog:443", "--region", "eu-fra-1", "--endpoint", "i-0123abcd"}
	if r := w.run(group...); r.code == 0 || !strings.Contains(r.stderr, "belongs to another project") {
		t.Errorf("another project's target was taken: %+v", r)
	}
	w.made(t, &made, "attachment", "create", "shared", "--project", "shop", "--for-project", "blog", "--endpoint", "i-0123abcd")
	w.must(t, group...)
	w.wants(t, "i-0123abcd", "group", "get", "blog:443@eu-fra-1")
	w.wants(t, "shared|shop|blog|i-0123abcd", "attachment", "list")
	w.wants(t, "For accelerators|renamed", "attachment", "update", made.ID, "--for-accelerator", "blog", "--remove-for-project", "blog",
		"--name", "renamed")
	w.wants(t, "i-0123abcd", "group", "get", "blog:443@eu-fra-1")
	w.must(t, "attachment", "delete", made.ID)
	if out := w.must(t, "group", "get", "blog:443@eu-fra-1"); strings.Contains(out, "i-0123abcd") {
		t.Errorf("the endpoint stayed:\n%s", out)
	}
}

func (w *world) bringRange(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "owner"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "owner.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	w.wants(t, "CN=owner", "byoip", "record", "set", "192.0.2.0/24", "--document", file)
	var k struct {
		Key struct {
			AccountID string `json:"accountId"`
		}
	}
	w.made(t, &k, "access-key", "create", "--project", "shop")
	message := "1|nearcast|" + k.Key.AccountID + "|192.0.2.0/24|" + time.Now().UTC().Add(24*time.Hour).Format("20060102") + "|SHA256|ECDSA"
	sum := sha256.Sum256([]byte(message))
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	provision := []string{"byoip", "provision", "192.0.2.0/24", "--project", "shop", "--message", message, "--signature"}
	if r := w.run(append(provision, "AAAA")...); r.code == 0 || !strings.Contains(r.stderr, "signature") {
		t.Errorf("a forged signature: %+v", r)
	}
	w.wants(t, "ready|byoip-192.0.2.0-24", append(provision, base64.StdEncoding.EncodeToString(signature))...)
	w.wants(t, "not advertised|shop", "pool", "get", "byoip-192.0.2.0-24")
	w.wants(t, "advertising", "byoip", "advertise", "192.0.2.0/24", "--project", "shop")
	w.wants(t, "192.0.2.7", "accelerator", "create", "own", "--project", "shop", "--address", "192.0.2.7")
	if r := w.run("byoip", "withdraw", "192.0.2.0/24", "--project", "shop"); r.code == 0 || !strings.Contains(r.stderr, "has an address") {
		t.Errorf("a range in use was withdrawn: %+v", r)
	}
	w.must(t, "accelerator", "disable", "own")
	w.must(t, "accelerator", "delete", "own")
	w.wants(t, "ready", "byoip", "withdraw", "192.0.2.0/24", "--project", "shop")
	w.wants(t, "deprovisioned", "byoip", "deprovision", "192.0.2.0/24", "--project", "shop")
	w.wants(t, "deprovisioned", "byoip", "list")
	w.wants(t, "CN=owner", "byoip", "record", "list")
	w.must(t, "byoip", "record", "delete", "192.0.2.0/24")
}

func (w *world) customRouting(t *testing.T) {
	w.must(t, "accelerator", "create", "game", "--type", "custom_routing")
	w.must(t, "listener", "create", "--accelerator", "game", "--protocol", "tcp_udp", "--ports", "10000-10199")
	for name, prefix := range map[string]string{"subnet-1": "10.9.0.0/28", "subnet-2": "10.9.1.0/28"} {
		w.must(t, "subnet", "create", name, "--region", "eu-fra-1", "--prefix", prefix)
	}
	var g struct{ ID string }
	w.made(t, &g, "custom-group", "create", "--listener", "game:10000", "--region", "eu-fra-1", "--destination", "7777-7778/udp",
		"--subnet", "subnet-1")
	w.wants(t, "subnet-1|subnet-2|7777-7778/udp", "custom-group", "add", g.ID, "subnet-2")
	w.must(t, "custom-group", "allow", g.ID, "--subnet", "subnet-1", "--address", "10.9.0.4", "--port", "7777")
	w.wants(t, "10000|10.9.0.4:7777|allow", "custom-group", "mappings", "game", "--limit", "1")
	w.wants(t, "10.9.1.4:7777|deny", "custom-group", "mappings", "--subnet", "subnet-2", "--address", "10.9.1.4")
	w.must(t, "custom-group", "deny", g.ID, "--subnet", "subnet-1", "--all")
	if out := w.must(t, "custom-group", "remove", g.ID, "subnet-1"); strings.Contains(out, "subnet-1") {
		t.Errorf("the subnet stayed:\n%s", out)
	}
	w.wants(t, "subnet-2", "custom-group", "list")
	w.must(t, "custom-group", "delete", g.ID)
}

func (w *world) session(t *testing.T) {
	var k struct{ Key struct{ ID string } }
	w.made(t, &k, "access-key", "create", "--role", "operator")
	w.wants(t, "AWS_ACCESS_KEY_ID=NCAS|AWS_SECRET_ACCESS_KEY=|AWS_SESSION_TOKEN=", "access-key", "session", k.Key.ID, "--role", "viewer",
		"--for", "20m")
	if r := w.run("access-key", "session", k.Key.ID, "--role", "admin"); r.code == 0 || !strings.Contains(r.stderr, "role") {
		t.Errorf("more than the key: %+v", r)
	}
}
