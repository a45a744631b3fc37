package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const fleetFile = `
pools:
- {name: any-a, zone: a, prefixes: [198.51.100.0/28]}
- {name: any-b, zone: b, prefixes: [203.0.113.0/28]}
- {name: edges, sites: [fra]}
sites:
- name: fra
  region: eu-fra-1
  latitude: 50.11
  longitude: 8.68
  bgp: {local_asn: 64500, pools: [any-a], communities: ["64500:1"]}
  peers:
  - {name: transit, address: 192.0.2.1, asn: 64496, password_file: transit.secret, multihop_ttl: 2, med: 0}
  - {name: inner, address: 192.0.2.2, asn: 64500, password: of the file, local_preference: 200, bfd: true}
steering: {ttl: 20s, networks: [{prefix: 10.0.0.0/8, site: fra}], explore_percent: 5}
zones:
- name: example.com
  text: |
    $TTL 300
    @    IN TXT "v=spf1 -all"
    mail IN A 192.0.2.25
    ftp  IN A 192.0.2.26
  aliases: [{name: www, accelerator: web}]
  dnssec: true
  key_algorithm: ed25519
accelerators:
- {name: web, pools: [edges], listeners: []}
`

// TestApplyFleetOnARealController: BGP, zones and steering by a file, and the rules of a real controller.
func TestApplyFleetOnARealController(t *testing.T) {
	w := realController(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(text string, args ...string) string {
		t.Helper()
		write("cluster.yaml", text)
		return strings.TrimSpace(w.must(t, append([]string{"apply", "-f", file}, args...)...))
	}
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	write("transit.secret", "open sesame\n")
	expect(apply(fleetFile), "8 created, 1 changed, 0 deleted, 0 unchanged")
	for range 2 {
		expect(apply(fleetFile, "--prune"), "0 created, 0 changed, 0 deleted, 9 unchanged")
	}
	if got := apply(fleetFile, "--dry-run", "--exit-code"); !strings.HasSuffix(got,
		"0 to create, 0 to change, 0 to delete, 7 unchanged, 2 unchanged if that is the password already") {
		t.Errorf("dry run: %s", got)
	}

	exported := w.must(t, "export")
	for _, secret := range []string{"sesame", "of the file", "privateKey", "private_key", "keys:"} {
		if strings.Contains(exported, secret) {
			t.Errorf("the export has %q:\n%s", secret, exported)
		}
	}
	if !strings.Contains(exported, "accelerator: web") || strings.Count(exported, "password_set: true") != 2 {
		t.Errorf("the export lacks an alias's accelerator, or that passwords are set:\n%s", exported)
	}
	expect(apply(exported, "--prune", "--dry-run", "--exit-code"), "0 to create, 0 to change, 0 to delete, 10 unchanged")
	expect(apply(exported, "--prune"), "0 created, 0 changed, 0 deleted, 10 unchanged") // with the site's region

	// Another password is a change, once.
	write("transit.secret", "close sesame")
	expect(apply(fleetFile), "0 created, 1 changed, 0 deleted, 8 unchanged")
	expect(apply(fleetFile), "0 created, 0 changed, 0 deleted, 9 unchanged")

	// Much at once: a peer goes and another has its router, an alias of a new accelerator, lines of the zone.
	edited := strings.NewReplacer("name: transit", "name: heir", "med: 0", "med: 7", "ttl: 20s, ", "",
		"mail IN A 192.0.2.25", "mail IN A 192.0.2.27", "{name: www, accelerator: web}",
		"{name: www, accelerator: late}, {name: '@', accelerator: web}", "dnssec: true", "dnssec: false",
		"accelerators:\n", "accelerators:\n- {name: late, pools: [edges], listeners: []}\n").Replace(fleetFile)
	plan := apply(edited, "--prune", "--dry-run")
	for _, line := range []string{"- peer fra/transit", "+ peer fra/heir", "    password        set", "~ steering of names",
		"    ttl  20s → 30s", "~ zone example.com", "    text          - mail IN A 192.0.2.25",
		"    text          + mail IN A 192.0.2.27", "    aliases[www]  web → late", "    aliases[@]    + web",
		"    dnssec        true → false"} {
		if !strings.Contains(plan, line+"\n") {
			t.Errorf("the plan lacks %q:\n%s", line, plan)
		}
	}
	if strings.Contains(plan, "sesame") {
		t.Errorf("the plan tells a password:\n%s", plan)
	}
	expect(apply(edited, "--prune", "--yes"), "2 created, 2 changed, 1 deleted, 6 unchanged")
	expect(apply(edited, "--prune"), "0 created, 0 changed, 0 deleted, 10 unchanged")
	var z struct{ Keys []any }
	if err := json.Unmarshal([]byte(w.must(t, "zone", "get", "example.com", "-o", "json")), &z); err != nil || len(z.Keys) != 1 {
		t.Errorf("the zone has %d keys: %v", len(z.Keys), err)
	}

	// Half a zone file is a mistake, BGP goes with its peers, and a password file must be there.
	write("cluster.yaml", "zones: [{name: example.com, text: '', aliases: []}]")
	if r := w.run("apply", "-f", file, "--yes"); r.code == exitOK || !strings.Contains(r.stderr, "--force") {
		t.Errorf("half a zone: %+v", r)
	}
	apply("sites: [{name: fra, region: eu-fra-1, latitude: 50.11, longitude: 8.68, bgp: none, peers: []}]", "--prune", "--yes")
	if got := w.must(t, "peer", "list"); strings.Contains(got, "fra") {
		t.Errorf("peers of a site without BGP:\n%s", got)
	}
	if err := os.Remove(filepath.Join(dir, "transit.secret")); err != nil {
		t.Fatal(err)
	}
	write("cluster.yaml", fleetFile)
	if r := w.run("apply", "-f", file); r.code == exitOK || !strings.Contains(r.stderr, "peers[transit].password_file: ") {
		t.Errorf("no password file: %+v", r)
	}
}
