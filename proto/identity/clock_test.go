package identity

import (
	"crypto/x509"
	"testing"
	"time"
)

// TestClocksMayBeOff: a machine whose clock is up to an hour off takes a certificate from the moment
// that it is signed until it is renewed, at two thirds of its life. A new authority's, too.
func TestClocksMayBeOff(t *testing.T) {
	ca := newCA(t, "prod")
	c := issueFor(t, ca, KindNode, "n1", LeafLifetime)
	leaf := c.ServerTLS(KindNode).Certificates
	if len(leaf) == 0 {
		got, err := c.ClientTLS(Subject{Kind: KindController}).GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf = append(leaf, *got)
	}
	cert, err := x509.ParseCertificate(leaf[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	signed := time.Now()
	for _, off := range []time.Duration{-time.Hour - 9*time.Minute, 0, time.Hour + 9*time.Minute} {
		for what, at := range map[string]time.Time{"when it is signed": signed, "when it is renewed": c.RenewAt()} {
			_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at.Add(off),
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err != nil {
				t.Errorf("a clock that is %v off, %s: %v", off, what, err)
			}
		}
	}
	for _, at := range []time.Time{signed.Add(-2 * time.Hour), cert.NotAfter.Add(time.Minute)} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at}); err == nil {
			t.Errorf("at %v it is still taken", at)
		}
	}
}
