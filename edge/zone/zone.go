package zone

import (
	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/proto/model"
)

// RRSet is the records of one type at one name, as they go on the wire after the owner's name.
type RRSet struct {
	Type  uint16
	TTL   uint32
	Datas [][]byte // rdata: names in it are lower case and not compressed
	// Target is the name in the first record of a CNAME, NS or DNAME.
	Target []byte
}

// Steered is a name that is answered with the addresses of an accelerator.
type Steered struct {
	Accelerator model.AcceleratorID
	// Pool is the node pool of which each client gets its best nodes; "" under anycast, where V4 and V6
	// are the accelerator's own addresses.
	Pool      model.PoolName
	V4, V6    *RRSet
	DualStack bool
	ALPN      []string // of the HTTPS record; nil: there is none
	TTL       uint32
}

// Node is what is at a name.
type Node struct {
	Sets    []RRSet
	Steered *Steered
	cut     bool // a delegation: NS below the apex
}

// Set returns the records of a type, or nil.
func (n *Node) Set(t uint16) *RRSet {
	for i := range n.Sets {
		if n.Sets[i].Type == t {
			return &n.Sets[i]
		}
	}
	return nil
}

// Zone is a zone with everything in it.
type Zone struct {
	Name   model.ZoneName
	Apex   []byte // wire form
	SOA    *RRSet
	NegTTL uint32      // of negative answers: the smaller of the SOA's TTL and minimum (RFC 2308 5)
	Model  *model.Zone // where it comes from; nil: the accelerators' own zone
	nodes  map[string]*Node
	wild   bool // there are wildcards
}

// Kind says what a lookup found.
type Kind uint8

// The kinds.
const (
	NoName   Kind = iota // there is no such name
	Here                 // the name is there: by itself, as an empty non-terminal, or by a wildcard
	Referral             // the name is at or below a delegation
)

// Found is what a lookup found.
type Found struct {
	Kind  Kind
	Node  *Node  // of Here (nil: an empty non-terminal) and Referral
	Owner []byte // of Referral: the delegated name
}

// Lookup finds what is at a name of the zone (RFC 1034 4.3.2 and RFC 4592). name is in wire form, lower
// case, and within the zone. ds says that the question is for DS, which the parent's side answers.
func (z *Zone) Lookup(name []byte, ds bool) Found {
	// Walk from just below the apex down to the name, so that delegations hide what is below them.
	var starts [128]uint8
	n := 0
	for at := name; len(at) > len(z.Apex); at = parent(at) {
		starts[n] = uint8(len(name) - len(at))
		n++
	}
	encloser := z.Apex
	for i := n - 1; i >= 0; i-- {
		at := name[starts[i]:]
		node, there := z.nodes[string(at)]
		if !there {
			return z.wildcard(encloser)
		}
		if node != nil && node.cut && !(ds && i == 0) {
			return Found{Kind: Referral, Node: node, Owner: at}
		}
		encloser = at
	}
	return Found{Kind: Here, Node: z.nodes[string(name)]}
}

// wildcard answers for a name that is not there, whose closest encloser is.
func (z *Zone) wildcard(encloser []byte) Found {
	if !z.wild || len(encloser)+2 > nameMax {
		return Found{}
	}
	var b [nameMax]byte
	b[0], b[1] = 1, '*'
	n := copy(b[2:], encloser)
	if node, there := z.nodes[string(b[:2+n])]; there {
		return Found{Kind: Here, Node: node}
	}
	return Found{}
}

// Glue calls f with the addresses that the zone has for a name server within it.
func (z *Zone) Glue(name []byte, f func(owner []byte, set *RRSet)) {
	if !within(name, z.Apex) {
		return
	}
	node := z.nodes[string(name)]
	if node == nil {
		return
	}
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if set := node.Set(t); set != nil {
			f(name, set)
		}
	}
}

// Names counts the names of the zone.
func (z *Zone) Names() int { return len(z.nodes) }

// Set is all zones.
type Set struct {
	zones map[string]*Zone // by apex in wire form
}

// Find returns the zone that a name lies in, the longest if there are several, or nil.
func (s *Set) Find(name []byte) *Zone {
	for len(name) > 1 {
		if z := s.zones[string(name)]; z != nil {
			return z
		}
		name = parent(name)
	}
	return nil
}

// Parent returns the zone above a zone, if it is one of the set: for DS of a zone's apex.
func (s *Set) Parent(z *Zone) *Zone { return s.Find(parent(z.Apex)) }

// Zones counts the zones.
func (s *Set) Zones() int { return len(s.zones) }

// All calls f with each zone.
func (s *Set) All(f func(*Zone)) {
	for _, z := range s.zones {
		f(z)
	}
}
