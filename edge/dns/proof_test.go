package dns

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestCookieVectors are RFC 9018 appendix A: other implementations must take what this one makes.
func TestCookieVectors(t *testing.T) {
	for _, c := range []struct{ secret, from, cookie string }{
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480"},
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "203.0.113.203", "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5"},
		{"dd3bdf9344b678b185a6f5cb60fca715", "2001:db8:220:1:59de:d0f4:8769:82b8", "22681ab97d52c298010000005cf7c57926556bd0934c72f8"},
	} {
		raw, err := hex.DecodeString(c.cookie)
		if err != nil {
			t.Fatal(err)
		}
		var secret [16]byte
		if _, err := hex.Decode(secret[:], []byte(c.secret)); err != nil {
			t.Fatal(err)
		}
		made := uint32(raw[12])<<24 | uint32(raw[13])<<16 | uint32(raw[14])<<8 | uint32(raw[15])
		got := appendCookie(nil, &secret, raw[:8], netip.MustParseAddr(c.from), made)
		if raw[9] == 0 && hex.EncodeToString(got) != c.cookie[16:] { // reserved bytes are another server's
			t.Errorf("%s: %x, want %s", c.from, got, c.cookie[16:])
		}
		at := time.Unix(int64(made), 0)
		other := [][16]byte{{9}, secret} // the second of two live secrets
		for _, v := range []struct {
			at   time.Time
			from string
			want bool
		}{
			{at, c.from, true}, {at.Add(59 * time.Minute), c.from, true}, {at.Add(61 * time.Minute), c.from, false},
			{at.Add(-4 * time.Minute), c.from, true}, {at.Add(-6 * time.Minute), c.from, false}, {at, "192.0.2.1", false},
		} {
			if validCookie(raw, other, netip.MustParseAddr(v.from), v.at) != v.want {
				t.Errorf("cookie of %s at %v from %s: want %v", c.from, v.at.Sub(at), v.from, v.want)
			}
		}
	}
}

// TestKdig lets Knot's client judge what the protocol's options do.
func TestKdig(t *testing.T) {
	kdig, err := exec.LookPath("kdig")
	if err != nil {
		t.Skip("kdig (knot-dnsutils) is not installed")
	}
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1})
	port := itoa(int(s.Addrs()[0].Port()))
	for _, c := range []struct{ args, want string }{
		{"+nsid example.com SOA", "\"fra-1\""},
		{"+cookie example.com SOA", "COOKIE: "},
		{"+badcookie +cookie big.example.com TXT", "status: NOERROR"},
		{"+subnet=10.1.2.0/24 a1.nearcast.internal A", "10.1.2.0/24/16"},
		{"+edns=1 example.com SOA", "BADVERS"},
		{"CH id.server TXT", "\"fra-1\""},
		{"CH version.bind TXT", "status: REFUSED"},
		{"+tcp +keepopen example.com SOA example.com MX", "mail.example.com."},
		{"+notcp +ignore big.example.com TXT", "Flags: qr aa tc"},
		{"big.example.com TXT", "6123456789"},
		{"AXFR example.com", "REFUSED"},
		{"example.org A", "EDE: 20"},
		{"a1.nearcast.internal HTTPS", "alpn=h3,h2"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		args := append([]string{"@127.0.0.1", "-p", port, "+edns", "+time=15"}, strings.Fields(c.args)...)
		out, _ := exec.CommandContext(ctx, kdig, args...).CombinedOutput() // its exit code follows the rcode
		cancel()
		if !strings.Contains(string(out), c.want) {
			t.Errorf("kdig %s: no %q in\n%s", c.args, c.want, out)
		}
	}
}

// TestRefused: nobody changes anything here, and what is not understood says so.
func TestRefused(t *testing.T) {
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1})
	for opcode, want := range map[int]int{dns.OpcodeNotify: dns.RcodeRefused, dns.OpcodeUpdate: dns.RcodeRefused,
		dns.OpcodeStatus: dns.RcodeNotImplemented} {
		r := ask(t, s, "udp", "example.com", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = opcode })
		if r.Rcode != want || r.Opcode != opcode || len(r.Answer) != 0 {
			t.Errorf("opcode %d: %v", opcode, r)
		}
	}
}

// TestSizes: what a source gets by UDP that has shown no cookie fits into 512 bytes, and a cookie lifts
// that to 1232.
func TestSizes(t *testing.T) {
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1})
	cookie := func(text string) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: text})
		}
	}
	r := ask(t, s, "udp", "big.example.com", dns.TypeTXT, cookie("0011223344556677"))
	if !r.Truncated || r.Len() > 512 || len(r.Answer) != 0 {
		t.Errorf("without a server cookie: %d bytes, %v", r.Len(), r)
	}
	var got string
	for _, o := range r.IsEdns0().Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok {
			got = c.Cookie
		}
	}
	if len(got) != 48 {
		t.Fatalf("cookie %q", got)
	}
	r = ask(t, s, "udp", "big.example.com", dns.TypeTXT, cookie(got))
	if r.Truncated || len(r.Answer) != 7 {
		t.Errorf("with a server cookie: %v", r)
	}
}

// TestPipelined sends many queries in one write and expects all answers, in order.
func TestPipelined(t *testing.T) {
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1})
	c, err := net.DialTimeout("tcp", s.Addrs()[0].String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 500
	var out []byte
	for i := range n {
		m := new(dns.Msg)
		m.SetQuestion("mail.example.com.", dns.TypeA)
		m.Id = uint16(i)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, byte(len(b)>>8), byte(len(b))), b...)
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	conn := &dns.Conn{Conn: c}
	for i := range n {
		c.SetReadDeadline(time.Now().Add(patience))
		r, err := conn.ReadMsg()
		if err != nil || r.Id != uint16(i) || len(r.Answer) != 1 {
			t.Fatalf("answer %d: %v, %v", i, r, err)
		}
	}
}

// TestRate: a source without a cookie that asks too much gets less than half back, and every answer that
// it gets beyond the limit is an invitation to TCP.
func TestRate(t *testing.T) {
	l := newLimiter(10)
	now := time.Unix(1, 0)
	count := map[verdict]int{}
	from := netip.MustParseAddr("192.0.2.1")
	for range 110 {
		count[l.judge(from, 7, now)]++
	}
	if count[pass] != 10 || count[slip] != 50 || count[silence] != 50 {
		t.Errorf("%v", count)
	}
	if l.judge(netip.MustParseAddr("198.51.100.1"), 7, now) != pass || l.judge(from, 8, now) != pass {
		t.Error("others suffer with it")
	}
	if l.judge(from, 7, now.Add(time.Second)) != pass {
		t.Error("no better after a second")
	}
}

// FuzzQuery: whatever comes, nothing panics, an answer is well-formed and no longer than it may be.
func FuzzQuery(f *testing.F) {
	st := state(f, fleet(f, 0))
	s := &Server{nsid: []byte("fra-1"), counts: []*counters{new(counters)}, cfg: Config{Loops: 1, Rate: -1}}
	s.Set(st)
	for _, c := range []struct {
		name  string
		qtype uint16
	}{{"example.com.", dns.TypeSOA}, {"a1.nearcast.internal.", dns.TypeHTTPS}, {"x.y.sub.example.com.", dns.TypeA}} {
		m := new(dns.Msg)
		m.SetQuestion(c.name, c.qtype)
		subnet("10.1.2.0/24")(m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	a := s.newAnswerer(s.counts[0])
	f.Fuzz(func(t *testing.T, b []byte) {
		out := a.answer(nil, b, netip.MustParseAddr("192.0.2.1"), overUDP)
		if n := s.counts[0].panics.Load(); n != 0 {
			t.Fatal("panicked")
		}
		if len(out) > udpSizeMax {
			t.Fatalf("%d bytes", len(out))
		}
		if len(out) > 0 {
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatalf("%x: %v", out, err)
			}
		}
	})
}

// BenchmarkAnswer is the CPU of one steered answer with a client subnet, without sockets.
func BenchmarkAnswer(b *testing.B) {
	s := &Server{nsid: []byte("fra-1"), counts: []*counters{new(counters)}, cfg: Config{Loops: 1, Rate: -1}}
	s.Set(state(b, fleet(b, 0)))
	a := s.newAnswerer(s.counts[0])
	m := new(dns.Msg)
	m.SetQuestion("a1.nearcast.internal.", dns.TypeA)
	subnet("10.1.2.0/24")(m)
	q, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		out = a.answer(out[:0], q, netip.MustParseAddr("192.0.2.1"), overUDP)
	}
}
