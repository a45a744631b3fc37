package load

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Attempt is one new connection of a Rate: when it began, what it took, who answered or what went
// wrong.
type Attempt struct {
	At     time.Time
	Times  Times
	Err    error
	Server string
}

// Rate makes new connections at a steady pace, each asking for Size bytes, so that a scenario can
// say what new flows saw while something broke.
type Rate struct {
	Dial    Dial
	Addr    netip.AddrPort
	Every   time.Duration // between starts
	Timeout time.Duration // of one attempt
	Size    int64
	// Most is how many attempts are under way at once; those that would be due beyond are not made. 0: any number.
	Most int

	mu       sync.Mutex
	attempts []Attempt
}

// Run starts attempts until ctx ends, and returns when the last of them has ended. The pace does
// not slow down when answers do, but for Most: attempts overlap.
func (r *Rate) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var underWay atomic.Int64
	tick := time.NewTicker(r.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if r.Most > 0 && underWay.Load() >= int64(r.Most) {
				continue
			}
			underWay.Add(1)
			wg.Go(func() {
				defer underWay.Add(-1)
				r.attempt()
			})
		}
	}
}

func (r *Rate) attempt() {
	// A context of its own: the end of the run must not look like a failed attempt.
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	a := Attempt{At: time.Now()}
	a.Times, a.Err = Fetch(ctx, r.Dial, r.Addr, r.Size)
	a.Server = a.Times.Server
	r.mu.Lock()
	defer r.mu.Unlock()
	r.attempts = append(r.attempts, a)
}

// Attempts returns those that have ended, by their beginning.
func (r *Rate) Attempts() []Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.attempts)
	slices.SortFunc(out, func(a, b Attempt) int { return a.At.Compare(b.At) })
	return out
}

// Failed returns the attempts that failed.
func Failed(as []Attempt) []Attempt {
	return slices.DeleteFunc(slices.Clone(as), func(a Attempt) bool { return a.Err == nil })
}

// Since returns the attempts that began at or after t.
func Since(as []Attempt, t time.Time) []Attempt {
	return slices.DeleteFunc(slices.Clone(as), func(a Attempt) bool { return a.At.Before(t) })
}

// By counts attempts that succeeded by who answered.
func By(as []Attempt) map[string]int {
	n := map[string]int{}
	for _, a := range as {
		if a.Err == nil {
			n[a.Server]++
		}
	}
	return n
}

// Median returns the middle of ds (the lower of two), and 0 of none.
func Median(ds []time.Duration) time.Duration { return Quantile(ds, 0.5) }

// Quantile returns the value below which the share q of ds lies, and 0 of none.
func Quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	s := slices.Clone(ds)
	slices.Sort(s)
	return s[min(int(q*float64(len(s)-1)+0.5), len(s)-1)]
}
