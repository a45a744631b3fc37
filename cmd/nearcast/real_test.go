package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/controlplane"
	"github.com/nearcast/nearcast/testbed/netns"
)

// realController runs a controller with its store in this process until the test ends, and returns a
// world in which its administrator works.
func realController(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	metrics := netns.FreeAddr(t)
	c, err := controlplane.New(controlplane.Config{
		Cluster: "test", DataDir: dir, Listen: netns.FreeAddr(t), MetricsListen: metrics, Version: "test",
		Store: controlplane.StoreConfig{NoSync: true, Timeout: 30 * time.Second}, StopTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the controller: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	ready := func() error {
		resp, err := http.Get("http://" + metrics + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := ready(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the controller is not ready after a minute: %v", err)
		}
	}
	w := &world{dir: t.TempDir(), now: time.Now}
	// What an operator does first: take over the context that the controller left.
	w.must(t, "context", "import", filepath.Join(dir, "admin-context.yaml"))
	return w
}

const realFile = `
regions:
- {name: eu-fra-1, description: Frankfurt}
sites:
- {name: fra, region: eu-fra-1, latitude: 50.11, longitude: 8.68}
- {name: iad, region: us-iad-1, latitude: 38.9, longitude: -77.4}
pools:
- {name: any-a, zone: a, prefixes: [198.51.100.0/28, "2001:db8:a::/64"]}
- {name: any-b, zone: b, prefixes: [203.0.113.0/28, "2001:db8:b::/64"]}
- {name: edges, sites: [fra]}
targets:
- {name: i-1, host: 10.0.0.7, region: eu-fra-1, tags: {env: prod}}
accelerators:
- name: web
  ip_address_type: dual_stack
  tags: {env: prod}
  listeners:
  - ports: [443, 8000-8999]
    affinity: source_ip
    tcp_idle_timeout: 1h
    proxy_protocol_from: [10.0.0.0/8]
    groups:
    - region: eu-fra-1
      health_check: {protocol: http, port: 8080, path: /healthz, interval: 2s, expected_codes: "200,204"}
      port_overrides: [{listener_port: 443, endpoint_port: 10443}]
      endpoints:
      - 10.0.0.1
      - {id: 10.0.0.2, weight: 0, client_address: proxy_v2}
      - i-1
    - region: us-iad-1
      traffic_dial: 33.5
      health_check: {interval: 10s}
      endpoints: [app.example.com]
  - {protocol: udp, ports: 443, groups: [{region: eu-fra-1, endpoints: []}]}
- name: game
  enabled: false
  pools: [edges]
  listeners:
  - {protocol: tcp_udp, ports: 27000-27010, groups: []}
`

func TestApplyOnARealController(t *testing.T) {
	w := realController(t)
	apply := func(text string, args ...string) string {
		t.Helper()
		w.stdin = text
		return strings.TrimSpace(w.must(t, append([]string{"apply", "-f", "-"}, args...)...))
	}
	if got, want := apply(realFile), "15 created, 0 changed, 0 deleted, 0 unchanged"; got != want {
		t.Errorf("the first time: %s", got)
	}
	for _, args := range [][]string{nil, {"--prune"}, {"--dry-run", "--exit-code"}} {
		if got := apply(realFile, args...); !strings.HasPrefix(got, "0 ") || !strings.HasSuffix(got, "15 unchanged") {
			t.Errorf("a second time, %v: %s", args, got)
		}
	}
	exported := w.must(t, "export")
	if got := apply(exported, "--prune"); got != "0 created, 0 changed, 0 deleted, 16 unchanged" {
		t.Errorf("what was exported: %s\n%s", got, exported) // 16: us-iad-1 came with its site
	}

	// Change much at once: ports, default health port, endpoints, groups, listeners.
	edited := strings.NewReplacer(
		"[443, 8000-8999]", "[8443, 8000-8099]", "listener_port: 443", "listener_port: 8443",
		"- 10.0.0.1\n", "- {id: 10.0.0.9, weight: 9}\n", "traffic_dial: 33.5", "traffic_dial: 0",
		"  - {protocol: udp, ports: 443, groups: [{region: eu-fra-1, endpoints: []}]}\n",
		"  - {protocol: udp, ports: 53, groups: []}\n",
		"enabled: false", "enabled: true", "tags: {env: prod}\n  listeners", "tags: {}\n  listeners",
	).Replace(realFile)
	got := apply(edited, "--prune", "--dry-run")
	for _, line := range []string{"~ accelerator web", "- listener web:443/udp", "+ listener web:53/udp",
		"    endpoints[10.0.0.1]  - weight 128", "    traffic_dial       33.5 → 0", "~ accelerator game"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("the plan lacks %q:\n%s", line, got)
		}
	}
	if got := apply(edited, "--prune"); got != "1 created, 6 changed, 2 deleted, 8 unchanged" {
		t.Errorf("the change: %s", got)
	}
	if got := apply(edited, "--prune"); !strings.HasSuffix(got, "0 created, 0 changed, 0 deleted, 14 unchanged") {
		t.Errorf("the change a second time: %s", got)
	}
	if got := w.must(t, "group", "get", "web:8443@us-iad-1"); !strings.Contains(got, "port 8443") {
		t.Errorf("the health check does not follow the listener's first port:\n%s", got)
	}
	// An empty list with --prune takes away all below, and only there.
	apply("accelerators: [{name: web, ip_address_type: dual_stack, listeners: []}]", "--prune")
	if got := w.must(t, "listener", "list"); strings.Contains(got, "web") || !strings.Contains(got, "game") {
		t.Errorf("after an empty list:\n%s", got)
	}
}

// TestCommandsOnARealController follows a person who sets up a cluster by hand.
func TestCommandsOnARealController(t *testing.T) {
	w := realController(t)
	if got := w.must(t, "whoami"); !strings.Contains(got, "admin") || !strings.Contains(got, "test") {
		t.Errorf("whoami:\n%s", got)
	}
	for _, line := range []string{
		"pool create any-a --kind anycast --zone a --prefix 198.51.100.0/28 --prefix 2001:db8:a::/64",
		"pool create any-b --zone b --prefix 203.0.113.0/28",
		"region create eu-fra-1 --description Frankfurt",
		"site create fra --region eu-fra-1 --at 50.11,8.68",
		"site update fra --at 50,8",
		"pool update any-b --prefix 203.0.113.0/28,203.0.113.128/28",
		"target create i-1 --host 10.0.0.7 --region eu-fra-1",
		"target update i-1 --host 10.0.0.8",
		"target tag i-1 env=prod",
		"accelerator create web --tag a=b --wait",
		"accelerator update web --name shop",
		"accelerator tag shop c=d", "accelerator untag shop a",
		"listener create --accelerator shop --protocol tcp --ports 80,443,7000-7001",
		"listener update shop:80 --affinity source_ip --max-flows 1000",
		"listener tag shop:80 x=y",
		"group create --listener shop --region eu-fra-1 --health-protocol http --health-port 80 --health-path /health " +
			"--health-interval 1s --port-override 443:8443 --endpoint 10.0.0.1 --endpoint i-1=7",
		"group update shop@eu-fra-1 --dial 50 --health-codes 200 --wait",
		"group tag shop@eu-fra-1 x=y", "group untag shop@eu-fra-1 x",
		"endpoint add -g shop@eu-fra-1 10.0.0.2 app.example.com=3 --client-address proxy_v1",
		"endpoint set -g shop@eu-fra-1 10.0.0.2 --weight 0",
		"endpoint set -g shop@eu-fra-1 10.0.0.2 --client-address none",
		"endpoint rm -g shop@eu-fra-1 app.example.com",
		"settings update --accelerators-max 30",
		"token create --site fra --node fra-1 --single-use --edge --gateway",
		"accelerator list", "accelerator get shop", "listener list", "group list", "endpoint list", "health list",
		"node list", "path list", "status", "snapshot", "audit list", "operator list", "token list", "export",
		"target list", "pool list", "site list", "region list", "settings get",
	} {
		w.must(t, strings.Fields(line)...)
	}
	endpoints := w.must(t, "endpoint", "list", "--group", "shop@eu-fra-1")
	for _, want := range []string{"10.0.0.1  128     none", "i-1       7       none", "10.0.0.2  0       none"} {
		if !strings.Contains(endpoints, want) {
			t.Errorf("no %q in\n%s", want, endpoints)
		}
	}
	refusals := []struct{ line, says string }{
		{"accelerator delete shop --yes", "accelerator disable"},
		{"group create --listener shop --region eu-fra-1", "eu-fra-1"},
		{"group create --listener shop --region us-iad-1 --endpoint 169.254.169.254", "169.254.169.254"},
		{"listener create --accelerator shop --ports 443", "443"},
		{"listener create --accelerator shop --ports 1 --udp-idle-timeout 2h", "listener.udp_idle_timeout: "},
		{"region delete eu-fra-1 --yes", "eu-fra-1"},
		{"pool delete any-a --yes", "any-a"},
		{"accelerator update shop --name x --expected-revision 1", "try again"},
		{"endpoint add -g shop@eu-fra-1 10.0.0.1", "10.0.0.1"},
	}
	for _, c := range refusals {
		r := w.run(strings.Fields(c.line)...)
		if r.code != exitFailed || !strings.Contains(r.stderr, c.says) || strings.Contains(r.stderr, "rpc error") {
			t.Errorf("%s: %+v", c.line, r)
		}
	}
	audit := w.must(t, "audit", "list", "--limit", "1000", "-o", "json")
	var entries []struct{ Method, Operator, Outcome string }
	if err := json.Unmarshal([]byte(audit), &entries); err != nil || len(entries) < 25+len(refusals) {
		t.Errorf("%d audit entries, %v", len(entries), err)
	}
	w.must(t, "accelerator", "delete", "shop", "--cascade", "--yes")
	if got := w.must(t, "accelerator", "list"); got != "" {
		t.Errorf("after the end:\n%s", got)
	}
}

func TestRolesOnARealController(t *testing.T) {
	w := realController(t)
	file := filepath.Join(t.TempDir(), "viewer.yaml")
	w.must(t, "operator", "create", "vera", "--role", "viewer", "--context-file", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the context file: %v, %v", info, err)
	}
	if got := w.must(t, "--contexts", file, "whoami"); !strings.Contains(got, "vera") || !strings.Contains(got, "viewer") {
		t.Errorf("whoami:\n%s", got)
	}
	w.must(t, "--contexts", file, "status")
	r := w.run("--contexts", file, "region", "create", "r")
	if r.code != exitFailed || !strings.Contains(r.stderr, "nearcast whoami") {
		t.Errorf("%+v", r)
	}
	w.must(t, "operator", "delete", "vera", "--yes")
	r = w.run("--contexts", file, "status")
	if r.code != exitFailed || !strings.Contains(r.stderr, "operator create") {
		t.Errorf("%+v", r)
	}
}
