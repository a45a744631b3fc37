package overload

import "time"

const (
	// target is how long each flow may wait for its turn: long beside what a machine's scheduler makes of
	// a full but sufficient load (a few milliseconds). It must not be much longer, because new goroutines
	// run before most others: their wait grows last of all.
	target = 20 * time.Millisecond

	// interval is how long even the luckiest flow must have waited longer than target, for it to be
	// overload and no burst; as in CoDel, about the time that those who send take to react.
	interval    = 100 * time.Millisecond
	intervalMax = 10 * interval // of fewer flows than flowsMin: what was so long ago tells nothing

	queueTime     = 2 * target   // that those who may wait take to begin, in overload
	awayMax       = time.Second  // of what others kept flows, that the bound makes room for
	late          = 5 * interval // who has waited this long when overload is noticed is turned away, too
	flowsMin      = 8            // that begin in an interval, for it to tell anything
	boundMin      = 64           // flows that may wait in any case: so few are no danger
	calmIntervals = 10           // without anybody turned away, and overload is over
)
