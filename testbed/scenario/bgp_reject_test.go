package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wrongPassword: the router's kernel drops what is signed with another password, and the node says that the
// session is not there.
func (d *deployment) wrongPassword(t *testing.T) {
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("another password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	right := filepath.Join(d.DataDir(""), "bgp-password")
	d.refused(t, "TCPMD5Failure", []string{"--password-file", wrong}, []string{"--password-file", right})
}

// fartherAway: to a router under TTL security (RFC 5082), a neighbour that does not send with the largest TTL
// might be any number of hops away.
func (d *deployment) fartherAway(t *testing.T) {
	d.refused(t, "TCPMinTTLDrop", []string{"--ttl-security=false"}, []string{"--ttl-security"})
}

// refused spoils the session of Frankfurt's node, waits until the router's kernel has counted refusals, and sees
// that the session is not established by then; mended it comes back.
func (d *deployment) refused(t *testing.T, counter string, spoil, mend []string) {
	update := func(flags []string) {
		t.Helper()
		if _, err := d.CLI(d.ctx, append([]string{"peer", "update", "fra/fra-1"}, flags...)...); err != nil {
			t.Fatal(err)
		}
	}
	before := d.kernelCount(t, "rt-fra", counter)
	update(spoil)
	defer func() {
		update(mend)
		var restarted time.Time
		eventually(t, 60*time.Second, "mended, the session is established", func() error {
			session, text, err := d.session()
			if err != nil || session == "established" {
				return err
			}
			// Under TTL security BIRD cannot hear that the last connection has ended either, and takes no other one
			// until it gives up the old, after four minutes.
			if time.Since(restarted) > 10*time.Second {
				restarted = time.Now()
				if out, err := d.Birdc(d.ctx, "rt-fra", "restart", "fra_1"); err != nil {
					return fmt.Errorf("birdc restart: %w: %s", err, out)
				}
			}
			return fmt.Errorf("it is %s:\n%s", session, text)
		})
		d.home(t)
	}()
	down := func() error {
		session, text, err := d.session()
		switch {
		case err != nil:
			return err
		case session == "" || session == "established":
			return fmt.Errorf("the session is %q:\n%s", session, text)
		case !strings.Contains(text, "pending") || !strings.Contains(text, "the session is not established"):
			return fmt.Errorf("announce status does not say that nothing is announced, and why:\n%s", text)
		}
		return nil
	}
	eventually(t, 60*time.Second, "announce status says that the session is not established", down)
	eventually(t, 60*time.Second, "the router has refused more than once", func() error {
		if n := d.kernelCount(t, "rt-fra", counter) - before; n < 2 {
			return fmt.Errorf("%s: %d", counter, n)
		}
		if out, err := d.Birdc(d.ctx, "rt-fra", "show", "protocols", "fra_1"); err != nil ||
			strings.Contains(out, "Established") {
			t.Errorf("the router has the session: %v: %s", err, out)
		}
		return nil
	})
	// BIRD looks at the TTL from its accept on: of a node's first words those before that are heard on a busy machine,
	// and the node, which is answered, has a session until the router gives it up.
	eventually(t, 40*time.Second, "announce status says so still", down)
	_, text, _ := d.session()
	t.Logf("after %d refusals (%s) announce status says:\n%s", d.kernelCount(t, "rt-fra", counter)-before, counter, text)
	eventually(t, 60*time.Second, "London goes elsewhere", func() error { return d.leads("london", false) })
}

// session is the state of Frankfurt's session as the CLI shows it, and all that it shows.
func (d *deployment) session() (state, text string, err error) {
	text, err = d.CLI(d.ctx, "announce", "status", "--site", "fra")
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "fra-1" {
			return f[2], text, err
		}
	}
	return "", text, err
}

// kernelCount is one of the counters of a machine's TCP.
func (d *deployment) kernelCount(t *testing.T, host, name string) int {
	t.Helper()
	out, err := d.NS(host).Cmd(d.ctx, "cat", "/proc/net/netstat").Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == name && i < len(f) {
				v, err := strconv.Atoi(f[i])
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
	}
	t.Fatalf("%s: the kernel has no counter %s", host, name)
	return 0
}
