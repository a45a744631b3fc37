package series

import "time"

const (
	// keepFor is how long CloudWatch keeps minutes, too.
	keepFor = 15 * 24 * time.Hour
	// reportsMax bounds the reports that are kept, at about 1 KB each in the store and in memory: 15 days
	// of 9 nodes that carry traffic in every minute. Beyond it the oldest go.
	reportsMax = 200_000
	// pruneEvery is how often old reports are looked for; deletesMax is how many go in one transaction.
	pruneEvery = time.Minute
	deletesMax = 100
)
