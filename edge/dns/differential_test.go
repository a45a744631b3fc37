package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

// located is a network in a database, with what is true of it.
type located struct {
	net      netip.Prefix
	lat, lon float64
}

// scattered returns n networks with random places, three quarters of them IPv4, and the database of them.
func scattered(n int) ([]located, []byte) {
	rng := rand.New(rand.NewPCG(11, 12))
	w := mmdb.New(true)
	var all []located
	for i := range n {
		l := located{lat: rng.Float64()*130 - 55, lon: rng.Float64()*360 - 180}
		if i%4 == 3 { // 2600::/16 and on
			l.net = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x26, byte(i >> 14), byte(i >> 6), byte(i << 2)}), 36)
		} else {
			l.net = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>12), byte(i >> 4), byte(i << 4), 0}), 20)
		}
		w.Add(l.net, mmdb.Place("DE", l.lat, l.lon))
		all = append(all, l)
	}
	return all, w.Bytes("GeoLite2-City")
}

var differentialSites = []model.Site{
	{Name: "fra", Latitude: 50.11, Longitude: 8.68}, {Name: "iad", Latitude: 38.95, Longitude: -77.45},
	{Name: "sin", Latitude: 1.35, Longitude: 103.99}, {Name: "gru", Latitude: -23.43, Longitude: -46.47},
	{Name: "syd", Latitude: -33.95, Longitude: 151.18}, {Name: "sjc", Latitude: 37.36, Longitude: -121.93},
	{Name: "jnb", Latitude: -26.13, Longitude: 28.24}, {Name: "bom", Latitude: 19.09, Longitude: 72.87},
}

func siteAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

// proximity is a server that steers by a database to differentialSites.
func proximity(t testing.TB, database string, hosted ...model.Zone) *Server {
	t.Helper()
	db, err := geo.Open([]string{database})
	if err != nil {
		t.Fatal(err)
	}
	s := &model.Snapshot{Revision: 1, DNSSuffix: "nearcast.internal", Sites: differentialSites, Zones: hosted,
		Pools: []model.Pool{{Name: "edges", Kind: model.PoolNode}},
		Accelerators: []model.Accelerator{{ID: "a1", Name: "near", Enabled: true, Pools: []model.PoolName{"edges"},
			DNSName: "geo.nearcast.internal", IPAddressType: model.IPv4}}}
	for i, site := range differentialSites {
		s.Nodes = append(s.Nodes, model.Node{ID: model.NodeID(site.Name), Name: string(site.Name), Site: site.Name, Edge: true,
			ServiceAddresses: []netip.Addr{siteAddress(i)}})
	}
	st := state(t, s)
	st.Steer = geo.Compile(geo.NewMap(s.Sites, s.Steering, db, nil), s, func(*model.Node) string { return "" })
	return serve(t, st, Config{Rate: -1})
}

// gdnsd starts gdnsd with the same database and sites, and returns where it answers for the name.
func gdnsd(t testing.TB, database string) netip.AddrPort {
	t.Helper()
	path, err := exec.LookPath("gdnsd")
	if err != nil {
		t.Skip("gdnsd is not installed")
	}
	dir, at := t.TempDir(), loopback(t)
	var names, coords, addrs []string
	for i, s := range differentialSites {
		names = append(names, string(s.Name))
		coords = append(coords, fmt.Sprintf("%s => [%g, %g]", s.Name, s.Latitude, s.Longitude))
		addrs = append(addrs, fmt.Sprintf("%s => %v", s.Name, siteAddress(i)))
	}
	if err := os.Mkdir(filepath.Join(dir, "zones"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "zones", "nearcast.internal"),
		"@ SOA ns1 hostmaster 1 7200 1800 259200 900\n@ NS ns1\nns1 A 192.0.2.53\ngeo 30 DYNA geoip!near\n")
	writeFile(t, filepath.Join(dir, "config"), fmt.Sprintf(`options => { listen => 127.0.0.1:%d, run_dir => %q, state_dir => %q,
  udp_threads => 1, tcp_threads => 1 }
plugins => { geoip => { maps => { m => { geoip2_db => %q, datacenters => [%s], auto_dc_coords => { %s } } },
  resources => { near => { map => m, dcmap => { %s } } } } }
`, at.Port(), dir+"/run", dir+"/state", database, strings.Join(names, ", "), strings.Join(coords, ", "), strings.Join(addrs, ", ")))
	startServer(t, path, "-c", dir, "start")
	answers(t, at.String(), "geo.nearcast.internal.", dns.TypeA)
	return at
}

// steeredTo asks a server over one socket for a client network.
func steeredTo(t testing.TB, c *dns.Conn, network netip.Prefix) (netip.Addr, int) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("geo.nearcast.internal.", dns.TypeA)
	subnet(network.String())(m)
	for try := range 5 {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		r, err := c.ReadMsg()
		if err != nil || r.Id != m.Id {
			t.Logf("try %d: %v", try, err)
			continue
		}
		if len(r.Answer) == 0 {
			t.Fatalf("%v: no answer: %v", network, r)
		}
		scope := -1
		for _, o := range r.IsEdns0().Option {
			if e, ok := o.(*dns.EDNS0_SUBNET); ok {
				scope = int(e.SourceScope)
			}
		}
		addr, _ := netip.AddrFromSlice(r.Answer[0].(*dns.A).A.To4())
		return addr, scope
	}
	t.Fatalf("%v: no answer in five tries", network)
	return netip.Addr{}, 0
}

func dialDNS(t testing.TB, at netip.AddrPort) *dns.Conn {
	t.Helper()
	c, err := dns.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	c.UDPSize = 4096
	t.Cleanup(func() { c.Close() })
	return c
}

// TestLikeGdnsd compares with gdnsd, an independent server, over the same database and sites: at least 99.5 %
// of the networks must be brought to the same site. 2,000 networks; NEARCAST_FULL=1: 10,000.
func TestLikeGdnsd(t *testing.T) {
	n := 2_000
	if os.Getenv("NEARCAST_FULL") == "1" {
		n = 10_000
	}
	networks, database := scattered(n)
	path := filepath.Join(t.TempDir(), "city.mmdb")
	writeFile(t, path, string(database))
	theirs := dialDNS(t, gdnsd(t, path))
	ours := dialDNS(t, proximity(t, path).Addrs()[0])
	same, compared, rng := 0, 0, rand.New(rand.NewPCG(13, 14))
	sites := map[netip.Addr]int{}
	for _, l := range networks {
		bits := 24
		if l.net.Addr().Is6() {
			bits = 56
		}
		raw := l.net.Addr().AsSlice()
		raw[l.net.Bits()/8] |= byte(rng.IntN(16)) // somewhere within
		addr, _ := netip.AddrFromSlice(raw)
		ask := netip.PrefixFrom(addr, bits).Masked()
		a, scope := steeredTo(t, ours, ask)
		b, _ := steeredTo(t, theirs, ask)
		if compared++; a == b {
			same++
		} else {
			t.Logf("%v at %.2f,%.2f: %v, gdnsd %v", ask, l.lat, l.lon, a, b)
		}
		if scope < l.net.Bits() {
			t.Errorf("%v: scope %d is wider than the database's %v", ask, scope, l.net)
		}
		sites[a]++
	}
	t.Logf("%d of %d networks go to the same site as with gdnsd; by site: %v", same, compared, sites)
	if compared != n || len(sites) != len(differentialSites) || same*1000 < compared*995 {
		t.Errorf("%d of %d alike, %d sites", same, compared, len(sites))
	}
}
