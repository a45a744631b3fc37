package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/zone"
)

// A message (RFC 1035 4.1):
//
//	 0    2      4      6      8      10     12
//	+----+------+------+------+------+------+-----------------------+-----------------+
//	| id | flags| QD   | AN   | NS   | AR   | name, type(2) class(2)| records …       |
//	+----+------+------+------+------+------+-----------------------+-----------------+
//
// flags: QR 1, opcode 4, AA 1, TC 1, RD 1, RA 1, Z 1, AD 1, CD 1, rcode 4.
const (
	headerBytes = 12

	flagQR, flagAA, flagTC, flagRD, flagCD = 1 << 15, 1 << 10, 1 << 9, 1 << 8, 1 << 4
	opcodeShift, opcodeMask                = 11, 0xf

	// Of an OPT record's TTL field (RFC 6891 6.1.3, RFC 9824 5).
	ednsDO, ednsCO = 1 << 15, 1 << 14
)

// EDNS options that are understood.
const (
	optNSID, optECS, optCookie, optKeepalive, optPadding, optEDE = 3, 8, 10, 11, 12, 15
)

// recordsMax is how many additional records a query may have: OPT and a signature, and room for what
// may be invented.
const recordsMax = 4

// query is what came.
type query struct {
	id, flags uint16
	opcode    uint8
	question  []byte // name, type and class as they came
	name      []byte // in lower, wire form
	qtype     uint16
	qclass    uint16
	lower     [256]byte
	starts    [128]uint8 // where labels of name begin
	labels    int

	edns      bool
	size      int // of UDP answers that the client takes
	version   uint8
	do, co    bool
	nsid      bool
	keepalive bool
	padding   bool
	tsig      bool
	cookie    []byte // as it came: client's 8 bytes, server's 0 or 8–32
	ecs       ecs
}

// ecs is the client subnet option (RFC 7871).
type ecs struct {
	there  bool
	family uint16
	source uint8
	addr   netip.Addr // valid: there is an address to go by
	raw    [16]byte   // the address bytes as they came
	bytes  int
}

// drop says that a message gets no answer.
const drop = -1

// reset forgets the message before. What its arrays hold is overwritten and need not be cleared.
func (q *query) reset() {
	q.question, q.name, q.cookie, q.labels = nil, nil, nil, 0
	q.qtype, q.qclass = 0, 0
	q.edns, q.size, q.version, q.do, q.co = false, 0, 0, false, false
	q.nsid, q.keepalive, q.padding, q.tsig = false, false, false, false
	q.ecs.there, q.ecs.addr, q.ecs.bytes, q.ecs.source, q.ecs.family = false, netip.Addr{}, 0, 0, 0
}

// parse reads a message. It returns the rcode of what is wrong with it, 0 if nothing is, or drop.
func (q *query) parse(b []byte) int {
	q.reset()
	if len(b) < headerBytes {
		return drop
	}
	q.id, q.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if q.flags&flagQR != 0 {
		return drop // an answer: whoever answers answers makes loops
	}
	q.opcode = uint8(q.flags >> opcodeShift & opcodeMask)
	qd, an := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	ns, ar := binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
	switch q.opcode {
	case dns.OpcodeQuery:
	case dns.OpcodeNotify, dns.OpcodeUpdate:
		return dns.RcodeRefused
	default:
		return dns.RcodeNotImplemented
	}
	if qd > 1 || an != 0 || ns != 0 || ar > recordsMax {
		return dns.RcodeFormatError
	}
	rest := b[headerBytes:]
	if qd == 1 {
		if rest = q.parseQuestion(rest); rest == nil {
			return dns.RcodeFormatError
		}
	}
	for range ar {
		if rest = q.parseRecord(rest); rest == nil {
			return dns.RcodeFormatError
		}
	}
	if qd == 0 && len(q.cookie) == 0 { // RFC 7873 5.4: a question about the cookie alone
		return dns.RcodeFormatError
	}
	if q.tsig {
		return dns.RcodeNotAuth
	}
	return 0
}

// parseQuestion returns what follows, or nil.
func (q *query) parseQuestion(b []byte) []byte {
	at := 0
	for {
		if at >= len(b) || at >= 255 {
			return nil
		}
		n := int(b[at])
		if n == 0 {
			break
		}
		if n > 63 || at+1+n >= len(b) { // a pointer has nothing to point to yet
			return nil
		}
		q.starts[q.labels] = uint8(at)
		q.labels++
		at += 1 + n
	}
	at++
	if at > 255 || len(b) < at+4 {
		return nil
	}
	q.name = q.lower[:copy(q.lower[:], b[:at])]
	zone.Lower(q.name)
	q.qtype, q.qclass = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	q.question = b[:at+4]
	return b[at+4:]
}

// parseRecord reads one additional record: OPT, or one that does not matter. It returns what follows,
// or nil.
func (q *query) parseRecord(b []byte) []byte {
	at := 0
	for { // the owner's name; it may end in a pointer
		if at >= len(b) || at > 255 {
			return nil
		}
		n := int(b[at])
		if n >= 0xc0 {
			at += 2
			break
		}
		if n > 63 {
			return nil
		}
		at += 1 + n
		if n == 0 {
			break
		}
	}
	if len(b) < at+10 {
		return nil
	}
	t, class := binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	ttl, length := binary.BigEndian.Uint32(b[at+4:]), int(binary.BigEndian.Uint16(b[at+8:]))
	if len(b) < at+10+length {
		return nil
	}
	data, rest := b[at+10:at+10+length], b[at+10+length:]
	switch t {
	case dns.TypeTSIG, dns.TypeSIG:
		q.tsig = true
	case dns.TypeOPT:
		if q.edns || at != 1 { // one, and its owner is the root (RFC 6891 6.1.1)
			return nil
		}
		q.edns, q.size, q.version = true, int(class), uint8(ttl>>16)
		q.do, q.co = ttl&ednsDO != 0, ttl&ednsCO != 0
		if q.version == 0 && !q.parseOptions(data) {
			return nil
		}
	}
	return rest
}

func (q *query) parseOptions(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if len(b) < 4+n {
			return false
		}
		v := b[4 : 4+n]
		b = b[4+n:]
		switch code {
		case optNSID:
			q.nsid = true
		case optKeepalive:
			q.keepalive = true
		case optPadding:
			q.padding = true
		case optCookie:
			if n != 8 && (n < 16 || n > 40) { // RFC 7873 4
				return false
			}
			q.cookie = v
		case optECS:
			if q.ecs.there || !q.ecs.parse(v) {
				return false
			}
		}
	}
	return true
}

// parse reads the option as RFC 7871 6 wants it: no more address bytes than the prefix needs, and no bit
// beyond it. A family that is not known is ignored.
func (e *ecs) parse(v []byte) bool {
	if len(v) < 4 {
		return false
	}
	e.there, e.family, e.source = true, binary.BigEndian.Uint16(v), v[2]
	addr := v[4:]
	width := 0
	switch e.family {
	case 1:
		width = 32
	case 2:
		width = 128
	default:
		e.there = false
		return true
	}
	if int(e.source) > width || v[3] != 0 || len(addr) != (int(e.source)+7)/8 {
		return false
	}
	e.raw = [16]byte{}
	e.bytes = copy(e.raw[:], addr)
	if spare := uint(e.bytes*8 - int(e.source)); spare > 0 && e.raw[e.bytes-1]&(1<<spare-1) != 0 {
		return false
	}
	switch {
	case e.source == 0: // the client does not want to be judged by its network
	case width == 32:
		e.addr = netip.AddrFrom4([4]byte(e.raw[:4]))
	default:
		e.addr = netip.AddrFrom16(e.raw).Unmap()
	}
	return true
}
