package identity

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	ca := newCA(t, "prod")
	a, b := NewToken(ca), NewToken(ca)
	if a.ID == b.ID || a.Secret == b.Secret {
		t.Fatalf("two tokens alike: %v, %v", a, b)
	}
	got, err := ParseToken(a.String())
	if err != nil || got != a {
		t.Fatalf("%v reads as %v, %v", a, got, err)
	}
	if got.CAHash != ca.Hash() {
		t.Error("the token names another authority")
	}
	hash := HashSecret(a.Secret)
	if !SecretMatches(a.Secret, hash) || SecretMatches(b.Secret, hash) || SecretMatches("", nil) {
		t.Error("a secret matches wrongly")
	}
	o := OperatorToken{Name: "alice.b@example.org", Secret: NewSecret()}
	if got, err := ParseOperatorToken(o.String()); err != nil || got != o {
		t.Errorf("%v reads as %v, %v", o, got, err)
	}
	s := a.String()
	for _, bad := range []string{"", "NC1", s[1:], s[:len(s)-20], s + ".x", s + " ", "NC2" + s[3:],
		strings.ToUpper(s), strings.Replace(s, ".", "..", 1), s + strings.Repeat("a", 200), o.String()} {
		_, err := ParseToken(bad)
		if err == nil {
			t.Errorf("%q: accepted", bad)
		} else if len(bad) > 3 && strings.Contains(err.Error(), bad) {
			t.Errorf("error repeats the token: %v", err)
		}
	}
	for _, bad := range []string{"", "NCO1.", "NCO1.alice", "NCO1..aaaaaaaaaaaaaaaaaaaaaa", s,
		"NCO1.a/b." + o.Secret, "NCO1.alice.short"} {
		if _, err := ParseOperatorToken(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

func TestLogsHoldNoSecret(t *testing.T) {
	var out bytes.Buffer
	token := NewToken(newCA(t, "prod"))
	o := OperatorToken{Name: "alice", Secret: NewSecret()}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "join", token, "operator", o)
	if s := out.String(); strings.Contains(s, token.Secret) || strings.Contains(s, o.Secret) ||
		!strings.Contains(s, token.ID) || !strings.Contains(s, "alice") {
		t.Errorf("logged %s", s)
	}
}

func FuzzParseToken(f *testing.F) {
	ca, err := NewCA("prod")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(NewToken(ca).String())
	f.Add("NC1..")
	f.Add("NCO1.alice." + NewSecret())
	f.Fuzz(func(t *testing.T, text string) {
		if token, err := ParseToken(text); err == nil && token.String() != text {
			t.Errorf("%q reads as %q", text, token)
		}
		if token, err := ParseOperatorToken(text); err == nil && token.String() != text {
			t.Errorf("%q reads as %q", text, token)
		}
	})
}
