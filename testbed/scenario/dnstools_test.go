package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/world"
)

// TestDNSTools has those judge a signed zone who judge everybody's: zonemaster, and dnsviz from the root down.
// A root server of Knot's stands in the world and delegates to three nodes. NEARCAST_FULL=1, and the packages
// zonemaster-cli and dnsviz (they bring a hundred others, so make test does not install them).
func TestDNSTools(t *testing.T) {
	if os.Getenv("NEARCAST_FULL") != "1" {
		t.Skip("NEARCAST_FULL=1 runs it: half a minute")
	}
	for _, tool := range []string{"zonemaster-cli", "dnsviz", "kdig", "/usr/sbin/knotd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v: apt-get install zonemaster-cli dnsviz knot knot-dnsutils", err)
		}
	}
	d := raise(t, "dns", nil, world.Options{})
	z := &delegated{deployment: d, dir: t.TempDir(), root: d.Host("ctl-1").V4}
	z.delegate(t)
	t.Run("zonemaster", z.zonemaster)
	t.Run("dnsviz", z.dnsviz)
}

// delegated is a world with a root server that delegates shop.example.
type delegated struct {
	*deployment
	dir  string
	root netip.Addr
	keys string // file with the root's key
}

func (z *delegated) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(z.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a tool beside the root server.
func (z *delegated) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(z.ctx, 4*time.Minute)
	defer cancel()
	out, err := z.NS("ctl-1").Cmd(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// delegate makes the zone, and the root server that has its name servers and its DS record.
func (z *delegated) delegate(t *testing.T) {
	var servers, glue string
	for i, s := range z.Spec.Sites {
		servers += fmt.Sprintf("shop.example. 300 IN NS ns%d.shop.example.\n", i+1)
		glue += fmt.Sprintf("ns%d.shop.example. 300 IN A %v\n", i+1, z.near(s.Name))
	}
	zone := z.file(t, "shop.zone", "shop.example. 300 IN SOA ns1.shop.example. hostmaster.shop.example. "+
		"1 14400 3600 1209600 300\n"+servers+glue+"shop.example. 300 IN MX 10 mail.shop.example.\n"+
		"mail.shop.example. 300 IN A 192.0.2.25\nshop.example. 300 IN TXT \"v=spf1 -all\"\n")
	if _, err := z.CLI(z.ctx, "zone", "create", "shop.example", "-f", zone, "--dnssec", "--alias", "www=shop"); err != nil {
		t.Fatal(err)
	}
	text, err := z.CLI(z.ctx, "zone", "get", "shop.example")
	if err != nil {
		t.Fatal(err)
	}
	ds := ""
	for line := range strings.Lines(text) {
		if record, ok := strings.CutPrefix(line, "For the parent"); ok {
			ds = strings.TrimSpace(record) + "\n"
		}
	}
	if !strings.Contains(ds, " DS ") {
		t.Fatalf("zone get shows no DS record:\n%s", text)
	}
	z.file(t, "root.zone", fmt.Sprintf(". 300 IN SOA a.root. hostmaster.root. 1 14400 3600 1209600 300\n"+
		". 300 IN NS a.root.\na.root. 300 IN A %v\n", z.root)+servers+glue+ds)
	conf := z.file(t, "knot.conf", fmt.Sprintf(`server:
    rundir: %[1]q
    listen: %[2]v@53
database:
    storage: %[1]q
zone:
  - domain: .
    storage: %[1]q
    file: root.zone
    zonefile-sync: -1
    dnssec-signing: on
`, z.dir, z.root))
	knot := z.NS("ctl-1").Cmd(context.Background(), "/usr/sbin/knotd", "-c", conf)
	if err := knot.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = knot.Process.Kill(); _ = knot.Wait() })
	eventually(t, 30*time.Second, "the root server has its key", func() error {
		out, err := z.run("kdig", "@"+z.root.String(), ".", "DNSKEY", "+noall", "+answer")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 4 && f[3] == "DNSKEY" && f[4] == "257" {
				z.keys = z.file(t, "root.key", line)
				return nil
			}
		}
		return fmt.Errorf("%v: %s", err, out)
	})
	for _, s := range z.Spec.Sites {
		eventually(t, 30*time.Second, s.Name+" answers for the zone", func() error {
			out, err := z.run("kdig", "@"+z.near(s.Name).String(), "shop.example", "SOA", "+short")
			if err == nil && !strings.Contains(out, "hostmaster") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	}
}

// zonemaster: no complaint but those about the world's addresses, which are private and have no names.
func (z *delegated) zonemaster(t *testing.T) {
	hints := z.file(t, "hints", fmt.Sprintf(". 3600000 NS a.root.\na.root. 3600000 A %v\n", z.root))
	out, err := z.run("zonemaster-cli", "--hints", hints, "--no-ipv6", "--level", "INFO", "--show-testcase",
		"--no-progress", "shop.example")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cases := map[string]bool{}
	levels := map[string]int{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || !slices.Contains([]string{"INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL"}, f[1]) {
			continue
		}
		cases[f[2]] = true
		levels[f[1]]++
		known := f[1] == "ERROR" && f[2] == "ADDRESS01" || f[1] == "WARNING" && f[2] == "ADDRESS02" ||
			f[1] == "NOTICE" && f[2] == "DELEGATION01" // no IPv6
		if f[1] != "INFO" && !known {
			t.Errorf("zonemaster: %s", strings.TrimSpace(line))
		}
	}
	for _, c := range []string{"BASIC02", "CONSISTENCY01", "DNSSEC05", "DNSSEC10", "NAMESERVER02", "NAMESERVER03", "ZONE10"} {
		if !cases[c] {
			t.Errorf("zonemaster did not look at %s:\n%s", c, out)
		}
	}
	t.Logf("zonemaster: %d test cases spoke: %v", len(cases), levels)
}

// dnsviz: everything under the zone is proven from the root's key, and nothing is with another one.
func (z *delegated) dnsviz(t *testing.T) {
	probe := filepath.Join(z.dir, "probe.json")
	out, err := z.run("dnsviz", "probe", "-4", "-A", "-a", ".", "-x", fmt.Sprintf(".+:a.root=%v", z.root), "-o", probe,
		"shop.example", "www.shop.example")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(probe); err != nil || !json.Valid(b) {
		t.Fatalf("dnsviz probe: %v, %d bytes", err, len(b))
	}
	marks := func(args ...string) (good, bad int, text string) {
		out, err := z.run("dnsviz", append([]string{"print", "-P", "-r", probe}, args...)...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Count(out, "[.]"), strings.Count(out, "[") - strings.Count(out, "[.]"), out
	}
	good, bad, text := marks("-t", z.keys)
	if bad != 0 || good < 100 || !strings.Contains(text, "NSEC: ") || !strings.Contains(text, "DS: 13/") ||
		!strings.Contains(text, fmt.Sprintf("[.]  A: %v", z.near("fra"))) { // the steered name's, seen from there
		t.Errorf("dnsviz takes %d for proven and %d not:\n%s", good, bad, text)
	}
	if _, bad, text := marks(); bad < 50 { // by the key of the real root
		t.Errorf("dnsviz takes all but %d for proven by another key:\n%s", bad, text)
	}
	t.Logf("dnsviz: %d records, signatures and proofs are proven from the root, none is not", good)
}
