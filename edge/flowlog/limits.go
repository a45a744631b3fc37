package flowlog

import "time"

const (
	queueMax     = 16_384           // windows that wait for the writer, about 200 bytes each; more is dropped
	flushEvery   = time.Second      // how long a record may be in memory only
	flushBytes   = 256 << 10        // of one accelerator, then it is written at once
	segmentEvery = 5 * time.Minute  // how often AWS publishes a file
	segmentBytes = 75 << 20         // and how large it gets; ours are counted before compression
	spoolDefault = int64(1) << 30   // bytes on disk that wait to be delivered; more is dropped
	deliverEvery = 2 * time.Second  // how often the spool is looked at
	deliverWait  = time.Minute      // longest pause after deliveries that failed
	putTimeout   = 60 * time.Second // of one file
	tailsMax     = 16               // live readers
	tailQueue    = 1024             // lines that one may be behind; more it misses, and is told
)
