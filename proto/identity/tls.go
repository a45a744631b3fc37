package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrNoCertificate is returned by PeerSubject when the peer showed no certificate.
var ErrNoCertificate = errors.New("peer has no certificate")

// ServerTLS returns the configuration of a server that demands a certificate of one of the accepted
// kinds; with no kind, nobody is accepted. The caller may set NextProtos.
func (c *Credentials) ServerTLS(accept ...Kind) *tls.Config {
	return c.serverTLS(tls.RequireAnyClientCert, 0, accept)
}

// ServerTLSOptional is ServerTLS for a port where a client may also come without a certificate:
// PeerSubject then says ErrNoCertificate. A certificate that is shown must be in order.
func (c *Credentials) ServerTLSOptional(accept ...Kind) *tls.Config {
	return c.serverTLS(tls.RequestClientCert, 0, accept)
}

// ControllerTLS is ServerTLSOptional for a controller's port. It also lets certificates of nodes in
// that ended less than RenewGrace ago: the server must look (see Expired) and serve them nothing
// but a renewal.
func (c *Credentials) ControllerTLS() *tls.Config {
	return c.serverTLS(tls.RequestClientCert, RenewGrace, []Kind{KindNode, KindController, KindOperator})
}

// Expired reports whether the peer's certificate had ended when the connection was made, which only
// ControllerTLS lets happen, or has ended since.
func Expired(cs tls.ConnectionState) bool {
	return len(cs.PeerCertificates) > 0 && time.Now().After(cs.PeerCertificates[0].NotAfter)
}

func (c *Credentials) serverTLS(auth tls.ClientAuthType, grace time.Duration, accept []Kind) *tls.Config {
	accept = slices.Clone(accept)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             auth,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load().tls, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 && auth == tls.RequestClientCert {
				return nil
			}
			now := c.current.Load()
			peer, err := verify(cs.PeerCertificates, now.pool, x509.ExtKeyUsageClientAuth, grace)
			if err != nil {
				return err
			}
			if peer.Cluster != now.subject.Cluster {
				return fmt.Errorf("%v is not of cluster %q", peer, now.subject.Cluster)
			}
			if !slices.Contains(accept, peer.Kind) {
				return fmt.Errorf("%v is not of a kind that is served here", peer)
			}
			return nil
		},
	}
}

// ClientTLS returns the configuration of a client that shows its own certificate and accepts only
// want: its kind must match, and its cluster and name unless want leaves them empty (an empty
// cluster is the client's own). The caller may set NextProtos.
func (c *Credentials) ClientTLS(want Subject) *tls.Config {
	if want.Cluster == "" {
		want.Cluster = c.Subject().Cluster
	}
	cfg := clientTLS(func(cs tls.ConnectionState) error {
		peer, err := verify(cs.PeerCertificates, c.current.Load().pool, x509.ExtKeyUsageServerAuth, 0)
		if err != nil {
			return err
		}
		return want.matches(peer)
	})
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return c.current.Load().tls, nil
	}
	return cfg
}

// AnonymousTLS returns the configuration of a client that has roots and no certificate, like the
// CLI with a bearer token. An empty cluster or name in want accepts any.
func AnonymousTLS(roots []*x509.Certificate, want Subject) *tls.Config {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	return clientTLS(func(cs tls.ConnectionState) error {
		peer, err := verify(cs.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, 0)
		if err != nil {
			return err
		}
		return want.matches(peer)
	})
}

// JoinTLS returns the configuration of a machine that knows the cluster's authority by the SHA-256
// of its certificate only. The handshake succeeds with a controller that such an authority has
// signed and with nobody else, so a secret sent afterwards reaches only the cluster.
func JoinTLS(caHash [32]byte) *tls.Config {
	return clientTLS(func(cs tls.ConnectionState) error {
		ca, err := findCA(cs.PeerCertificates, caHash)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		peer, err := verify(cs.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, 0)
		if err != nil {
			return err
		}
		cluster, err := CertificateCluster(ca)
		if err != nil {
			return err
		}
		return Subject{Cluster: cluster, Kind: KindController}.matches(peer)
	})
}

// findCA returns the certificate of a chain that has the hash.
func findCA(chain []*x509.Certificate, hash [32]byte) (*x509.Certificate, error) {
	for _, c := range chain {
		if sha256.Sum256(c.Raw) == hash {
			return c, nil
		}
	}
	return nil, fmt.Errorf("controller is not of the cluster whose authority has SHA-256 %x", hash)
}

func clientTLS(verifyPeer func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Identities are URIs and not host names, which crypto/tls cannot be told. VerifyConnection
		// verifies the chain instead, and is called for every handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   verifyPeer,
	}
}

// verify checks that the first certificate chains to the pool and is made for the usage, and
// returns whom it names. The pool's authorities sign leaves only, so nothing lies between. A node's
// certificate may have ended up to grace ago.
func verify(chain []*x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage,
	grace time.Duration) (Subject, error) {
	if len(chain) == 0 {
		return Subject{}, ErrNoCertificate
	}
	leaf := chain[0]
	s, err := CertificateSubject(leaf)
	if err != nil {
		return Subject{}, err
	}
	options := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: time.Now()}
	if late := options.CurrentTime.Sub(leaf.NotAfter); late > 0 && late < grace && s.Kind == KindNode {
		options.CurrentTime = leaf.NotAfter
	}
	verified, err := leaf.Verify(options)
	if err != nil {
		return Subject{}, fmt.Errorf("verify the peer's certificate: %w", err)
	}
	for _, c := range verified {
		if cluster, err := CertificateCluster(c[len(c)-1]); err == nil && cluster == s.Cluster {
			return s, nil
		}
	}
	return Subject{}, fmt.Errorf("%v is signed by another cluster's authority", s)
}

// matches reports whether peer is what want asks for.
func (want Subject) matches(peer Subject) error {
	if want.Kind != peer.Kind ||
		want.Cluster != "" && want.Cluster != peer.Cluster ||
		want.Name != "" && want.Name != peer.Name {
		return fmt.Errorf("peer is %v, wanted %v", peer, want)
	}
	return nil
}

// PeerSubject returns whom the other end of a connection is. The connection must have been made
// with a configuration of this package: they have verified it.
func PeerSubject(cs tls.ConnectionState) (Subject, error) {
	if len(cs.PeerCertificates) == 0 {
		return Subject{}, ErrNoCertificate
	}
	return CertificateSubject(cs.PeerCertificates[0])
}
