package dnssec

import (
	"slices"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/zone"
)

// typeNXNAME says in an NSEC that the name itself does not exist (RFC 9824 2).
const typeNXNAME = 128

// Denial returns the NSEC that says which types a name has: only those, and that no name lies between it
// and the one after it. exists false: the name does not exist. types need not be sorted.
func Denial(owner []byte, exists bool, types []uint16, ttl uint32) *zone.RRSet {
	types = append(slices.Clone(types), dns.TypeRRSIG, dns.TypeNSEC)
	if !exists {
		types = append(types, typeNXNAME)
	}
	slices.Sort(types)
	data := append(next(owner), bitmap(slices.Compact(types))...)
	return &zone.RRSet{Type: dns.TypeNSEC, TTL: ttl, Datas: [][]byte{data}}
}

// next is the name right after owner in canonical order: a label of one zero byte in front. Where that
// is too long, the first label with its last byte one higher, which stands for all names between.
func next(owner []byte) []byte {
	if len(owner)+2 <= 255 {
		return append([]byte{1, 0}, owner...)
	}
	n := slices.Clone(owner)
	for i := int(n[0]); i > 0; i-- {
		if n[i]++; n[i] != 0 {
			break
		}
	}
	return n
}

// bitmap is the type bit map of RFC 4034 4.1.2. types are sorted.
func bitmap(types []uint16) (b []byte) {
	for len(types) > 0 {
		window := types[0] >> 8
		var bits [32]byte
		last := 0
		for len(types) > 0 && types[0]>>8 == window {
			low := types[0] & 0xff
			bits[low/8] |= 0x80 >> (low % 8)
			last, types = int(low/8), types[1:]
		}
		b = append(b, byte(window), byte(last+1))
		b = append(b, bits[:last+1]...)
	}
	return b
}
