package zonefile

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/nearcast/nearcast/proto/model"
)

const (
	// defaultTTL is the TTL of records in a file that has no $TTL.
	defaultTTL = 3600
	// ttlMax is the greatest TTL (RFC 2181 8).
	ttlMax = 1<<31 - 1
	// errorsMax bounds what is said about one file.
	errorsMax = 20
)

// made are the types that the server makes itself.
var made = map[uint16]bool{
	dns.TypeRRSIG: true, dns.TypeNSEC: true, dns.TypeNSEC3: true, dns.TypeNSEC3PARAM: true,
	dns.TypeDNSKEY: true, dns.TypeCDS: true, dns.TypeCDNSKEY: true, dns.TypeZONEMD: true,
}

// line is one record and where it stands.
type line struct {
	rr   dns.RR
	line int
}

// Parse reads the text of a zone. Owner names come back in lower case, without repetitions; SOA and NS
// may be missing. Errors are model.FieldErrors of "zone.text" that name the line.
func Parse(zone model.ZoneName, text string) ([]dns.RR, error) {
	origin := dns.CanonicalName(string(zone))
	var wrong model.FieldErrors
	bad := func(at int, format string, args ...any) {
		if len(wrong) < errorsMax {
			wrong = append(wrong, model.FieldError{Field: "zone.text",
				Message: fmt.Sprintf("line %d: %s", at, fmt.Sprintf(format, args...))})
		}
	}
	var lines []line
	// The parser is given entry by entry, so that each record's line is known.
	for entry := range entries(text) {
		if directive := strings.ToUpper(entry.first()); directive == "$INCLUDE" || directive == "$GENERATE" {
			bad(entry.line, "%s is not supported; write the records out", directive)
			continue
		}
		lines = append(lines, line{line: entry.line})
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	lines = lines[:0]
	parser := dns.NewZoneParser(strings.NewReader(text), origin, "")
	parser.SetDefaultTTL(defaultTTL)
	at := newLocator(text)
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		lines = append(lines, line{rr, at.next()})
	}
	if err := parser.Err(); err != nil {
		return nil, model.FieldErrors{{Field: "zone.text", Message: explain(err)}}
	}
	var records []dns.RR
	seen := map[string]bool{}
	for _, l := range lines {
		h := l.rr.Header()
		h.Name = dns.CanonicalName(h.Name)
		if why := refuse(l.rr, origin); why != "" {
			bad(l.line, "%s %s %s", h.Name, dns.TypeToString[h.Rrtype], why)
			continue
		}
		if key := strings.ToLower(l.rr.String()); !seen[key] {
			seen[key] = true
			records = append(records, l.rr)
		}
	}
	for _, why := range conflicts(lines, origin) {
		bad(why.line, "%s", why.text)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return records, nil
}

// explain takes the library's name out of its parser's message, which ends with "at line: 3:14".
func explain(err error) string {
	text := strings.TrimPrefix(err.Error(), "dns: ")
	if what, where, ok := strings.Cut(text, " at line: "); ok {
		number, _, _ := strings.Cut(where, ":")
		return "line " + number + ": " + what
	}
	return text
}

// refuse says why a record cannot be in a zone, or "".
func refuse(rr dns.RR, origin string) string {
	h := rr.Header()
	switch {
	case !dns.IsSubDomain(origin, h.Name):
		return "is not within " + origin
	case h.Class != dns.ClassINET:
		return "is not of class IN"
	case made[h.Rrtype]:
		return "is made by the server; leave it out"
	case h.Ttl > ttlMax:
		return fmt.Sprintf("has a TTL of %d; at most %d are possible", h.Ttl, ttlMax)
	case (h.Rrtype == dns.TypeSOA) && h.Name != origin:
		return "can stand at the apex only"
	case h.Rrtype == dns.TypeDS && h.Name == origin:
		return "belongs into the parent zone"
	}
	return ""
}

type problem struct {
	line int
	text string
}

// conflicts finds what each record alone cannot tell: a CNAME beside other records (RFC 1034 3.6.2),
// two CNAMEs or SOAs, different TTLs in a set (RFC 2181 5.2) are made one by the compiler.
func conflicts(lines []line, origin string) []problem {
	var found []problem
	types := map[string]map[uint16]int{}
	for _, l := range lines {
		h := l.rr.Header()
		if types[h.Name] == nil {
			types[h.Name] = map[uint16]int{}
		}
		types[h.Name][h.Rrtype]++
	}
	for _, l := range lines {
		h := l.rr.Header()
		t := types[h.Name]
		switch {
		case h.Rrtype == dns.TypeCNAME && h.Name == origin:
			found = append(found, problem{l.line, "a CNAME cannot stand at the apex; use an alias"})
		case h.Rrtype == dns.TypeCNAME && (len(t) > 1 || t[dns.TypeCNAME] > 1):
			found = append(found, problem{l.line, h.Name + " has a CNAME and other records; leave one out"})
		case h.Rrtype == dns.TypeSOA && t[dns.TypeSOA] > 1:
			found = append(found, problem{l.line, "a zone has one SOA"})
		}
	}
	return found
}

// entry is one logical line of a zone file: parentheses make it span several.
type entry struct {
	line int
	text string
}

func (e entry) first() string {
	f := strings.Fields(e.text)
	if len(f) == 0 {
		return ""
	}
	return f[0]
}

// entries splits a text as RFC 1035 5.1 says, as far as that is needed to count lines.
func entries(text string) func(yield func(entry) bool) {
	return func(yield func(entry) bool) {
		number, depth, quoted, comment := 1, 0, false, false
		begin, start := 1, 0
		empty := true
		for i := 0; i < len(text); i++ {
			switch ch := text[i]; {
			case ch == '\n':
				comment = false
				number++
				if depth > 0 || quoted {
					continue
				}
				if !empty && !yield(entry{begin, text[start:i]}) {
					return
				}
				begin, start, empty = number, i+1, true
			case comment:
			case ch == '\\':
				empty = false
				i++
			case ch == '"':
				quoted, empty = !quoted, false
			case quoted:
			case ch == ';':
				comment = true
			case ch == '(':
				depth++
			case ch == ')':
				depth--
			case ch != ' ' && ch != '\t' && ch != '\r':
				empty = false
			}
		}
		if !empty {
			yield(entry{begin, text[start:]})
		}
	}
}

// locator tells the lines of a file's records in their order.
type locator struct {
	lines []int
	last  int
}

func newLocator(text string) *locator {
	l := &locator{}
	for e := range entries(text) {
		if !strings.HasPrefix(e.first(), "$") {
			l.lines = append(l.lines, e.line)
		}
	}
	return l
}

func (l *locator) next() int {
	if len(l.lines) > 0 {
		l.last, l.lines = l.lines[0], l.lines[1:]
	}
	return l.last
}
