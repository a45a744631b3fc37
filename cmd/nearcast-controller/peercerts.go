package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/proto/identity"
)

// peerCertLifetime is that of the certificates between members of an embedded store. They are made by
// hand, so they should outlive the machines.
const peerCertLifetime = 10 * 365 * 24 * time.Hour

const peerCertsLong = `peer-certs makes the certificates with which the members of an embedded store of
several know each other: an authority, and a certificate and key for each member. They cannot come from
the cluster's own authority, which lies in the store.

It runs once, on any machine. Copy ca.pem and the member's NAME.pem and NAME.key to each member, and give
them as --etcd-peer-ca, --etcd-peer-cert and --etcd-peer-key. ca.key is needed to make certificates for
further members (run it again with the same directory): keep it where nobody gets it, or delete it.`

// newPeerCerts returns the command peer-certs.
func newPeerCerts() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "peer-certs --out DIR NAME=HOST[,HOST...] ...",
		Short: "Make certificates for the members of an embedded store",
		Long:  peerCertsLong, Args: cobra.MinimumNArgs(1),
		Example: `  nearcast-controller peer-certs --out certs \
    ctl1=ctl1.example.com,10.0.0.1 ctl2=ctl2.example.com ctl3=10.0.0.3`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return errors.New("--out is needed")
			}
			members := make([]peerMember, 0, len(args))
			for _, arg := range args {
				m, err := parseMember(arg)
				if err != nil {
					return err
				}
				members = append(members, m)
			}
			return makePeerCerts(out, members)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "`directory` to write to")
	return cmd
}

// peerMember is one member of an embedded store and where the others dial it.
type peerMember struct {
	name  string
	hosts []string // DNS names and addresses
}

func parseMember(s string) (peerMember, error) {
	name, hosts, ok := strings.Cut(s, "=")
	if !ok || hosts == "" || name == "ca" || identity.ValidateName(name) != nil {
		return peerMember{}, fmt.Errorf("member %q is not NAME=HOST[,HOST...]", s)
	}
	m := peerMember{name: name, hosts: strings.Split(hosts, ",")}
	for _, h := range m.hosts {
		if _, _, err := net.SplitHostPort(h); h == "" || err == nil {
			return peerMember{}, fmt.Errorf("member %q: %q must be a host without a port", name, h)
		}
	}
	return m, nil
}

// makePeerCerts writes the authority, unless dir has one, and a certificate and key for each member.
func makePeerCerts(dir string, members []peerMember) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	ca, caKey, err := peerAuthority(dir)
	if err != nil {
		return err
	}
	for _, m := range members {
		template := peerTemplate(m.name)
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		for _, h := range m.hosts {
			if ip, err := netip.ParseAddr(h); err == nil {
				template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
			} else {
				template.DNSNames = append(template.DNSNames, h)
			}
		}
		if _, _, err := writePeerCert(dir, m.name, template, ca, caKey); err != nil {
			return err
		}
	}
	return nil
}

// peerAuthority reads the directory's authority, or makes it.
func peerAuthority(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		template := peerTemplate("Nearcast store")
		template.KeyUsage, template.IsCA = x509.KeyUsageCertSign, true
		return writePeerCert(dir, "ca", template, nil, nil)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority: %w", err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority's key: %w", err)
	}
	certs, err := identity.ParseCertificatesPEM(certPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority: %w", err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, nil, errors.New("read the authority's key: not PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read the authority's key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, nil, errors.New("the authority's key is not its certificate's")
	}
	return certs[0], key, nil
}

func peerTemplate(name string) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 1
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(peerCertLifetime), BasicConstraintsValid: true,
	}
}

// writePeerCert makes a key and a certificate and writes both. Without a parent it signs itself.
func writePeerCert(dir, name string, template, parent *x509.Certificate,
	parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make the certificate of %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read back the certificate of %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("write the key of %s: %w", name, err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := identity.ReplaceFile(filepath.Join(dir, name+".key"), keyPEM); err != nil {
		return nil, nil, fmt.Errorf("write the key of %s: %w", name, err)
	}
	certPEM := identity.MarshalCertificates([]*x509.Certificate{cert})
	if err := identity.ReplaceFile(filepath.Join(dir, name+".pem"), certPEM); err != nil {
		return nil, nil, fmt.Errorf("write the certificate of %s: %w", name, err)
	}
	return cert, key, nil
}
