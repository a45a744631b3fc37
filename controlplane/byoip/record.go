package byoip

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

const (
	documentBytesMax = 64 << 10 // RDAP's answers have some 5 KB, and a certificate 2 KB
	signersMax       = 16
	rsaBitsMin       = 2048 // as AWS asks for
)

// Signers are the certificates of one range: whoever has a key of one of them may sign for it.
type Signers []*x509.Certificate

// ParseDocument reads a record of a range: PEM certificates, or the RDAP answer of its registry (RFC 9083) with
// certificates in its remarks. RDAP's must be about a network that holds all of cidr.
func ParseDocument(document string, cidr netip.Prefix) (Signers, error) {
	if len(document) > documentBytesMax {
		return nil, fmt.Errorf("has %d bytes; at most %d are taken", len(document), documentBytesMax)
	}
	text := document
	if trimmed := strings.TrimSpace(document); strings.HasPrefix(trimmed, "{") {
		remarks, err := parseRDAP([]byte(trimmed), cidr)
		if err != nil {
			return nil, err
		}
		text = remarks
	}
	signers, err := parseCertificates(text)
	if err == nil && len(signers) == 0 {
		err = errors.New("has no certificate: give a PEM file, or RDAP's answer with one in its remarks")
	}
	return signers, err
}

// rdapNetwork is what is needed of an "ip network" object of RFC 9083.
type rdapNetwork struct {
	ObjectClassName string `json:"objectClassName"`
	StartAddress    string `json:"startAddress"`
	EndAddress      string `json:"endAddress"`
	Remarks         []struct {
		Description []string `json:"description"`
	} `json:"remarks"`
}

// parseRDAP returns the remarks of RDAP's answer about a network that holds cidr.
func parseRDAP(document []byte, cidr netip.Prefix) (string, error) {
	var n rdapNetwork
	if err := json.Unmarshal(document, &n); err != nil {
		return "", fmt.Errorf("is not RDAP's JSON: %v", err)
	}
	if n.ObjectClassName != "ip network" {
		return "", fmt.Errorf("is about %q; RDAP's answer about the range says \"ip network\"", n.ObjectClassName)
	}
	start, errStart := netip.ParseAddr(n.StartAddress)
	end, errEnd := netip.ParseAddr(n.EndAddress)
	if errStart != nil || errEnd != nil {
		return "", errors.New("has no startAddress and endAddress")
	}
	if first, last := cidr.Addr(), lastAddr(cidr); start.Is4() != first.Is4() || first.Less(start) || end.Less(last) {
		return "", fmt.Errorf("is about %v to %v, which does not hold %v", start, end, cidr)
	}
	var all strings.Builder
	for _, r := range n.Remarks {
		// Registries fold and join lines as they like; blanks mean nothing in a certificate.
		all.WriteString(strings.Join(r.Description, "\n"))
		all.WriteByte('\n')
	}
	return all.String(), nil
}

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// certificate finds PEM also where its line ends are gone, as in registries' remarks.
var certificate = regexp.MustCompile(`(?s)-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----`)

func parseCertificates(text string) (signers Signers, err error) {
	for _, found := range certificate.FindAllStringSubmatch(text, signersMax+1) {
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(found[1]), ""))
		if err != nil {
			return nil, fmt.Errorf("has a certificate that is not base64: %v", err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("has a certificate that cannot be read: %v", err)
		}
		switch key := cert.PublicKey.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() < rsaBitsMin {
				return nil, fmt.Errorf("has an RSA key of %d bits; use %d or more", key.N.BitLen(), rsaBitsMin)
			}
		case *ecdsa.PublicKey:
		default:
			return nil, fmt.Errorf("has a certificate with a key of kind %T; use RSA or ECDSA", key)
		}
		signers = append(signers, cert)
	}
	if len(signers) > signersMax {
		return nil, fmt.Errorf("has more than %d certificates", signersMax)
	}
	return signers, nil
}

// Describe says of each certificate whose it is, for people.
func (s Signers) Describe() []string {
	var out []string
	for _, c := range s {
		out = append(out, fmt.Sprintf("%s, %v, until %s", c.Subject, c.PublicKeyAlgorithm, c.NotAfter.Format(time.DateOnly)))
	}
	return out
}

// PEM writes the certificates down.
func (s Signers) PEM() string {
	var b bytes.Buffer
	for _, c := range s {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a buffer takes everything
	}
	return b.String()
}
