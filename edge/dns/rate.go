package dns

import (
	"net/netip"
	"time"
)

// limiter bounds how many like answers a network gets by UDP, so that this server is no use for
// flooding others with forged source addresses (response rate limiting). It is one goroutine's own: a
// table of fixed size, in which a newcomer takes the place of whoever has the same slot. A collision
// costs a network at worst the start of its budget anew.
type limiter struct {
	rate  float64 // answers a second; 0: no limit
	burst float64
	slots []bucket
	slip  uint8
}

type bucket struct {
	key    uint64
	last   int64 // nanoseconds
	tokens float32
}

// verdict of a limiter.
type verdict uint8

const (
	pass    verdict = iota
	slip            // answer with TC, so that a real client comes back by TCP
	silence         // no answer
)

func newLimiter(rate float64) *limiter {
	l := &limiter{rate: rate, burst: max(rate, 10)}
	if rate > 0 {
		l.slots = make([]bucket, rateSlots)
	}
	return l
}

// judge spends one answer of a kind (a hash of what is like) to a source.
func (l *limiter) judge(from netip.Addr, kind uint64, now time.Time) verdict {
	if l.rate <= 0 {
		return pass
	}
	b := from.As16()
	n := 7 // /56
	if from.Is4() {
		n = 15 // /24
	}
	h := kind
	for _, x := range b[:n] {
		h = (h ^ uint64(x)) * 1099511628211
	}
	h ^= h >> 29
	s := &l.slots[h%uint64(len(l.slots))]
	at := now.UnixNano()
	if s.key != h {
		*s = bucket{key: h, last: at, tokens: float32(l.burst)}
	}
	s.tokens = float32(min(l.burst, float64(s.tokens)+float64(at-s.last)/1e9*l.rate))
	s.last = at
	if s.tokens >= 1 {
		s.tokens--
		return pass
	}
	if l.slip++; l.slip%2 == 0 {
		return slip
	}
	return silence
}
