package model

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// check collects what is wrong with one object. Paths begin with root, the object's name in the
// API ("listener") or in a snapshot ("listeners[4fd0ab12]").
type check struct {
	root string
	errs *FieldErrors
}

func newCheck(root string) check { return check{root, &FieldErrors{}} }

// at returns a check of the object under field that adds to the same list.
func (c check) at(field string) check { return check{c.path(field), c.errs} }

// atKey is at for one element of a list that is named by its key.
func (c check) atKey(list, key string) check {
	if key == "" || !isToken(key) || len(key) > TargetNameMax {
		key = show(key)
	}
	return c.at(list + "[" + key + "]")
}

// atIndex is at for one element of a list that is named by its place, counted from 0.
func (c check) atIndex(list string, i int) check { return c.at(index(list, i)) }

func (c check) path(field string) string {
	switch {
	case field == "":
		return c.root
	case c.root == "":
		return field
	}
	return c.root + "." + field
}

// wrong records a problem. Field "" is the object itself.
func (c check) wrong(field, format string, args ...any) {
	if len(*c.errs) < fieldErrorsMax {
		*c.errs = append(*c.errs, FieldError{c.path(field), fmt.Sprintf(format, args...)})
	}
}

// err returns what was recorded as FieldErrors, or nil.
func (c check) err() error {
	if len(*c.errs) == 0 {
		return nil
	}
	return *c.errs
}

func index(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }

// At returns the same errors with the first element of each path replaced by root: errors of a
// "listener" become errors of "listeners[4fd0ab12]", or of "request.listener".
func (es FieldErrors) At(root string) FieldErrors {
	moved := make(FieldErrors, len(es))
	for i, e := range es {
		rest := strings.IndexByte(e.Field, '.')
		if rest < 0 {
			rest = len(e.Field)
		}
		moved[i] = FieldError{root + e.Field[rest:], e.Message}
	}
	return moved
}

// show quotes a value from outside for a message, cut short if it is long.
func show(s string) string {
	if len(s) > shownMax {
		return strconv.Quote(strings.ToValidUTF8(s[:shownMax], "")) + "…"
	}
	return strconv.Quote(s)
}

// name checks a name as accelerators, pools, regions, sites and nodes have it.
func (c check) name(field, s string) {
	const fix = "use 1–64 of the characters a–z, A–Z, 0–9, '_', '.' and '-'"
	switch {
	case s == "":
		c.wrong(field, "is missing; %s", fix)
	case len(s) > NameMax:
		c.wrong(field, "has %d characters; %s", utf8.RuneCountInString(s), fix)
	case !isName(s):
		c.wrong(field, "%s has a character that names cannot have; %s", show(s), fix)
	case strings.ContainsRune(".-", rune(s[0])) || strings.ContainsRune(".-", rune(s[len(s)-1])):
		c.wrong(field, "%s begins or ends with '.' or '-'; drop it", show(s))
	}
}

// id checks an identifier. Its form is loose on purpose: what matters is that it is short and has
// no character that a path, a log line or a file name could trip over.
func (c check) id(field, s string) {
	switch {
	case s == "":
		c.wrong(field, "is missing; name the object by its id")
	case len(s) > IDMax || !isName(s):
		c.wrong(field, "%s is not an identifier; take it from a list or get answer", show(s))
	}
}

// idOrNone is id for an output field, which a new object does not have yet.
func (c check) idOrNone(field, s string) {
	if s != "" {
		c.id(field, s)
	}
}

// host checks an address or DNS name.
func (c check) host(field, s string) {
	if why := hostProblem(s); why != "" {
		c.wrong(field, "%s %s; give an IP address like 192.0.2.10 or a DNS name like app.example.com",
			show(s), why)
	}
}

// text checks free text for people.
func (c check) text(field, s string, charsMax int) {
	switch n := utf8.RuneCountInString(s); {
	case !utf8.ValidString(s):
		c.wrong(field, "is not valid UTF-8; send it as UTF-8")
	case n > charsMax:
		c.wrong(field, "has %d characters; shorten it to %d", n, charsMax)
	case strings.ContainsFunc(s, unicode.IsControl):
		c.wrong(field, "has a control character; remove it")
	}
}

func (c check) tags(tags map[string]string) {
	if len(tags) > TagsMax {
		c.wrong("tags", "has %d tags; at most %d are possible", len(tags), TagsMax)
		return
	}
	for _, key := range sortedKeys(tags) {
		if key == "" {
			c.wrong("tags", "has an empty key; give every tag a key of 1–%d characters", TagKeyMax)
			continue
		}
		c.text("tags["+show(key)+"]", key, TagKeyMax)
		c.text("tags["+show(key)+"]", tags[key], TagValueMax)
	}
}

// addr checks an address that machines use as their own or that clients connect to.
func (c check) addr(field string, a netip.Addr) {
	switch {
	case !a.IsValid():
		c.wrong(field, "is missing; give an IP address")
	case a.Zone() != "":
		c.wrong(field, "%v has a zone; leave out %%%s", a, show(a.Zone()))
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		c.wrong(field, "%v is not an address of one machine; give a unicast address", a)
	case a.Is4In6():
		c.wrong(field, "%v is an IPv4 address written as IPv6; write %v", a, a.Unmap())
	}
}

func (c check) addrPort(field string, a netip.AddrPort) {
	c.addr(field, a.Addr())
	if a.Addr().IsValid() && a.Port() == 0 {
		c.wrong(field, "%v has port 0; give a port from 1 to 65535", a)
	}
}

func (c check) count(field string, n, limit int) bool {
	if n > limit {
		c.wrong(field, "has %d entries; at most %d are possible", n, limit)
	}
	return n <= limit
}

// isName reports whether s has only characters that names and identifiers may have.
func isName(s string) bool {
	for i := range len(s) {
		switch b := s[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		case b == '_', b == '.', b == '-':
		default:
			return false
		}
	}
	return s != ""
}

// isToken reports whether s is printable, without spaces.
func isToken(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.IsSpace(r)
	})
}

// hostProblem says why s is neither an IP address nor a DNS name, or "".
func hostProblem(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		switch {
		case a.Zone() != "":
			return "has a zone, which only one machine understands"
		case a.IsUnspecified() || a.IsMulticast():
			return "is not the address of one machine"
		}
		return ""
	}
	name := strings.TrimSuffix(s, ".")
	if name == "" {
		return "is empty"
	}
	if len(name) > HostMax {
		return "is longer than a DNS name can be"
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 || !isName(label) || label[0] == '-' || label[len(label)-1] == '-' {
			return "is neither an IP address nor a DNS name"
		}
	}
	// RFC 3696 2: a top-level domain is never all digits, so this is a mistyped address.
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "looks like an IP address but is none"
	}
	return ""
}
