package main

import (
	"encoding/json"
	"strings"
	"testing"
)

const zoneText = `$TTL 300
@    IN TXT "v=spf1 -all"
www  IN CNAME web
mail IN A 192.0.2.25
@    IN MX 10 mail
a    IN A 192.0.2.31
b    IN A 192.0.2.32
c    IN A 192.0.2.33
d    IN A 192.0.2.34
`

// TestZonesOnARealController: zones, their keys and steering, by the command line and the real rules.
func TestZonesOnARealController(t *testing.T) {
	w := realController(t)
	w.stdin = realFile
	w.must(t, "apply", "-f", "-")
	fails := func(want string, args ...string) {
		t.Helper()
		if r := w.run(args...); r.code == exitOK || !strings.Contains(r.stderr, want) {
			t.Errorf("nearcast %s: exit %d, %q lacks %q", strings.Join(args, " "), r.code, r.stderr, want)
		}
	}
	has := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in:\n%s", want, out)
			}
		}
	}
	w.stdin = zoneText
	has(w.must(t, "zone", "create", "Example.com.", "-f", "-", "--dnssec", "--alias", "@=game,app=game"),
		"example.com", "example.com. 3600 IN DS ", "active")
	has(w.must(t, "zone", "list"), "example.com", "@ app", "active")

	// Mistakes are named, and change nothing.
	w.stdin = "www IN A 192.0.2.1\nbad IN A 192.0.2.300\n"
	fails("line 2", "zone", "update", "example.com", "-f", "-", "--force")
	w.stdin = "$INCLUDE /etc/passwd\n"
	fails("INCLUDE", "zone", "update", "example.com", "-f", "-", "--force")
	w.stdin = "app IN A 192.0.2.1\n"
	fails("aliases[0].name: has A records", "zone", "create", "two.example", "-f", "-", "--alias", "app=game")
	fails("NAME=ACCELERATOR", "zone", "update", "example.com", "--alias", "app")
	fails("nothing to change", "zone", "update", "example.com")
	w.stdin = "only IN A 192.0.2.1\n"
	fails("--force", "zone", "update", "example.com", "-f", "-") // a guard against half a zone file
	var z struct {
		Text   string
		Serial uint32
		Keys   []map[string]any
	}
	get := func() {
		t.Helper()
		if err := json.Unmarshal([]byte(w.must(t, "zone", "get", "example.com", "-o", "json")), &z); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if z.Text != zoneText || len(z.Keys) != 1 {
		t.Fatalf("%+v", z)
	}
	if key, _ := z.Keys[0]["privateKey"].(string); key != "" {
		t.Errorf("operators are shown a private key")
	}
	before := z.Serial
	w.must(t, "zone", "update", "example.com", "--alias", "@=game")
	if get(); z.Serial <= before {
		t.Errorf("the serial went from %d to %d", before, z.Serial)
	}

	// A rollover: a step before its time is refused.
	fails("publish", "zone", "roll", "example.com", "--step", "nonsense")
	has(w.must(t, "zone", "roll", "example.com", "--step", "publish"), "published")
	fails("--force", "zone", "roll", "example.com", "--step", "activate")
	has(w.must(t, "zone", "roll", "example.com", "--step", "activate", "--force"), "retired", "active")
	has(w.must(t, "zone", "roll", "example.com", "--step", "remove", "--force"), "active")
	if get(); len(z.Keys) != 1 {
		t.Errorf("%d keys after the rollover", len(z.Keys))
	}
	w.must(t, "zone", "delete", "example.com")
	fails("example.com", "zone", "get", "example.com")

	has(w.must(t, "steer", "update", "--network", "10.0.0.0/8=fra,10.1.0.0/16=iad", "--weight", "iad=50", "--explore", "5",
		"--default-site", "fra"), "10.1.0.0/16 goes to iad", "iad 50%", "5% of a network's answers")
	fails("nowhere", "steer", "update", "--network", "10.0.0.0/8=nowhere")
	fails("explore_percent", "steer", "update", "--explore", "80")
	has(w.must(t, "steer", "update", "--ignore-rtt"), "ignored", "10.1.0.0/16 goes to iad")
	fails("connected", "steer", "explain", "--client", "198.51.100.7")

	has(w.must(t, "gains", "direct", "198.51.100.7/24", "--region", "eu-fra-1", "--rtt", "180ms"), "198.51.100.0/24", "180.0 ms")
	fails("nowhere", "gains", "direct", "198.51.100.0/24", "--region", "nowhere", "--rtt", "180ms")
	fails("longer", "gains", "direct", "198.51.100.0/28", "--region", "eu-fra-1", "--rtt", "180ms")
	w.must(t, "gains", "direct", "198.51.100.0/24", "--region", "eu-fra-1", "--remove")
	if out := w.must(t, "gains"); strings.Contains(out, "/24") {
		t.Errorf("gains without flows: %s", out)
	}
}
