package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Kind says what a subject is to the cluster.
type Kind string

// The kinds of subjects.
const (
	KindNode       Kind = "node"       // a machine that runs the edge daemon
	KindController Kind = "controller" // a control plane process
	KindOperator   Kind = "operator"   // a person or tool that uses the admin API
)

// Subject is one identity of a cluster. Its written form is spiffe://<cluster>/<kind>/<name>.
type Subject struct {
	Cluster string // 1–63 of [a-z0-9-.], beginning and ending with a letter or digit
	Kind    Kind
	Name    string // 1–64 of [a-zA-Z0-9._@-]; a node's id, a controller's id, an operator's name
}

// String returns the subject's URI.
func (s Subject) String() string {
	return "spiffe://" + s.Cluster + "/" + string(s.Kind) + "/" + s.Name
}

// Validate reports what is wrong with the subject.
func (s Subject) Validate() error {
	if err := ValidateCluster(s.Cluster); err != nil {
		return err
	}
	switch s.Kind {
	case KindNode, KindController, KindOperator:
	default:
		return fmt.Errorf("unknown kind of subject %q", s.Kind)
	}
	return ValidateName(s.Name)
}

// ValidateCluster reports what is wrong with a cluster's name.
func ValidateCluster(cluster string) error {
	if cluster == "" || len(cluster) > clusterBytesMax {
		return fmt.Errorf("cluster name %q: must be 1 to %d characters long", cluster, clusterBytesMax)
	}
	for i, c := range []byte(cluster) {
		inner := i > 0 && i < len(cluster)-1
		if !isLowerDigit(c) && !(inner && (c == '-' || c == '.')) {
			return fmt.Errorf("cluster name %q: use a-z, 0-9, and '-' or '.' inside", cluster)
		}
	}
	return nil
}

// ValidateName reports what is wrong with a subject's name.
func ValidateName(name string) error {
	if name == "" || len(name) > nameBytesMax {
		return fmt.Errorf("name %q: must be 1 to %d characters long", name, nameBytesMax)
	}
	if name == "." || name == ".." {
		return fmt.Errorf("name %q: is not a name", name)
	}
	for _, c := range []byte(name) {
		if !isLowerDigit(c) && !('A' <= c && c <= 'Z') && !strings.ContainsRune("._@-", rune(c)) {
			return fmt.Errorf("name %q: use letters, digits, '.', '_', '@' and '-'", name)
		}
	}
	return nil
}

func isLowerDigit(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// ParseSubject reads a subject's URI. It accepts exactly what String writes.
func ParseSubject(uri string) (Subject, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return Subject{}, fmt.Errorf("identity %q: is not spiffe://cluster/kind/name", uri)
	}
	s := Subject{Cluster: parts[0], Kind: Kind(parts[1]), Name: parts[2]}
	if err := s.Validate(); err != nil {
		return Subject{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	return s, nil
}

// CertificateSubject reads the subject that a leaf certificate names. It does not verify the
// certificate.
func CertificateSubject(cert *x509.Certificate) (Subject, error) {
	if cert.IsCA {
		return Subject{}, fmt.Errorf("certificate of %v is an authority's", cert.Subject)
	}
	if len(cert.URIs) != 1 {
		return Subject{}, fmt.Errorf("certificate has %d URI names, must have one", len(cert.URIs))
	}
	return ParseSubject(cert.URIs[0].String())
}

// CertificateCluster reads the cluster whose authority a certificate belongs to.
func CertificateCluster(ca *x509.Certificate) (string, error) {
	if !ca.IsCA || len(ca.URIs) != 1 {
		return "", fmt.Errorf("certificate of %v is not a cluster's authority", ca.Subject)
	}
	cluster, ok := strings.CutPrefix(ca.URIs[0].String(), "spiffe://")
	if !ok {
		return "", fmt.Errorf("authority's name %q is not spiffe://cluster", ca.URIs[0])
	}
	return cluster, ValidateCluster(cluster)
}

// uri returns a subject's URI, or with an empty kind its cluster's.
func (s Subject) uri() *url.URL {
	u := &url.URL{Scheme: "spiffe", Host: s.Cluster}
	if s.Kind != "" {
		u.Path = "/" + string(s.Kind) + "/" + s.Name
	}
	return u
}
