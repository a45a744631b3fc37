package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// CA is a cluster's certificate authority: a self-signed certificate and its key. It is immutable
// and safe for concurrent use.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     crypto.Signer
}

// NewCA makes an authority for a cluster, with a new P-256 key and CALifetime to live.
func NewCA(cluster string) (*CA, error) {
	if err := ValidateCluster(cluster); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: "Nearcast CA", Organization: []string{cluster}},
		URIs:                  []*url.URL{Subject{Cluster: cluster}.uri()},
		NotBefore:             now.Add(-clockSkewMax),
		NotAfter:              now.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leaves and nothing between
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the authority's certificate: %w", err)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

// ParseCA reads what Marshal wrote.
func ParseCA(data []byte) (*CA, error) {
	key, certs, err := parseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("read the authority: %d certificates, must be one", len(certs))
	}
	cluster, err := CertificateCluster(certs[0])
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	if !samePublicKey(certs[0].PublicKey, key.Public()) {
		return nil, errors.New("read the authority: its key is not its certificate's")
	}
	return &CA{cluster: cluster, cert: certs[0], key: key}, nil
}

// Marshal returns the authority with its private key, as PEM. Whoever holds it is the cluster.
func (ca *CA) Marshal() ([]byte, error) { return marshalBundle(ca.key, ca.cert) }

// Cluster returns the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// Certificate returns the authority's certificate; the caller must not change it.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Hash returns the SHA-256 of the authority's certificate, which join tokens carry.
func (ca *CA) Hash() [32]byte { return sha256.Sum256(ca.cert.Raw) }

// Sign makes a leaf certificate for the key of a PKCS #10 request. Only the request's key is used,
// and its signature checked: the name is the subject's, whatever the request says. ttl 0 is
// LeafLifetime; a leaf never outlives its authority.
func (ca *CA) Sign(csrDER []byte, s Subject, ttl time.Duration) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if s.Cluster != ca.cluster {
		return nil, fmt.Errorf("subject %v is not of cluster %q", s, ca.cluster)
	}
	pub, err := requestKey(csrDER)
	if err != nil {
		return nil, err
	}
	if ttl <= 0 {
		ttl = LeafLifetime
	}
	now := time.Now()
	notAfter := now.Add(ttl)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if s.Kind != KindOperator {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
	}
	template := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: s.Name, OrganizationalUnit: []string{string(s.Kind)}},
		URIs:                  []*url.URL{s.uri()},
		NotBefore:             now.Add(-clockSkewMax),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usage,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %v: %w", s, err)
	}
	return der, nil
}

// NewRequest makes a P-256 key and a PKCS #10 request for it, which names nobody: the authority
// decides the name.
func NewRequest() (key crypto.Signer, csrDER []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csrDER, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return k, csrDER, nil
}

// RequestKeyHash checks a PKCS #10 request as Sign does and returns the SHA-256 of the public key in
// it, by which a request that is made again is recognised.
func RequestKeyHash(csrDER []byte) ([32]byte, error) {
	pub, err := requestKey(csrDER)
	if err != nil {
		return [32]byte{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("certificate request: %w", err)
	}
	return sha256.Sum256(der), nil
}

// requestKey checks a request from outside and returns the key it asks a certificate for.
func requestKey(csrDER []byte) (*ecdsa.PublicKey, error) {
	if len(csrDER) > requestBytesMax {
		return nil, fmt.Errorf("certificate request of %d bytes: at most %d", len(csrDER), requestBytesMax)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request is not signed by its own key: %w", err)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("certificate request: the key must be ECDSA P-256")
	}
	return pub, nil
}

// newSerial returns 127 random bits: positive, and never the same twice.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	b[0] &= 0x7f
	b[15] |= 1 // not zero
	return new(big.Int).SetBytes(b)
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(*ecdsa.PublicKey)
	return ok && k.Equal(b)
}

// marshalBundle writes a key and certificates as PEM: the key first, then the certificates in order.
func marshalBundle(key crypto.Signer, certs ...*x509.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write the private key: %w", err)
	}
	var b bytes.Buffer
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes(), nil
}

// parseBundle reads what marshalBundle wrote, and refuses anything else in the file.
func parseBundle(data []byte) (key crypto.Signer, certs []*x509.Certificate, err error) {
	if len(data) > fileBytesMax {
		return nil, nil, fmt.Errorf("%d bytes: at most %d", len(data), fileBytesMax)
	}
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, nil, errors.New("not PEM")
		}
		data = rest
		switch {
		case block.Type == "PRIVATE KEY" && key == nil:
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("private key: %w", err)
			}
			ecKey, ok := k.(*ecdsa.PrivateKey)
			if !ok {
				return nil, nil, fmt.Errorf("private key is %T, must be ECDSA", k)
			}
			key = ecKey
		case block.Type == "CERTIFICATE" && len(certs) <= rootsMax:
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
			}
			certs = append(certs, c)
		default:
			return nil, nil, fmt.Errorf("unexpected PEM block %q", block.Type)
		}
	}
	if key == nil {
		return nil, nil, errors.New("no private key")
	}
	return key, certs, nil
}

// ParseCertificates reads certificates as messages carry them, in DER.
func ParseCertificates(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) > rootsMax {
		return nil, fmt.Errorf("%d certificates: at most %d", len(ders), rootsMax)
	}
	certs := make([]*x509.Certificate, 0, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// CertificatesDER is the inverse of ParseCertificates.
func CertificatesDER(certs []*x509.Certificate) [][]byte {
	ders := make([][]byte, len(certs))
	for i, c := range certs {
		ders[i] = c.Raw
	}
	return ders
}

// MarshalCertificates writes certificates as PEM, as a contexts file carries them.
func MarshalCertificates(certs []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// ParseCertificatesPEM is the inverse of MarshalCertificates: at least one certificate, nothing else.
func ParseCertificatesPEM(data []byte) ([]*x509.Certificate, error) {
	if len(data) > fileBytesMax {
		return nil, fmt.Errorf("%d bytes of certificates: at most %d", len(data), fileBytesMax)
	}
	var ders [][]byte
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("not PEM certificates")
		}
		ders, data = append(ders, block.Bytes), rest
	}
	if len(ders) == 0 {
		return nil, errors.New("no certificate")
	}
	return ParseCertificates(ders)
}
