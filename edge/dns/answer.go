package dns

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/dnssec"
	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/edge/zone"
)

// State is what answers are made from. It is immutable.
type State struct {
	Zones   *zone.Set
	Steer   *geo.Table
	Signers map[*zone.Zone]*dnssec.Signer // of signed zones
	Cookies [][cookieSecretLen]byte       // the first one makes them; at least one
}

// answerer answers, one query at a time. It is one goroutine's own.
type answerer struct {
	s     *Server
	count *counters
	rate  *limiter
	now   func() time.Time

	state   *State
	q       query
	m       message
	o       opt
	geo     geo.Scratch
	sign    []byte
	cookie  []byte
	steered zone.RRSet // made for one answer
	datas   [][]byte
	bytes   []byte
	types   []uint16

	at     time.Time  // of the query
	client netip.Addr // by whom the answer is chosen
	scope  int        // of the ECS option; -1: the answer does not depend on it
	ede    int        // extended error; -1: none
	kind   uint64     // what is like, for the rate limiter
	aa     bool
}

const noEDE = -1

// Extended errors (RFC 8914).
const (
	edeOther, edeProhibited, edeNotAuthoritative, edeNotSupported = 0, 18, 20, 21
)

// transport says how a query came.
type transport uint8

const (
	overUDP transport = iota
	overTCP
	overTLS
)

// answer appends the answer to a message, or nothing. A panic is a bug, but no reason to stop serving:
// it is counted, and the message goes unanswered.
func (a *answerer) answer(out []byte, msg []byte, from netip.Addr, via transport) (result []byte) {
	defer func() {
		if p := recover(); p != nil {
			a.count.panics.Add(1)
			a.s.panicked(p)
			result = out
		}
	}()
	a.state = a.s.state.Load()
	if a.state == nil {
		return out
	}
	a.scope, a.ede, a.aa, a.kind, a.client = -1, noEDE, false, 0, from
	rcode := a.q.parse(msg)
	if rcode == drop {
		a.count.malformed.Add(1)
		return out
	}
	now := a.now()
	a.at = now
	known := len(a.q.cookie) > clientCookie && validCookie(a.q.cookie, a.state.Cookies, from, now)
	limit := tcpSizeMax
	if via == overUDP {
		limit = a.sizeLimit(known)
	}
	m := &a.m
	m.begin(out, &a.q, limit-a.optSize())
	switch {
	case rcode != 0:
	case a.q.edns && a.q.version != 0:
		rcode = dns.RcodeBadVers
	case len(a.q.question) == 0: // the cookie alone
	default:
		rcode = a.resolve()
	}
	if via == overUDP && !known {
		switch a.rate.judge(from, a.kind, now) {
		case silence:
			if len(a.q.cookie) == 0 {
				a.count.limited.Add(1)
				return out
			}
			m.truncate()
			m.full, rcode = false, dns.RcodeBadCookie
			a.count.limited.Add(1)
		case slip:
			a.count.slipped.Add(1)
			m.truncate()
		}
	}
	if m.full {
		a.count.truncated.Add(1)
	}
	a.finish(rcode, via, from, now)
	a.count.answered(rcode)
	return m.buf
}

// sizeLimit is the most bytes of an answer by UDP.
func (a *answerer) sizeLimit(known bool) int {
	if !a.q.edns || !known {
		return udpSizePlain
	}
	return min(max(a.q.size, udpSizePlain), udpSizeMax)
}

// optSize is the room that the OPT record will need.
func (a *answerer) optSize() int {
	if !a.q.edns {
		return 0
	}
	n := 11 + 4 + 2 + 4 + 2 // keepalive, extended error
	if a.q.nsid {
		n += 4 + len(a.s.nsid)
	}
	if a.q.ecs.there {
		n += 4 + 4 + a.q.ecs.bytes
	}
	if len(a.q.cookie) > 0 {
		n += 4 + clientCookie + serverCookie
	}
	return n
}

// finish writes the OPT record and the header.
func (a *answerer) finish(rcode int, via transport, from netip.Addr, now time.Time) {
	m, o := &a.m, &a.o
	m.finish(rcode, a.aa)
	if !a.q.edns {
		return
	}
	o.begin(rcode, a.q.do, a.q.co && a.q.do)
	if a.q.nsid {
		o.option(optNSID, a.s.nsid)
	}
	if e := &a.q.ecs; e.there && a.q.version == 0 {
		scope := uint8(0)
		if a.scope > 0 && e.source > 0 {
			scope = uint8(a.scope)
		}
		o.option(optECS, []byte{0, byte(e.family), e.source, scope}, e.raw[:e.bytes])
	}
	if len(a.q.cookie) >= clientCookie && a.q.version == 0 {
		a.cookie = appendCookie(a.cookie[:0], &a.state.Cookies[0], a.q.cookie[:clientCookie], from, uint32(now.Unix()))
		o.option(optCookie, a.q.cookie[:clientCookie], a.cookie)
	}
	if a.q.keepalive && via != overUDP {
		t := uint16(keepaliveTimeout / (100 * time.Millisecond))
		o.option(optKeepalive, []byte{byte(t >> 8), byte(t)})
	}
	if a.ede != noEDE {
		o.option(optEDE, []byte{0, byte(a.ede)})
	}
	if via == overTLS && a.q.padding {
		size := len(m.buf) - m.start + len(o.buf) + 4
		o.option(optPadding, make([]byte, (padTo-size%padTo)%padTo))
	}
	m.buf = append(m.buf, o.buf...)
	b := m.buf[m.start:]
	binary.BigEndian.PutUint16(b[10:], m.count[sectionAdditional]+1)
}

// resolve fills the answer and returns its rcode.
func (a *answerer) resolve() int {
	q := &a.q
	a.like(q.name, uint64(q.qtype))
	switch {
	case q.qclass == dns.ClassCHAOS:
		return a.chaos()
	case q.qclass != dns.ClassINET && q.qclass != dns.ClassANY:
		return dns.RcodeRefused
	}
	switch q.qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		a.ede = edeProhibited
		return dns.RcodeRefused
	case 0, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY, typeNXNAME:
		return dns.RcodeFormatError
	case dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeNotImplemented
	}
	z := a.state.Zones.Find(q.name)
	if z != nil && q.qtype == dns.TypeDS && len(q.name) == len(z.Apex) {
		if up := a.state.Zones.Parent(z); up != nil {
			z = up
		}
	}
	if z == nil {
		a.ede = edeNotAuthoritative
		a.like(nil, uint64(dns.RcodeRefused))
		return dns.RcodeRefused
	}
	rcode, err := a.inZone(z)
	if err != nil {
		a.count.failed.Add(1)
		a.m.truncate()
		a.m.full, a.aa, a.ede = false, false, edeOther
		return dns.RcodeServerFailure
	}
	return rcode
}

// typeNXNAME may not be asked for (RFC 9824 3.4).
const typeNXNAME = 128

// like sets what the rate limiter counts as one.
func (a *answerer) like(name []byte, more uint64) {
	h := 14695981039346656037 ^ more
	for _, c := range name {
		h = (h ^ uint64(c)) * 1099511628211
	}
	a.kind = h
}

// chaos answers for the server itself: who it is (RFC 4892), and not which version.
func (a *answerer) chaos() int {
	q := &a.q
	name := zone.Text(q.name)
	if q.qtype != dns.TypeTXT && q.qtype != dns.TypeANY || name != "id.server." && name != "hostname.bind." {
		return dns.RcodeRefused
	}
	text := a.s.nsid[:min(len(a.s.nsid), 255)]
	a.m.class = dns.ClassCHAOS
	a.aa = true
	a.bytes = append(append(a.bytes[:0], byte(len(text))), text...)
	a.m.record(sectionAnswer, q.name, dns.TypeTXT, 0, a.bytes)
	return 0
}

// inZone answers from a zone.
func (a *answerer) inZone(z *zone.Zone) (int, error) {
	q := &a.q
	signer := a.state.Signers[z]
	if !q.do {
		signer = nil
	}
	name := q.name
	for range chaseMax {
		found := z.Lookup(name, q.qtype == dns.TypeDS)
		switch found.Kind {
		case zone.Referral:
			if len(name) != len(q.name) || string(name) != string(q.name) {
				return 0, nil // a CNAME leads out of the zone
			}
			return 0, a.referral(z, found, signer)
		case zone.NoName:
			if string(name) != string(q.name) {
				return 0, nil // whoever follows the CNAME is told by another question
			}
			a.aa = true
			return a.nothing(z, name, false, nil, signer)
		}
		a.aa = true
		next, err := a.here(z, name, found.Node, signer)
		if next == nil || err != nil {
			return a.denied(z, name, found.Node, signer, err)
		}
		name = next
	}
	return 0, nil
}

// denied adds the proof of nothing if here has found nothing.
func (a *answerer) denied(z *zone.Zone, name []byte, n *zone.Node, signer *dnssec.Signer, err error) (int, error) {
	if err != nil || a.m.count[sectionAnswer] > 0 || a.m.full {
		return 0, err
	}
	return a.nothing(z, name, true, n, signer)
}

// here adds what is at a name. It returns the name that a CNAME leads to within the zone.
func (a *answerer) here(z *zone.Zone, name []byte, n *zone.Node, signer *dnssec.Signer) (next []byte, err error) {
	q := &a.q
	if signer != nil && len(name) == len(z.Apex) {
		switch q.qtype {
		case dns.TypeDNSKEY:
			return nil, a.add(sectionAnswer, name, signer.DNSKEY, signer)
		case dns.TypeCDS:
			return nil, a.add(sectionAnswer, name, signer.CDS, signer)
		case dns.TypeCDNSKEY:
			return nil, a.add(sectionAnswer, name, signer.CDNSKEY, signer)
		}
	} else if s := a.state.Signers[z]; s != nil && len(name) == len(z.Apex) && q.qtype == dns.TypeDNSKEY {
		return nil, a.add(sectionAnswer, name, s.DNSKEY, nil)
	}
	switch {
	case q.qtype == dns.TypeANY: // RFC 8482 4.2
		return nil, a.add(sectionAnswer, name, &hinfo, signer)
	case q.qtype == dns.TypeNSEC && signer != nil:
		return nil, a.add(sectionAnswer, name, a.denial(z, name, true, n, 0), signer)
	case q.qtype == dns.TypeRRSIG && signer != nil && n != nil && len(n.Sets) > 0:
		return nil, a.signatures(sectionAnswer, name, &n.Sets[0], signer)
	case n == nil:
		return nil, nil
	}
	if n.Steered != nil {
		if set := a.steer(n.Steered, q.qtype); set != nil {
			return nil, a.add(sectionAnswer, name, set, signer)
		}
	}
	if set := n.Set(q.qtype); set != nil {
		return nil, a.add(sectionAnswer, name, set, signer)
	}
	cname := n.Set(dns.TypeCNAME)
	if cname == nil {
		return nil, nil
	}
	if err := a.add(sectionAnswer, name, cname, signer); err != nil || a.m.full {
		return nil, err
	}
	// Only what lies in this very zone is followed, and no steered name: one ECS scope speaks for a
	// whole answer (RFC 7871 7.2.1).
	target := cname.Target
	if a.state.Zones.Find(target) != z {
		return nil, nil
	}
	if f := z.Lookup(target, false); f.Kind != zone.Here || f.Node == nil || f.Node.Steered != nil {
		return nil, nil
	}
	return target, nil
}

// hinfo answers ANY: {"RFC8482", ""}, to be kept for an hour.
var hinfo = zone.RRSet{Type: dns.TypeHINFO, TTL: 3600, Datas: [][]byte{append([]byte("\x07RFC8482"), 0)}}

// add adds a set with its signatures.
func (a *answerer) add(s section, owner []byte, set *zone.RRSet, signer *dnssec.Signer) error {
	a.m.set(s, owner, set)
	if signer == nil || a.m.full {
		return nil
	}
	return a.signatures(s, owner, set, signer)
}

func (a *answerer) signatures(s section, owner []byte, set *zone.RRSet, signer *dnssec.Signer) error {
	return signer.Sign(owner, set, a.now(), &a.sign, func(data []byte) {
		a.m.record(s, owner, dns.TypeRRSIG, set.TTL, data)
	})
}

// referral tells who answers below a delegation.
func (a *answerer) referral(z *zone.Zone, f zone.Found, signer *dnssec.Signer) error {
	a.like(f.Owner, uint64(dns.TypeNS))
	ns := f.Node.Set(dns.TypeNS)
	a.m.set(sectionAuthority, f.Owner, ns)
	if signer != nil {
		ds := f.Node.Set(dns.TypeDS)
		if ds == nil {
			ds = dnssec.Denial(f.Owner, true, []uint16{dns.TypeNS}, z.NegTTL)
		}
		if err := a.add(sectionAuthority, f.Owner, ds, signer); err != nil {
			return err
		}
	}
	for _, server := range ns.Datas {
		z.Glue(server, func(owner []byte, set *zone.RRSet) { a.m.set(sectionAdditional, owner, set) })
	}
	return nil
}

// nothing says that there is no such name, or none of this type at it.
func (a *answerer) nothing(z *zone.Zone, name []byte, exists bool, n *zone.Node, signer *dnssec.Signer) (int, error) {
	rcode := 0
	if !exists {
		rcode = dns.RcodeNameError
		a.like(z.Apex, uint64(rcode)) // invented names are all alike
	}
	soa := *z.SOA
	soa.TTL = min(soa.TTL, z.NegTTL) // RFC 2308 5
	if err := a.add(sectionAuthority, z.Apex, &soa, signer); err != nil {
		return rcode, err
	}
	if signer == nil {
		return rcode, nil
	}
	if !exists && !a.q.co {
		rcode = 0 // RFC 9824 3.1; with the CO flag the rcode is what it would be otherwise (5.1)
	}
	return rcode, a.add(sectionAuthority, name, a.denial(z, name, exists, n, a.q.qtype), signer)
}

// denial is the NSEC of a name, without the type that was asked for in vain.
func (a *answerer) denial(z *zone.Zone, name []byte, exists bool, n *zone.Node, not uint16) *zone.RRSet {
	t := a.types[:0]
	if n != nil {
		for i := range n.Sets {
			t = append(t, n.Sets[i].Type)
		}
		if st := n.Steered; st != nil {
			for _, s := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS} {
				if s != not && (s != dns.TypeAAAA || st.DualStack) && (s != dns.TypeHTTPS || len(st.ALPN) > 0) {
					t = append(t, s)
				}
			}
		}
	}
	if exists && len(name) == len(z.Apex) {
		t = append(t, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY)
	}
	a.types = t
	return dnssec.Denial(name, exists, t, z.NegTTL)
}
