package access

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// Errors of Operators that callers decide by. Those of the store come through as they are.
var (
	// ErrExists: there is an operator of that name.
	ErrExists = errors.New("operator exists already")
	// ErrLastAdmin: without this operator nobody could administrate the cluster.
	ErrLastAdmin = errors.New("the last administrator cannot be deleted")
)

const operatorsPrefix = "operators/"

// Operator is somebody who may use the admin API.
type Operator struct {
	Name     string
	Role     v1.Role
	Created  time.Time
	Revision uint64 // store revision of its last change
}

// storedOperator is an Operator as it lies in the store, without what the key and the store know.
type storedOperator struct {
	Role       v1.Role   `json:"role"`
	SecretHash []byte    `json:"secret_hash"` // SHA-256
	Created    time.Time `json:"created"`
}

// Operators are the cluster's operators, in its store.
type Operators struct {
	store *store.Store

	mu     sync.Mutex
	recent map[string]recentOperator // by name, at most recentMax
}

// recentOperator is what the store said of an operator a while ago.
type recentOperator struct {
	storedOperator
	seen time.Time
}

const (
	// recentFor is how long an operator is known without the store: long enough to look what is wrong
	// when it has lost its quorum. Nothing can be changed then, so what a deleted operator could do at
	// worst is to read for this long.
	recentFor = 10 * time.Minute
	recentMax = 1000
	// lookupTimeout is when the store is taken to be away: somebody waits to be told so.
	lookupTimeout = 2 * time.Second
)

// NewOperators returns the operators that s holds.
func NewOperators(s *store.Store) *Operators {
	return &Operators{store: s, recent: map[string]recentOperator{}}
}

// Create makes an operator and returns his bearer token, which cannot be had again. Errors:
// ErrExists, and model.FieldErrors about the name or role.
func (o *Operators) Create(ctx context.Context, name string, role v1.Role) (Operator, string, error) {
	token := identity.OperatorToken{Name: name, Secret: identity.NewSecret()}
	made, err := o.CreateWith(ctx, token, role)
	if err != nil {
		return Operator{}, "", err
	}
	return made, token.String(), nil
}

// CreateWith is Create with a token that the caller has made, so that it can be tried again: what ended with
// store.ErrUnavailable may have happened all the same, and an operator who has this token is taken for made by
// an earlier try. Errors: Create's.
func (o *Operators) CreateWith(ctx context.Context, token identity.OperatorToken, role v1.Role) (Operator, error) {
	if err := identity.ValidateName(token.Name); err != nil {
		return Operator{}, model.FieldErrors{{Field: "operator.name", Message: err.Error()}}
	}
	if !Allows(role, NeedViewer) {
		return Operator{}, model.FieldErrors{{Field: "operator.role",
			Message: "must be VIEWER, OPERATOR or ADMIN"}}
	}
	stored := storedOperator{
		Role: role, SecretHash: identity.HashSecret(token.Secret), Created: time.Now().UTC()}
	value, err := json.Marshal(stored)
	if err != nil {
		return Operator{}, fmt.Errorf("encode operator: %w", err)
	}
	key := operatorsPrefix + token.Name
	revision, err := o.store.Txn(ctx, []store.Cond{store.Absent(key)}, store.Put(key, value))
	if errors.Is(err, store.ErrConflict) {
		return o.madeBefore(ctx, token, role)
	}
	if err != nil {
		return Operator{}, fmt.Errorf("store operator %s: %w", token.Name, err)
	}
	return Operator{Name: token.Name, Role: role, Created: stored.Created, Revision: revision}, nil
}

// madeBefore returns the operator of the token's name if he has that token, and ErrExists otherwise.
func (o *Operators) madeBefore(ctx context.Context, token identity.OperatorToken, role v1.Role) (Operator, error) {
	kv, err := o.store.Get(ctx, operatorsPrefix+token.Name)
	if errors.Is(err, store.ErrNotFound) {
		return Operator{}, ErrExists // he did a moment ago
	}
	if err != nil {
		return Operator{}, fmt.Errorf("look for operator %s: %w", token.Name, err)
	}
	made, stored, err := readOperator(kv)
	if err != nil {
		return Operator{}, err
	}
	if made.Role != role || !identity.SecretMatches(token.Secret, stored.SecretHash) {
		return Operator{}, ErrExists
	}
	return made, nil
}

// Lookup returns an operator's role and the hash of his secret, or ErrUnknown. It is Config.Operator.
// While the store is away, it tells what was true up to ten minutes ago.
func (o *Operators) Lookup(ctx context.Context, name string) (v1.Role, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	kv, err := o.store.Get(ctx, operatorsPrefix+name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		o.remember(name, nil)
		return 0, nil, ErrUnknown
	case err != nil:
		if known, ok := o.remembered(name); ok {
			return known.Role, known.SecretHash, nil
		}
		return 0, nil, fmt.Errorf("%w: %v", store.ErrUnavailable, err)
	}
	_, stored, err := readOperator(kv)
	if err == nil {
		o.remember(name, &stored)
	}
	return stored.Role, stored.SecretHash, err
}

func (o *Operators) remember(name string, stored *storedOperator) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if stored == nil {
		delete(o.recent, name)
		return
	}
	if _, known := o.recent[name]; !known && len(o.recent) >= recentMax {
		return
	}
	o.recent[name] = recentOperator{*stored, time.Now()}
}

func (o *Operators) remembered(name string) (storedOperator, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, ok := o.recent[name]
	return r.storedOperator, ok && time.Since(r.seen) < recentFor
}

// Get returns one operator, or ErrUnknown.
func (o *Operators) Get(ctx context.Context, name string) (Operator, error) {
	kv, err := o.store.Get(ctx, operatorsPrefix+name)
	if errors.Is(err, store.ErrNotFound) {
		return Operator{}, ErrUnknown
	}
	if err != nil {
		return Operator{}, err
	}
	op, _, err := readOperator(kv)
	return op, err
}

// Reset gives an operator a new secret and the role, making him if there is none of that name, and
// returns the new bearer token. The old token is worth nothing from then on.
func (o *Operators) Reset(ctx context.Context, name string, role v1.Role) (string, error) {
	if _, err := o.store.Delete(ctx, operatorsPrefix+name); err != nil && !errors.Is(err, store.ErrNotFound) {
		return "", fmt.Errorf("delete operator %s: %w", name, err)
	}
	_, token, err := o.Create(ctx, name, role)
	return token, err
}

// List returns all operators, oldest first.
func (o *Operators) List(ctx context.Context) ([]Operator, error) {
	page, err := o.store.List(ctx, operatorsPrefix, store.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list operators: %w", err)
	}
	list := make([]Operator, 0, len(page.Items))
	for _, kv := range page.Items {
		op, _, err := readOperator(kv)
		if err != nil {
			return nil, err
		}
		list = append(list, op)
	}
	slices.SortStableFunc(list, func(a, b Operator) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Delete removes an operator; his token and certificates are worth nothing from the next call on.
// revision, when not 0, must be the operator's. Errors: ErrUnknown, ErrLastAdmin, and
// store.ErrConflict when he was changed meanwhile.
func (o *Operators) Delete(ctx context.Context, name string, revision uint64) error {
	list, err := o.List(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(op Operator) bool { return op.Name == name })
	if i < 0 {
		return ErrUnknown
	}
	gone := list[i]
	if revision != 0 && gone.Revision != revision {
		return fmt.Errorf("operator %s is at revision %d: %w", name, gone.Revision, store.ErrConflict)
	}
	conds := []store.Cond{store.Unchanged(operatorsPrefix+name, gone.Revision)}
	if gone.Role == v1.Role_ROLE_ADMIN {
		other := slices.IndexFunc(list, func(op Operator) bool {
			return op.Name != name && op.Role == v1.Role_ROLE_ADMIN
		})
		if other < 0 {
			return ErrLastAdmin
		}
		// Two administrators who delete each other at once must not both succeed.
		conds = append(conds, store.Unchanged(operatorsPrefix+list[other].Name, list[other].Revision))
	}
	if _, err := o.store.Txn(ctx, conds, store.Delete(operatorsPrefix+name)); err != nil {
		return fmt.Errorf("delete operator %s: %w", name, err)
	}
	return nil
}

func readOperator(kv store.KV) (Operator, storedOperator, error) {
	var stored storedOperator
	if err := json.Unmarshal(kv.Value, &stored); err != nil {
		return Operator{}, stored, fmt.Errorf("read %s from the store: %w", kv.Key, err)
	}
	name := kv.Key[len(operatorsPrefix):]
	return Operator{Name: name, Role: stored.Role, Created: stored.Created, Revision: kv.Modified}, stored, nil
}
