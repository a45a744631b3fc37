package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
)

const (
	joinPrefix     = "NC1"   // a join token of the first form
	operatorPrefix = "NCO1." // an operator's bearer token of the first form
	tokenIDChars   = 10      // 50 random bits: names a token, protects nothing
)

// Token is a join token. Its written form is NC1<hex SHA-256 of the authority's certificate>.<id>.<secret>.
type Token struct {
	CAHash [32]byte // SHA-256 of the authority's certificate in DER
	ID     string   // 1–32 of [a-z0-9]; public
	Secret string   // 16–128 of [a-zA-Z0-9_-]
}

// NewToken makes a token with a new id and a secret of 130 random bits.
func NewToken(ca *CA) Token {
	id := strings.ToLower(rand.Text())[:tokenIDChars]
	return Token{CAHash: ca.Hash(), ID: id, Secret: NewSecret()}
}

// String returns the whole token, with its secret.
func (t Token) String() string {
	return joinPrefix + hex.EncodeToString(t.CAHash[:]) + "." + t.ID + "." + t.Secret
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(joinPrefix + "…." + t.ID + ".…") }

var errToken = errors.New("not a join token: it looks like NC1<64 hexadecimal digits>.<id>.<secret>")

// ParseToken reads a join token. It accepts exactly what String writes; the error never contains
// the text, which may be a secret.
func ParseToken(s string) (Token, error) {
	var t Token
	rest, ok := strings.CutPrefix(s, joinPrefix)
	parts := strings.SplitN(rest, ".", 4)
	if !ok || len(s) > tokenBytesMax || len(parts) != 3 || len(parts[0]) != hex.EncodedLen(len(t.CAHash)) {
		return Token{}, errToken
	}
	if _, err := hex.Decode(t.CAHash[:], []byte(parts[0])); err != nil || strings.ToLower(parts[0]) != parts[0] {
		return Token{}, errToken
	}
	t.ID, t.Secret = parts[1], parts[2]
	if t.ID == "" || len(t.ID) > tokenIDMax || !allBytes(t.ID, isLowerDigit) || !validSecret(t.Secret) {
		return Token{}, errToken
	}
	return t, nil
}

// OperatorToken is an operator's bearer token. Its written form is NCO1.<name>.<secret>.
type OperatorToken struct {
	Name   string // the operator's
	Secret string // as Token's
}

// String returns the whole token, with its secret.
func (t OperatorToken) String() string { return operatorPrefix + t.Name + "." + t.Secret }

// LogValue keeps the secret out of logs.
func (t OperatorToken) LogValue() slog.Value {
	return slog.StringValue(operatorPrefix + t.Name + ".…")
}

// ParseOperatorToken reads a bearer token. The error never contains the text.
func ParseOperatorToken(s string) (OperatorToken, error) {
	rest, ok := strings.CutPrefix(s, operatorPrefix)
	dot := strings.LastIndexByte(rest, '.')
	if !ok || len(s) > tokenBytesMax || dot < 0 {
		return OperatorToken{}, errors.New("not an operator's token: it looks like NCO1.<name>.<secret>")
	}
	t := OperatorToken{Name: rest[:dot], Secret: rest[dot+1:]}
	if ValidateName(t.Name) != nil || !validSecret(t.Secret) {
		return OperatorToken{}, errors.New("not an operator's token: bad name or secret")
	}
	return t, nil
}

// NewSecret returns 130 random bits as text.
func NewSecret() string { return strings.ToLower(rand.Text()) }

// HashSecret returns what is stored of a secret. A plain SHA-256 is enough: secrets are random and
// too long to guess.
func HashSecret(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// SecretMatches compares a secret with a stored hash in constant time.
func SecretMatches(secret string, hash []byte) bool {
	return subtle.ConstantTimeCompare(HashSecret(secret), hash) == 1
}

func validSecret(s string) bool {
	return len(s) >= secretBytesMin && len(s) <= secretBytesMax && allBytes(s, func(c byte) bool {
		return isLowerDigit(c) || 'A' <= c && c <= 'Z' || c == '_' || c == '-'
	})
}

func allBytes(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}
