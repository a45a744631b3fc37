package datagram

import "time"

// search finds the largest payload that a lane's path carries, and notices when the path no longer
// does (RFC 8899, packetization layer path MTU discovery). Pure: time and answers are passed in.
//
//	        answered              unanswered
//	base ─────────────→ larger ─────────────→ the largest that passed ──→ confirm every 5 s
//	  ↑                                                                        │
//	  └──────────────────── the size in use passes no more ────────────────────┘
type search struct {
	sizes []int // ascending; the first passes always
	at    int   // index of the size in use
	bad   int   // index of the smallest size that is believed not to pass; len(sizes): none

	trying      int // index of the size asked about, -1: none
	tries       int
	stamp       uint64 // of the question
	deadline    time.Duration
	nextConfirm time.Duration
	nextRaise   time.Duration
	lost        uint32 // questions that went unanswered
}

func newSearch(payloadMax int) search {
	s := search{trying: -1}
	for _, size := range payloadSizes {
		if size <= payloadMax {
			s.sizes = append(s.sizes, size)
		}
	}
	s.bad = len(s.sizes)
	return s
}

// restart forgets what was found.
func (s *search) restart() {
	s.at, s.bad, s.trying, s.nextRaise = 0, len(s.sizes), -1, 0
}

// payload is the size in use.
func (s *search) payload() int { return s.sizes[s.at] }

// tick returns the size to ask about now, or 0. Then asked must be called.
func (s *search) tick(now time.Duration) (size int) {
	if s.trying >= 0 {
		if now < s.deadline {
			return 0
		}
		s.lost++
		s.tries++
		limit := searchTries
		if s.trying == s.at {
			limit = confirmTries
		}
		if s.tries < limit {
			return s.sizes[s.trying]
		}
		s.fail(s.trying, now)
	}
	if s.nextRaise != 0 && now >= s.nextRaise {
		s.bad, s.nextRaise = len(s.sizes), 0
	}
	switch {
	case s.at+1 < s.bad:
		s.trying = s.at + (s.bad-s.at)/2
	case s.at > 0 && now >= s.nextConfirm:
		s.trying = s.at
	default:
		return 0
	}
	s.tries = 0
	return s.sizes[s.trying]
}

// asked takes note of the question's stamp, and until when to wait for the answer.
func (s *search) asked(stamp uint64, deadline time.Duration) { s.stamp, s.deadline = stamp, deadline }

// answered takes an answer to any question; those to others are ignored.
func (s *search) answered(stamp uint64, now time.Duration) {
	if s.trying < 0 || stamp != s.stamp {
		return
	}
	s.at, s.trying = s.trying, -1
	s.nextConfirm = now + confirmInterval
}

// refused says that this machine itself cannot send packets of the size.
func (s *search) refused(size int, now time.Duration) {
	for i := 1; i < len(s.sizes); i++ {
		if s.sizes[i] >= size {
			if i < s.bad {
				s.fail(i, now)
			}
			return
		}
	}
}

// fail gives up the size with index i and all above.
func (s *search) fail(i int, now time.Duration) {
	s.bad, s.trying = i, -1
	if s.at >= i {
		s.at = 0
	}
	s.nextRaise = now + raiseInterval
}
