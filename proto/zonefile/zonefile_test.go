package zonefile

import (
	"strings"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// TestParse: mistakes are named with their line, also after entries that span several.
func TestParse(t *testing.T) {
	const good = "$TTL 60\n@ SOA ns1 host (\n 1 ; serial\n 2 3 4 5 )\n@ NS ns1\n\n; a comment\nns1 A 192.0.2.1\n"
	records, err := Parse("example.com", good)
	if err != nil || len(records) != 3 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	for _, c := range []struct{ add, want string }{
		{"www CNAME a\nwww A 192.0.2.1\n", "line 9: www.example.com. has a CNAME"},
		{"@ CNAME a\n", "line 9: a CNAME cannot stand at the apex"},
		{"x A 192.0.2.300\n", "line 9: "},
		{"www.example.org. A 192.0.2.1\n", "line 9: www.example.org. A is not within example.com."},
		{"\n\n$INCLUDE /etc/passwd\n", "line 11: $INCLUDE is not supported"},
		{"$GENERATE 1-1000000 a$ A 192.0.2.1\n", "line 9: $GENERATE is not supported"},
		{"x TXT (\n \"a\"\n \"b\" )\ny RRSIG A 13 3 60 20300101000000 20200101000000 1 example.com. aaaa\n",
			"line 12: y.example.com. RRSIG is made by the server"},
		{"@ DS 1 13 2 00\n", "line 9: example.com. DS belongs into the parent zone"},
	} {
		if _, err := Parse("example.com", good+c.add); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.add, err, c.want)
		}
	}
}

// FuzzParse: whatever an operator sends is read or refused.
func FuzzParse(f *testing.F) {
	f.Add("@ NS ns1\nns1 A 192.0.2.1\n")
	f.Add("@ TXT (\"a\" ; b\n \"c\")")
	f.Fuzz(func(_ *testing.T, text string) {
		if len(text) < 4096 {
			_, _ = Parse("example.com", text)
		}
	})
}

func TestKeys(t *testing.T) {
	for _, a := range []model.ZoneKeyAlgorithm{model.ECDSAP256SHA256, model.Ed25519} {
		k, err := NewKey(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Signer(k); err != nil || k.Tag != DNSKEY("example.com", k).KeyTag() {
			t.Errorf("%v: %v", a, err)
		}
		if ds := DS("example.com", k); ds == nil || ds.KeyTag != DNSKEY("example.com", k).KeyTag() {
			t.Errorf("%v: DS %v", a, ds)
		}
	}
}
