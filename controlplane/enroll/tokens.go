package enroll

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
)

// Token is a join token as operators see it: everything but the secret.
type Token struct {
	ID           string         `json:"-"`
	Description  string         `json:"description,omitempty"` // ≤ 256 characters
	Expires      time.Time      `json:"expires"`
	SingleUse    bool           `json:"single_use,omitempty"`
	Site         model.SiteName `json:"site,omitempty"`      // the only site it may join; "": any
	NodeName     string         `json:"node_name,omitempty"` // the only name it may take; "": any
	AllowEdge    bool           `json:"allow_edge,omitempty"`
	AllowGateway bool           `json:"allow_gateway,omitempty"`
	Uses         int            `json:"uses"`
	Created      time.Time      `json:"created"`
	CreatedBy    string         `json:"created_by,omitempty"`
	Revision     uint64         `json:"-"`
}

// storedToken is a Token as it lies in the store.
type storedToken struct {
	Token
	SecretHash []byte `json:"secret_hash"`
	CAHash     []byte `json:"ca_hash"`
	Last       []use  `json:"last,omitempty"` // the newest uses, oldest first
}

// use is one enrolment.
type use struct {
	KeyHash []byte       `json:"key_hash"`       // of the public key that asked
	Claim   string       `json:"claim"`          // random; whose call counted this use
	Time    time.Time    `json:"time"`           // when it was counted
	Node    model.NodeID `json:"node,omitempty"` // "" until it is registered
}

// Tokens are the cluster's join tokens, in its store.
type Tokens struct {
	store     *store.Store
	authority *Authority
	turn      chan struct{} // capacity 1: who changes a token; machines that join at once queue here
}

// NewTokens returns the join tokens that s holds.
func NewTokens(s *store.Store, a *Authority) *Tokens { return &Tokens{s, a, make(chan struct{}, 1)} }

// validate fills defaults and reports what is wrong with a new token.
func (t *Token) validate(now time.Time) error {
	var wrong model.FieldErrors
	if t.Expires.IsZero() {
		t.Expires = now.Add(tokenLifetimeDefault)
	}
	if !t.Expires.After(now) {
		wrong = append(wrong, model.FieldError{Field: "token.expires", Message: "lies in the past"})
	}
	if t.Expires.After(now.Add(tokenLifetimeMax)) {
		wrong = append(wrong, model.FieldError{Field: "token.expires", Message: "is more than a year away"})
	}
	if utf8.RuneCountInString(t.Description) > descriptionMax {
		wrong = append(wrong, model.FieldError{Field: "token.description",
			Message: fmt.Sprintf("is longer than %d characters", descriptionMax)})
	}
	if !t.AllowEdge && !t.AllowGateway {
		wrong = append(wrong, model.FieldError{Field: "token.allow_edge",
			Message: "or token.allow_gateway must be set, or the token is good for nothing"})
	}
	if t.NodeName != "" && identity.ValidateName(t.NodeName) != nil {
		wrong = append(wrong, model.FieldError{Field: "token.node_name", Message: "is not a node's name"})
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// Create makes a token. Its ID, Uses, Created and Revision are given here; the text returned is the
// whole token with its secret, which cannot be had again. Errors: model.FieldErrors; store.ErrNoSpace
// when there are too many tokens.
func (ts *Tokens) Create(ctx context.Context, t Token) (Token, string, error) {
	now := time.Now().UTC()
	if err := t.validate(now); err != nil {
		return Token{}, "", err
	}
	all, err := ts.list(ctx)
	if err != nil {
		return Token{}, "", err
	}
	if len(all) >= tokensMax {
		return Token{}, "", fmt.Errorf("there are %d join tokens, delete some: %w", len(all), store.ErrNoSpace)
	}
	ts.forget(ctx, all, now)

	token := identity.NewToken(ts.authority.CA())
	t.ID, t.Uses, t.Created = token.ID, 0, now
	stored := storedToken{Token: t, SecretHash: identity.HashSecret(token.Secret), CAHash: token.CAHash[:]}
	value, err := json.Marshal(stored)
	if err != nil {
		return Token{}, "", fmt.Errorf("encode the join token: %w", err)
	}
	key := tokensPrefix + t.ID
	t.Revision, err = ts.store.Txn(ctx, []store.Cond{store.Absent(key)}, store.Put(key, value))
	if err != nil {
		return Token{}, "", fmt.Errorf("store the join token: %w", err)
	}
	return t, token.String(), nil
}

// forget removes tokens that ended long ago. It may fail: the next Create tries again.
func (ts *Tokens) forget(ctx context.Context, all []storedToken, now time.Time) {
	for _, t := range all {
		if now.Sub(t.Expires) > tokenKeep {
			_, _ = ts.store.Txn(ctx, []store.Cond{store.Unchanged(tokensPrefix+t.ID, t.Revision)},
				store.Delete(tokensPrefix+t.ID))
		}
	}
}

// List returns all tokens, oldest first.
func (ts *Tokens) List(ctx context.Context) ([]Token, error) {
	all, err := ts.list(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Token, len(all))
	for i := range all {
		list[i] = all[i].Token
	}
	slices.SortFunc(list, func(a, b Token) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (ts *Tokens) list(ctx context.Context) ([]storedToken, error) {
	page, err := ts.store.List(ctx, tokensPrefix, store.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	list := make([]storedToken, 0, len(page.Items))
	for _, kv := range page.Items {
		t, err := readToken(kv)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// Delete revokes a token; machines that joined with it stay. revision, when not 0, must be the
// token's. Errors: store.ErrNotFound, store.ErrConflict.
func (ts *Tokens) Delete(ctx context.Context, id string, revision uint64) error {
	key := tokensPrefix + id
	cond := store.Present(key)
	if revision != 0 {
		if _, err := ts.store.Get(ctx, key); err != nil {
			return fmt.Errorf("join token %s: %w", id, err)
		}
		cond = store.Unchanged(key, revision)
	}
	_, err := ts.store.Txn(ctx, []store.Cond{cond}, store.Delete(key))
	if errors.Is(err, store.ErrConflict) && revision == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("delete join token %s: %w", id, err)
	}
	return nil
}

func readToken(kv store.KV) (storedToken, error) {
	var t storedToken
	if err := json.Unmarshal(kv.Value, &t); err != nil {
		return t, fmt.Errorf("read %s from the store: %w", kv.Key, err)
	}
	t.ID, t.Revision = kv.Key[len(tokensPrefix):], kv.Modified
	return t, nil
}

// update changes a stored token by a conditional write; change may be called several times and
// ends it with its error. A write that changes nothing is left out when change says so. Changes of this
// process wait for each other, so that only those of other controllers can come between.
func (ts *Tokens) update(
	ctx context.Context, id string, change func(*storedToken) (write bool, err error)) error {
	select {
	case ts.turn <- struct{}{}:
		defer func() { <-ts.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	key := tokensPrefix + id
	for range conflictRetries {
		kv, err := ts.store.Get(ctx, key)
		if err != nil {
			return err
		}
		t, err := readToken(kv)
		if err != nil {
			return err
		}
		write, err := change(&t)
		if err != nil || !write {
			return err
		}
		value, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("encode the join token: %w", err)
		}
		_, err = ts.store.Txn(ctx, []store.Cond{store.Unchanged(key, kv.Modified)}, store.Put(key, value))
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("join token %s is in use by others: %w", id, store.ErrConflict)
}
