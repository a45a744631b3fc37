package dns

import (
	"encoding/binary"
	"math"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/edge/zone"
)

// section of a message.
type section uint8

const (
	sectionAnswer section = iota
	sectionAuthority
	sectionAdditional
)

// message is an answer in the making, at the end of a buffer. What does not fit marks it as full.
type message struct {
	buf   []byte
	start int // of the message in buf
	limit int // bytes, without the OPT record
	full  bool
	count [3]uint16
	q     *query
	body  int // where records begin
	class uint16
}

// begin starts an answer with the header and the question as it came.
func (m *message) begin(buf []byte, q *query, limit int) {
	*m = message{buf: buf, start: len(buf), limit: limit, q: q, class: dns.ClassINET}
	m.buf = append(m.buf, make([]byte, headerBytes)...)
	m.buf = append(m.buf, q.question...)
	m.body = len(m.buf)
}

// finish writes the header. rcode's upper bits are in the OPT record.
func (m *message) finish(rcode int, authoritative bool) {
	q := m.q
	flags := uint16(flagQR) | q.flags&(flagRD|opcodeMask<<opcodeShift) | uint16(rcode&0xf)
	if q.opcode == dns.OpcodeQuery {
		flags |= q.flags & flagCD
	}
	if authoritative {
		flags |= flagAA
	}
	if m.full {
		flags |= flagTC
	}
	b := m.buf[m.start:]
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[2:], flags)
	if len(q.question) > 0 {
		binary.BigEndian.PutUint16(b[4:], 1)
	}
	for i, n := range m.count {
		binary.BigEndian.PutUint16(b[6+2*i:], n)
	}
}

// truncate takes all records out and says that the answer was too long.
func (m *message) truncate() {
	m.buf, m.count, m.full = m.buf[:m.body], [3]uint16{}, true
}

// record adds one record.
func (m *message) record(s section, owner []byte, t uint16, ttl uint32, data []byte) {
	if m.full {
		return
	}
	m.name(owner)
	m.buf = binary.BigEndian.AppendUint16(m.buf, t)
	m.buf = binary.BigEndian.AppendUint16(m.buf, m.class)
	m.buf = binary.BigEndian.AppendUint32(m.buf, ttl)
	m.buf = binary.BigEndian.AppendUint16(m.buf, uint16(len(data)))
	m.buf = append(m.buf, data...)
	if len(m.buf)-m.start > m.limit || m.count[s] == math.MaxUint16 {
		m.truncate()
		return
	}
	m.count[s]++
}

// set adds all records of a set.
func (m *message) set(s section, owner []byte, set *zone.RRSet) {
	for _, d := range set.Datas {
		m.record(s, owner, set.Type, set.TTL, d)
	}
}

// name adds a name. The tail that it shares with the question's name is a pointer into the question.
func (m *message) name(name []byte) {
	q := m.q
	for len(name) > 1 {
		for i := range q.labels {
			at := int(q.starts[i])
			if len(q.name)-at == len(name) && string(q.name[at:]) == string(name) {
				m.buf = binary.BigEndian.AppendUint16(m.buf, uint16(0xc000|headerBytes+at))
				return
			}
		}
		n := 1 + int(name[0])
		m.buf = append(m.buf, name[:n]...)
		name = name[n:]
	}
	m.buf = append(m.buf, 0)
}

// opt is an answer's OPT record in the making.
type opt struct {
	buf []byte
}

// begin starts the record.
func (o *opt) begin(rcode int, do, co bool) {
	flags := uint32(rcode>>4) << 24
	if do {
		flags |= ednsDO
	}
	if co {
		flags |= ednsCO
	}
	o.buf = append(o.buf[:0], 0)
	o.buf = binary.BigEndian.AppendUint16(o.buf, dns.TypeOPT)
	o.buf = binary.BigEndian.AppendUint16(o.buf, udpSizeMax)
	o.buf = binary.BigEndian.AppendUint32(o.buf, flags)
	o.buf = append(o.buf, 0, 0)
}

// option adds one, of several parts.
func (o *opt) option(code uint16, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	o.buf = binary.BigEndian.AppendUint16(o.buf, code)
	o.buf = binary.BigEndian.AppendUint16(o.buf, uint16(n))
	for _, p := range parts {
		o.buf = append(o.buf, p...)
	}
	binary.BigEndian.PutUint16(o.buf[9:], uint16(len(o.buf)-11))
}
