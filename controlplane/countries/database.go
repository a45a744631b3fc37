package countries

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/nearcast/nearcast/proto/model"
)

// Database is a country database, compiled: what it has of every country. It is immutable.
type Database struct {
	model.CountryDatabase // Controller is empty
	lists                 map[model.CountryCode][]byte
}

// List returns the packed networks of a country; none if it knows none.
func (d *Database) List(c model.CountryCode) []byte { return d.lists[c] }

// Open reads and compiles the files of a database: MaxMind's format, whoever made them, in the schemas of MaxMind
// (nested) and of ip-location-db (flat), of countries or of cities. IPv4 and IPv6 may be in files of their own: the
// networks of a family come from the first file that has any. Files are from outside: one that is damaged, too
// large, without any country or from the future is an error that says so.
func Open(files []string) (*Database, error) {
	if len(files) > filesMax {
		return nil, fmt.Errorf("%d files are more than %d", len(files), filesMax)
	}
	c := compiler{networks: map[model.CountryCode][]netip.Prefix{}}
	hash := sha256.New()
	var types []string
	for _, path := range files {
		data, err := readFile(path)
		if err != nil {
			return nil, err
		}
		hash.Write(data)
		kind, err := c.add(data, time.Now())
		if err != nil {
			return nil, fmt.Errorf("country database %s: %w", path, err)
		}
		types = append(types, kind)
	}
	d, err := c.pack()
	if err != nil {
		return nil, fmt.Errorf("country database %s: %w", strings.Join(files, ", "), err)
	}
	d.Type, d.Hash, d.Loaded = strings.Join(types, ", "), hash.Sum(nil), time.Now().UTC()
	return d, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("country database: %w", err)
	}
	if info.Size() > fileBytesMax {
		return nil, fmt.Errorf("country database %s has %d bytes; at most %d are read", path, info.Size(), fileBytesMax)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("country database: %w", err)
	}
	return data, nil
}

// compiler gathers the networks of countries from one file after the other.
type compiler struct {
	networks     map[model.CountryCode][]netip.Prefix // IPv4 first, sorted, as few as possible
	v6           map[model.CountryCode][]netip.Prefix // of the file at work
	built        time.Time                            // of the oldest file
	have4, have6 bool
	total        int
}

// add compiles one file and returns what it calls itself.
func (c *compiler) add(data []byte, now time.Time) (kind string, err error) {
	r, err := maxminddb.OpenBytes(data)
	if err != nil {
		return "", err
	}
	m := &r.Metadata
	if m.IPVersion != 4 && m.IPVersion != 6 {
		return "", errors.New("is neither of IPv4 nor of IPv6")
	}
	built := m.BuildTime()
	if built.After(now.Add(futureMax)) {
		return "", fmt.Errorf("says that it was made at %s, which is to come: is the clock right?",
			built.UTC().Format(time.RFC3339))
	}
	if c.built.IsZero() || built.Before(c.built) {
		c.built = built.UTC()
	}
	if err := c.walk(r); err != nil {
		return "", err
	}
	return clip(m.DatabaseType), nil
}

// walk takes the networks of a file, which come sorted: those of IPv4 that a file of IPv6 has under ::/96 first.
func (c *compiler) walk(r *maxminddb.Reader) error {
	codes := map[uintptr]model.CountryCode{} // by offset: many networks share a record
	take4, take6 := !c.have4, !c.have6
	walked := 0
	v6 := map[model.CountryCode][]netip.Prefix{}
	for found := range r.Networks() {
		if walked++; walked > walkedMax {
			return fmt.Errorf("has more than %d networks", walkedMax)
		}
		if err := found.Err(); err != nil {
			return fmt.Errorf("is damaged: %w", err)
		}
		code, known := codes[found.Offset()]
		if !known {
			var err error
			if code, err = codeOf(found); err != nil {
				return fmt.Errorf("is damaged at %v: %w", found.Prefix(), err)
			}
			if len(codes) < walkedMax/16 {
				codes[found.Offset()] = code
			}
		}
		p := found.Prefix()
		if code == "" || p.Addr().Is4In6() {
			continue
		}
		switch {
		case p.Addr().Is4():
			if take4 {
				c.have4 = true
				c.networks[code] = c.append(c.networks[code], p)
			}
		case take6:
			c.have6 = true
			v6[code] = c.append(v6[code], p)
		}
		if c.total > networksMax {
			return fmt.Errorf("has more than %d networks of countries", networksMax)
		}
	}
	c.later(v6)
	return nil
}

// later keeps networks of IPv6 until those of IPv4 are there.
func (c *compiler) later(v6 map[model.CountryCode][]netip.Prefix) {
	if c.v6 == nil {
		c.v6 = v6
		return
	}
	for code, networks := range v6 {
		c.v6[code] = networks // only one file has had any
	}
}

func (c *compiler) append(networks []netip.Prefix, p netip.Prefix) []netip.Prefix {
	before := len(networks)
	networks = model.AppendNetwork(networks, p)
	c.total += len(networks) - before
	return networks
}

// codeOf reads the country of a record in whichever schema it is, "" if there is none. A record in which no place
// can be looked at is damaged.
func codeOf(r maxminddb.Result) (model.CountryCode, error) {
	var first error
	failed := 0
	paths := [][]any{{"country", "iso_code"}, {"country_code"}, {"country"}}
	for _, path := range paths {
		var code string
		if err := r.DecodePath(&code, path...); err != nil { // it has something else there
			failed++
			first = cmp.Or(first, err)
			continue
		}
		if c := model.CountryCode(strings.ToUpper(code)); c.Known() {
			return c, nil
		}
	}
	if failed == len(paths) {
		return "", first
	}
	return "", nil
}

// pack makes the lists.
func (c *compiler) pack() (*Database, error) {
	for code, networks := range c.v6 {
		c.networks[code] = append(c.networks[code], networks...)
	}
	d := &Database{lists: map[model.CountryCode][]byte{}}
	d.Built, d.Networks = c.built, map[model.CountryCode]int{}
	for code, networks := range c.networks {
		packed := model.PackNetworks(networks)
		if len(packed) > model.CountryBytesMax {
			return nil, fmt.Errorf("the %d networks of %s take %d bytes; a list has at most %d", len(networks), code,
				len(packed), model.CountryBytesMax)
		}
		d.lists[code], d.Networks[code] = packed, len(networks)
	}
	if len(d.lists) == 0 {
		return nil, errors.New("has no network of any country: is it a database of countries or cities?")
	}
	return d, nil
}

func clip(s string) string {
	if len(s) > 100 {
		s = s[:100]
	}
	return strings.ToValidUTF8(s, "?")
}
