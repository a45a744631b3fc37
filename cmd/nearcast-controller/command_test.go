package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, yaml string, args ...string) (options, error) {
	t.Helper()
	var o options
	f := pflag.NewFlagSet("x", pflag.ContinueOnError)
	o.flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	err := readConfig(path, f)
	return o, err
}

func TestConfigFile(t *testing.T) {
	o, err := parse(t, `
cluster: prod
data-dir: /d
etcd-endpoints: [a:1, b:2]
etcd-insecure-peers: true
metrics-listen: ""
log-level: debug
`, "--log-level", "warn", "--advertise", "ctl:7443")
	if err != nil {
		t.Fatal(err)
	}
	if o.cluster != "prod" || len(o.endpoints) != 2 || !o.insecurePeers || o.metrics != "" ||
		o.logLevel != "warn" || o.advertise != "ctl:7443" || o.listen != ":7443" {
		t.Errorf("read %+v", o)
	}
	for yaml, want := range map[string]string{
		"cluster: a\nclutser: b":       `"clutser"`, // names the key
		"config: x":                    `"config"`,
		"cluster: {a: b}":              "cluster",
		"etcd-insecure-peers: perhaps": "etcd-insecure-peers",
		"cluster: a\ncluster: b":       "cluster", // twice
		"- a":                          "c.yaml",
		"etcd-endpoints: [{a: b}]":     "etcd-endpoints",
	} {
		if _, err := parse(t, yaml); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %s", yaml, err, want)
		}
	}
	if err := readConfig("/nowhere/at/all", pflag.NewFlagSet("x", pflag.ContinueOnError)); err == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestBuild(t *testing.T) {
	cfg, err := (&options{cluster: "prod", dataDir: "/d", etcdName: "a", peerListen: "127.0.0.1:1",
		etcdInitialCluster: "a=127.0.0.1:1, b=127.0.0.1:2"}).build()
	if err != nil || len(cfg.Store.Peers) != 2 || cfg.Store.Peers["b"] != "127.0.0.1:2" || cfg.ID != "a" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]options{
		"no cluster": {dataDir: "/d"}, "no directory": {cluster: "prod"},
		"bad member":   {cluster: "prod", dataDir: "/d", etcdInitialCluster: "a"},
		"member twice": {cluster: "prod", dataDir: "/d", etcdInitialCluster: "a=x:1,a=x:2"},
		"no password":  {cluster: "prod", dataDir: "/d", etcdPasswordFile: "/nowhere/at/all"},
	} {
		if _, err := o.build(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCommand(t *testing.T) {
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := newCommand(io.Discard)
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(args)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a command that starts something ends at once
		err := cmd.ExecuteContext(ctx)
		return out.String(), err
	}
	help, err := run("--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--cluster", "--etcd-initial-cluster", "--metrics-listen", "Examples:",
		"admin-context.yaml"} {
		if !strings.Contains(help, want) {
			t.Errorf("help does not mention %s", want)
		}
	}
	if out, err := run("version"); err != nil || !strings.HasPrefix(out, "nearcast-controller dev ") {
		t.Errorf("version: %q, %v", out, err)
	}
	for _, args := range [][]string{{}, {"--cluster", "prod"}, {"surplus"}, {"--nonsense"},
		{"--cluster", "prod", "--data-dir", "/d", "--log-level", "loud"},
		{"--cluster", "prod", "--data-dir", "/d", "--log-format", "xml"},
		{"--cluster", "prod", "--data-dir", "/d", "--store-quota", "much"},
		{"--cluster", "prod", "--data-dir", "/d", "--store-quota", "15MiB"},
		{"--cluster", "prod", "--data-dir", "/d", "--store-quota", "9GiB"},
		{"--cluster", "Prod", "--data-dir", "/d"}, {"--config", "/nowhere/at/all"}} {
		if _, err := run(args...); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	if _, err := run("--cluster", "prod", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0",
		"--metrics-listen", ""); err != nil {
		t.Errorf("a start that is stopped at once: %v", err)
	}
}
