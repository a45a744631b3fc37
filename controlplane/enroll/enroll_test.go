package enroll

import (
	"context"
	"encoding/json"
	encodingpem "encoding/pem" // pem is a variable below
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nearcast/nearcast/controlplane/store"
	"github.com/nearcast/nearcast/proto/identity"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// run runs f until the test ends.
func run(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.New(store.Config{DataDir: t.TempDir(), NoSync: true, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	run(t, s.Run)
	return s
}

func newAuthority(t testing.TB, s *store.Store) *Authority {
	t.Helper()
	a, err := NewAuthority(s, "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestOneAuthority: controllers that begin at once end up with the same authority, and one that is
// called differently is refused.
func TestOneAuthority(t *testing.T) {
	s := newStore(t)
	var all sync.WaitGroup
	hashes := make([][32]byte, 8)
	for i := range hashes {
		all.Go(func() {
			a, err := NewAuthority(s, "test", nil)
			if err == nil {
				err = a.Load(t.Context())
			}
			if err != nil {
				t.Error(err)
				return
			}
			hashes[i] = a.CA().Hash()
		})
	}
	all.Wait()
	for _, h := range hashes {
		if h != hashes[0] {
			t.Fatal("two controllers have two authorities")
		}
	}
	other, err := NewAuthority(s, "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Load(t.Context()); err == nil || !strings.Contains(err.Error(), `holds cluster "test"`) {
		t.Errorf("another cluster's controller: %v", err)
	}
	if _, err := NewAuthority(s, "no spaces!", nil); err == nil {
		t.Error("a bad cluster name was taken")
	}
}

// TestRotation: when the stored authority changes, a controller takes it over, renews its own
// certificate under it, and goes on trusting the old one for as long as the store says so. What cannot
// be read is refused, and the old one stays.
func TestRotation(t *testing.T) {
	s := newStore(t)
	a := newAuthority(t, s)
	old := a.CA().Certificate()
	own, err := a.Issue(identity.KindController, "c1")
	if err != nil {
		t.Fatal(err)
	}
	run(t, func(ctx context.Context) error { return a.Run(ctx, own) })

	if _, err := s.Put(t.Context(), authorityKey, []byte(`{"active":"nonsense"}`)); err != nil {
		t.Fatal(err)
	}
	next, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	pem, err := next.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	trusted := encodingpem.EncodeToMemory(&encodingpem.Block{Type: "CERTIFICATE", Bytes: old.Raw})
	value, err := json.Marshal(storedAuthority{Active: string(pem), Trusted: string(trusted)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), authorityKey, value); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if a.CA().Hash() == next.Hash() && len(own.Roots()) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the new authority is not taken over")
		}
	}
	if roots := own.Roots(); !roots[0].Equal(next.Certificate()) || !roots[1].Equal(old) {
		t.Error("own credentials trust others than the new and the old authority")
	}
	token := Token{AllowEdge: true}
	_, text, err := NewTokens(s, a).Create(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := identity.ParseToken(text); err != nil || parsed.CAHash != next.Hash() {
		t.Errorf("a new token names another authority: %v", err)
	}
}

// TestTokenValidate: each bad field is named, all of them at once.
func TestTokenValidate(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		token Token
		want  []string // fields
	}{
		"good":          {Token{AllowEdge: true}, nil},
		"a year":        {Token{AllowGateway: true, Expires: now.Add(tokenLifetimeMax)}, nil},
		"ended":         {Token{AllowEdge: true, Expires: now}, []string{"token.expires"}},
		"too long":      {Token{AllowEdge: true, Expires: now.Add(tokenLifetimeMax + 1)}, []string{"token.expires"}},
		"good for none": {Token{}, []string{"token.allow_edge"}},
		"much to say":   {Token{AllowEdge: true, Description: strings.Repeat("é", 257)}, []string{"token.description"}},
		"enough to say": {Token{AllowEdge: true, Description: strings.Repeat("é", 256)}, nil},
		"a bad name":    {Token{AllowEdge: true, NodeName: "../x"}, []string{"token.node_name"}},
		"all of it": {Token{Expires: now, Description: strings.Repeat("x", 300), NodeName: " "},
			[]string{"token.expires", "token.description", "token.allow_edge", "token.node_name"}},
	} {
		err := c.token.validate(now)
		var got []string
		var fields model.FieldErrors
		if errors.As(err, &fields) {
			for _, f := range fields {
				got = append(got, f.Field)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: fields %v, want %v (%v)", name, got, c.want, err)
		}
	}
	defaulted := Token{AllowEdge: true}
	if _ = defaulted.validate(now); defaulted.Expires != now.Add(tokenLifetimeDefault) {
		t.Errorf("the default end is %v", defaulted.Expires)
	}
}

// TestAuthenticate: who has not the whole secret learns only that it is not the one, even of a token
// that ended; who has it learns when it ended.
func TestAuthenticate(t *testing.T) {
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token := identity.NewToken(ca)
	stored := storedToken{Token: Token{ID: token.ID, Expires: now.Add(time.Minute)},
		SecretHash: identity.HashSecret(token.Secret), CAHash: token.CAHash[:]}
	other := token
	other.CAHash[0] ^= 1
	wrong := token
	wrong.Secret = identity.NewSecret()
	for name, c := range map[string]struct {
		token identity.Token
		at    time.Time
		want  string
	}{
		"good":              {token, now, ""},
		"another authority": {other, now, errBadToken.Error()},
		"wrong secret":      {wrong, now, errBadToken.Error()},
		"wrong, and ended":  {wrong, now.Add(time.Hour), errBadToken.Error()},
		"at its end":        {token, stored.Expires, "ended"},
		"after its end":     {token, now.Add(time.Hour), "ended"},
	} {
		err := stored.authenticate(c.token, c.at)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", name, status.Code(err))
		}
	}
}

// TestUses goes through the life of a token's uses.
func TestUses(t *testing.T) {
	now := time.Now()
	claim := func(key string, at time.Duration) use {
		return use{KeyHash: []byte(key), Claim: identity.NewSecret(), Time: now.Add(at)}
	}
	single := storedToken{Token: Token{SingleUse: true}}
	if err := single.use(claim("a", 0)); err != nil || single.Uses != 1 {
		t.Fatalf("the first use: %v, %d uses", err, single.Uses)
	}
	if err := single.use(claim("b", 0)); status.Code(err) != codes.Unauthenticated {
		t.Errorf("another machine: %v", err)
	}
	if err := single.use(claim("a", claimTimeout-1)); status.Code(err) != codes.Aborted {
		t.Errorf("the same machine while its first call may still end: %v", err)
	}
	later := claim("a", claimTimeout)
	if err := single.use(later); err != nil || single.Uses != 1 || single.Last[0].Claim != later.Claim {
		t.Errorf("the same machine after its controller died: %v, %d uses", err, single.Uses)
	}
	single.Last[0].Node = "n1"
	if single.nodeOf([]byte("a")) != "n1" || single.nodeOf([]byte("b")) != "" {
		t.Error("the use does not know its node")
	}
	many := storedToken{}
	for i := range 3 * usesKept {
		if err := many.use(claim(fmt.Sprint("key", i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	if many.Uses != 3*usesKept || len(many.Last) != usesKept || many.find([]byte("key0")) >= 0 ||
		many.find(fmt.Append(nil, "key", 3*usesKept-1)) != usesKept-1 {
		t.Errorf("%d uses, %d remembered", many.Uses, len(many.Last))
	}
}

// TestTokensAreForgotten: ended tokens are listed for a while, and then gone with the next Create.
func TestTokensAreForgotten(t *testing.T) {
	s := newStore(t)
	a := newAuthority(t, s)
	ts := NewTokens(s, a)
	put := func(id string, expires time.Time) {
		value, err := json.Marshal(storedToken{Token: Token{Expires: expires}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), tokensPrefix+id, value); err != nil {
			t.Fatal(err)
		}
	}
	put("ended-long-ago", time.Now().Add(-tokenKeep-time.Minute))
	put("ended-lately", time.Now().Add(-time.Minute))
	made, text, err := ts.Create(t.Context(), Token{AllowEdge: true})
	if err != nil || !strings.HasSuffix(text[:strings.LastIndex(text, ".")], made.ID) {
		t.Fatalf("%+v, %v", made, err)
	}
	list, err := ts.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, k := range list {
		if k.ID == "ended-long-ago" {
			t.Error("a token that ended long ago is still listed")
		}
	}
	if err := ts.Delete(t.Context(), made.ID, made.Revision+1); !errors.Is(err, store.ErrConflict) {
		t.Errorf("delete an older state: %v", err)
	}
	if err := ts.Delete(t.Context(), made.ID, made.Revision); err != nil {
		t.Error(err)
	}
	if err := ts.Delete(t.Context(), made.ID, 0); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
	// The secret itself is nowhere in the store.
	page, err := s.List(t.Context(), tokensPrefix, store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret := text[strings.LastIndex(text, ".")+1:]
	for _, kv := range page.Items {
		if strings.Contains(string(kv.Value), secret) {
			t.Error("the store holds the secret")
		}
	}
}
