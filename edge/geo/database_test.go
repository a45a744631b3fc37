package geo

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

// TestDatabase reads both schemas, and finds the same nearest site as a slow search over the networks.
func TestDatabase(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	type place struct {
		net      netip.Prefix
		lat, lon float64
	}
	var places []place
	flat, nested := mmdb.New(false), mmdb.New(false)
	for i := range 500 {
		p := place{netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 2), byte(i << 6), 0}), 18),
			rng.Float64()*140 - 60, rng.Float64()*360 - 180}
		places = append(places, p)
		flat.Add(p.net, mmdb.FlatPlace("DE", p.lat, p.lon))
		nested.Add(p.net, mmdb.Place("DE", p.lat, p.lon))
	}
	country := mmdb.New(false)
	country.Add(netip.MustParsePrefix("30.0.0.0/8"), mmdb.Dict(mmdb.Text("country_code"), mmdb.Text("SG")))
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	second := write("country", country.Bytes("test-Country"))
	sites := []model.Site{{Name: "fra", Latitude: 50.1, Longitude: 8.7}, {Name: "iad", Latitude: 39, Longitude: -77.5},
		{Name: "sin", Latitude: 1.35, Longitude: 103.8}, {Name: "gru", Latitude: -23.5, Longitude: -46.6}}
	for name, db := range map[string]*mmdb.Writer{"flat": flat, "nested": nested} {
		opened, err := Open([]string{write(name, db.Bytes("test-City")), second})
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
	if _, err := Open([]string{write("damaged", flat.Bytes("test-City")[:5000])}); err == nil {
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
