package dns

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/dnssec"
	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/edge/zone"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/zonefile"
	"github.com/nearcast/nearcast/testbed/leak"
)

const text = `
$TTL 300
@       NS   ns1
        NS   ns2.example.net.
        MX   10 mail
        TXT  "hello"
        CAA  0 issue "ca.example"
ns1     A    192.0.2.53
        AAAA 2001:db8::53
mail    A    192.0.2.25
www     CNAME web
web     A    192.0.2.80
out     CNAME www.example.net.
shop2   CNAME shop
*.wild  TXT  "any"
a.b.c   A    192.0.2.1
sub     NS   ns.sub
ns.sub  A    192.0.2.99
secure  NS   ns.sub
secure  DS   12345 13 2 0000000000000000000000000000000000000000000000000000000000000000
big     TXT  "0123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "1123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "2123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "3123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "4123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "5123456789012345678901234567890123456789012345678901234567890123456789"
big     TXT  "6123456789012345678901234567890123456789012345678901234567890123456789"
`

// fleet is a snapshot with two sites and an accelerator on their node pool, one under anycast, and a
// hosted zone.
func fleet(t testing.TB, algorithm model.ZoneKeyAlgorithm) *model.Snapshot {
	t.Helper()
	addr := netip.MustParseAddr
	s := &model.Snapshot{
		Revision: 7, Cluster: "test", DNSSuffix: "nearcast.internal",
		Regions: []model.Region{{Name: "r"}},
		Sites: []model.Site{
			{Name: "fra", Region: "r", Latitude: 50.1, Longitude: 8.7},
			{Name: "sin", Region: "r", Latitude: 1.35, Longitude: 103.8},
		},
		Nodes: []model.Node{
			{ID: "n-fra", Name: "fra-1", Site: "fra", Edge: true, ServiceAddresses: []netip.Addr{addr("198.51.100.1"), addr("2001:db8::1")}},
			{ID: "n-sin", Name: "sin-1", Site: "sin", Edge: true, ServiceAddresses: []netip.Addr{addr("198.51.100.2")}},
		},
		Pools: []model.Pool{{Name: "any", Kind: model.PoolAnycast, Zone: "z", Prefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}},
			{Name: "edges", Kind: model.PoolNode}},
		Accelerators: []model.Accelerator{
			{ID: "a1", Name: "near", Enabled: true, Pools: []model.PoolName{"edges"}, DNSName: "a1.nearcast.internal", IPAddressType: model.DualStack},
			{ID: "a2", Name: "any", Enabled: true, Pools: []model.PoolName{"any"}, DNSName: "a2.nearcast.internal", Addresses: []netip.Addr{addr("203.0.113.7")}},
		},
		Listeners: []model.Listener{{ID: "l1", Accelerator: "a1", Protocol: model.TCPUDP, PortRanges: []model.PortRange{{From: 443, To: 443}}}},
		Steering: model.Steering{TTL: 20 * time.Second, AddressesMax: 4, Networks: []model.SteeringNetwork{
			{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Site: "sin"},
			{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Site: "fra"},
		}},
	}
	z := model.Zone{Name: "example.com", Text: text, Revision: 9, KeyAlgorithm: model.ECDSAP256SHA256,
		Aliases: []model.ZoneAlias{{Name: "shop", Accelerator: "a1"}, {Name: "@", Accelerator: "a2"}}}
	if algorithm != 0 {
		k, err := zonefile.NewKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		k.State = model.KeyActive
		z.DNSSEC, z.KeyAlgorithm, z.Keys = true, algorithm, []model.ZoneKey{k}
	}
	s.Zones = []model.Zone{z}
	return s
}

func state(t testing.TB, s *model.Snapshot, down ...model.NodeID) State {
	t.Helper()
	zones, err := zone.Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	st := State{Zones: zones, Signers: map[*zone.Zone]*dnssec.Signer{}, Cookies: [][16]byte{{1}, {2}}}
	stats := new(dnssec.Stats)
	zones.All(func(z *zone.Zone) {
		signer, err := dnssec.New(z, nil, stats)
		if err != nil {
			t.Fatal(err)
		}
		if signer != nil {
			st.Signers[z] = signer
		}
	})
	st.Steer = geo.Compile(geo.NewMap(s.Sites, s.Steering, nil, nil), s, func(n *model.Node) string {
		for _, id := range down {
			if n.ID == id {
				return "is not alive"
			}
		}
		return ""
	})
	return st
}

// serve runs a server on loopback for a test.
func serve(t testing.TB, st State, cfg Config) *Server {
	t.Helper()
	cfg.Listen = []netip.AddrPort{loopback(t)}
	cfg.NSID = "fra-1"
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Set(st)
	leak.Run(t, s.Run)
	return s
}

func ask(t *testing.T, s *Server, network, name string, qtype uint16, edit func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	if edit != nil {
		edit(m)
	}
	c := dns.Client{Net: network, Timeout: patience, UDPSize: 4096}
	r, _, err := c.Exchange(m, s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[qtype], err)
	}
	return r
}

func subnet(prefix string) func(*dns.Msg) {
	p := netip.MustParsePrefix(prefix)
	return func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		e := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(p.Bits()), Address: p.Addr().AsSlice()}
		if p.Addr().Is6() {
			e.Family = 2
		}
		m.IsEdns0().Option = append(m.IsEdns0().Option, e)
	}
}

// short prints what matters of an answer.
func short(r *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[r.Rcode])
	if r.Authoritative {
		b.WriteString(" aa")
	}
	if r.Truncated {
		b.WriteString(" tc")
	}
	for i, list := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range list {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			f := strings.Fields(rr.String())
			b.WriteString("; " + []string{"", "auth ", "more "}[i] + f[0] + " " + strings.Join(f[3:], " "))
		}
	}
	return b.String()
}

func TestAnswers(t *testing.T) {
	s := serve(t, state(t, fleet(t, 0)), Config{Rate: -1})
	soa := "; auth example.com. SOA ns1.example.com. hostmaster.example.com. 9 7200 900 1209600 30"
	for _, c := range []struct{ name, qtype, want string }{
		{"example.com", "MX", "NOERROR aa; example.com. MX 10 mail.example.com."},
		{"EXAMPLE.com", "TXT", `NOERROR aa; EXAMPLE.com. TXT "hello"`},
		{"example.com", "A", "NOERROR aa; example.com. A 203.0.113.7"},
		{"mail.example.com", "AAAA", "NOERROR aa" + soa},
		{"www.example.com", "A", "NOERROR aa; www.example.com. CNAME web.example.com.; web.example.com. A 192.0.2.80"},
		{"out.example.com", "A", "NOERROR aa; out.example.com. CNAME www.example.net."},
		{"shop2.example.com", "A", "NOERROR aa; shop2.example.com. CNAME shop.example.com."},
		{"x.wild.example.com", "TXT", `NOERROR aa; x.wild.example.com. TXT "any"`},
		{"x.y.wild.example.com", "TXT", `NOERROR aa; x.y.wild.example.com. TXT "any"`},
		{"wild.example.com", "TXT", "NOERROR aa" + soa},
		{"b.c.example.com", "A", "NOERROR aa" + soa},
		{"nope.example.com", "A", "NXDOMAIN aa" + soa},
		{"x.web.example.com", "A", "NXDOMAIN aa" + soa},
		{"sub.example.com", "A", "NOERROR; auth sub.example.com. NS ns.sub.example.com.; more ns.sub.example.com. A 192.0.2.99"},
		{"x.y.sub.example.com", "A", "NOERROR; auth sub.example.com. NS ns.sub.example.com.; more ns.sub.example.com. A 192.0.2.99"},
		{"sub.example.com", "DS", "NOERROR aa" + soa},
		{"mail.example.com", "ANY", `NOERROR aa; mail.example.com. HINFO "RFC8482" ""`},
		{"example.com", "AXFR", "REFUSED"},
		{"example.org", "A", "REFUSED"},
		{"a2.nearcast.internal", "A", "NOERROR aa; a2.nearcast.internal. A 203.0.113.7"},
		{"a1.nearcast.internal", "HTTPS", `NOERROR aa; a1.nearcast.internal. HTTPS 1 . alpn="h3,h2" ipv4hint="198.51.100.1" ipv6hint="2001:db8::1"`},
		{"nearcast.internal", "NS", "NOERROR aa; nearcast.internal. NS ns1.nearcast.internal.; nearcast.internal. NS ns2.nearcast.internal."},
		{"ns2.nearcast.internal", "A", "NOERROR aa; ns2.nearcast.internal. A 198.51.100.2"},
	} {
		if got := short(ask(t, s, "tcp", c.name, dns.StringToType[c.qtype], nil)); got != c.want {
			t.Errorf("%s %s\n got %s\nwant %s", c.name, c.qtype, got, c.want)
		}
	}
}

func TestSteered(t *testing.T) {
	snapshot := fleet(t, 0)
	s := serve(t, state(t, snapshot), Config{Rate: -1})
	for _, c := range []struct {
		net, want string
		scope     uint8
	}{
		{"10.1.2.0/24", "198.51.100.2", 16}, // the rule for 10.1/16
		{"10.2.0.0/16", "198.51.100.1", 15}, // 10.0/8, as far as 10.1/16 does not reach
		{"10.64.0.0/16", "198.51.100.1", 10},
		{"192.0.2.0/24", "198.51.100.1", 1}, // nothing is known: the first site
	} {
		r := ask(t, s, "udp", "a1.nearcast.internal", dns.TypeA, subnet(c.net))
		if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != c.want {
			t.Errorf("%s: %v", c.net, r.Answer)
		}
		e := r.IsEdns0().Option[0].(*dns.EDNS0_SUBNET)
		if e.SourceScope != c.scope {
			t.Errorf("%s: scope %d, want %d", c.net, e.SourceScope, c.scope)
		}
		if r.Answer[0].Header().Ttl != 20 {
			t.Errorf("%s: TTL %d", c.net, r.Answer[0].Header().Ttl)
		}
	}
	// The nearest node is gone: the next one, with a short TTL. All are gone: all, never none.
	s.Set(state(t, snapshot, "n-sin"))
	r := ask(t, s, "udp", "a1.nearcast.internal", dns.TypeA, subnet("10.1.2.0/24"))
	if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "198.51.100.1" || r.Answer[0].Header().Ttl != 10 {
		t.Errorf("after a loss: %v", r.Answer)
	}
	s.Set(state(t, snapshot, "n-sin", "n-fra"))
	r = ask(t, s, "udp", "a1.nearcast.internal", dns.TypeA, subnet("10.1.2.0/24"))
	if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "198.51.100.2" {
		t.Errorf("failing open: %v", r.Answer)
	}
}

// TestValidators has delv, BIND's validator, judge every kind of answer under either algorithm.
func TestValidators(t *testing.T) {
	delv, err := exec.LookPath("delv")
	if err != nil {
		t.Skip("delv (bind9-dnsutils) is not installed")
	}
	for _, algorithm := range []model.ZoneKeyAlgorithm{model.ECDSAP256SHA256, model.Ed25519} {
		snapshot := fleet(t, algorithm)
		s := serve(t, state(t, snapshot), Config{Rate: -1})
		z := snapshot.Zones[0]
		anchor := t.TempDir() + "/anchor"
		key := zonefile.DNSKEY(z.Name, z.Keys[0])
		writeFile(t, anchor, `trust-anchors { "example.com" static-key 257 3 `+itoa(int(key.Algorithm))+` "`+key.PublicKey+`"; };`)
		port := itoa(int(s.Addrs()[0].Port()))
		seen := 0
		for _, c := range []struct{ name, qtype, want string }{
			{"example.com", "SOA", "fully validated"}, {"example.com", "DNSKEY", "fully validated"},
			{"example.com", "CDS", "fully validated"}, {"example.com", "MX", "fully validated"},
			{"www.example.com", "A", "fully validated"}, {"shop.example.com", "A", "fully validated"},
			{"shop.example.com", "HTTPS", "fully validated"}, {"x.y.wild.example.com", "TXT", "fully validated"},
			{"example.com", "A", "fully validated"}, {"big.example.com", "TXT", "fully validated"},
			{"secure.example.com", "DS", "fully validated"},
			{"mail.example.com", "AAAA", "negative response, fully validated"},
			{"shop.example.com", "TXT", "negative response, fully validated"},
			{"b.c.example.com", "A", "negative response, fully validated"},
			{"nope.example.com", "A", "negative response, fully validated"},
			{"a.b.nope.example.com", "TXT", "negative response, fully validated"},
			{"sub.example.com", "DS", "negative response, fully validated"},
		} {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			out, err := exec.CommandContext(ctx, delv, "@127.0.0.1", "-p", port, "-a", anchor, "+root=example.com",
				c.name, c.qtype).CombinedOutput()
			cancel()
			seen++
			if err != nil || !strings.Contains(string(out), "; "+c.want) {
				t.Errorf("%v %s %s: %v\n%s", algorithm, c.name, c.qtype, err, out)
			}
		}
		if seen != 17 {
			t.Errorf("%d questions", seen)
		}
	}
}
