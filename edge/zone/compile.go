package zone

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/zonefile"
)

const (
	// Of zones whose text says nothing else.
	soaTTL, nsTTL = 3600, 3600
	negativeTTL   = 30 // a name that was asked for too early is there soon
	// nameServersMax is how many nodes serve as name servers of zones that name none.
	nameServersMax = 6
)

// Compile makes the zones of a snapshot. Errors are model.FieldErrors that name the zone.
func Compile(s *model.Snapshot) (*Set, error) {
	b := &builder{snapshot: s, set: &Set{zones: map[string]*Zone{}}, ttl: uint32(s.Steering.OrDefault().TTL.Seconds())}
	b.nameServers()
	for i := range s.Zones {
		if err := b.hosted(&s.Zones[i]); err != nil {
			var wrong model.FieldErrors
			if errors.As(err, &wrong) {
				return nil, wrong.At(fmt.Sprintf("zones[%s]", s.Zones[i].Name))
			}
			return nil, fmt.Errorf("zones[%s]: %w", s.Zones[i].Name, err)
		}
	}
	if err := b.accelerators(); err != nil {
		return nil, err
	}
	for _, z := range b.set.zones {
		if err := b.finish(z); err != nil {
			return nil, err
		}
	}
	return b.set, nil
}

type builder struct {
	snapshot *model.Snapshot
	set      *Set
	ttl      uint32
	servers  []server
}

// server is a name server of zones that name none.
type server struct {
	name  string // absolute; empty: one below each zone
	addrs []netip.Addr
}

// nameServers chooses them: what the operator named, else nodes with addresses of their own, as many
// sites as possible first.
func (b *builder) nameServers() {
	for _, n := range b.snapshot.Steering.NameServers {
		b.servers = append(b.servers, server{name: dns.CanonicalName(n)})
	}
	if len(b.servers) > 0 {
		return
	}
	turn := map[model.SiteName]int{}
	type candidate struct {
		turn int
		node *model.Node
	}
	var all []candidate
	for i := range b.snapshot.Nodes {
		n := &b.snapshot.Nodes[i]
		if n.Edge && len(n.ServiceAddresses) > 0 {
			all = append(all, candidate{turn[n.Site], n})
			turn[n.Site]++
		}
	}
	slices.SortStableFunc(all, func(x, y candidate) int { return cmp.Compare(x.turn, y.turn) })
	for _, c := range all[:min(len(all), nameServersMax)] {
		b.servers = append(b.servers, server{addrs: c.node.ServiceAddresses})
	}
	if len(b.servers) > 0 {
		return
	}
	// Anycast alone: the addresses of the first accelerator of each pool are where nodes answer, too.
	for _, a := range b.snapshot.Accelerators {
		if len(a.Addresses) > 0 && a.Enabled {
			b.servers = append(b.servers, server{addrs: a.Addresses})
			return
		}
	}
}

func (b *builder) hosted(m *model.Zone) error {
	records, err := zonefile.Parse(m.Name, m.Text)
	if err != nil {
		return err
	}
	z, err := b.zone(m.Name)
	if err != nil {
		return err
	}
	z.Model = m
	for _, rr := range records {
		if err := z.add(rr); err != nil {
			return err
		}
	}
	for _, a := range m.Aliases {
		accelerator := b.snapshot.Accelerator(a.Accelerator)
		if accelerator == nil || !accelerator.Enabled {
			continue
		}
		name := string(m.Name)
		if a.Name != "@" {
			name = a.Name + "." + name
		}
		if err := b.steer(z, name, accelerator); err != nil {
			return err
		}
	}
	return nil
}

// zone returns the zone of a name, which is made if it is not there.
func (b *builder) zone(name model.ZoneName) (*Zone, error) {
	apex, err := Pack(string(name))
	if err != nil {
		return nil, err
	}
	z := b.set.zones[string(apex)]
	if z == nil {
		z = &Zone{Name: name, Apex: apex, nodes: map[string]*Node{string(apex): {}}}
		b.set.zones[string(apex)] = z
	}
	return z, nil
}

// accelerators adds the accelerators' own names, to their own zone or the hosted one around them.
func (b *builder) accelerators() error {
	suffix := model.ZoneName(b.snapshot.DNSSuffix)
	if suffix == "" {
		return nil
	}
	apex, err := Pack(string(suffix))
	if err != nil {
		return err
	}
	z := b.set.Find(apex)
	if z == nil {
		if z, err = b.zone(suffix); err != nil {
			return err
		}
	}
	for i := range b.snapshot.Accelerators {
		a := &b.snapshot.Accelerators[i]
		if !a.Enabled || a.DNSName == "" {
			continue
		}
		if err := b.steer(z, a.DNSName, a); err != nil {
			return err
		}
	}
	return nil
}

// steer makes a name an accelerator's.
func (b *builder) steer(z *Zone, name string, a *model.Accelerator) error {
	wire, err := Pack(name)
	if err != nil {
		return err
	}
	if !within(wire, z.Apex) {
		return nil // a name of an earlier suffix
	}
	st := &Steered{Accelerator: a.ID, DualStack: a.IPAddressType == model.DualStack, TTL: b.ttl}
	if b.snapshot.OnNodePool(a) {
		st.Pool = a.Pools[0]
	}
	var v4, v6 []netip.Addr
	for _, addr := range a.Addresses {
		if addr.Is4() {
			v4 = append(v4, addr)
		} else {
			v6 = append(v6, addr)
		}
	}
	st.V4, st.V6 = addressSet(dns.TypeA, b.ttl, v4), addressSet(dns.TypeAAAA, b.ttl, v6)
	tcp, udp := b.serves(a.ID, 443)
	if tcp {
		st.ALPN = []string{"h2"}
		if udp {
			st.ALPN = []string{"h3", "h2"}
		}
	}
	z.node(wire).Steered = st
	return nil
}

// serves reports whether listeners of an accelerator take a port.
func (b *builder) serves(id model.AcceleratorID, port uint16) (tcp, udp bool) {
	for i := range b.snapshot.Listeners {
		l := &b.snapshot.Listeners[i]
		if l.Accelerator != id || !slices.ContainsFunc(l.PortRanges, func(r model.PortRange) bool { return r.Contains(port) }) {
			continue
		}
		tcp, udp = tcp || l.Protocol.Has(model.TCP), udp || l.Protocol.Has(model.UDP)
	}
	return tcp, udp
}

func addressSet(t uint16, ttl uint32, addrs []netip.Addr) *RRSet {
	if len(addrs) == 0 {
		return nil
	}
	set := &RRSet{Type: t, TTL: ttl}
	for _, a := range addrs {
		set.Datas = append(set.Datas, a.AsSlice())
	}
	return set
}

// node returns what is at a name, and makes the empty non-terminals above it.
func (z *Zone) node(wire []byte) *Node {
	for at := wire; len(at) >= len(z.Apex); at = parent(at) {
		if _, there := z.nodes[string(at)]; !there {
			z.nodes[string(at)] = nil
		}
		if len(at) > 1 && at[0] == 1 && at[1] == '*' {
			z.wild = true
		}
		if len(at) == len(z.Apex) {
			break
		}
	}
	if z.nodes[string(wire)] == nil {
		z.nodes[string(wire)] = &Node{}
	}
	return z.nodes[string(wire)]
}

// add takes a record. Records of one set have one TTL, the least (RFC 2181 5.2).
func (z *Zone) add(rr dns.RR) error {
	wire, err := Pack(rr.Header().Name)
	if err != nil {
		return err
	}
	data, err := rdata(rr)
	if err != nil {
		return err
	}
	node := z.node(wire)
	h := rr.Header()
	set := node.Set(h.Rrtype)
	if set == nil {
		node.Sets = append(node.Sets, RRSet{Type: h.Rrtype, TTL: h.Ttl})
		set = &node.Sets[len(node.Sets)-1]
	}
	set.TTL = min(set.TTL, h.Ttl)
	set.Datas = append(set.Datas, data)
	switch rr := rr.(type) {
	case *dns.CNAME, *dns.NS, *dns.DNAME:
		set.Target = data
	case *dns.SOA:
		z.NegTTL = min(h.Ttl, rr.Minttl)
	}
	if h.Rrtype == dns.TypeNS && len(wire) != len(z.Apex) {
		node.cut = true
	}
	return nil
}

// rdata packs what follows a record's header. Names in it become lower case where RFC 4034 6.2 wants
// them so for signatures; they mean the same in any case.
func rdata(rr dns.RR) ([]byte, error) {
	lower(rr)
	b := make([]byte, dns.Len(rr)+nameMax)
	n, err := dns.PackRR(rr, b, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", rr, err)
	}
	_, off, err := dns.UnpackDomainName(b, 0)
	if err != nil {
		return nil, err
	}
	return slices.Clone(b[off+10 : n]), nil // type, class, TTL and length are 10 bytes
}

func lower(rr dns.RR) {
	l := func(names ...*string) {
		for _, n := range names {
			*n = strings.ToLower(*n)
		}
	}
	switch rr := rr.(type) {
	case *dns.NS:
		l(&rr.Ns)
	case *dns.CNAME:
		l(&rr.Target)
	case *dns.DNAME:
		l(&rr.Target)
	case *dns.SOA:
		l(&rr.Ns, &rr.Mbox)
	case *dns.PTR:
		l(&rr.Ptr)
	case *dns.MX:
		l(&rr.Mx)
	case *dns.SRV:
		l(&rr.Target)
	case *dns.RP:
		l(&rr.Mbox, &rr.Txt)
	case *dns.AFSDB:
		l(&rr.Hostname)
	case *dns.RT:
		l(&rr.Host)
	case *dns.PX:
		l(&rr.Map822, &rr.Mapx400)
	case *dns.NAPTR:
		l(&rr.Replacement)
	case *dns.KX:
		l(&rr.Exchanger)
	case *dns.MINFO:
		l(&rr.Rmail, &rr.Email)
	}
}

// finish adds what a zone must have and lacks, and sorts each set as signatures need it (RFC 4034 6.3).
func (b *builder) finish(z *Zone) error {
	apex := z.nodes[string(z.Apex)]
	origin := dns.CanonicalName(string(z.Name))
	var records []dns.RR
	header := func(name string, t uint16, ttl uint32) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
	}
	first := "ns1." + origin
	if apex.Set(dns.TypeNS) == nil {
		for i, s := range b.servers {
			name := s.name
			if name == "" {
				name = fmt.Sprintf("ns%d.%s", i+1, origin)
				for _, a := range s.addrs {
					if a.Is4() {
						records = append(records, &dns.A{Hdr: header(name, dns.TypeA, nsTTL), A: a.AsSlice()})
					} else {
						records = append(records, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, nsTTL), AAAA: a.AsSlice()})
					}
				}
			}
			if i == 0 {
				first = name
			}
			records = append(records, &dns.NS{Hdr: header(origin, dns.TypeNS, nsTTL), Ns: name})
		}
	}
	if apex.Set(dns.TypeSOA) == nil {
		serial := uint32(b.snapshot.Revision)
		if z.Model != nil {
			serial = z.Model.Serial()
		}
		records = append(records, &dns.SOA{Hdr: header(origin, dns.TypeSOA, soaTTL), Ns: first,
			Mbox: "hostmaster." + origin, Serial: serial, Refresh: 7200, Retry: 900, Expire: 1209600, Minttl: negativeTTL})
	}
	for _, rr := range records {
		if err := z.add(rr); err != nil {
			return err
		}
	}
	for _, n := range z.nodes {
		if n == nil {
			continue
		}
		for i := range n.Sets {
			slices.SortFunc(n.Sets[i].Datas, slices.Compare[[]byte])
		}
	}
	z.SOA = apex.Set(dns.TypeSOA)
	return nil
}
