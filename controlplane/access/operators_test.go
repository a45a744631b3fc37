package access

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// newStore runs a store until the test ends or stop is called.
func newStore(t testing.TB) (s *store.Store, stop func()) {
	t.Helper()
	s, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

func TestOperators(t *testing.T) {
	ctx := t.Context()
	s, stop := newStore(t)
	o := NewOperators(s)
	ada, text, err := o.Create(ctx, "ada", v1.Role_ROLE_ADMIN)
	if err != nil {
		t.Fatal(err)
	}
	token, err := identity.ParseOperatorToken(text)
	if err != nil || token.Name != "ada" {
		t.Fatalf("token %v, %v", token, err)
	}
	role, hash, err := o.Lookup(ctx, "ada")
	if err != nil || role != v1.Role_ROLE_ADMIN || !identity.SecretMatches(token.Secret, hash) {
		t.Fatalf("lookup: %v, %v", role, err)
	}
	if _, _, err := o.Create(ctx, "ada", v1.Role_ROLE_VIEWER); !errors.Is(err, ErrExists) {
		t.Errorf("a second one of the name: %v, want ErrExists", err)
	}
	// What was tried before, and written although the store did not answer, is done; with another token it is not.
	if again, err := o.CreateWith(ctx, token, v1.Role_ROLE_ADMIN); err != nil || again != ada {
		t.Errorf("the same one again: %v, %v", again, err)
	}
	if _, err := o.CreateWith(ctx, token, v1.Role_ROLE_VIEWER); !errors.Is(err, ErrExists) {
		t.Errorf("the same one in another role: %v, want ErrExists", err)
	}
	for name, role := range map[string]v1.Role{"": v1.Role_ROLE_VIEWER, "a/b": v1.Role_ROLE_VIEWER,
		"norole": v1.Role_ROLE_UNSPECIFIED, "future": 99} {
		var fields model.FieldErrors
		if _, _, err := o.Create(ctx, name, role); !errors.As(err, &fields) {
			t.Errorf("%q with role %v: %v, want what field is wrong", name, role, err)
		}
	}
	if err := o.Delete(ctx, "ada", 0); !errors.Is(err, ErrLastAdmin) {
		t.Errorf("delete the last administrator: %v, want ErrLastAdmin", err)
	}
	if err := o.Delete(ctx, "eve", 0); !errors.Is(err, ErrUnknown) {
		t.Errorf("delete nobody: %v, want ErrUnknown", err)
	}
	vera, _, err := o.Create(ctx, "vera", v1.Role_ROLE_VIEWER)
	if err != nil {
		t.Fatal(err)
	}
	list, err := o.List(ctx)
	if err != nil || len(list) != 2 || list[0] != ada || list[1] != vera {
		t.Errorf("list: %v, %v", list, err)
	}
	if err := o.Delete(ctx, "vera", vera.Revision+1); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete at another revision: %v, want ErrConflict", err)
	}
	if err := o.Delete(ctx, "vera", vera.Revision); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, _, err := o.Lookup(ctx, "vera"); !errors.Is(err, ErrUnknown) {
		t.Errorf("lookup after delete: %v, want ErrUnknown", err)
	}
	again, err := o.Reset(ctx, "ada", v1.Role_ROLE_ADMIN)
	if err != nil || again == text {
		t.Errorf("reset: %v, the same token %v", err, again == text)
	}
	if _, hash, _ = o.Lookup(ctx, "ada"); identity.SecretMatches(token.Secret, hash) {
		t.Error("the old token is still good")
	}
	// Without the store: who was here just now is known, and nobody else.
	stop()
	if role, _, err := o.Lookup(ctx, "ada"); err != nil || role != v1.Role_ROLE_ADMIN {
		t.Errorf("lookup without the store: %v, %v", role, err)
	}
	if _, _, err := o.Lookup(ctx, "vera"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("lookup of somebody deleted, without the store: %v", err)
	}
}

// Two administrators who delete each other at the same moment: one stays.
func TestAdministratorsCannotDeleteEachOther(t *testing.T) {
	ctx := t.Context()
	s, _ := newStore(t)
	o := NewOperators(s)
	for range 10 {
		for _, name := range []string{"ada", "bob"} {
			if _, _, err := o.Create(ctx, name, v1.Role_ROLE_ADMIN); err != nil && !errors.Is(err, ErrExists) {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for _, name := range []string{"ada", "bob"} {
			wg.Go(func() { o.Delete(ctx, name, 0) })
		}
		wg.Wait()
		if list, err := o.List(ctx); err != nil || len(list) == 0 {
			t.Fatalf("nobody is left (%v)", err)
		}
	}
}
