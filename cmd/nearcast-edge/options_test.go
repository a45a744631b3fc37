package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// parse returns the configuration of a command line; "FILE" stands for a file with the given text.
func parse(t *testing.T, file, line string) (o options, err error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "edge.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		line = "--config " + path + " " + line
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.register(flags)
	if err := flags.Parse(strings.Fields(line)); err != nil {
		return o, err
	}
	return o, o.readFile(flags)
}

func TestFileAndFlags(t *testing.T) {
	o, err := parse(t, `
controllers: [a.example:7443, b.example:7443]
name: fra-1
site: fra
roles: [edge]
max-flows: 1000
memory-max: 2GiB
manage-addresses: false
drain-timeout: 1m
service-addresses: 192.0.2.1
`, "--name fra-2")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := o.config()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Name != "fra-2" || cfg.Site != "fra" || len(cfg.Controllers) != 2 || !cfg.Edge || cfg.Gateway ||
		cfg.MaxFlows != 1000 || cfg.MemoryMax != 2<<30 || cfg.ManageAddresses || cfg.DrainTimeout.Minutes() != 1 ||
		len(cfg.ServiceAddresses) != 1 || cfg.BackboneListen.String() != "[::]:7444" {
		t.Errorf("%+v", cfg)
	}
}

// TestMistakes: each error names the flag and says how to mend it.
func TestMistakes(t *testing.T) {
	const good = "--controllers c:7443 --name n --site s "
	for _, c := range []struct{ file, line, want string }{
		{"", "", "--controllers: is needed"},
		{"", "--controllers c --name n --site s", `--controllers: "c" is not host:port`},
		{"", good + "--roles proxy", `--roles: "proxy" is not a role`},
		{"", good + "--backbone-listen 7444", "--backbone-listen: \"7444\" is not address:port, like :7444"},
		{"", good + "--backbone-advertise 1.2.3.4", "--backbone-advertise: \"1.2.3.4\" is not address:port"},
		{"", good + "--backbone-advertise 0.0.0.0:1", "--backbone-advertise: others cannot reach"},
		{"", good + "--service-addresses x", "--service-addresses: "},
		{"", good + "--memory-max lots", "--memory-max: \"lots\" is not a size like 512MB"},
		{"", good + "--memory-max 1MB", "--memory-max: must be at least"},
		{"", good + "--join-token hunter2", "--join-token: not a join token"},
		{"", "--controllers c:7443 --name n", "--site: is needed"},
		{"sitee: fra", good, `"sitee" is not a setting`},
		{"config: x", good, `"config" is not a setting`},
		{"site: {a: b}", "--controllers c:1 --name n", "site: must be a value or a list"},
		{"max-flows: many", good, "max-flows: "},
		{"site: a\nsite: b", good, "already set"},
		{": :", good, "--config"},
	} {
		o, err := parse(t, c.file, c.line)
		if err == nil {
			_, err = o.config()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s | %s: %v, want %q", c.file, c.line, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error repeats a secret: %v", err)
		}
	}
	if _, err := parse(t, "", "--config /nonexistent"); err == nil {
		t.Error("a missing file was accepted")
	}
}

func TestJoinTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	o := options{joinTokenFile: path}
	if token, err := o.readToken(); err != nil || token != "" {
		t.Errorf("a file that is gone: %q, %v", token, err)
	}
	if err := os.WriteFile(path, []byte("  NC1x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if token, err := o.readToken(); err != nil || token != "NC1x" {
		t.Errorf("%q, %v", token, err)
	}
	o.joinToken = "NC1y"
	if _, err := o.readToken(); err == nil {
		t.Error("two tokens were accepted")
	}
}

func TestRun(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"version"}, &out, &errs); code != 0 || out.String() != "nearcast-edge unknown\n" {
		t.Errorf("%d, %q, %q", code, &out, &errs)
	}
	if code := run([]string{"--nonsense"}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "nonsense") {
		t.Errorf("%d, %q", code, &errs)
	}
	out.Reset()
	if code := run([]string{"--help"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "--drain-timeout") {
		t.Errorf("%d, %q", code, &out)
	}
}
