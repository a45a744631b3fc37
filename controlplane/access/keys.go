package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// ErrTooMany: there are keysMax access keys.
var ErrTooMany = errors.New("there are too many access keys; delete some")

const (
	keysPrefix     = "access-keys/"
	accountOf      = "accounts/of-project/" // project → account id
	projectOf      = "accounts/by-id/"      // account id → project
	keyIDPrefix    = "NCAK"
	keyIDRandom    = 16 // characters of 5 bits
	keySecretBytes = 40 // characters of 5 bits; AWS's have as many
	keysMax        = 10_000
	keyGraceMax    = 30 * 24 * time.Hour
	keyTextMax     = 256 // characters of a description
)

// AccessKey lets an AWS client sign requests. It has no secret in it.
type AccessKey struct {
	ID          string
	Description string
	Role        v1.Role
	Project     string
	Account     string    // the project's: 12 digits
	Expires     time.Time // zero: never
	Created     time.Time
	CreatedBy   string
	Revision    uint64 // store revision of its last change
	Session     string // with Find: the name of the session, whose ID, Role and Expires the others are; "": the key itself
}

// storedKey is an AccessKey as it lies in the store. Signature Version 4 is an HMAC, so whoever verifies
// needs the very secret that the client has: it cannot be kept as a hash. Who reads the store can
// sign, as he can with the certificate authority's key, which lies there too.
type storedKey struct {
	Description string    `json:"description,omitempty"`
	Role        v1.Role   `json:"role"`
	Project     string    `json:"project"`
	Account     string    `json:"account"`
	Expires     time.Time `json:"expires,omitzero"`
	Created     time.Time `json:"created"`
	CreatedBy   string    `json:"created_by,omitempty"`
	Secret      string    `json:"secret"`
}

// Keys are the cluster's access keys, in its store. They and Operators are known for some minutes
// without the store.
type Keys struct {
	store *store.Store
	now   func() time.Time

	mu     sync.Mutex
	recent map[string]recentKey // by id, at most recentMax
}

type recentKey struct {
	storedKey
	seen time.Time
}

// NewKeys returns the access keys that s holds.
func NewKeys(s *store.Store) *Keys {
	return &Keys{store: s, now: time.Now, recent: map[string]recentKey{}}
}

var (
	projectName = regexp.MustCompile(`^[a-zA-Z0-9_]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?$`)
	accountID   = regexp.MustCompile(`^[0-9]{12}$`)
)

func (k *AccessKey) validate() error {
	var wrong model.FieldErrors
	add := func(field, message string) {
		wrong = append(wrong, model.FieldError{Field: "key." + field, Message: message})
	}
	if !Allows(k.Role, NeedViewer) {
		add("role", "must be VIEWER, OPERATOR or ADMIN")
	}
	if !projectName.MatchString(k.Project) {
		add("project", "is no project's name: use 1–64 of the characters a–z, A–Z, 0–9, '_', inner '.' and '-'")
	}
	if k.Account != "" && !accountID.MatchString(k.Account) {
		add("account_id", "must have 12 digits")
	}
	if utf8.RuneCountInString(k.Description) > keyTextMax || !utf8.ValidString(k.Description) {
		add("description", fmt.Sprintf("is longer than %d characters, or not UTF-8", keyTextMax))
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// Create makes a key for k.Role in k.Project ("" is model.DefaultProject) and returns its secret, which
// cannot be had again. k.Account is what AccessKey.account_id in the schema says. Errors:
// model.FieldErrors, ErrTooMany.
func (ks *Keys) Create(ctx context.Context, k AccessKey) (AccessKey, string, error) {
	k.Project = cmp.Or(k.Project, model.DefaultProject)
	if err := k.validate(); err != nil {
		return AccessKey{}, "", err
	}
	page, err := ks.store.List(ctx, keysPrefix, store.ListOptions{KeysOnly: true})
	if err != nil {
		return AccessKey{}, "", fmt.Errorf("list access keys: %w", err)
	}
	if len(page.Items) >= keysMax {
		return AccessKey{}, "", ErrTooMany
	}
	if k.Account, err = ks.account(ctx, k.Project, k.Account); err != nil {
		return AccessKey{}, "", err
	}
	k.ID = keyIDPrefix + rand.Text()[:keyIDRandom]
	k.Created, k.Expires = ks.now().UTC().Round(0), time.Time{}
	secret := (rand.Text() + rand.Text())[:keySecretBytes]
	k.Revision, err = ks.write(ctx, store.Absent(keysPrefix+k.ID), k, secret)
	return k, secret, err
}

func (ks *Keys) write(ctx context.Context, cond store.Cond, k AccessKey, secret string) (uint64, error) {
	value, err := json.Marshal(storedKey{k.Description, k.Role, k.Project, k.Account, k.Expires, k.Created,
		k.CreatedBy, secret})
	if err != nil {
		return 0, fmt.Errorf("encode access key: %w", err)
	}
	revision, err := ks.store.Txn(ctx, []store.Cond{cond}, store.Put(keysPrefix+k.ID, value))
	if err != nil {
		return 0, fmt.Errorf("store access key %s: %w", k.ID, err)
	}
	return revision, nil
}

// account returns the project's account id and gives it one if it has none: want, or else one that
// follows from its name.
func (ks *Keys) account(ctx context.Context, project, want string) (string, error) {
	kv, err := ks.store.Get(ctx, accountOf+project)
	if err == nil {
		if have := string(kv.Value); want == "" || want == have {
			return have, nil
		} else {
			return "", model.FieldErrors{{Field: "key.account_id",
				Message: fmt.Sprintf("is %s, and project %s has account id %s already", want, project, have)}}
		}
	}
	if !errors.Is(err, store.ErrNotFound) {
		return "", fmt.Errorf("look up account of project %s: %w", project, err)
	}
	id := want
	if id == "" {
		sum := sha256.Sum256([]byte("nearcast account of " + project))
		id = fmt.Sprintf("%012d", binary.BigEndian.Uint64(sum[:])%1e12)
	}
	_, err = ks.store.Txn(ctx, []store.Cond{store.Absent(accountOf + project), store.Absent(projectOf + id)},
		store.Put(accountOf+project, []byte(id)), store.Put(projectOf+id, []byte(project)))
	switch {
	case err == nil:
		return id, nil
	case !errors.Is(err, store.ErrConflict):
		return "", fmt.Errorf("store account of project %s: %w", project, err)
	}
	if kv, err := ks.store.Get(ctx, accountOf+project); err == nil && (want == "" || want == string(kv.Value)) {
		return string(kv.Value), nil // somebody was faster
	}
	return "", model.FieldErrors{{Field: "key.account_id",
		Message: fmt.Sprintf("%s belongs to another project; choose another one", id)}}
}

// Account returns a project's account id, and gives it the one that follows from its name if it has none.
func (ks *Keys) Account(ctx context.Context, project string) (string, error) {
	return ks.account(ctx, project, "")
}

// ProjectOf returns the project that has an account id, or ErrUnknown.
func (ks *Keys) ProjectOf(ctx context.Context, account string) (string, error) {
	if !accountID.MatchString(account) {
		return "", ErrUnknown
	}
	kv, err := ks.store.Get(ctx, projectOf+account)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "", ErrUnknown
	case err != nil:
		return "", fmt.Errorf("look up project of account %s: %w", account, err)
	}
	return string(kv.Value), nil
}

// Lookup returns a key that has not ended, and its secret; or ErrUnknown. While the store is away, it
// tells what was true up to ten minutes ago.
func (ks *Keys) Lookup(ctx context.Context, id string) (AccessKey, string, error) {
	if !strings.HasPrefix(id, keyIDPrefix) || len(id) != len(keyIDPrefix)+keyIDRandom {
		return AccessKey{}, "", ErrUnknown // the store is not asked for what strangers make up
	}
	ctx, cancel := context.WithTimeout(ctx, keyLookupTimeout)
	defer cancel()
	kv, err := ks.store.Get(ctx, keysPrefix+id)
	var k AccessKey
	var stored storedKey
	switch {
	case errors.Is(err, store.ErrNotFound):
		ks.remember(id, nil)
		return k, "", ErrUnknown
	case err != nil:
		var known bool
		if stored, known = ks.remembered(id); !known {
			return k, "", fmt.Errorf("look up access key: %w: %v", store.ErrUnavailable, err)
		}
		k = stored.key(id, 0)
	default:
		if k, stored, err = readKey(kv); err != nil {
			return k, "", err
		}
		ks.remember(id, &stored)
	}
	if !k.Expires.IsZero() && !ks.now().Before(k.Expires) {
		return AccessKey{}, "", ErrUnknown
	}
	return k, stored.Secret, nil
}

// keyLookupTimeout is when the store is taken to be away: somebody waits for the answer.
const keyLookupTimeout = 2 * time.Second

func (ks *Keys) remember(id string, stored *storedKey) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if stored == nil {
		delete(ks.recent, id)
		return
	}
	if _, known := ks.recent[id]; known || len(ks.recent) < recentMax {
		ks.recent[id] = recentKey{*stored, ks.now()}
	}
}

func (ks *Keys) remembered(id string) (storedKey, bool) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	r, ok := ks.recent[id]
	return r.storedKey, ok && ks.now().Sub(r.seen) < recentFor
}

// List returns all keys, oldest first.
func (ks *Keys) List(ctx context.Context) ([]AccessKey, error) {
	page, err := ks.store.List(ctx, keysPrefix, store.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	list := make([]AccessKey, 0, len(page.Items))
	for _, kv := range page.Items {
		k, _, err := readKey(kv)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	slices.SortStableFunc(list, func(a, b AccessKey) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Rotate makes a new key with the rights of the key id, and lets the old one end after grace, 0 to 30
// days, if it does not end before. by is who does it. Errors: ErrUnknown, model.FieldErrors, ErrTooMany.
func (ks *Keys) Rotate(ctx context.Context, id string, grace time.Duration,
	by string) (AccessKey, string, error) {
	if grace < 0 || grace > keyGraceMax {
		return AccessKey{}, "", model.FieldErrors{{Field: "grace",
			Message: fmt.Sprintf("must be 0 to %v", keyGraceMax)}}
	}
	old, secret, err := ks.Lookup(ctx, id)
	if err != nil {
		return AccessKey{}, "", err
	}
	next := old
	next.CreatedBy = by
	next, nextSecret, err := ks.Create(ctx, next)
	if err != nil {
		return AccessKey{}, "", err
	}
	if end := ks.now().UTC().Round(0).Add(grace); old.Expires.IsZero() || end.Before(old.Expires) {
		old.Expires = end
		if _, err := ks.write(ctx, store.Unchanged(keysPrefix+id, old.Revision), old, secret); err != nil {
			return AccessKey{}, "", errors.Join(err, ks.Delete(ctx, next.ID, 0)) // nobody will know its secret
		}
	}
	return next, nextSecret, nil
}

// Delete revokes a key from the next request on. revision, when not 0, must be the key's. Errors:
// ErrUnknown, and store.ErrConflict when it was changed meanwhile.
func (ks *Keys) Delete(ctx context.Context, id string, revision uint64) error {
	key := keysPrefix + id
	cond := store.Present(key)
	if revision != 0 {
		cond = store.Unchanged(key, revision)
	}
	_, err := ks.store.Txn(ctx, []store.Cond{cond}, store.Delete(key))
	if errors.Is(err, store.ErrConflict) {
		if _, getErr := ks.store.Get(ctx, key); errors.Is(getErr, store.ErrNotFound) {
			return ErrUnknown
		}
	}
	if err != nil {
		return fmt.Errorf("delete access key %s: %w", id, err)
	}
	ks.remember(id, nil)
	return nil
}

func readKey(kv store.KV) (AccessKey, storedKey, error) {
	var stored storedKey
	if err := json.Unmarshal(kv.Value, &stored); err != nil {
		return AccessKey{}, stored, fmt.Errorf("read %s from the store: %w", kv.Key, err)
	}
	return stored.key(kv.Key[len(keysPrefix):], kv.Modified), stored, nil
}

func (s storedKey) key(id string, revision uint64) AccessKey {
	return AccessKey{ID: id, Description: s.Description, Role: s.Role, Project: s.Project, Account: s.Account,
		Expires: s.Expires, Created: s.Created, CreatedBy: s.CreatedBy, Revision: revision}
}
