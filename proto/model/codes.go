package model

import (
	"fmt"
	"strconv"
	"strings"
)

// Codes is a set of HTTP status codes, as HealthCheck.ExpectedCodes names it.
type Codes []struct{ from, to int }

// codesMax bounds the parts of one list.
const codesMax = 32

// ParseCodes reads a list of codes and ranges, like "200-399,404". The empty string is the default,
// DefaultExpectedCodes. Codes are 100 to 599; 1xx answers are never final, so a list that has them
// is accepted and they match nothing.
func ParseCodes(s string) (Codes, error) {
	if s == "" {
		s = DefaultExpectedCodes
	}
	parts := strings.Split(s, ",")
	if len(parts) > codesMax {
		return nil, fmt.Errorf("%d parts, at most %d are allowed", len(parts), codesMax)
	}
	codes := make(Codes, len(parts))
	for i, part := range parts {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		var err error
		if codes[i].from, err = parseCode(from); err != nil {
			return nil, err
		}
		if codes[i].to, err = parseCode(to); err != nil {
			return nil, err
		}
		if codes[i].from > codes[i].to {
			return nil, fmt.Errorf("range %q runs backwards", part)
		}
	}
	return codes, nil
}

// Has reports whether code is in the set.
func (c Codes) Has(code int) bool {
	for _, r := range c {
		if r.from <= code && code <= r.to {
			return true
		}
	}
	return false
}

func parseCode(s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil || len(s) != 3 || n < 100 || n > 599 {
		return 0, fmt.Errorf("%q is not a status code from 100 to 599, like in \"200-399,404\"", s)
	}
	return n, nil
}
