package dns

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// knotd starts Knot DNS with a cookie secret, and returns where it answers for example.com.
func knotd(t *testing.T, secret [cookieSecretLen]byte) string {
	t.Helper()
	path, err := exec.LookPath("knotd")
	if err != nil {
		path = "/usr/sbin/knotd"
		if _, err := exec.LookPath(path); err != nil {
			t.Skip("knotd (Debian: knot) is not installed")
		}
	}
	dir, at := t.TempDir(), loopback(t)
	writeFile(t, filepath.Join(dir, "example.com.zone"),
		"@ 300 SOA ns1 hostmaster 1 7200 1800 259200 900\n@ 300 NS ns1\nns1 300 A 192.0.2.53\n")
	conf := filepath.Join(dir, "knot.conf")
	writeFile(t, conf, fmt.Sprintf(`server:
    rundir: %[1]q
    listen: 127.0.0.1@%[2]d
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: %[1]q
log:
  - target: stderr
    any: info
mod-cookies:
  - id: fleet
    secret: 0x%[3]x
    badcookie-slip: 1
template:
  - id: default
    storage: %[1]q
    global-module: mod-cookies/fleet
zone:
  - domain: example.com
    file: example.com.zone
`, dir, at.Port(), secret[:]))
	startServer(t, path, "-c", conf)
	answers(t, at.String(), "example.com.", dns.TypeSOA)
	return at.String()
}

// withCookie asks a server for example.com's SOA with a cookie, and returns how it answers and its own cookie.
func withCookie(t *testing.T, at, cookie string) (rcode int, fresh string) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("example.com.", dns.TypeSOA)
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
	c := dns.Client{Timeout: patience}
	r, _, err := c.Exchange(m, at)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	if r.IsEdns0() != nil {
		for _, o := range r.IsEdns0().Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				fresh = c.Cookie
			}
		}
	}
	return r.Rcode, fresh
}

// TestKnotCookies: an anycast fleet may be of servers of two makes (RFC 9018): what Knot makes with a secret is
// taken here, and Knot takes what is made here; with another secret neither is.
func TestKnotCookies(t *testing.T) {
	secret := [cookieSecretLen]byte{0xe5, 0xe9, 0x73, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}
	st := state(t, fleet(t, 0))
	st.Cookies = [][cookieSecretLen]byte{secret}
	s := serve(t, st, Config{Rate: -1})
	ours, knot, stranger := s.Addrs()[0].String(), knotd(t, secret), knotd(t, [cookieSecretLen]byte{99})
	const client = "0a1b2c3d4e5f6071"
	local := netip.MustParseAddr("127.0.0.1")
	known := func(cookie string) bool { // by its answer: more than 512 bytes only to whom it knows
		t.Helper()
		raw, err := hex.DecodeString(cookie)
		if err != nil {
			t.Fatal(err)
		}
		r := ask(t, s, "udp", "big.example.com", dns.TypeTXT, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
		})
		if by := validCookie(raw, st.Cookies, local, time.Now()); by == r.Truncated {
			t.Errorf("cookie %s: valid %v, answer truncated %v", cookie, by, r.Truncated)
		}
		return !r.Truncated
	}
	rcode, theirs := withCookie(t, knot, client)
	if rcode != dns.RcodeBadCookie || len(theirs) != 2*(clientCookie+serverCookie) {
		t.Fatalf("Knot to a new client: %s, cookie %q", dns.RcodeToString[rcode], theirs)
	}
	if !known(theirs) {
		t.Errorf("Knot's cookie %s is not taken", theirs)
	}
	rcode, mine := withCookie(t, ours, client)
	if rcode != dns.RcodeSuccess || len(mine) != 2*(clientCookie+serverCookie) {
		t.Fatalf("a new client: %s, cookie %q", dns.RcodeToString[rcode], mine)
	}
	if rcode, _ := withCookie(t, knot, mine); rcode != dns.RcodeSuccess {
		t.Errorf("Knot does not take the cookie %s: %s", mine, dns.RcodeToString[rcode])
	}
	if rcode, _ := withCookie(t, stranger, mine); rcode != dns.RcodeBadCookie {
		t.Errorf("Knot with another secret takes the cookie %s: %s", mine, dns.RcodeToString[rcode])
	}
	if _, foreign := withCookie(t, stranger, client); known(foreign) {
		t.Errorf("the cookie %s of Knot with another secret is taken", foreign)
	}
}
