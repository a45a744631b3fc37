// Package pace answers: when does it pay to let other processes go first?
package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// Within of the last batch, another one has others go first: 1 ms apart, batches come at a rate at which what
// they cost begins to tell.
const Within = time.Millisecond

// A Pace sees how small batches follow each other. One for each goroutine that reads or writes them; the zero
// value is ready.
type Pace struct{ last time.Time }

// Yield is called after a batch, and lets other processes go first if it was small and came within [Within]
// of the one before. On a busy machine those who have something for this process then say more before it
// looks again, so that the next batch is larger and fewer system calls and wakeups carry the same. On a
// processor that nobody waits for, it returns at once: no delay is traded for it, as a timer would.
func (p *Pace) Yield(small bool) {
	now := time.Now()
	soon := now.Sub(p.last) < Within
	p.last = now
	if soon && small {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it never fails on Linux
	}
}
