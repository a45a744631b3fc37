package manifest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// checkFleet demands what a controller does of sites, pools, sessions and zones: that what they name is
// there, that sessions are of sites with BGP, and that no two sessions of a site have one router.
func checkFleet(t testing.TB, s *State, step *Step) {
	t.Helper()
	bad := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("after %s %s %s, %s", step.Verb, step.Kind, step.Name, fmt.Sprintf(format, args...))
	}
	sites := map[string]*pb.Site{}
	for _, site := range s.Sites {
		sites[site.Name] = site
		for _, name := range site.GetBgp().GetPools() {
			if !slices.ContainsFunc(s.Pools, func(p *pb.Pool) bool { return p.Name == name }) {
				bad("site %s announces pool %s, which is not there", site.Name, name)
			}
		}
	}
	for _, pool := range s.Pools {
		for _, name := range pool.Sites {
			if sites[name] == nil {
				bad("pool %s is served by site %s, which is not there", pool.Name, name)
			}
		}
	}
	for i, b := range s.Peers {
		if sites[b.Site].GetBgp() == nil {
			bad("peer %s is of a site without BGP", b.Id)
		}
		for _, other := range s.Peers[:i] {
			if other.Site == b.Site && other.Address == b.Address {
				bad("peers %s and %s have one router", b.Id, other.Id)
			}
		}
	}
	for _, n := range s.Steering.GetNetworks() {
		if sites[n.Site] == nil {
			bad("network %s goes to site %s, which is not there", n.Prefix, n.Site)
		}
	}
}

// withAliases fills the ids of the accelerators that a zone names, and demands that they are there.
func withAliases(t testing.TB, s *State, z *pb.Zone, step *Step) *pb.Zone {
	t.Helper()
	for i, a := range z.Aliases {
		a.AcceleratorId = step.Aliases[i].ID
		if !slices.ContainsFunc(s.Accelerators, func(x *pb.Accelerator) bool { return x.Id == a.AcceleratorId }) {
			t.Fatalf("alias %s of %s names accelerator %q, which is not there", a.Name, z.Name, a.AcceleratorId)
		}
	}
	return z
}

// randomFleet adds sites with sessions, zones and steering that a controller takes.
func randomFleet(rng *rand.Rand, f *File) {
	f.Pools = []Pool{
		{Name: "any-a", Zone: "a", Prefixes: []string{"192.0.2.0/24"}},
		{Name: "any-b", Zone: "b", Prefixes: []string{"198.51.100.0/24"}},
		{Name: "edges", Kind: "node", Sites: []string{"s1", "s2"}[:1+rng.IntN(2)]},
	}
	for _, name := range []string{"s1", "s2"} {
		s := Site{Name: name, Region: "r1"}
		switch rng.IntN(4) {
		case 0: // nothing is said
		case 1:
			s.BGP, s.Peers = &SiteBGP{none: true}, []Peer{}
		default:
			s.BGP, s.Peers = &SiteBGP{LocalASN: 64500 + rng.Uint32N(3), DryRun: rng.IntN(2) == 0}, []Peer{}
			s.BGP.Pools = []string{"any-a", "any-b"}[:rng.IntN(3)]
			for i, at := range rng.Perm(12)[:rng.IntN(4)] {
				b := Peer{Name: fmt.Sprint("p", (i+at)%4), Address: fmt.Sprint("203.0.113.", 1+at), ASN: 64496, Prepends: rng.Uint32N(3)}
				if slices.ContainsFunc(s.Peers, func(o Peer) bool { return o.Name == b.Name }) {
					continue
				}
				b.Password = []string{"", "one", "two"}[rng.IntN(3)]
				if rng.IntN(2) == 0 {
					b.MED = proto.Uint32(rng.Uint32N(2))
				}
				s.Peers = append(s.Peers, b)
			}
		}
		f.Sites = append(f.Sites, s)
	}
	if rng.IntN(2) == 0 {
		f.Steering = &Steering{AddressesMax: rng.Uint32N(3), ExplorePercent: rng.Uint32N(3)}
		for _, at := range rng.Perm(4)[:rng.IntN(3)] {
			f.Steering.Networks = append(f.Steering.Networks, SteeringNetwork{fmt.Sprintf("10.%d.0.0/16", at), "s1"})
		}
	}
	for _, name := range []string{"a.example", "B.example."} {
		z := Zone{Name: name}
		if rng.IntN(3) > 0 {
			text := ""
			for _, at := range rng.Perm(4)[:rng.IntN(4)] {
				text += fmt.Sprintf("h%d IN A 192.0.2.%d\n", at, at)
			}
			z.Text, z.DNSSEC = &text, proto.Bool(rng.IntN(2) == 0)
			z.KeyAlgorithm = []string{"", "ed25519", "ecdsap256sha256"}[rng.IntN(3)]
		}
		if rng.IntN(3) > 0 {
			z.Aliases = []ZoneAlias{}
			for _, at := range rng.Perm(4)[:rng.IntN(4)] {
				z.Aliases = append(z.Aliases, ZoneAlias{fmt.Sprint("w", at), []string{"one", "two"}[rng.IntN(2)]})
			}
		}
		f.Zones = append(f.Zones, z)
	}
}

// TestFleetChanges is TestChanges for BGP, zones and steering.
func TestFleetChanges(t *testing.T) {
	const (
		inner = "  - {name: inner, address: \"2001:db8:9::1\", asn: 64500, ttl_security: true, local_preference: 200, bfd: true,\n" +
			"    bfd_interval: 50ms, bfd_multiplier: 5}\n"
		bgp = "  bgp: {local_asn: 64500, router_id: 192.0.2.250, pools: [any-a, any-b], drain_time: 0s, drain_prepends: 2,\n" +
			"    communities: [\"64500:1\", no-export], dry_run: true}\n"
	)
	peers := full[strings.Index(full, "  peers:\n"):strings.Index(full, "steering:")]
	two := "- {name: two.example, aliases: []}\n"
	for _, c := range []struct {
		name     string
		from, to string
		prune    bool
		want     string
	}{
		{"bgp's field", "drain_time: 0s, ", "", false, "update site fra | bgp.drain_time: 0s -> 5s"},
		{"bgp's pools", "pools: [any-a, any-b], drain", "pools: [any-b, any-a], drain", false, ""},
		{"bgp is not said", bgp, "", false, ""},
		{"bgp goes with its peers", bgp + peers, "  bgp: none\n  peers: []\n", true,
			"delete peer fra/transit\ndelete peer fra/inner\nupdate site fra | bgp: as 64500, pools any-a any-b, dry run -> "},
		{"peer's field", "hold_time: 9s", "hold_time: 12s", false,
			"update peer fra/transit | hold_time: 9s -> 12s | password: set -> as the file says"},
		{"med of 0 is one", " med: 0,", "", false,
			"update peer fra/transit | med: 0 ->  | password: set -> as the file says"},
		{"defaults of a peer", inner, "  - {name: inner, address: \"2001:db8:9::1\", asn: 64500}\n", false,
			"update peer fra/inner | ttl_security: true -> false | local_preference: 200 -> 0 | bfd: true -> false | " +
				"bfd_interval: 50ms -> 300ms | bfd_multiplier: 5 -> 3"},
		{"order of nodes means nothing", "[fra-1, fra-2]", "[fra-2, fra-1]", false, ""},
		{"password goes", " password: open sesame,", "", false, "update peer fra/transit | password: set -> "},
		{"password is kept", " password: open sesame,", " password_set: true,", false, ""},
		{"password comes", "asn: 64500, ttl_security", "asn: 64500, password: x, ttl_security", false,
			"update peer fra/inner | password:  -> set"},
		{"peer stays", inner, "", false, "left peer fra/inner"},
		{"peer goes", inner, "", true, "delete peer fra/inner"},
		{"peer comes", inner, inner + "  - {name: new, address: 203.0.113.2, asn: 64497}\n", false, "create peer fra/new"},
		{"peer's successor has its router", inner, strings.Replace(inner, "name: inner", "name: heir", 1), true,
			"delete peer fra/inner\ncreate peer fra/heir"},
		{"steering's field", "ttl: 20s, ", "", false, "update steering of names | ttl: 20s -> 30s"},
		{"networks", "{prefix: 10.0.0.0/8, site: fra}, ", "", false,
			"update steering of names | networks: 10.0.0.0/8=fra, 10.1.0.0/16=fra -> 10.1.0.0/16=fra"},
		{"weights", "percent: 50", "percent: 40", false, "update steering of names | weights: fra=50% -> fra=40%"},
		{"zone's text", "192.0.2.25\n    @ ", "192.0.2.26\n    ftp  IN A 192.0.2.27\n    @ ", false,
			"update zone example.com | text: mail IN A 192.0.2.25 ->  | text:  -> mail IN A 192.0.2.26 | text:  -> ftp IN A 192.0.2.27"},
		{"order of lines", "    $TTL 300\n    mail IN A 192.0.2.25\n", "    mail IN A 192.0.2.25\n    $TTL 300\n", false,
			"update zone example.com | text: the same lines -> in another order, or other empty ones"},
		{"alias", "{name: play, accelerator: game}", "{name: play, accelerator: web}, {name: \"*\", accelerator: game}", false,
			"update zone example.com | aliases[play]: game -> web | aliases[*]:  -> game"},
		{"alias goes", ", {name: play, accelerator: game}", "", false, "update zone example.com | aliases[play]: game -> "},
		{"order of aliases means nothing", "{name: \"@\", accelerator: web}, {name: www, accelerator: web}",
			"{name: www, accelerator: web}, {name: \"@\", accelerator: web}", false, ""},
		{"zone's name in other letters", "- {name: two.example,", "- {name: TWO.Example.,", false, ""},
		{"zone is no longer signed", "dnssec: true", "dnssec: false", false, "update zone example.com | dnssec: true -> false"},
		{"what is left out stays", "  dnssec: true\n  key_algorithm: ed25519\n", "", false, ""},
		{"next key", "key_algorithm: ed25519", "key_algorithm: ecdsap256sha256", false,
			"update zone example.com | key_algorithm: ed25519 -> ecdsap256sha256"},
		{"zone is not named", two, "", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) { checkChange(t, c.from, c.to, c.prune, c.want) })
	}
}

// TestPasswords: a password is in no plan's text and in no export, and whether one that the file gives is
// the one that is there is left open.
func TestPasswords(t *testing.T) {
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
	if s.Peers[0].Password != "open sesame" {
		t.Fatalf("it was created with %q", s.Peers[0].Password)
	}
	p := mustCompare(t, mustParse(t, full), s, Options{})
	if len(p.Steps) != 1 || !p.Steps[0].Maybe || !slices.Equal(p.Steps[0].Mask, []string{"password"}) {
		t.Errorf("got %+v", p.Steps)
	}
	text, err := FromState(s).Marshal() // even if a controller did tell it
	if err != nil || strings.Contains(string(text), "sesame") || strings.Contains(fmt.Sprint(p.Steps[0].Changes), "sesame") {
		t.Errorf("it tells the password: %v\n%s", err, text)
	}
	for _, step := range mustCompare(t, mustParse(t, full), &State{}, Options{}).Steps {
		if strings.Contains(fmt.Sprint(step.Changes), "sesame") {
			t.Errorf("it tells the password: %v", step.Changes)
		}
	}

	f := mustParse(t, strings.Replace(full, "password: open sesame", "password_file: transit.secret", 1))
	if err := f.ReadSecrets(func(path string) ([]byte, error) { return []byte("of " + path + "\r\n"), nil }); err != nil {
		t.Fatal(err)
	}
	carryOut(t, s, mustCompare(t, f, s, Options{}))
	if s.Peers[0].Password != "of transit.secret" {
		t.Errorf("from a file: %q", s.Peers[0].Password)
	}
	for says, read := range map[string]func(string) ([]byte, error){
		"is empty":       func(string) ([]byte, error) { return []byte("\n"), nil },
		"does not exist": func(string) ([]byte, error) { return nil, os.ErrNotExist },
	} {
		if err := f.ReadSecrets(read); err == nil || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "sites[fra].peers[transit].password_file: ") {
			t.Errorf("%s: %v", says, err)
		}
	}
}

func TestFleetRefusals(t *testing.T) {
	s := &State{}
	carryOut(t, s, mustCompare(t, mustParse(t, full), s, Options{}))
	s.Sites = append(s.Sites, &pb.Site{Name: "quiet", Region: "eu-fra-1"})
	s.Accelerators = append(s.Accelerators, &pb.Accelerator{Id: "x1", Name: "twin"}, &pb.Accelerator{Id: "x2", Name: "twin"})
	site := func(name, more string) string { return "sites: [{name: " + name + ", region: eu-fra-1, " + more + "}]" }
	for _, c := range []struct{ file, path, says string }{
		{site("fra", "bgp: {}"), "sites[fra].bgp.local_asn", "is missing"},
		{site("fra", "bgp: none"), "sites[fra].bgp", "--prune"},
		{site("fra", "bgp: none, peers: []"), "sites[fra].bgp", "--prune"},
		{site("quiet", "peers: [{name: p, address: 203.0.113.1, asn: 1}]"), "sites[quiet].bgp", "peers need it"},
		{site("fra", "peers: [{name: p, asn: 1}]"), "sites[fra].peers[p].address", "is missing"},
		{site("fra", "peers: [{name: p, address: 203.0.113.1, asn: 1}, {name: p}]"), "sites[fra].peers[p]", "twice"},
		{site("fra", "peers: [{name: p, address: 203.0.113.7, asn: 1, bfd: true, multihop_ttl: 2}]"), "sites[fra].peers[p].bfd", "RFC 5881"},
		{site("fra", "peers: [{name: p, address: 203.0.113.7, asn: 1, password_set: true}]"),
			"sites[fra].peers[p].password_set", "there is none"},
		{site("fra", "peers: [{name: inner, address: 203.0.113.7, asn: 1, password_set: true}]"),
			"sites[fra].peers[inner].password_set", "there is none"},
		{site("fra", "peers: [{name: p, address: 203.0.113.7, asn: 1, password: a, password_file: b}]"),
			"sites[fra].peers[p].password", "more than once"},
		{site("fra", `peers: [{name: transit, address: "2001:db8:9::1", asn: 1}, {name: inner, address: 203.0.113.1, asn: 64500}]`),
			"sites[fra].peers[inner].address", "in two steps"},
		{"steering: {explore_percent: 80}", "steering.explore_percent", "1 to 50"},
		{"steering: {networks: [{prefix: 10.0.0.1/8, site: fra}]}", "steering.networks[0].prefix", "10.0.0.0/8"},
		{"zones: [{}]", "zones[0].name", "is missing"},
		{"zones: [{name: a.example}, {name: A.example.}]", "zones[a.example]", "twice"},
		{"zones: [{name: a.example, aliases: [{name: www, accelerator: nobody}]}]",
			"zones[a.example].aliases[0].accelerator", `no accelerator "nobody"`},
		{"zones: [{name: a.example, aliases: [{name: www, accelerator: twin}]}]",
			"zones[a.example].aliases[0].accelerator", "give the id"},
		{"zones: [{name: a.example, aliases: [{name: www}]}]", "zones[a.example].aliases[0].accelerator", "no accelerator"},
		{"zones: [{name: a.example, key_algorithm: rsa}]", "zones[a.example].key_algorithm", "ed25519"},
	} {
		p, err := Compare(mustParse(t, c.file), seen(s), Options{})
		if err == nil {
			t.Errorf("%s: was planned:\n%s", c.file, told(p))
		} else if !strings.Contains(err.Error(), c.path+": ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: want %s … %s, got %v", c.file, c.path, c.says, err)
		}
	}
	for _, c := range []struct{ text, says string }{
		{"sites:\n- name: a\n  bgp: {asn: 1}\n", "line 3: field asn is unknown here"},
		{"sites:\n- name: a\n  peers:\n  - {pasword: x}\n", "line 4: field pasword is unknown here"},
		{"sites:\n- name: a\n  bgp: off course\n", "none"},
		{"zones:\n- name: a\n  keys: []\n", "line 3: field keys is unknown here"},
		{"steering:\n  tll: 1s\n", "line 2: field tll is unknown here"},
	} {
		if _, err := Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want %q", c.text, err, c.says)
		}
	}
	// An alias may name an accelerator by its id, also one that is gone.
	s.Zones = append(s.Zones, &pb.Zone{Name: "old.example", Aliases: []*pb.ZoneAlias{{Name: "@", AcceleratorId: "gone"}}})
	text := "zones: [{name: old.example, aliases: [{name: '@', accelerator: gone}, {name: www, accelerator: x2}]}]"
	p := mustCompare(t, mustParse(t, text), s, Options{})
	if want := "update zone old.example | aliases[www]:  -> x2"; told(p) != want || p.Steps[0].Aliases[1].ID != "x2" {
		t.Errorf("got\n%s", told(p))
	}
}
