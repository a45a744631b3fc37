package access

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func TestSessions(t *testing.T) {
	ctx := t.Context()
	s, stop := newStore(t)
	defer stop()
	ks := NewKeys(s)
	now := time.Now()
	ks.now = func() time.Time { return now }
	key, secret, err := ks.Create(ctx, AccessKey{Role: v1.Role_ROLE_OPERATOR, Project: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := ks.CreateSession(ctx, key.ID, v1.Role_ROLE_VIEWER, 20*time.Minute, "ada")
	if err != nil {
		t.Fatal(err)
	}
	got, gotSecret, err := ks.Find(ctx, made.ID, made.Token)
	if err != nil || gotSecret != made.Secret || len(made.Secret) != 40 || got.Role != v1.Role_ROLE_VIEWER ||
		got.Project != "shop" || got.Account != key.Account || got.ID != made.ID || got.Session != "ada" {
		t.Errorf("Find: %+v, %v", got, err)
	}
	if _, found, err := ks.Find(ctx, key.ID, ""); err != nil || found != secret {
		t.Errorf("the key itself: %v", err)
	}
	other, _, err := ks.Create(ctx, AccessKey{Role: v1.Role_ROLE_ADMIN})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ks.CreateSession(ctx, other.ID, 0, 0, "")
	if err != nil || theirs.Expires.Sub(now) < 59*time.Minute {
		t.Fatalf("%+v, %v", theirs, err)
	}
	text, mac, _ := strings.Cut(made.Token, ".")
	_, otherMAC, _ := strings.Cut(theirs.Token, ".")
	for name, c := range map[string][2]string{
		"another id":            {theirs.ID, made.Token},
		"the key's id":          {key.ID, made.Token},
		"no token":              {made.ID, ""},
		"another's seal":        {made.ID, text + "." + otherMAC},
		"a claim that is made":  {made.ID, strings.Replace(text, text[8:9], "Z", 1) + "." + mac},
		"no seal":               {made.ID, text},
		"a seal of nothing":     {made.ID, text + "."},
		"too long":              {made.ID, strings.Repeat("a", 1025) + "." + mac},
		"no base64":             {made.ID, "?." + mac},
		"base64 of what is not": {made.ID, "AAAA." + mac},
	} {
		if _, _, err := ks.Find(ctx, c[0], c[1]); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", name, err)
		}
	}
	for name, wrong := range map[string]func() (Session, error){
		"more than the key": func() (Session, error) { return ks.CreateSession(ctx, key.ID, v1.Role_ROLE_ADMIN, 0, "") },
		"too short":         func() (Session, error) { return ks.CreateSession(ctx, key.ID, 0, time.Minute, "") },
		"too long":          func() (Session, error) { return ks.CreateSession(ctx, key.ID, 0, 37*time.Hour, "") },
		"a bad name":        func() (Session, error) { return ks.CreateSession(ctx, key.ID, 0, 0, "a b") },
	} {
		var fields model.FieldErrors
		if _, err := wrong(); !errors.As(err, &fields) || len(fields) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	now = now.Add(20 * time.Minute)
	if _, _, err := ks.Find(ctx, made.ID, made.Token); !errors.Is(err, ErrExpired) {
		t.Errorf("after its time: %v, want ErrExpired", err)
	}
	if err := ks.Delete(ctx, other.ID, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ks.Find(ctx, theirs.ID, theirs.Token); !errors.Is(err, ErrUnknown) {
		t.Errorf("after its key was revoked: %v, want ErrUnknown", err)
	}
}

func FuzzSessionToken(f *testing.F) {
	s, stop := newStore(f)
	defer stop()
	ks := NewKeys(s)
	key, _, err := ks.Create(f.Context(), AccessKey{Role: v1.Role_ROLE_VIEWER})
	if err != nil {
		f.Fatal(err)
	}
	made, err := ks.CreateSession(f.Context(), key.ID, 0, 0, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(made.ID, made.Token[:len(made.Token)-1])
	f.Add(key.ID, "e30.")
	f.Fuzz(func(t *testing.T, id, token string) {
		// The last character has bits that mean nothing, so another one may be the same seal.
		if _, _, err := ks.Find(t.Context(), id, token); err == nil && (id != made.ID || token[:len(token)-1] != made.Token[:len(made.Token)-1]) {
			t.Errorf("%q with %q is let in", id, token)
		}
	})
}
