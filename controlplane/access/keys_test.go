package access

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestKeys(t *testing.T) {
	ctx := t.Context()
	s, stop := newStore(t)
	ks := NewKeys(s)
	now := time.Now()
	ks.now = func() time.Time { return now }
	first, secret, err := ks.Create(ctx, AccessKey{Role: v1.Role_ROLE_OPERATOR, Description: "ci", CreatedBy: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if first.Project != model.DefaultProject || !accountID.MatchString(first.Account) || len(secret) != 40 ||
		len(first.ID) != 20 {
		t.Errorf("made %+v with a secret of %d characters", first, len(secret))
	}
	got, gotSecret, err := ks.Lookup(ctx, first.ID)
	if err != nil || gotSecret != secret || got != first {
		t.Fatalf("Lookup: %+v, %v; want %+v", got, err, first)
	}

	now = now.Add(time.Second)
	second, secondSecret, err := ks.Rotate(ctx, first.ID, time.Hour, "bob")
	if err != nil || second.ID == first.ID || secondSecret == secret || second.CreatedBy != "bob" ||
		second.Role != first.Role || second.Account != first.Account || !second.Expires.IsZero() {
		t.Fatalf("Rotate: %+v, %v", second, err)
	}
	if _, _, err := ks.Lookup(ctx, first.ID); err != nil {
		t.Errorf("the old key within the grace time: %v", err)
	}
	now = now.Add(time.Hour)
	if _, _, err := ks.Lookup(ctx, first.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("the old key afterwards: %v, want ErrUnknown", err)
	}
	list, err := ks.List(ctx)
	if err != nil || len(list) != 2 || list[0].ID != first.ID || list[0].Expires.IsZero() {
		t.Fatalf("List: %+v, %v", list, err)
	}

	if err := ks.Delete(ctx, second.ID, second.Revision+1); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete at another revision: %v, want ErrConflict", err)
	}
	if err := ks.Delete(ctx, first.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := ks.Delete(ctx, first.ID, 0); !errors.Is(err, ErrUnknown) {
		t.Errorf("delete twice: %v, want ErrUnknown", err)
	}

	stop()
	if _, _, err := ks.Lookup(ctx, second.ID); !errors.Is(err, ErrUnknown) && err == nil {
		t.Error("a key that was never asked for is known without the store")
	}
}

func TestKeysWithoutTheStore(t *testing.T) {
	s, stop := newStore(t)
	ks := NewKeys(s)
	k, secret, err := ks.Create(t.Context(), AccessKey{Role: v1.Role_ROLE_VIEWER})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ks.Lookup(t.Context(), k.ID); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, got, err := ks.Lookup(t.Context(), k.ID); err != nil || got != secret {
		t.Errorf("a key known before: %v", err)
	}
	unknown := keyIDPrefix + strings.Repeat("A", keyIDRandom)
	if _, _, err := ks.Lookup(t.Context(), unknown); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("another key: %v, want ErrUnavailable", err)
	}
}

func TestAccountsOfProjects(t *testing.T) {
	ctx := t.Context()
	s, _ := newStore(t)
	ks := NewKeys(s)
	create := func(project, account string) (string, error) {
		k, _, err := ks.Create(ctx, AccessKey{Role: v1.Role_ROLE_VIEWER, Project: project, Account: account})
		return k.Account, err
	}
	if got, err := create("shop", "123456789012"); err != nil || got != "123456789012" {
		t.Fatalf("%q, %v", got, err)
	}
	if got, err := create("shop", ""); err != nil || got != "123456789012" {
		t.Errorf("the second key of a project: account %q, %v", got, err)
	}
	for _, c := range []struct{ project, account string }{
		{"shop", "123456789013"}, {"other", "123456789012"}, {"x", "12345"}, {"x", "12345678901a"},
		{"a b", ""}, {"-a", ""}, {strings.Repeat("a", 65), ""},
	} {
		var fields model.FieldErrors
		if _, err := create(c.project, c.account); !errors.As(err, &fields) {
			t.Errorf("%+v: %v, want FieldErrors", c, err)
		}
	}
	for _, id := range []string{"", "AKIAIOSFODNN7EXAMPLE", "NCAK", "NCAK/../../operators/a"} {
		if _, _, err := ks.Lookup(context.Background(), id); !errors.Is(err, ErrUnknown) {
			t.Errorf("Lookup(%q): %v, want ErrUnknown", id, err)
		}
	}
}
