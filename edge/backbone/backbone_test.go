package backbone

import (
	"bytes"
	"crypto/x509"
	"io"
	"runtime"
	"testing"

	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/wire"
)

func identityRoots(ca *identity.CA) []*x509.Certificate { return []*x509.Certificate{ca.Certificate()} }

// echo answers, sends back what comes, and ends when the other side has ended.
func echo(c *conn, _ wire.Open) {
	c.s.OpenResult(wire.OpenResult{Code: wire.OpenOK, Endpoint: "echo"})
	if _, err := io.Copy(c.s, struct{ io.Reader }{c}); err != nil {
		return
	}
	c.s.CloseWrite()
}

func TestEcho(t *testing.T) {
	w := newWorld(t, accept(echo))
	w.waitUp(2)
	c := w.open()
	message := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		if _, err := c.Write(message); err != nil {
			t.Error(err)
		}
		c.s.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, message) {
		t.Fatalf("%d bytes came back, sent %d", len(got), len(message))
	}
	if r, err := c.opened(); err != nil || r.Endpoint != "echo" {
		t.Fatalf("opened %v, %v", r, err)
	}
	w.checkClean()
}

func otherCA(t *testing.T) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func benchCA(b *testing.B) *identity.CA {
	b.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		b.Fatal(err)
	}
	return ca
}

func subjectOf(name string) identity.Subject {
	return identity.Subject{Kind: identity.KindNode, Name: name}
}

// heap returns the bytes in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
