package dns

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/testbed/netns"
)

// patience is how long anything may take that others do, on a machine that has no time.
const patience = 30 * time.Second

// loopback is an address at which only this test listens. (Sockets that share a port are given one of others' by the
// kernel now and then, if they leave the choice to it.)
func loopback(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), netns.FreePort(t))
}

// startServer starts another make's server for a test, which logs what it says if it fails.
func startServer(t testing.TB, path string, args ...string) {
	t.Helper()
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = patience // a child of its own may hold its output open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s says:\n%s", filepath.Base(path), out.String())
		}
	})
}

// answers waits until a server answers for a name.
func answers(t testing.TB, at, name string, qtype uint16) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		m := new(dns.Msg)
		m.SetQuestion(name, qtype)
		c := dns.Client{Timeout: time.Second}
		if r, _, err := c.Exchange(m, at); err == nil && len(r.Answer) > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody answers at %s", at)
		}
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
