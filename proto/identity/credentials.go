package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// fileName is the one file of a directory that holds an identity: key, leaf, roots. One file, so
// that one rename replaces all of it.
const fileName = "identity.pem"

// Credentials are what a process proves itself with and whom it trusts: a leaf, its key, and the
// roots. Update swaps them atomically; every tls.Config made from them uses the newest at its next
// handshake. Safe for concurrent use.
type Credentials struct {
	current atomic.Pointer[credentials]
}

// credentials are one immutable state of Credentials.
type credentials struct {
	subject Subject
	leaf    *x509.Certificate
	key     crypto.Signer
	roots   []*x509.Certificate
	pool    *x509.CertPool
	tls     *tls.Certificate
}

// NewCredentials makes credentials of a leaf in DER, its key, and the authorities trusted.
// The leaf must be one that a root has signed; it may have expired (see NotAfter).
func NewCredentials(leafDER []byte, key crypto.Signer, roots []*x509.Certificate) (*Credentials, error) {
	c := new(Credentials)
	return c, c.Update(leafDER, key, roots)
}

// LoadCredentials reads what Save wrote. The error satisfies errors.Is(err, fs.ErrNotExist) when
// the directory holds none.
func LoadCredentials(dir string) (*Credentials, error) {
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		return nil, fmt.Errorf("load the identity: %w", err)
	}
	key, certs, err := parseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("load the identity from %s: %w", dir, err)
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("load the identity from %s: a leaf and its root are needed", dir)
	}
	c, err := NewCredentials(certs[0].Raw, key, certs[1:])
	if err != nil {
		return nil, fmt.Errorf("load the identity from %s: %w", dir, err)
	}
	return c, nil
}

// Update replaces everything at once. On an error nothing changes.
func (c *Credentials) Update(leafDER []byte, key crypto.Signer, roots []*x509.Certificate) error {
	n, err := newCredentials(leafDER, key, roots)
	if err != nil {
		return err
	}
	c.current.Store(n)
	return nil
}

// UpdateRoots replaces the authorities trusted and keeps leaf and key. An authority that signed the
// leaf must be among them, or this process would no longer believe itself.
func (c *Credentials) UpdateRoots(roots []*x509.Certificate) error {
	for {
		old := c.current.Load()
		n, err := newCredentials(old.leaf.Raw, old.key, roots)
		if err != nil {
			return err
		}
		if c.current.CompareAndSwap(old, n) {
			return nil
		}
	}
}

func newCredentials(leafDER []byte, key crypto.Signer, roots []*x509.Certificate) (*credentials, error) {
	leaf, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	if !samePublicKey(leaf.PublicKey, key.Public()) {
		return nil, errors.New("the certificate is for another key")
	}
	subject, err := CertificateSubject(leaf)
	if err != nil {
		return nil, err
	}
	if len(roots) == 0 || len(roots) > rootsMax {
		return nil, fmt.Errorf("%d authorities, must be 1 to %d", len(roots), rootsMax)
	}
	n := &credentials{subject: subject, leaf: leaf, key: key, roots: roots, pool: x509.NewCertPool()}
	signer := -1
	for i, r := range roots {
		cluster, err := CertificateCluster(r)
		if err != nil {
			return nil, err
		}
		if cluster != subject.Cluster {
			return nil, fmt.Errorf("an authority of cluster %q among those of %q", cluster, subject.Cluster)
		}
		n.pool.AddCert(r)
		if leaf.CheckSignatureFrom(r) == nil {
			signer = i
		}
	}
	if signer < 0 {
		return nil, errors.New("no authority of the list has signed the certificate")
	}
	n.tls = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	if subject.Kind == KindController {
		// A machine that joins knows the authority by its hash only, and must be shown it.
		n.tls.Certificate = append(n.tls.Certificate, roots[signer].Raw)
	}
	return n, nil
}

// Subject returns whom these credentials name.
func (c *Credentials) Subject() Subject { return c.current.Load().subject }

// Leaf returns the certificate; the caller must not change it.
func (c *Credentials) Leaf() *x509.Certificate { return c.current.Load().leaf }

// Roots returns the authorities trusted; the caller must not change them.
func (c *Credentials) Roots() []*x509.Certificate { return c.current.Load().roots }

// NotAfter returns when the certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.Leaf().NotAfter }

// RenewAt returns when the certificate should be renewed: at two thirds of its life, so that a
// third is left for trying.
func (c *Credentials) RenewAt() time.Time {
	leaf := c.Leaf()
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// Save writes the credentials to a directory, which it makes if needed (0700), as one file (0600)
// that is replaced atomically and is on the disk when Save returns.
func (c *Credentials) Save(dir string) error {
	n := c.current.Load()
	data, err := marshalBundle(n.key, append([]*x509.Certificate{n.leaf}, n.roots...)...)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save the identity: %w", err)
	}
	if err := ReplaceFile(filepath.Join(dir, fileName), data); err != nil {
		return fmt.Errorf("save the identity: %w", err)
	}
	return nil
}

// ReplaceFile makes path hold data (0600), or leaves what was there: it writes aside, syncs and renames.
func ReplaceFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
