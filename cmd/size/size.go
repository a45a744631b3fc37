// Package size answers: how many bytes does a person mean by a text like 4GiB?
package size

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"
)

// Parse reads a size in bytes like "512MB" or "4 GiB", with units of powers of 1,000 and of 1,024 as their names
// say; the empty text is 0.
func Parse(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n > math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size like 512MB or 4GiB", s)
	}
	return int64(n), nil
}
