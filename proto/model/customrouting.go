package model

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
)

// This file is custom routing: its objects, and the mapping of accelerated ports to destinations. The
// mapping is a pure function of the objects, computed where it is needed (edges, gateways, the control
// plane's lists) and stored nowhere: the ports of an endpoint, one after another, lead to the
// destinations of its subnet, machine by machine and port by port.
//
//	index   0          1          2          3
//	port    10000      10001      10002      10003        the endpoint's ports
//	leads   .4:80      .4:443     .5:80      .5:443       machine = index / 2, port = index % 2

// SubnetName is what operators call a subnet, and what endpoints of custom routing name.
type SubnetName string

// AcceleratorType says how traffic finds its endpoint.
type AcceleratorType uint8

const (
	Standard      AcceleratorType = iota // by distance, health and weight
	CustomRouting                        // by accelerated address and port
)

// Subnet is a network of machines that custom routing leads to. The gateways of its region reach it.
type Subnet struct {
	Name          SubnetName
	Region        RegionName
	Prefix        netip.Prefix      // IPv4
	ClientAddress ClientAddressMode // FromProto makes an unspecified one transparent
	Project       string            // whose accelerators may lead to it without an attachment; "": everybody's
	Tags          map[string]string
	Revision      uint64
}

// Machines returns the first mapped address of the subnet and how many there are. Of a network of 16
// addresses or more the first four and the last are not mapped, as in AWS's subnets.
func (s *Subnet) Machines() (first netip.Addr, n int) {
	first = s.Prefix.Masked().Addr()
	if !first.Is4() || s.Prefix.Bits() < SubnetBitsMin {
		return first, 0
	}
	n = 1 << (32 - s.Prefix.Bits())
	if n < subnetReserves {
		return first, n
	}
	return addrPlus(first, subnetReservedLow), n - subnetReservedLow - 1
}

const (
	subnetReserves    = 16 // from this many addresses on some are reserved
	subnetReservedLow = 4  // network, router, DNS, future use: AWS's list
)

// CustomRoutingDestination is ports of every machine of a group's subnets.
type CustomRoutingDestination struct {
	PortRange
	Protocol Protocol
}

// CustomRoutingEndpoint is a subnet with its ports of the listener.
type CustomRoutingEndpoint struct {
	Subnet  SubnetName
	Ports   []PortRange // in the order of the mapping
	Allowed []byte      // bit i%8 of byte i/8 is index i
}

// CustomRoutingGroup is one region of a custom routing accelerator's listener.
type CustomRoutingGroup struct {
	ID           GroupID
	Listener     ListenerID
	Region       RegionName
	Destinations []CustomRoutingDestination
	Endpoints    []CustomRoutingEndpoint
	Tags         map[string]string
	Revision     uint64
}

// MachinePorts returns how many accelerated ports one machine needs.
func (g *CustomRoutingGroup) MachinePorts() (n int) {
	for _, d := range g.Destinations {
		n += d.Len()
	}
	return n
}

// Len returns how many ports the range has.
func (r PortRange) Len() int { return max(0, int(r.To)-int(r.From)+1) }

// PortMapping is one destination and the accelerated port that leads there.
type PortMapping struct {
	Port        uint16 // of every address of the accelerator
	Destination netip.AddrPort
	Protocol    Protocol
	Allowed     bool
}

// Mapping is where the ports of one endpoint lead. It is immutable and safe for use by many at once; no
// method allocates.
type Mapping struct {
	Group         GroupID
	Region        RegionName
	Subnet        SubnetName
	ClientAddress ClientAddressMode

	first        netip.Addr
	machines     int
	perMachine   int
	destinations []CustomRoutingDestination
	ports        []PortRange
	starts       []int // index of the first port of each of ports
	n            int
	allowed      []byte
}

// NewMapping compiles the mapping of endpoint e of g, whose subnet is s. It refers to what they hold.
func NewMapping(g *CustomRoutingGroup, e *CustomRoutingEndpoint, s *Subnet) *Mapping {
	m := &Mapping{Group: g.ID, Region: g.Region, Subnet: e.Subnet, ClientAddress: s.ClientAddress,
		perMachine: g.MachinePorts(), destinations: g.Destinations, ports: e.Ports, allowed: e.Allowed}
	m.first, m.machines = s.Machines()
	for _, r := range e.Ports {
		m.starts = append(m.starts, m.n)
		m.n += r.Len()
	}
	m.n = min(m.n, m.machines*m.perMachine)
	return m
}

// Len returns how many destinations are mapped. Their indices are 0 to Len()-1.
func (m *Mapping) Len() int { return m.n }

// At returns the destination of index i, which is one.
func (m *Mapping) At(i int) PortMapping {
	at, _ := slices.BinarySearchFunc(m.starts, i+1, cmp.Compare[int])
	p := PortMapping{Port: m.ports[at-1].From + uint16(i-m.starts[at-1]), Allowed: m.Allowed(i)}
	rest := i % m.perMachine
	for _, d := range m.destinations {
		if n := d.Len(); rest >= n {
			rest -= n
			continue
		}
		p.Destination = netip.AddrPortFrom(addrPlus(m.first, i/m.perMachine), d.From+uint16(rest))
		p.Protocol = d.Protocol
		break
	}
	return p
}

// Index returns the index of an accelerated port.
func (m *Mapping) Index(port uint16) (i int, ok bool) {
	for at, r := range m.ports {
		if r.Contains(port) {
			i = m.starts[at] + int(port-r.From)
			return i, i < m.n
		}
	}
	return 0, false
}

// Machine returns the indices of one machine: n from first on, or ok false if addr is not mapped.
func (m *Mapping) Machine(addr netip.Addr) (first, n int, ok bool) {
	if !addr.Is4() || !m.first.Is4() {
		return 0, 0, false
	}
	a, b := addr.As4(), m.first.As4()
	at := int64(binary.BigEndian.Uint32(a[:])) - int64(binary.BigEndian.Uint32(b[:]))
	if at < 0 || at >= int64(m.machines) {
		return 0, 0, false
	}
	first = int(at) * m.perMachine
	n = min(m.perMachine, m.n-first)
	return first, n, n > 0
}

// Allowed reports whether traffic to index i is let through.
func (m *Mapping) Allowed(i int) bool {
	return i/8 < len(m.allowed) && m.allowed[i/8]&(1<<(i%8)) != 0
}

// PortTable is where all ports of one listener lead. It is immutable and safe for use by many at once.
type PortTable struct {
	spans []portSpan // sorted, disjoint
}

type portSpan struct {
	PortRange
	mapping *Mapping
	start   int // index of From
}

// NewPortTable compiles the table of a listener; one without groups of custom routing has an empty one.
func NewPortTable(s *Snapshot, l ListenerID) *PortTable {
	return CompilePorts(func(yield func(*CustomRoutingGroup) bool) {
		for i := range s.CustomRoutingGroups {
			if g := &s.CustomRoutingGroups[i]; g.Listener == l && !yield(g) {
				return
			}
		}
	}, s.Subnet)
}

// CompilePorts compiles the table of groups whose endpoints share no port, as those of one accelerator.
// Endpoints whose subnet is not there (which Consistent refuses) are left out.
func CompilePorts(groups iter.Seq[*CustomRoutingGroup], subnet func(SubnetName) *Subnet) *PortTable {
	t := &PortTable{}
	for g := range groups {
		for j := range g.Endpoints {
			s := subnet(g.Endpoints[j].Subnet)
			if s == nil {
				continue
			}
			m := NewMapping(g, &g.Endpoints[j], s)
			for k, r := range m.ports {
				t.spans = append(t.spans, portSpan{r, m, m.starts[k]})
			}
		}
	}
	slices.SortFunc(t.spans, func(a, b portSpan) int { return cmp.Compare(a.From, b.From) })
	return t
}

// After yields every mapped port above one, in order, and the mapping that it is of.
func (t *PortTable) After(port uint16) iter.Seq2[*Mapping, PortMapping] {
	return func(yield func(*Mapping, PortMapping) bool) {
		for i := range t.spans {
			s := &t.spans[i]
			for p := max(int(s.From), int(port)+1); p <= int(s.To); p++ {
				at := s.start + p - int(s.From)
				if at >= s.mapping.n || !yield(s.mapping, s.mapping.At(at)) {
					return
				}
			}
		}
	}
}

// Lookup returns where an accelerated port leads for one protocol, and by which mapping. ok is false for
// what is not mapped or denied: such traffic is dropped. It does not allocate.
func (t *PortTable) Lookup(port uint16, p Protocol) (m *Mapping, to netip.AddrPort, ok bool) {
	at, found := slices.BinarySearchFunc(t.spans, port, func(s portSpan, port uint16) int {
		return cmp.Compare(s.From, port)
	})
	if !found {
		at--
	}
	if at < 0 || !t.spans[at].Contains(port) {
		return nil, netip.AddrPort{}, false
	}
	s := &t.spans[at]
	i := s.start + int(port-s.From)
	if i >= s.mapping.n || !s.mapping.Allowed(i) {
		return nil, netip.AddrPort{}, false
	}
	mapped := s.mapping.At(i)
	return s.mapping, mapped.Destination, mapped.Protocol.Has(p)
}

// Open returns the ports that lead somewhere for a protocol, which are those that Lookup has something for:
// in order, as few ranges as there can be.
func (t *PortTable) Open(p Protocol) (open []PortRange) {
	for i := range t.spans {
		s := &t.spans[i]
		last := min(int(s.To), int(s.From)+s.mapping.n-1-s.start)
		for port := int(s.From); port <= last; port++ {
			at := s.start + port - int(s.From)
			if !s.mapping.Allowed(at) || !s.mapping.protocol(at).Has(p) {
				continue
			}
			if n := len(open); n > 0 && int(open[n-1].To)+1 == port {
				open[n-1].To++
			} else {
				open = append(open, PortRange{uint16(port), uint16(port)})
			}
		}
	}
	return open
}

// protocol returns that of an index.
func (m *Mapping) protocol(i int) Protocol {
	rest := i % m.perMachine
	for _, d := range m.destinations {
		if n := d.Len(); rest >= n {
			rest -= n
			continue
		}
		return d.Protocol
	}
	return 0
}

// addrPlus returns the n-th address after an IPv4 address.
func addrPlus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
