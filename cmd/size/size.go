// Package size answers: how many bytes does a person mean by a text like 4GiB?
package size

import (
	"fmt"
	"strconv"
	"strings"
)

// units are powers of 1,000 and of 1,024, as their names say.
var units = map[string]int64{
	"": 1, "B": 1,
	"K": 1e3, "KB": 1e3, "KIB": 1 << 10,
	"M": 1e6, "MB": 1e6, "MIB": 1 << 20,
	"G": 1e9, "GB": 1e9, "GIB": 1 << 30,
	"T": 1e12, "TB": 1e12, "TIB": 1 << 40,
}

// Parse reads a size in bytes like "512MB"; the empty text is 0.
func Parse(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	unit, known := units[strings.ToUpper(strings.TrimSpace(s[len(digits):]))]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !known || n < 0 || n*float64(unit) >= 1<<62 {
		return 0, fmt.Errorf("%q is not a size like 512MB or 4GiB", s)
	}
	return int64(n * float64(unit)), nil
}
