package countries

import "time"

const (
	filesMax     = 8
	fileBytesMax = 1 << 30 // the largest free ones have 130 MB
	walkedMax    = 1 << 24 // networks in a file; a database of cities has 5 M
	networksMax  = 4 << 20 // of all countries, in as few as possible; free databases have 0.5 M
	futureMax    = 24 * time.Hour
	lookEvery    = 5 * time.Second // at the files
	retryEvery   = 5 * time.Second // after an error of the store
	collectEvery = time.Minute     // lists that nobody names any more
	staleAfter   = 45 * 24 * time.Hour
)
