// Package mmdb answers: how do networks and their places become a MaxMind database? It writes what tests need
// of the file format 2.0 (https://maxmind.github.io/MaxMind-DB/): a binary tree of 24-bit records, the data,
// and the metadata behind its marker.
package mmdb

import (
	"encoding/binary"
	"math"
	"net/netip"
)

// Writer is a database in the making.
type Writer struct {
	nodes [][2]int // child: > 0 node, < 0 data offset -1-n, 0 nothing
	data  []byte
	v6    bool

	Built int64 // when it was made, in seconds since 1970
}

// New returns an empty database, of IPv4 or of IPv6 with IPv4 under ::/96.
func New(v6 bool) *Writer { return &Writer{nodes: make([][2]int, 1), v6: v6, Built: 1748777856} }

// Add says what is known of a network. Networks must not overlap.
func (w *Writer) Add(p netip.Prefix, value []byte) {
	raw, bits := p.Addr().AsSlice(), p.Bits()
	if w.v6 && p.Addr().Is4() {
		raw, bits = append(make([]byte, 12), raw...), bits+96
	}
	at, offset := 0, len(w.data)
	w.data = append(w.data, value...)
	for i := range bits {
		side := int(raw[i/8]>>(7-i%8)) & 1
		if i == bits-1 {
			w.nodes[at][side] = -1 - offset
			return
		}
		if w.nodes[at][side] <= 0 {
			w.nodes[at][side] = len(w.nodes)
			w.nodes = append(w.nodes, [2]int{})
		}
		at = w.nodes[at][side]
	}
}

// Text is a string of up to 28 bytes.
func Text(s string) []byte { return append([]byte{2<<5 | byte(len(s))}, s...) }

// Double is a floating point number.
func Double(f float64) []byte {
	return binary.BigEndian.AppendUint64([]byte{3<<5 | 8}, math.Float64bits(f))
}

// Dict is a map of keys and values in turns.
func Dict(pairs ...[]byte) []byte {
	b := []byte{7<<5 | byte(len(pairs)/2)}
	for _, p := range pairs {
		b = append(b, p...)
	}
	return b
}

// Place is a value in MaxMind's schema of cities.
func Place(country string, latitude, longitude float64) []byte {
	return Dict(Text("country"), Dict(Text("iso_code"), Text(country)),
		Text("location"), Dict(Text("latitude"), Double(latitude), Text("longitude"), Double(longitude)))
}

// FlatPlace is the same in the schema of ip-location-db.
func FlatPlace(country string, latitude, longitude float64) []byte {
	return Dict(Text("country_code"), Text(country), Text("latitude"), Double(latitude), Text("longitude"), Double(longitude))
}

func number(kind byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind<<5 | 4}, n)
}

// Bytes returns the file; kind is what it calls itself, like "GeoLite2-City".
func (w *Writer) Bytes(kind string) (b []byte) {
	n := len(w.nodes)
	for _, node := range w.nodes {
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
	version := byte(4)
	if w.v6 {
		version = 6
	}
	b = append(append(b, make([]byte, 16)...), w.data...)
	b = append(b, "\xab\xcd\xefMaxMind.com"...)
	epoch := binary.BigEndian.AppendUint64([]byte{8, 2}, uint64(w.Built)) // an extended type: 64 bits
	u16 := func(v byte) []byte { return []byte{5<<5 | 1, v} }
	return append(b, Dict(Text("node_count"), number(6, uint32(n)), Text("record_size"), u16(24),
		Text("ip_version"), u16(version), Text("database_type"), Text(kind), Text("languages"), []byte{0, 4},
		Text("binary_format_major_version"), u16(2), Text("binary_format_minor_version"), u16(0),
		Text("build_epoch"), epoch, Text("description"), Dict())...)
}
