package access

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Sessions are temporary credentials with at most the rights of an access key. Nothing of them is stored: the
// token says what they are and is sealed with the access key's secret, and so is their own secret made.
// They end with their time, or at once with their key.

// ErrExpired: a session's time is over.
var ErrExpired = errors.New("the session has ended")

const (
	sessionIDPrefix   = "NCAS"
	sessionValidMin   = 15 * time.Minute // AWS's bounds of GetSessionToken
	sessionValidMax   = 36 * time.Hour
	sessionValid      = time.Hour
	sessionTokenBytes = 1024
	sessionName       = "session"
)

// Session is temporary credentials.
type Session struct {
	ID, Secret, Token string
	Expires           time.Time
}

// sessionClaims are what a token says.
type sessionClaims struct {
	Key     string  `json:"k"` // the access key's id
	ID      string  `json:"i"`
	Role    v1.Role `json:"r"`
	Expires int64   `json:"x"` // seconds since 1970
	Name    string  `json:"n"`
}

var sessionNames = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`) // AWS's RoleSessionName

// CreateSession makes a session of an access key. role is at most the key's, and 0 the key's; valid 0 is an hour;
// name appears in the audit log. Errors: ErrUnknown, model.FieldErrors.
func (ks *Keys) CreateSession(ctx context.Context, keyID string, role v1.Role, valid time.Duration,
	name string) (Session, error) {
	key, secret, err := ks.Lookup(ctx, keyID)
	if err != nil {
		return Session{}, err
	}
	if role == v1.Role_ROLE_UNSPECIFIED {
		role = key.Role
	}
	if valid == 0 {
		valid = sessionValid
	}
	if name == "" {
		name = sessionName
	}
	var wrong model.FieldErrors
	if !covers(key.Role, role) {
		wrong = append(wrong, model.FieldError{Field: "role", Message: "is more than the access key's"})
	}
	if valid < sessionValidMin || valid > sessionValidMax {
		wrong = append(wrong, model.FieldError{Field: "valid",
			Message: fmt.Sprintf("must be %v to %v", sessionValidMin, sessionValidMax)})
	}
	if !sessionNames.MatchString(name) {
		wrong = append(wrong, model.FieldError{Field: "name", Message: "must have 2–64 of the characters a–z, A–Z, 0–9 and _+=,.@-"})
	}
	if len(wrong) > 0 {
		return Session{}, wrong
	}
	expires := ks.now().UTC().Add(valid).Truncate(time.Second)
	if !key.Expires.IsZero() && key.Expires.Before(expires) {
		expires = key.Expires.Truncate(time.Second)
	}
	c := sessionClaims{keyID, sessionIDPrefix + rand.Text()[:keyIDRandom], role, expires.Unix(), name}
	claims, err := json.Marshal(c)
	if err != nil {
		return Session{}, fmt.Errorf("encode session: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(claims)
	token += "." + seal(secret, "token", token)
	return Session{c.ID, seal(secret, "secret", token)[:keySecretBytes], token, expires}, nil
}

// covers reports whether role a may do all that role b may.
func covers(a, b v1.Role) bool {
	for _, need := range []Need{NeedViewer, NeedOperator, NeedAdmin} {
		if Allows(b, need) && !Allows(a, need) {
			return false
		}
	}
	return Allows(b, NeedViewer)
}

// seal is what only who knows a secret can make of a text.
func seal(secret, purpose, text string) string {
	m := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(m, "nearcast session %s:%s", purpose, text)
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// Find is Lookup for credentials of either kind: token is a session's, "" for an access key. Beside
// Lookup's errors it has ErrExpired.
func (ks *Keys) Find(ctx context.Context, id, token string) (AccessKey, string, error) {
	if token == "" {
		return ks.Lookup(ctx, id)
	}
	text, mac, ok := strings.Cut(token, ".")
	if !ok || len(token) > sessionTokenBytes {
		return AccessKey{}, "", ErrUnknown
	}
	claims, err := base64.RawURLEncoding.DecodeString(text)
	var c sessionClaims
	if err != nil || json.Unmarshal(claims, &c) != nil || c.ID != id {
		return AccessKey{}, "", ErrUnknown
	}
	key, secret, err := ks.Lookup(ctx, c.Key)
	if err != nil {
		return AccessKey{}, "", err
	}
	if !hmac.Equal([]byte(seal(secret, "token", text)), []byte(mac)) {
		return AccessKey{}, "", ErrUnknown
	}
	end := time.Unix(c.Expires, 0).UTC()
	if !ks.now().Before(end) {
		return AccessKey{}, "", ErrExpired
	}
	key.ID, key.Role, key.Expires, key.Session = c.ID, c.Role, end, c.Name
	return key, seal(secret, "secret", token)[:keySecretBytes], nil
}
