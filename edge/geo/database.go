package geo

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/oschwald/maxminddb-golang/v2"
)

// Location is where a network is.
type Location struct {
	Latitude, Longitude float64
	Placed              bool   // the coordinates are the network's own
	Country             string // ISO 3166-1 alpha-2; "": unknown
}

// Database is a set of MaxMind databases (the file format, whoever made them): the schemas of MaxMind
// (nested) and of ip-location-db (flat), with IPv4, IPv6 or both, are told apart by themselves.
type Database struct {
	readers []*maxminddb.Reader
	types   []string
}

// databaseBytesMax bounds a file: the largest free ones have 130 MB.
const databaseBytesMax = 1 << 30

// Open reads the files into memory, so that they may be replaced on disk. Earlier ones are asked first.
func Open(paths []string) (*Database, error) {
	d := &Database{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Size() > databaseBytesMax {
			return nil, fmt.Errorf("%s has %d bytes; at most %d are read", path, info.Size(), databaseBytesMax)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if err := d.add(data); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return d, nil
}

func (d *Database) add(data []byte) error {
	r, err := maxminddb.OpenBytes(data)
	if err != nil {
		return err
	}
	if r.Metadata.IPVersion != 4 && r.Metadata.IPVersion != 6 {
		return errors.New("is neither of IPv4 nor of IPv6")
	}
	d.readers, d.types = append(d.readers, r), append(d.types, r.Metadata.DatabaseType)
	return nil
}

// Types returns what the databases call themselves.
func (d *Database) Types() []string { return d.types }

// record is the union of the schemas.
type record struct {
	Country struct {
		ISOCode string `maxminddb:"iso_code"`
	} `maxminddb:"country"`
	Location struct {
		Latitude  *float64 `maxminddb:"latitude"`
		Longitude *float64 `maxminddb:"longitude"`
	} `maxminddb:"location"`
	CountryCode string   `maxminddb:"country_code"`
	Latitude    *float64 `maxminddb:"latitude"`
	Longitude   *float64 `maxminddb:"longitude"`
}

// Lookup returns what is known of an address, and the length of the network for which it is known.
// What is missing or damaged in a file is not known.
func (d *Database) Lookup(a netip.Addr) (l Location, scope int) {
	if d == nil {
		return l, 0
	}
	for i, r := range d.readers {
		offset, bits, ok := find(r, a)
		scope = max(scope, bits)
		if !ok {
			continue
		}
		l.merge(d.read(i, offset))
		if l.Placed {
			break
		}
	}
	return l, scope
}

// find returns where in a file's data an address is described, and for how long a prefix.
func find(r *maxminddb.Reader, a netip.Addr) (offset uintptr, bits int, ok bool) {
	if a.Is6() && r.Metadata.IPVersion == 4 {
		return 0, 0, false
	}
	found := r.Lookup(a)
	if found.Err() != nil {
		return 0, 0, false
	}
	return found.Offset(), prefixBits(found.Prefix(), a), found.Found()
}

// read decodes a record of file i.
func (d *Database) read(i int, offset uintptr) (l Location) {
	var rec record
	if d.readers[i].LookupOffset(offset).Decode(&rec) == nil {
		l.take(&rec)
	}
	return l
}

// prefixBits is the length of a network in the family of a: IPv4 lies under ::/96 in some files.
func prefixBits(p netip.Prefix, a netip.Addr) int {
	switch {
	case !p.IsValid():
		return a.BitLen()
	case a.Is4() && p.Addr().Is6():
		return max(p.Bits()-96, 0)
	}
	return p.Bits()
}

// merge adds what another file knows.
func (l *Location) merge(o Location) {
	if l.Country == "" {
		l.Country = o.Country
	}
	if !l.Placed && o.Placed {
		l.Latitude, l.Longitude, l.Placed = o.Latitude, o.Longitude, true
	}
}

// take reads a record.
func (l *Location) take(rec *record) {
	if l.Country = rec.Country.ISOCode; l.Country == "" {
		l.Country = rec.CountryCode
	}
	lat, lon := rec.Location.Latitude, rec.Location.Longitude
	if lat == nil || lon == nil {
		lat, lon = rec.Latitude, rec.Longitude
	}
	// Written so that NaN is refused.
	if lat != nil && lon != nil && *lat >= -90 && *lat <= 90 && *lon >= -180 && *lon <= 180 {
		l.Latitude, l.Longitude, l.Placed = *lat, *lon, true
	}
}
