package model

import (
	"strings"
	"testing"
)

func TestParseCodes(t *testing.T) {
	for _, c := range []struct {
		in       string
		has, not []int
	}{
		{"", []int{200, 301, 399}, []int{199, 400, 503}},
		{"200-399,404", []int{200, 399, 404}, []int{400, 403, 405}},
		{" 204 , 500 - 502 ", []int{204, 500, 501, 502}, []int{200, 503}},
	} {
		codes, err := ParseCodes(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
		for _, n := range c.has {
			if !codes.Has(n) {
				t.Errorf("%q lacks %d", c.in, n)
			}
		}
		for _, n := range c.not {
			if codes.Has(n) {
				t.Errorf("%q has %d", c.in, n)
			}
		}
	}
	for _, in := range []string{
		",", "200,", "20", "2000", "-", "200-", "399-200", "+20", "2xx", "99", "600",
		"200-300-400", strings.Repeat("200,", codesMax) + "200",
	} {
		if _, err := ParseCodes(in); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}
