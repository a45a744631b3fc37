package byoip

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

const (
	messageBytesMax   = 255  // AWS's
	signatureBytesMax = 1024 // of an RSA key of 6,000 bits
)

// Request is what an account asks for: a range, and the message that is to show that it may.
type Request struct {
	Account   string // 12 digits
	CIDR      netip.Prefix
	Message   string
	Signature string // base64
}

// The errors of Verify, in the order in which it looks.
var (
	ErrMessage   = errors.New("the authorization message is not right")
	ErrExpired   = errors.New("the authorization message has expired")
	ErrSignature = errors.New("the signature is not right")
)

// Verify checks that a signer of the range's record has signed r's message, and that it says what r asks
// for:
//
//	1|aws|<account>|<cidr>|<YYYYMMDD>|SHA256|RSAPSS
//
// as the AWS guide "Bring your own IP addresses" has it; the date is the last day on which it holds (UTC).
// In place of "aws" it may say "nearcast", and ECDSA in place of RSAPSS. Errors wrap one of the above.
func (s Signers) Verify(r Request, now time.Time) error {
	if len(r.Message) > messageBytesMax || len(r.Signature) > signatureBytesMax {
		return fmt.Errorf("%w: it or its signature is too long", ErrMessage)
	}
	parts := strings.Split(r.Message, "|")
	if len(parts) != 7 || parts[0] != "1" || parts[1] != "aws" && parts[1] != "nearcast" || parts[5] != "SHA256" {
		return fmt.Errorf("%w: it must look like 1|aws|%s|%v|YYYYMMDD|SHA256|RSAPSS", ErrMessage, r.Account, r.CIDR)
	}
	if parts[2] != r.Account {
		return fmt.Errorf("%w: it is for account %q, not %s", ErrMessage, parts[2], r.Account)
	}
	if cidr, err := netip.ParsePrefix(parts[3]); err != nil || cidr != r.CIDR {
		return fmt.Errorf("%w: it is for %q, not %v", ErrMessage, parts[3], r.CIDR)
	}
	day, err := time.Parse("20060102", parts[4])
	if err != nil {
		return fmt.Errorf("%w: its date is %q and not YYYYMMDD", ErrMessage, parts[4])
	}
	if !now.Before(day.AddDate(0, 0, 1)) {
		return fmt.Errorf("%w: it held until %s", ErrExpired, day.Format(time.DateOnly))
	}
	signature, err := decodeSignature(r.Signature)
	if err != nil {
		return fmt.Errorf("%w: it is not base64", ErrSignature)
	}
	return s.verify(parts[6], r.Message, signature, now)
}

// verify looks for a certificate that holds now whose key made the signature.
func (s Signers) verify(scheme, message string, signature []byte, now time.Time) error {
	if scheme != "RSAPSS" && scheme != "ECDSA" {
		return fmt.Errorf("%w: it is signed by %q; use RSAPSS or ECDSA", ErrMessage, scheme)
	}
	sum, ended := sha256.Sum256([]byte(message)), 0
	for _, c := range s {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			ended++
			continue
		}
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			// OpenSSL salts with as many bytes as the key allows, or as the hash has.
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}
			if scheme == "RSAPSS" && rsa.VerifyPSS(key, crypto.SHA256, sum[:], signature, options) == nil {
				return nil
			}
		case *ecdsa.PublicKey:
			if scheme == "ECDSA" && ecdsa.VerifyASN1(key, sum[:], signature) {
				return nil
			}
		}
	}
	if ended == len(s) {
		return fmt.Errorf("%w: no certificate of the range's record holds today", ErrSignature)
	}
	return fmt.Errorf("%w: no key of the range's record made it", ErrSignature)
}

// decodeSignature reads base64, also with the characters that AWS's guide puts in place of "+=/".
func decodeSignature(s string) ([]byte, error) {
	s = strings.NewReplacer("-", "+", "_", "=", "~", "/").Replace(s)
	return base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
}

// EncodeSignature writes a signature as AWS's guide has it.
func EncodeSignature(b []byte) string {
	return strings.NewReplacer("+", "-", "=", "_", "/", "~").Replace(base64.StdEncoding.EncodeToString(b))
}
