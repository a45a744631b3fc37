package countries

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/testbed/mmdb"
)

func flat(code string) []byte   { return mmdb.Dict(mmdb.Text("country_code"), mmdb.Text(code)) }
func plain(code string) []byte  { return mmdb.Dict(mmdb.Text("country"), mmdb.Text(code)) }
func nested(code string) []byte { return mmdb.Place(code, 1, 2) }

// file writes a database of networks.
func file(t testing.TB, v6 bool, value func(string) []byte, networks map[string]string) string {
	t.Helper()
	w := mmdb.New(v6)
	for network, code := range networks {
		w.Add(netip.MustParsePrefix(network), value(code))
	}
	return save(t, w.Bytes("test-Country"))
}

func save(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "country.mmdb")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpen(t *testing.T) {
	networks := map[string]string{"10.0.0.0/9": "de", "10.128.0.0/9": "DE", "11.0.0.0/8": "AT", "12.0.0.0/8": "EU",
		"2001:db8::/32": "DE"}
	for name, value := range map[string]func(string) []byte{"flat": flat, "nested": nested, "plain": plain} {
		d, err := Open([]string{file(t, true, value, networks)})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		de, err := model.UnpackNetworks(d.List("DE"))
		if err != nil || fmt.Sprint(de) != "[10.0.0.0/8 2001:db8::/32]" || len(d.Networks) != 2 || d.Networks["DE"] != 2 ||
			d.Type != "test-Country" || d.Built.IsZero() {
			t.Errorf("%s: %v, %v, %+v", name, de, err, d.CountryDatabase)
		}
	}
	d, err := Open([]string{file(t, false, flat, map[string]string{"10.0.0.0/8": "DE"}), file(t, true, flat, networks)})
	if err != nil || d.Networks["DE"] != 2 || d.Networks["AT"] != 0 { // IPv4 is the first file's
		t.Errorf("two files: %v, %+v", err, d)
	}
}

// TestBadFiles: what is wrong with a file is said, and nothing of it is taken.
func TestBadFiles(t *testing.T) {
	good := mmdb.New(true)
	good.Add(netip.MustParsePrefix("10.0.0.0/8"), flat("DE"))
	b := good.Bytes("test")
	future := append([]byte(nil), b...)
	at := strings.Index(string(b), "build_epoch") + len("build_epoch") + 2
	binary.BigEndian.PutUint64(future[at:], uint64(time.Now().Add(48*time.Hour).Unix()))
	broken := mmdb.New(true)
	broken.Add(netip.MustParsePrefix("10.0.0.0/8"), []byte{0xff, 0xff, 0xff})
	for _, c := range []struct{ path, want string }{
		{filepath.Join(t.TempDir(), "nothing"), "no such file"},
		{save(t, b[:len(b)/2]), "country.mmdb"},
		{save(t, []byte("hello")), "country.mmdb"},
		{save(t, nil), "country.mmdb"},
		{save(t, future), "to come"},
		{save(t, broken.Bytes("test")), "damaged"},
		{file(t, true, flat, map[string]string{"10.0.0.0/8": "EU"}), "no network of any country"},
	} {
		if d, err := Open([]string{c.path}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q: %v, %v", c.want, d, err)
		}
	}
}

// synthetic is a database of about n networks: IPv4 in pieces of /14 to /24, IPv6 of /28 to /48, of 240 countries,
// of which few have most, in runs.
func synthetic(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 9))
	var codes []string
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			if c := model.CountryCode(string(a) + string(b)); c.Known() {
				codes = append(codes, string(c))
			}
		}
	}
	rng.Shuffle(len(codes), func(i, j int) { codes[i], codes[j] = codes[j], codes[i] })
	draw := func() string {
		if rng.IntN(10) < 6 {
			return codes[rng.IntN(5)]
		}
		return codes[rng.IntN(240)]
	}
	w := mmdb.New(true)
	var cut func(p netip.Prefix, longest int, left int)
	cut = func(p netip.Prefix, longest int, left int) {
		if left <= 1 || p.Bits() == longest {
			if rng.IntN(10) > 0 {
				w.Add(p, flat(draw()))
			}
			return
		}
		share := left/2 + rng.IntN(left/4+1) - left/8
		half, _ := p.Addr().Prefix(p.Bits() + 1)
		cut(half, longest, share)
		b := half.Addr().AsSlice()
		b[p.Bits()/8] |= 1 << (7 - p.Bits()%8)
		a, _ := netip.AddrFromSlice(b)
		cut(netip.PrefixFrom(a, p.Bits()+1), longest, left-share)
	}
	cut(netip.MustParsePrefix("0.0.0.0/1"), 24, n*3/8)
	cut(netip.MustParsePrefix("128.0.0.0/2"), 24, n*3/16)
	cut(netip.MustParsePrefix("2400::/6"), 48, n*7/16)
	return w.Bytes("synthetic-Country")
}

// TestCompiledBySlowOracle: an address is in the list of the country that the database says of it, and in no other.
func TestCompiledBySlowOracle(t *testing.T) {
	for seed := range uint64(3) {
		data := synthetic(6000, seed)
		r, err := maxminddb.OpenBytes(data)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Open([]string{save(t, data)})
		if err != nil {
			t.Fatal(err)
		}
		lists := map[model.CountryCode][]netip.Prefix{}
		for code, n := range d.Networks {
			if lists[code], err = model.UnpackNetworks(d.List(code)); err != nil || len(lists[code]) != n {
				t.Fatalf("%s: %d networks, not %d, %v", code, len(lists[code]), n, err)
			}
		}
		rng := rand.New(rand.NewPCG(seed, 10))
		found := 0
		for range 2000 {
			a := netip.AddrFrom4([4]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
			if rng.IntN(2) == 0 {
				a = netip.AddrFrom16([16]byte{0x24 + byte(rng.IntN(5)), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
			}
			var want string
			if err := r.Lookup(a).DecodePath(&want, "country_code"); err != nil {
				t.Fatal(err)
			}
			var got []string
			for code, networks := range lists {
				for _, p := range networks {
					if p.Contains(a) {
						got = append(got, string(code))
					}
				}
			}
			if strings.Join(got, " ") != want {
				t.Fatalf("%v is of %q, and in the lists of %q", a, want, got)
			}
			if want != "" {
				found++
			}
		}
		if found < 500 {
			t.Errorf("only %d addresses had a country", found)
		}
	}
}

// FuzzOpen: whatever is in a file, it makes an error or lists that can be read.
func FuzzOpen(f *testing.F) {
	f.Add(synthetic(20, 1))
	w := mmdb.New(false)
	w.Add(netip.MustParsePrefix("10.0.0.0/8"), nested("DE"))
	f.Add(w.Bytes("test"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := compiler{networks: map[model.CountryCode][]netip.Prefix{}}
		if _, err := c.add(data, time.Now()); err != nil {
			return
		}
		d, err := c.pack()
		if err != nil {
			return
		}
		for code, packed := range d.lists {
			if n, err := model.CountNetworks(packed); err != nil || n != d.Networks[code] || !code.Known() {
				t.Fatalf("%s: %d networks, not %d: %v", code, n, d.Networks[code], err)
			}
		}
	})
}

// BenchmarkOpen compiles all countries of a database of 500,000 networks, and says what the five largest take.
func BenchmarkOpen(b *testing.B) {
	path := save(b, synthetic(500_000, 1))
	var d *Database
	for b.Loop() {
		var err error
		if d, err = Open([]string{path}); err != nil {
			b.Fatal(err)
		}
	}
	total, largest, bytes := 0, 0, 0
	sizes := map[model.CountryCode]int{}
	for code, n := range d.Networks {
		total += n
		sizes[code] = n
	}
	for range 5 {
		var best model.CountryCode
		for code, n := range sizes {
			if n > sizes[best] {
				best = code
			}
		}
		largest += sizes[best]
		bytes += len(d.List(best))
		delete(sizes, best)
	}
	b.ReportMetric(float64(total), "networks")
	b.ReportMetric(float64(largest), "networks-of-5")
	b.ReportMetric(float64(bytes), "bytes-of-5")
}
