package geo

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// mmdb writes a MaxMind database of IPv4 networks (MaxMind DB file format 2.0): a binary tree of 24-bit
// records, the data, and the metadata after its marker.
type mmdb struct {
	nodes [][2]int // child: > 0 node, < 0 data offset -1-n, 0 nothing
	data  []byte
}

func newMMDB() *mmdb { return &mmdb{nodes: make([][2]int, 1)} }

func (m *mmdb) add(p netip.Prefix, value []byte) {
	at, b := 0, p.Addr().As4()
	offset := len(m.data)
	m.data = append(m.data, value...)
	for i := range p.Bits() {
		side := int(b[i/8]>>(7-i%8)) & 1
		if i == p.Bits()-1 {
			m.nodes[at][side] = -1 - offset
			return
		}
		if m.nodes[at][side] <= 0 {
			m.nodes[at][side] = len(m.nodes)
			m.nodes = append(m.nodes, [2]int{})
		}
		at = m.nodes[at][side]
	}
}

func text(s string) []byte { return append([]byte{2<<5 | byte(len(s))}, s...) }
func double(f float64) []byte {
	return binary.BigEndian.AppendUint64([]byte{3<<5 | 8}, math.Float64bits(f))
}
func number(kind byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind<<5 | 4}, n)
}
func dict(pairs ...[]byte) []byte {
	b := []byte{7<<5 | byte(len(pairs)/2)}
	for _, p := range pairs {
		b = append(b, p...)
	}
	return b
}

func (m *mmdb) bytes(kind string) (b []byte) {
	n := len(m.nodes)
	for _, node := range m.nodes {
		for _, c := range node {
			v := n
			if c > 0 {
				v = c
			} else if c < 0 {
				v = n + 16 - c - 1
			}
			b = append(b, byte(v>>16), byte(v>>8), byte(v))
		}
	}
	b = append(append(b, make([]byte, 16)...), m.data...)
	b = append(b, "\xab\xcd\xefMaxMind.com"...)
	u16 := func(v byte) []byte { return []byte{5<<5 | 1, v} }
	return append(b, dict(text("node_count"), number(6, uint32(n)), text("record_size"), u16(24),
		text("ip_version"), u16(4), text("database_type"), text(kind), text("languages"), []byte{0, 4},
		text("binary_format_major_version"), u16(2), text("binary_format_minor_version"), u16(0),
		text("build_epoch"), []byte{1, 2, 1}, text("description"), dict())...)
}

// TestDatabase reads both schemas, and finds the same nearest site as a slow search over the networks.
func TestDatabase(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	type place struct {
		net      netip.Prefix
		lat, lon float64
	}
	var places []place
	flat, nested := newMMDB(), newMMDB()
	for i := range 500 {
		p := place{netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 2), byte(i << 6), 0}), 18),
			rng.Float64()*140 - 60, rng.Float64()*360 - 180}
		places = append(places, p)
		flat.add(p.net, dict(text("country_code"), text("DE"), text("latitude"), double(p.lat), text("longitude"), double(p.lon)))
		nested.add(p.net, dict(text("country"), dict(text("iso_code"), text("DE")), text("location"),
			dict(text("latitude"), double(p.lat), text("longitude"), double(p.lon))))
	}
	country := newMMDB()
	country.add(netip.MustParsePrefix("30.0.0.0/8"), dict(text("country_code"), text("SG")))
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	second := write("country", country.bytes("test-Country"))
	sites := []model.Site{{Name: "fra", Latitude: 50.1, Longitude: 8.7}, {Name: "iad", Latitude: 39, Longitude: -77.5},
		{Name: "sin", Latitude: 1.35, Longitude: 103.8}, {Name: "gru", Latitude: -23.5, Longitude: -46.6}}
	for name, db := range map[string]*mmdb{"flat": flat, "nested": nested} {
		opened, err := Open([]string{write(name, db.bytes("test-City")), second})
		if err != nil {
			t.Fatal(err)
		}
		m, s, checked := NewMap(sites, model.Steering{}, opened, nil), new(Scratch), 0
		for _, p := range places {
			b := p.net.Addr().As4()
			b[3] = byte(rng.IntN(256))
			j := m.judge(netip.AddrFrom4(b), s)
			best, want := 0, 0
			for i := range sites {
				if s.scores[i] < s.scores[best] {
					best = i
				}
				if haversine(p.lat, p.lon, siteAt(sites, m, i)) < haversine(p.lat, p.lon, siteAt(sites, m, want)) {
					want = i
				}
			}
			if best != want || j.source != SourcePlace || j.scope != 18 {
				t.Fatalf("%s: %v: site %d, want %d; %+v", name, p.net, best, want, j)
			}
			checked++
		}
		if checked != 500 {
			t.Fatalf("%d networks", checked)
		}
		j := m.judge(netip.MustParseAddr("30.1.2.3"), s)
		if j.source != SourceCountry || j.where.Country != "SG" || j.scope != 8 {
			t.Errorf("%s: by country: %+v", name, j)
		}
		if j := m.judge(netip.MustParseAddr("200.1.2.3"), s); j.source != SourceDefault {
			t.Errorf("%s: nowhere: %+v", name, j)
		}
	}
	if _, err := Open([]string{write("damaged", flat.bytes("test-City")[:5000])}); err == nil {
		t.Error("a file cut short was opened")
	}
}

func siteAt(sites []model.Site, m *Map, i int) model.Site {
	for _, s := range sites {
		if s.Name == m.sites[i].name {
			return s
		}
	}
	return model.Site{}
}

// haversine is the textbook's formula, in radians.
func haversine(lat, lon float64, s model.Site) float64 {
	rad := math.Pi / 180
	dlat, dlon := (s.Latitude-lat)*rad/2, (s.Longitude-lon)*rad/2
	h := math.Sin(dlat)*math.Sin(dlat) + math.Cos(lat*rad)*math.Cos(s.Latitude*rad)*math.Sin(dlon)*math.Sin(dlon)
	return 2 * math.Asin(math.Sqrt(h))
}
