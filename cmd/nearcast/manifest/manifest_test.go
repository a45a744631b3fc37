package manifest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// full is a file that uses every field.
const full = `
regions:
- {name: eu-fra-1, description: Frankfurt}
sites:
- name: fra
  region: eu-fra-1
  latitude: 50.11
  longitude: 8.68
  bgp: {local_asn: 64500, router_id: 192.0.2.250, pools: [any-a, any-b], drain_time: 0s, drain_prepends: 2,
    communities: ["64500:1", no-export], dry_run: true}
  peers:
  - {name: transit, address: 203.0.113.1, asn: 64496, nodes: [fra-1, fra-2], password: open sesame, multihop_ttl: 3,
    hold_time: 9s, connect_retry: 7s, restart_time: 30s, communities: ["64500:2", "64500:3"], prepends: 1, med: 0,
    max_prefixes: 10, passive: true, local_address: 203.0.113.9, port: 1179, disabled: true}
  - {name: inner, address: "2001:db8:9::1", asn: 64500, ttl_security: true, local_preference: 200, bfd: true,
    bfd_interval: 50ms, bfd_multiplier: 5}
steering: {ttl: 20s, addresses_max: 2, networks: [{prefix: 10.0.0.0/8, site: fra}, {prefix: 10.1.0.0/16, site: fra}],
  weights: [{site: fra, percent: 50}], default_site: fra, ignore_ecs: true, name_servers: [ns1.example.net, ns2.example.net],
  explore_percent: 5, explore_off: true, ignore_rtt: true}
zones:
- name: example.com
  text: |
    $TTL 300
    mail IN A 192.0.2.25
    @    IN MX 10 mail
  aliases: [{name: "@", accelerator: web}, {name: www, accelerator: web}, {name: play, accelerator: game}]
  dnssec: true
  key_algorithm: ed25519
- {name: two.example, aliases: []}
pools:
- {name: any-a, zone: a, prefixes: [192.0.2.0/24, "2001:db8:a::/48"]}
- {name: any-b, kind: anycast, zone: b, prefixes: [198.51.100.0/24]}
- {name: edges, kind: node, sites: [fra]}
targets:
- {name: i-1, host: 10.0.0.7, region: eu-fra-1, tags: {env: prod}}
accelerators:
- name: web
  ip_address_type: dual_stack
  pools: [any-a, any-b]
  addresses: [192.0.2.10, 198.51.100.10]
  project: shop
  tags: {env: prod, empty: ""}
  listeners:
  - ports: [443, 8000-8999]
    affinity: source_ip
    tcp_idle_timeout: 1h
    udp_idle_timeout: 10s
    proxy_protocol_from: [10.0.0.0/8]
    max_flows: 1000
    max_flows_per_source: 100
    guard: {allow_networks: [10.0.0.0/8], deny_networks: [10.1.0.0/16],
      allow_countries: [at, DE], deny_countries: [KP], source_rate: 10/50, total_rate: "1000",
      syn_rate: "500", drop_fragments: true}
    tags: {a: b}
    groups:
    - region: eu-fra-1
      traffic_dial: 33.3
      health_check: {protocol: https, port: 8443, path: /healthz, interval: 10s, timeout: 2s,
        healthy_threshold: 2, unhealthy_threshold: 4, host: app.example.com, expected_codes: "200,204"}
      port_overrides: [{listener_port: 443, endpoint_port: 10443}]
      tags: {c: d}
      endpoints:
      - 10.0.0.1
      - {id: 10.0.0.2, weight: 0, client_address: proxy_v2}
      - i-1
    - region: us-iad-1
      traffic_dial: 0
      endpoints: []
  - protocol: udp
    ports: 443
    groups: []
- name: game
  enabled: false
  pools: [edges]
  listeners: []
`

func mustParse(t testing.TB, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return f
}

func mustCompare(t testing.TB, f *File, s *State, o Options) *Plan {
	t.Helper()
	p, err := Compare(f, seen(s), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// seen is a state as controllers show it: a health check's port that follows the listener is the port
// that it comes to.
func seen(s *State) *State {
	out := *s
	out.Groups = nil
	for _, g := range s.Groups {
		g = proto.Clone(g).(*pb.EndpointGroup)
		for _, l := range s.Listeners {
			if l.Id == g.ListenerId && g.HealthCheck.GetPort() == 0 {
				g.HealthCheck.Port = firstPort(l)
			}
		}
		out.Groups = append(out.Groups, g)
	}
	out.Peers = nil
	for _, b := range s.Peers {
		b = proto.Clone(b).(*pb.BgpPeer)
		b.Password, b.PasswordSet = "", b.Password != ""
		out.Peers = append(out.Peers, b)
	}
	return &out
}

// certain counts the steps that change something for certain.
func certain(p *Plan) (n int) {
	for _, s := range p.Steps {
		if !s.Maybe {
			n++
		}
	}
	return n
}

// told is what a plan changes for certain, in short.
func told(p *Plan) string {
	var lines []string
	for _, s := range p.Steps {
		if s.Maybe {
			continue
		}
		line := fmt.Sprintf("%s %s %s", s.Verb, s.Kind, s.Name)
		if s.Verb == Update {
			for _, c := range s.Changes {
				line += fmt.Sprintf(" | %s: %s -> %s", c.Field, c.From, c.To)
			}
		}
		lines = append(lines, line)
	}
	for _, l := range p.Left {
		lines = append(lines, "left "+l)
	}
	return strings.Join(lines, "\n")
}

func TestEverythingIsCreatedOnceAndThenNothingChanges(t *testing.T) {
	f, s := mustParse(t, full), &State{}
	p := mustCompare(t, f, s, Options{})
	if len(p.Steps) != 6+2+2+2+2+1+2 || p.Unchanged != 0 || len(p.Accelerators) != 2 {
		t.Errorf("%d steps:\n%s", len(p.Steps), told(p))
	}
	carryOut(t, s, p)
	if p.Accelerators[0].ID != s.Accelerators[0].Id {
		t.Error("the plan does not know the id of what it created")
	}
	for _, prune := range []bool{false, true} {
		p := mustCompare(t, f, s, Options{Prune: prune})
		if certain(p) != 0 || p.Unchanged != 16 || len(p.Left) != 0 || len(p.Steps) != 1 {
			t.Errorf("a second time (prune %v), %d unchanged:\n%s", prune, p.Unchanged, told(p))
		}
	}
}

func TestExportIsAFileThatChangesNothing(t *testing.T) {
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
	text, err := FromState(seen(s)).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	f := mustParse(t, string(text))
	p := mustCompare(t, f, s, Options{Prune: true})
	if len(p.Steps) != 0 || p.Unchanged != 17 || len(p.Left) != 0 {
		t.Errorf("the export changes something:\n%s\n%s", told(p), text)
	}
	again, err := f.Marshal()
	if err != nil || string(again) != string(text) {
		t.Errorf("the export changes when it is read and written: %v\n%s\n%s", err, text, again)
	}
	golden(t, "export.yaml", string(text))
	// Somewhere else it makes the same, but for the password, which it does not have.
	other := &State{}
	if _, err := Compare(f, other, Options{}); err == nil || !strings.Contains(err.Error(), "password_set") {
		t.Errorf("a password that is not there is kept: %v", err)
	}
	bare := strings.Replace(string(text), "    password_set: true\n", "", 1)
	carryOut(t, other, mustCompare(t, mustParse(t, bare), other, Options{}))
	text2, err := FromState(seen(other)).Marshal()
	if err != nil || string(text2) != bare {
		t.Errorf("a copy differs: %v\n%s\n%s", err, text, text2)
	}
	if one := FromState(s, "web"); len(one.Accelerators) != 1 || one.Pools != nil || one.Zones != nil || one.Regions != nil {
		t.Errorf("an export of one accelerator has more: %+v", one)
	}
}

// golden compares with a file of testdata, or writes it if NEARCAST_UPDATE_GOLDEN is set.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("NEARCAST_UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// TestChanges edits the full file by replacing text, and tells what must come of it.
func TestChanges(t *testing.T) {
	cases := []struct {
		name     string
		from, to string
		prune    bool
		want     string
	}{
		{"site moves", "latitude: 50.11", "latitude: 51", false, "update site fra | latitude: 50.11 -> 51"},
		{"pool grows", "[198.51.100.0/24]", "[203.0.113.0/24, 198.51.100.0/24]", false,
			"update pool any-b | prefixes: 198.51.100.0/24 -> 203.0.113.0/24, 198.51.100.0/24"},
		{"order of prefixes means nothing", `[192.0.2.0/24, "2001:db8:a::/48"]`, `["2001:db8:a::/48", 192.0.2.0/24]`, false, ""},
		{"node pool serves everywhere", "kind: node, sites: [fra]", "kind: node", false, "update pool edges | sites: fra -> "},
		{"target", "host: 10.0.0.7", "host: 10.0.0.8", false, "update target i-1 | host: 10.0.0.7 -> 10.0.0.8"},
		{"target's tags are not said", ", tags: {env: prod}}", "}", false, ""},
		{"target's tags go", "tags: {env: prod}}", "tags: {}}", false, "update target i-1 | tags: env=prod -> "},
		{"enabled is the default", "  enabled: false\n", "", false, "update accelerator game | enabled: false -> true"},
		{"address type is the default", "  ip_address_type: dual_stack\n", "", false,
			"update accelerator web | ip_address_type: dual_stack -> ipv4"},
		{"pools and addresses are not said", "  pools: [any-a, any-b]\n  addresses: [192.0.2.10, 198.51.100.10]\n  project: shop\n",
			"", false, ""},
		{"order of addresses means nothing", "[192.0.2.10, 198.51.100.10]", "[198.51.100.10, 192.0.2.10]", false, ""},
		{"listener's field", "    tcp_idle_timeout: 1h\n", "", false,
			"update listener web:443 | tcp_idle_timeout: 1h -> 5m40s"},
		{"ports grow", "[443, 8000-8999]", "[443, 8000-9000]", false,
			"update listener web:443 | port_ranges: 443, 8000-8999 -> 443, 8000-9000"},
		{"ports move in part", "[443, 8000-8999]", "[443, 8500]", false,
			"update listener web:443 | port_ranges: 443, 8000-8999 -> 443, 8500"},
		{"order of ports means nothing", "[443, 8000-8999]", "[8000-8999, 443]", false, ""},
		{"protocol", "- protocol: udp\n    ports: 443\n    groups: []", "- protocol: udp\n    ports: 444\n    groups: []", false,
			"create listener web:444/udp\nleft listener web:443/udp"},
		{"listener goes", "  - protocol: udp\n    ports: 443\n    groups: []\n", "", true, "delete listener web:443/udp"},
		{"listener stays", "  - protocol: udp\n    ports: 443\n    groups: []\n", "", false, "left listener web:443/udp"},
		{"dial", "      traffic_dial: 33.3\n", "", false, "update group web:443@eu-fra-1 | traffic_dial: 33.3 -> 100"},
		{"health check in part", "interval: 10s", "interval: 20s", false,
			"update group web:443@eu-fra-1 | health_check.interval: 10s -> 20s"},
		{"health port by default", "port: 8443, ", "", false,
			"update group web:443@eu-fra-1 | health_check.port: 8443 -> the listener's first"},
		{"override", "endpoint_port: 10443", "endpoint_port: 11443", false,
			"update group web:443@eu-fra-1 | port_overrides: 443:10443 -> 443:11443"},
		{"endpoint changes", "weight: 0,", "weight: 1,", false,
			"update group web:443@eu-fra-1 | endpoints[10.0.0.2]: weight 0, proxy_v2 -> weight 1, proxy_v2"},
		{"endpoint comes", "      - i-1\n", "      - i-1\n      - {id: 10.0.0.3, weight: 5}\n", false,
			"update group web:443@eu-fra-1 | endpoints[10.0.0.3]:  -> weight 5"},
		{"endpoint stays", "      - i-1\n", "", false, "left endpoint i-1 of web:443@eu-fra-1"},
		{"endpoint goes", "      - i-1\n", "", true, "update group web:443@eu-fra-1 | endpoints[i-1]: weight 128 -> "},
		{"order of endpoints means nothing", "      - 10.0.0.1\n      - {id: 10.0.0.2, weight: 0, client_address: proxy_v2}\n",
			"      - {id: 10.0.0.2, weight: 0, client_address: proxy_v2}\n      - 10.0.0.1\n", true, ""},
		{"group goes", "    - region: us-iad-1\n      traffic_dial: 0\n      endpoints: []\n", "", true,
			"delete group web:443@us-iad-1"},
		{"group stays", "    - region: us-iad-1\n      traffic_dial: 0\n      endpoints: []\n", "", false,
			"left group web:443@us-iad-1"},
		{"group comes", "      endpoints: []\n", "      endpoints: []\n    - {region: ap-sin-1}\n", false,
			"create group web:443@ap-sin-1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkChange(t, c.from, c.to, c.prune, c.want) })
	}
}

// checkChange edits the full file, and demands a plan after which nothing is left to do.
func checkChange(t *testing.T, from, to string, prune bool, want string) {
	t.Helper()
	if strings.Count(full, from) != 1 {
		t.Fatalf("%q is %d times in the file", from, strings.Count(full, from))
	}
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
	f := mustParse(t, strings.Replace(full, from, to, 1))
	p := mustCompare(t, f, s, Options{Prune: prune})
	if got := told(p); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	carryOut(t, s, p)
	if p := mustCompare(t, f, s, Options{Prune: prune}); certain(p) > 0 {
		t.Errorf("a second time it still changes something:\n%s", told(p))
	}
}

// TestPruneNeedsAList: what a file does not speak of is never deleted.
func TestPruneNeedsAList(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"accelerator alone", "accelerators: [{name: web, ip_address_type: dual_stack}]", ""},
		{"another accelerator", "accelerators: [{name: new, listeners: []}]", "create accelerator new"},
		{"only a region", "regions: [{name: eu-fra-1}]", ""},
		{"listener without groups", `accelerators: [{name: game, enabled: false, listeners: []}]`, ""},
		{"empty list", "accelerators: [{name: web, ip_address_type: dual_stack, listeners: []}]",
			"delete group web:443@eu-fra-1\ndelete group web:443@us-iad-1\ndelete listener web:443\ndelete listener web:443/udp"},
		{"null is no list", "accelerators: [{name: web, ip_address_type: dual_stack, listeners: }]", ""},
		{"groups are not said", "accelerators: [{name: web, ip_address_type: dual_stack, listeners: [{protocol: udp, ports: 443}]}]",
			"delete group web:443@eu-fra-1\ndelete group web:443@us-iad-1\ndelete listener web:443"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &State{}
			carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
			p := mustCompare(t, mustParse(t, c.file), s, Options{Prune: true})
			if got := told(p); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			carryOut(t, s, p)
		})
	}
}

// TestPortsMoveWithTheirOverrides: the first port, an override of it and the health check that follows it
// move together, and an endpoint port becomes a listener's.
func TestPortsMoveWithTheirOverrides(t *testing.T) {
	file := `accelerators: [{name: web, listeners: [{ports: [443, 9000], groups: [
		{region: r1, endpoints: [], port_overrides: [{listener_port: 443, endpoint_port: 8443}]},
		{region: r2, endpoints: []}, {region: r3, endpoints: [], port_overrides: [{listener_port: 9000, endpoint_port: 7}]}]}]}]`
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, file), s, Options{}))
	file = strings.NewReplacer("[443, 9000]", "[8443, 9000]", "443, endpoint_port: 8443", "8443, endpoint_port: 443").Replace(file)
	p := mustCompare(t, mustParse(t, file), s, Options{})
	want := `update group web:443@r1 | port_overrides: 443:8443 ->` + " " + `
update listener web:443 | port_ranges: 443, 9000 -> 8443, 9000
update group web:8443@r1 | health_check.port: 443 -> the listener's first | port_overrides:  -> 8443:443
update group web:8443@r2 | health_check.port: 443 -> the listener's first
update group web:8443@r3 | health_check.port: 443 -> the listener's first`
	if told(p) != want {
		t.Errorf("got\n%s\nwant\n%s", told(p), want)
	}
	carryOut(t, s, p)
	if p := mustCompare(t, mustParse(t, file), s, Options{}); len(p.Steps) > 0 {
		t.Errorf("a second time it still changes something:\n%s", told(p))
	}
}

func TestListenerById(t *testing.T) {
	s := &State{
		Accelerators: []*pb.Accelerator{{Id: "a", Name: "web", Enabled: true}},
		Listeners: []*pb.Listener{
			{Id: "l1", AcceleratorId: "a", Protocol: pb.Protocol_PROTOCOL_TCP, PortRanges: []*pb.PortRange{{From: 80, To: 80}}},
			{Id: "l2", AcceleratorId: "a", Protocol: pb.Protocol_PROTOCOL_TCP, PortRanges: []*pb.PortRange{{From: 443, To: 443}}},
		},
	}
	p := mustCompare(t, mustParse(t, "accelerators: [{name: web, listeners: [{id: l2, ports: 8443}]}]"), s, Options{})
	want := "update listener web:443 | port_ranges: 443 -> 8443\nleft listener web:80"
	if told(p) != want || p.Steps[0].Self.ID != "l2" {
		t.Errorf("got\n%s", told(p))
	}
	// One listener for two protocols in place of one: unmistakable.
	p = mustCompare(t, mustParse(t, "accelerators: [{name: web, listeners: [{protocol: tcp_udp, ports: 443}]}]"), s, Options{})
	if want := "update listener web:443 | protocol: tcp -> tcp_udp\nleft listener web:80"; told(p) != want {
		t.Errorf("got\n%s", told(p))
	}
}

func TestListenersThatExchangePorts(t *testing.T) {
	ports := func(n uint32) []*pb.PortRange { return []*pb.PortRange{{From: n, To: n}} }
	tcp := pb.Protocol_PROTOCOL_TCP
	s := &State{
		Accelerators: []*pb.Accelerator{{Id: "a", Name: "web", Enabled: true}},
		Listeners: []*pb.Listener{
			{Id: "l1", AcceleratorId: "a", Protocol: tcp, PortRanges: ports(1)},
			{Id: "l2", AcceleratorId: "a", Protocol: tcp, PortRanges: ports(2)},
			{Id: "l3", AcceleratorId: "a", Protocol: tcp, PortRanges: ports(3)},
		},
	}
	chain := "accelerators: [{name: web, listeners: [{id: l1, ports: 2}, {id: l2, ports: 3}, {id: l3, ports: 4}]}]"
	p := mustCompare(t, mustParse(t, chain), s, Options{})
	if len(p.Steps) != 3 || p.Steps[0].Self.ID != "l3" || p.Steps[2].Self.ID != "l1" {
		t.Errorf("got\n%s", told(p))
	}
	circle := "accelerators: [{name: web, listeners: [{id: l1, ports: 2}, {id: l2, ports: 1}, {id: l3, ports: 3}]}]"
	if _, err := Compare(mustParse(t, circle), s, Options{}); err == nil || !strings.Contains(err.Error(), "two steps") {
		t.Errorf("got %v", err)
	}
	// Without ids it is the same two listeners as before.
	p = mustCompare(t, mustParse(t, "accelerators: [{name: web, listeners: [{ports: 2}, {ports: 1}, {ports: 3}]}]"), s, Options{})
	if len(p.Steps) != 0 {
		t.Errorf("got\n%s", told(p))
	}
}

func TestRefusals(t *testing.T) {
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
	s.Accelerators = append(s.Accelerators, &pb.Accelerator{Id: "x1", Name: "twin"}, &pb.Accelerator{Id: "x2", Name: "twin"})
	for _, c := range []struct{ file, path, says string }{
		{"accelerators: [{name: 'a b'}]", "accelerators[a b].name", "cannot have"},
		{"accelerators: [{}]", "accelerators[0].name", "is missing"},
		{"accelerators: [{name: twin}]", "accelerators[twin].name", "x1, x2"},
		{"accelerators: [{name: new}, {name: new}]", "accelerators[new]", "twice"},
		{"accelerators: [{name: web, pools: [edges]}]", "accelerators[web].pools", "are any-a, any-b and cannot be changed"},
		{"accelerators: [{name: web, ip_address_type: dual_stack, addresses: [192.0.2.11]}]", "accelerators[web].addresses", "cannot be changed"},
		{"accelerators: [{name: web, project: other}]", "accelerators[web].project", "is shop"},
		{"accelerators: [{name: n, ip_address_type: ipv6}]", "accelerators[n].ip_address_type", "ipv4, dual_stack"},
		{"accelerators: [{name: n, listeners: [{}]}]", "accelerators[n].listeners[0].port_ranges", "is empty"},
		{"accelerators: [{name: n, listeners: [{ports: 443-80}]}]", "accelerators[n].listeners[0].ports", "80-443"},
		{"accelerators: [{name: n, listeners: [{ports: 0}]}]", "accelerators[n].listeners[0].ports", "not a port"},
		{"accelerators: [{name: n, listeners: [{ports: 1, protocol: sctp}]}]", "accelerators[n].listeners[0].protocol", "tcp_udp"},
		{"accelerators: [{name: n, listeners: [{ports: 1-9}, {ports: 5, protocol: tcp_udp}]}]",
			"accelerators[n].listeners[1].ports", "listeners[0]"},
		{"accelerators: [{name: web, listeners: [{id: nope, ports: 5}]}]", "accelerators[web].listeners[0].id", "no listener"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r, traffic_dial: 101}]}]}]",
			"accelerators[n].listeners[0].groups[r].traffic_dial", "0 to 100"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r}, {region: r}]}]}]",
			"accelerators[n].listeners[0].groups[r]", "twice"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r, endpoints: [a, a]}]}]}]",
			"accelerators[n].listeners[0].groups[r].endpoints[1].id", "twice"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r, endpoints: [{id: a, client_address: x}]}]}]}]",
			"accelerators[n].listeners[0].groups[r].endpoints[0].client_address", "transparent"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r, health_check: {interval: 1h}}]}]}]",
			"accelerators[n].listeners[0].groups[r].health_check.interval", "5m0s"},
		{"accelerators: [{name: web, ip_address_type: dual_stack, listeners: [{ports: 443, protocol: tcp_udp}]}]",
			"accelerators[web].listeners[0].ports", "--prune"},
		{"accelerators: [{name: n, listeners: [{ports: 1, groups: [{region: r, port_overrides: [{listener_port: 2, endpoint_port: 3}]}]}]}]",
			"accelerators[n].listeners[0].groups[r].port_overrides[0].listener_port", "not a port of the listener"},
		{"accelerators: [{name: n, listeners: [{ports: 1-2, groups: [{region: r, port_overrides: [{listener_port: 1, endpoint_port: 2}]}]}]}]",
			"accelerators[n].listeners[0].groups[r].port_overrides[0].endpoint_port", "port of a listener"},
		{"pools: [{name: any-a, zone: z, prefixes: [192.0.2.0/24]}]", "pools[any-a].zone", "is a and cannot be changed"},
		{"pools: [{name: edges, zone: z, prefixes: [203.0.113.0/24]}]", "pools[edges].kind", "cannot be changed"},
		{"pools: [{name: p, prefixes: [10.0.0.1/8]}]", "pools[p].prefixes[0]", "10.0.0.0/8"},
		{"sites: [{name: s, region: r, latitude: 91}]", "sites[s].latitude", "-90"},
		{"regions: [{name: eu-fra-1, description: Elsewhere}]", "regions[eu-fra-1].description", "cannot be changed"},
		{"targets: [{name: t}]", "targets[t].host", "empty"},
	} {
		p, err := Compare(mustParse(t, c.file), s, Options{})
		if err == nil {
			t.Errorf("%s: was planned:\n%s", c.file, told(p))
		} else if !strings.Contains(err.Error(), c.path+": ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: want %s … %s, got %v", c.file, c.path, c.says, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"", "names nothing"}, {"# nothing\n", "names nothing"}, {"{}", "names nothing"}, {"---\n", "names nothing"},
		{"accelerators: []", "names nothing"},
		{"regions: [{name: a}]\n---\nregions: [{name: b}]\n", "more than one document"},
		{"regions: [{name: a}]\nlistners: []\n", "line 2: field listners is unknown here"},
		{"regions: [{name: a}]\nregions: [{name: b}]\n", "is there twice"},
		{"regions:\n- name: a\n  name: b\n", "is there twice"},
		{"accelerators:\n- name: a\n  listeners:\n  - port: 443\n", "line 4: field port is unknown here"},
		{"accelerators: {name: a}", "line 1: cannot use map"},
		{"regions: [", "line 1"},
		{"accelerators: [{name: a, listeners: [{ports: 1, tcp_idle_timeout: 30}]}]", "with its unit"},
		{"accelerators: [{name: a, listeners: [{ports: {a: b}}]}]", "cannot use"},
		{"accelerators: [{name: a, enabled: maybe}]", "cannot use"},
		{strings.Repeat("#", BytesMax+1), "larger than"},
	} {
		_, err := Parse([]byte(c.text))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%.60q: %v, want %q", c.text, err, c.says)
		} else if strings.Contains(err.Error(), "manifest.") || strings.Contains(err.Error(), "yaml:") {
			t.Errorf("%.60q: speaks of its insides: %v", c.text, err)
		}
	}
}
