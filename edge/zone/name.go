package zone

import (
	"fmt"

	"github.com/miekg/dns"
)

// nameMax is the longest name in wire form (RFC 1035 2.3.4).
const nameMax = 255

// Pack brings a textual name into wire form, lower case.
func Pack(name string) ([]byte, error) {
	b := make([]byte, nameMax+1)
	n, err := dns.PackDomainName(dns.CanonicalName(name), b, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	return b[:n], nil
}

// Text brings a name in wire form into text.
func Text(name []byte) string {
	s, _, err := dns.UnpackDomainName(name, 0)
	if err != nil {
		return "(bad name)"
	}
	return s
}

// Lower makes a name in wire form lower case, in place (RFC 4343: ASCII only).
func Lower(name []byte) {
	for i, c := range name { // lengths are below 64 and no letters
		if 'A' <= c && c <= 'Z' {
			name[i] = c + 'a' - 'A'
		}
	}
}

// parent cuts the first label off.
func parent(name []byte) []byte { return name[1+int(name[0]):] }

// within reports whether name is zone or below it. Both are whole names, so that equal tails at a
// label's border are equal names; whether it is a border is seen by walking.
func within(name, zone []byte) bool {
	for len(name) > len(zone) {
		name = parent(name)
	}
	return string(name) == string(zone)
}

// Labels counts the labels of a name, without the root.
func Labels(name []byte) (n int) {
	for len(name) > 1 {
		n++
		name = parent(name)
	}
	return n
}
