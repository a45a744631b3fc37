package dns

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

// certificate makes a self-signed certificate for 127.0.0.1, and the pool that trusts it.
func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"ns.test"}}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestTLS: DNS over TLS (RFC 7858) with padding (RFC 8467), many queries on a connection, and nothing for
// whoever speaks no TLS there.
func TestTLS(t *testing.T) {
	cert, pool := certificate(t)
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1, TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
		TLSListen: []netip.AddrPort{loopback(t)}})
	at := s.TLSAddrs()[0].String()
	c, err := dns.DialTimeoutWithTLS("tcp-tls", at, &tls.Config{RootCAs: pool, ServerName: "ns.test"}, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 20 {
		m := new(dns.Msg)
		m.SetQuestion([]string{"example.com.", "big.example.com."}[i%2], dns.TypeTXT)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 10)}, &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE}}
		_ = c.SetDeadline(time.Now().Add(patience))
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		var raw [2]byte
		if _, err := readFull(c, raw[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint16(raw[:]))
		if _, err := readFull(c, b); err != nil {
			t.Fatal(err)
		}
		r := new(dns.Msg)
		if err := r.Unpack(b); err != nil || r.Id != m.Id || len(r.Answer) == 0 || r.Truncated {
			t.Fatalf("query %d: %v, %v", i, r, err)
		}
		if len(b)%padTo != 0 {
			t.Errorf("query %d: the answer has %d bytes, no multiple of %d", i, len(b), padTo)
		}
	}
	plain, err := dns.DialTimeout("tcp", at, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(patience))
	m := new(dns.Msg)
	m.SetQuestion("example.com.", dns.TypeSOA)
	if err := plain.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	if r, err := plain.ReadMsg(); err == nil {
		t.Errorf("without TLS it answers %v", r)
	}
	stranger := &tls.Config{ServerName: "ns.test"}
	if _, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", at, stranger); err == nil {
		t.Error("a certificate that nobody vouches for was taken")
	}
}

func readFull(c *dns.Conn, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := c.Conn.Read(b[n:])
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// TestReload: while geo databases and state are exchanged under constant queries, every query is answered, and
// each answer is one of the states', never a mixture.
func TestReload(t *testing.T) {
	snapshot := fleet(t, 0)
	snapshot.Steering.Networks = nil
	snapshot.Sites = []model.Site{{Name: "fra", Region: "r", Latitude: 50, Longitude: 8}, {Name: "sin", Region: "r", Latitude: 1, Longitude: 103}}
	dir := t.TempDir()
	path := filepath.Join(dir, "city.mmdb")
	database := func(lat, lon float64) []byte {
		w := mmdb.New(true)
		w.Add(netip.MustParsePrefix("20.0.0.0/8"), mmdb.Place("DE", lat, lon))
		return w.Bytes("test-City")
	}
	both := [][]byte{database(51, 9), database(2, 102)}
	load := func(i int) State {
		writeFile(t, path, string(both[i%2]))
		db, err := geo.Open([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		st := state(t, snapshot)
		st.Steer = geo.Compile(geo.NewMap(snapshot.Sites, snapshot.Steering, db, nil), snapshot, func(*model.Node) string { return "" })
		return st
	}
	s := serve(t, load(0), Config{Rate: -1})
	var stop atomic.Bool
	var asked, lost atomic.Int64
	var mu sync.Mutex
	seen := map[string]int{}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !stop.Load() {
				m := new(dns.Msg)
				m.SetQuestion("a1.nearcast.internal.", dns.TypeA)
				subnet("20.1.2.0/24")(m)
				c := dns.Client{Timeout: patience}
				asked.Add(1)
				r, _, err := c.Exchange(m, s.Addrs()[0].String())
				if err != nil || len(r.Answer) != 1 {
					lost.Add(1)
					continue
				}
				mu.Lock()
				seen[r.Answer[0].(*dns.A).A.String()]++
				mu.Unlock()
			}
		})
	}
	for i := range 60 {
		s.Set(load(i))
		if i%5 == 0 { // let some of both kinds be asked
			before := asked.Load()
			for deadline := time.Now().Add(patience); asked.Load() < before+20 && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	if lost.Load() != 0 || asked.Load() < 100 || len(seen) != 2 || seen["198.51.100.1"] == 0 || seen["198.51.100.2"] == 0 {
		t.Errorf("%d of %d queries lost, answers %v", lost.Load(), asked.Load(), seen)
	}
	t.Logf("%d queries over 60 reloads, %d lost, answers %v", asked.Load(), lost.Load(), seen)
}

// TestCookieRotation: while the fleet goes from one secret to the next a client with a cookie is never asked
// to begin anew, and a cookie of a secret that is gone is worth nothing.
func TestCookieRotation(t *testing.T) {
	st := state(t, fleet(t, 0))
	first, second := [16]byte{1, 1}, [16]byte{2, 2}
	st.Cookies = [][16]byte{first}
	s := serve(t, st, Config{Rate: -1})
	const client = "0102030405060708"
	exchange := func(cookie string) (known bool, fresh string) {
		t.Helper()
		r := ask(t, s, "udp", "big.example.com", dns.TypeTXT, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
		})
		if r.Rcode != dns.RcodeSuccess {
			t.Fatalf("rcode %d", r.Rcode)
		}
		for _, o := range r.IsEdns0().Option {
			if c, ok := o.(*dns.EDNS0_COOKIE); ok {
				fresh = c.Cookie
			}
		}
		return !r.Truncated, fresh // more than 512 bytes only to a source that is known
	}
	known, old := exchange(client)
	if known || len(old) != 2*(clientCookie+serverCookie) {
		t.Fatalf("a new client: known %v, cookie %q", known, old)
	}
	if known, _ := exchange(old); !known {
		t.Error("its own cookie is not taken")
	}
	for _, step := range []struct {
		secrets  [][16]byte
		oldGood  bool
		mintedBy [16]byte
	}{
		{[][16]byte{first, second}, true, first}, // nodes learn the second one before any makes cookies by it
		{[][16]byte{second, first}, true, second},
		{[][16]byte{second}, false, second},
	} {
		st.Cookies = step.secrets
		s.Set(st)
		known, fresh := exchange(old)
		if known != step.oldGood {
			t.Errorf("with secrets %v the old cookie is known: %v", step.secrets, known)
		}
		raw, err := hex.DecodeString(fresh)
		if err != nil || !validCookie(raw, [][16]byte{step.mintedBy}, netip.MustParseAddr("127.0.0.1"), time.Now()) {
			t.Errorf("with secrets %v the new cookie %q is not made by the first", step.secrets, fresh)
		}
		if known, _ := exchange(fresh); !known {
			t.Errorf("with secrets %v the fresh cookie is not taken", step.secrets)
		}
	}
}

// TestNoGrowth: random names and sources, as floods have them, do not make memory grow; neither where each
// name needs a signature. 30,000 and 1,000; NEARCAST_FULL=1: a million and 200,000.
func TestNoGrowth(t *testing.T) {
	names, signed := 30_000, 1_000
	if os.Getenv("NEARCAST_FULL") == "1" {
		names, signed = 1_000_000, 200_000
	}
	for _, c := range []struct {
		what      string
		algorithm model.ZoneKeyAlgorithm
		n         int
		most      uint64
	}{{"unsigned", 0, names, 4 << 20}, {"signed", model.ECDSAP256SHA256, signed, 48 << 20}} {
		s := &Server{cfg: Config{Rate: DefaultRate, Loops: 1}}
		s.Set(state(t, fleet(t, c.algorithm)))
		a := s.newAnswerer(new(counters))
		rng := rand.New(rand.NewPCG(1, 2))
		var out []byte
		ask := func(n int) {
			for range n {
				m := new(dns.Msg)
				m.SetQuestion(fmt.Sprintf("n%x.%s.", rng.Uint64(), []string{"example.com", "nearcast.internal", "example.org"}[rng.IntN(3)]), dns.TypeA)
				m.SetEdns0(1232, c.algorithm != 0)
				var from [4]byte
				binary.BigEndian.PutUint32(from[:], rng.Uint32())
				e := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{from[1], from[2], from[3], 0}}
				m.IsEdns0().Option = []dns.EDNS0{e}
				raw, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				out = a.answer(out[:0], raw, netip.AddrFrom4(from), overUDP)
			}
		}
		ask(c.n / 20)
		before := heap()
		ask(c.n)
		after := heap()
		if a.count.panics.Load() != 0 || a.count.rcodes[0].Load()+a.count.rcodes[3].Load() == 0 {
			t.Errorf("%s: panics %d, answers %d", c.what, a.count.panics.Load(), a.count.rcodes[3].Load())
		}
		if after > before+c.most {
			t.Errorf("%s: the heap grew from %d to %d KB over %d names", c.what, before>>10, after>>10, c.n)
		}
		t.Logf("%s: %d names, heap %d → %d KB", c.what, c.n, before>>10, after>>10)
		runtime.KeepAlive(s)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
