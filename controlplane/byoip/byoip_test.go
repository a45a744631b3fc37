package byoip

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	cidr = netip.MustParsePrefix("198.51.100.0/24")
	now  = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
)

// signed makes a self-signed certificate of a key, valid around now.
func signed(t testing.TB, key crypto.Signer) Signers {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "owner"},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Signers{cert}
}

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign signs as a customer of AWS does.
func sign(t testing.TB, key crypto.Signer, message string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(message))
	var options crypto.SignerOpts = crypto.SHA256
	if _, ok := key.(*rsa.PrivateKey); ok {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	b, err := key.Sign(rand.Reader, sum[:], options)
	if err != nil {
		t.Fatal(err)
	}
	return EncodeSignature(b)
}

func TestVerify(t *testing.T) {
	first, other := newRSA(t, 2048), newRSA(t, 2048)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	both := append(signed(t, first), signed(t, curve)...)
	const good = "1|aws|123456789012|198.51.100.0/24|20260701|SHA256|RSAPSS"
	ec := strings.Replace(good, "RSAPSS", "ECDSA", 1)
	for name, c := range map[string]struct {
		message, signature string
		signers            Signers
		now                time.Time
		want               error
	}{
		"right":                  {message: good, signature: sign(t, first, good)},
		"the last second":        {message: good, signature: sign(t, first, good), now: time.Date(2026, 7, 1, 23, 59, 59, 0, time.UTC)},
		"the day after":          {message: good, signature: sign(t, first, good), now: time.Date(2026, 7, 2, 0, 0, 0, 0, time.UTC), want: ErrExpired},
		"ECDSA":                  {message: ec, signature: sign(t, curve, ec)},
		"plain base64":           {message: good, signature: strings.NewReplacer("-", "+", "_", "=", "~", "/").Replace(sign(t, first, good))},
		"ours":                   {message: strings.Replace(good, "aws", "nearcast", 1), signature: sign(t, first, strings.Replace(good, "aws", "nearcast", 1))},
		"another key":            {message: good, signature: sign(t, other, good), want: ErrSignature},
		"another message's":      {message: good, signature: sign(t, first, ec), want: ErrSignature},
		"scheme of the other":    {message: ec, signature: sign(t, first, ec), want: ErrSignature},
		"no base64":              {message: good, signature: "?", want: ErrSignature},
		"no signature":           {message: good, want: ErrSignature},
		"no signer":              {message: good, signature: sign(t, first, good), signers: Signers{}, want: ErrSignature},
		"an ended certificate":   {message: strings.Replace(good, "2026", "2029", 1), signature: sign(t, first, strings.Replace(good, "2026", "2029", 1)), now: now.AddDate(2, 0, 0), want: ErrSignature},
		"another account's":      {message: strings.Replace(good, "9012", "9013", 1), want: ErrMessage},
		"another range's":        {message: strings.Replace(good, "/24", "/23", 1), want: ErrMessage},
		"no range":               {message: strings.Replace(good, "198.51.100.0/24", "x", 1), want: ErrMessage},
		"no date":                {message: strings.Replace(good, "20260701", "2026-07-01", 1), want: ErrMessage},
		"another hash":           {message: strings.Replace(good, "SHA256", "SHA1", 1), want: ErrMessage},
		"another scheme":         {message: strings.Replace(good, "RSAPSS", "RSA", 1), signature: "AAAA", want: ErrMessage},
		"another version":        {message: "2" + good[1:], want: ErrMessage},
		"of a part too many":     {message: good + "|", want: ErrMessage},
		"a message without end":  {message: strings.Repeat("x", 256), want: ErrMessage},
		"a signature without it": {message: good, signature: strings.Repeat("A", 1025), want: ErrMessage},
	} {
		if c.signers == nil {
			c.signers = both
		}
		if c.now.IsZero() {
			c.now = now
		}
		err := c.signers.Verify(Request{"123456789012", cidr, c.message, c.signature}, c.now)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// rdapOf writes an RDAP answer.
func rdapOf(t testing.TB, class, start, end string, remarks ...string) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"rdapConformance": []string{"rdap_level_0"}, "objectClassName": class,
		"startAddress": start, "endAddress": end, "remarks": []any{
			map[string]any{"title": "Registration Comments", "description": remarks}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestParseDocument(t *testing.T) {
	s := signed(t, newRSA(t, 2048))
	oneLine := strings.ReplaceAll(s.PEM(), "\n", "")
	for name, c := range map[string]struct {
		document string
		n        int // certificates; 0: an error
	}{
		"PEM":                   {s.PEM(), 1},
		"PEM of two":            {s.PEM() + "\n" + s.PEM(), 2},
		"one line":              {oneLine, 1},
		"RDAP":                  {rdapOf(t, "ip network", "198.51.100.0", "198.51.100.255", "hello", oneLine), 1},
		"RDAP of a larger one":  {rdapOf(t, "ip network", "198.51.96.0", "198.51.127.255", strings.Split(s.PEM(), "\n")...), 1},
		"RDAP of a smaller one": {rdapOf(t, "ip network", "198.51.100.0", "198.51.100.127", oneLine), 0},
		"RDAP of another one":   {rdapOf(t, "ip network", "2001:db8::", "2001:db8:ffff::", oneLine), 0},
		"RDAP of a domain":      {rdapOf(t, "domain", "198.51.100.0", "198.51.100.255", oneLine), 0},
		"RDAP without":          {rdapOf(t, "ip network", "198.51.100.0", "198.51.100.255", "hello"), 0},
		"RDAP without range":    {rdapOf(t, "ip network", "", "", oneLine), 0},
		"no JSON":               {"{", 0},
		"nothing":               {"", 0},
		"no base64":             {"-----BEGIN CERTIFICATE-----?-----END CERTIFICATE-----", 0},
		"no certificate":        {"-----BEGIN CERTIFICATE-----AAAA-----END CERTIFICATE-----", 0},
		"too many":              {strings.Repeat(s.PEM(), 17), 0},
		"too long":              {strings.Repeat(" ", documentBytesMax+1), 0},
	} {
		got, err := ParseDocument(c.document, cidr)
		if len(got) != c.n || (err == nil) != (c.n > 0) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
		if c.n > 0 && !strings.Contains(got.Describe()[0], "CN=owner, RSA, until 2027") {
			t.Errorf("%s: described as %v", name, got.Describe())
		}
	}
}

// TestAsTheGuideSays makes the key, the certificate and the signature with the commands of AWS's guide.
func TestAsTheGuideSays(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	message := fmt.Sprintf("1|aws|123456789012|198.51.100.0/24|%s|SHA256|RSAPSS", time.Now().AddDate(0, 1, 0).Format("20060102"))
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `set -e; cd "$1"
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out private-key.pem 2>/dev/null
openssl req -new -x509 -key private-key.pem -days 365 -subj /CN=owner | tr -d "\n" > certificate.pem
printf %s "$2" | openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:-1 -sign private-key.pem \
  -keyform PEM | openssl base64 | tr -- '+=/' '-_~' | tr -d "\n"`, "sh", dir, message).Output()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := exec.CommandContext(t.Context(), "cat", filepath.Join(dir, "certificate.pem")).Output()
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseDocument(rdapOf(t, "ip network", "198.51.100.0", "198.51.100.255", string(pem)), cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(Request{"123456789012", cidr, message, string(out)}, time.Now()); err != nil {
		t.Error(err)
	}
}

func FuzzDocument(f *testing.F) {
	s := signed(f, newRSA(f, 2048))
	f.Add(s.PEM(), "1|aws|123456789012|198.51.100.0/24|20260701|SHA256|RSAPSS", "AAAA")
	f.Add(rdapOf(f, "ip network", "198.51.100.0", "198.51.100.255", s.PEM()), "", "")
	f.Fuzz(func(t *testing.T, document, message, signature string) {
		got, err := ParseDocument(document, cidr)
		if (err == nil) != (len(got) > 0) {
			t.Errorf("%d certificates and %v", len(got), err)
		}
		if append(got, s...).Verify(Request{"123456789012", cidr, message, signature}, now) == nil {
			t.Errorf("%q is taken for a signature", signature)
		}
	})
}
