package fleet

import "time"

// Times. Those that Config has too are its defaults.
const (
	debounceMin = 50 * time.Millisecond // one `apply` is one snapshot, a lone change is hardly delayed
	debounceMax = time.Second           // under constant change: bounds what nodes are sent a second
	debounceTry = 200 * time.Millisecond
	resync      = 8 * time.Second  // a lost watch event; with debounce below the 10 s of revocation
	compare     = 10 * time.Second // how long a node can have another snapshot unnoticed
	jitterPart  = 5                // timers move by up to ± 1/5, so that nodes do not speak in step

	helloTimeout   = 10 * time.Second // a stream that says nothing
	leaseTTL       = 10 * time.Second // a controller that died is known after this
	proberGrace    = 30 * time.Second // a prober that reconnects elsewhere keeps its say
	resendAfter    = time.Minute      // a snapshot that was refused is sent again by then
	lastSeenEvery  = time.Minute      // how old last_seen of a node gets
	pathsEvery     = 15 * time.Second // path reports are stored at most this often a node
	flushDelay     = 20 * time.Millisecond
	flushRetry     = time.Second
	finalFlush     = 3 * time.Second // what a stream that ends may still take to write
	presenceRetry  = time.Second
	clientsBytes   = 1 << 10             // a second that a node may have stored of its clients' networks
	clientsLeast   = 2 * time.Second     // between two writes, and two messages to nodes
	clientsTold    = 16 << 10            // bytes a second that a node is told of them
	clientsAge     = 24 * time.Hour      // how long a node's word on them counts
	tickEvery      = time.Second         // of the verdicts
	feedAllEvery   = 15 * time.Second    // unchanged reports, to the Board
	trafficTimeout = 10 * time.Second    // of keeping one report
	trafficAhead   = 10 * time.Minute    // how far in the future a report may be
	trafficAge     = 15 * 24 * time.Hour // and in the past: what CloudWatch keeps by the minute
	collectEvery   = time.Minute         // of records of nodes and groups that are gone
	readTries      = 10                  // to read catalog and verdicts as of one moment
)

// What a node may say, so that none can fill the memory or the store.
const (
	trafficMax       = 64 // reports of a node that wait for the sink, at most 1,000 rows each
	inboxMessages    = 16 // then the stream's own flow control holds the node back
	reportsMax       = 20_000
	pathsMax         = 2_000
	notesMax         = 64
	directMax        = 10_000    // direct paths that are kept
	announcementsMax = 512       // prefixes of a node's report
	bgpSessionsMax   = 128       // sessions of a node's report
	announceBytesMax = 256 << 10 // of a node's report
	rejectionsMax    = 32
	textMax          = 1024 // bytes of a note, a reason or a version
	idMax            = 255  // bytes of an id in a report
	controllersMax   = 16
	probesMax        = 2_000 // endpoints that the controller itself probes
	probesAtOnce     = 64
	firstProbe       = 250 * time.Millisecond // the first probe comes within this
	verdictOpsMax    = 100                    // writes a transaction
	collectedAtOnce  = 100
)

// explainTimeout is how long a node may take to answer an operator's question.
const explainTimeout = 5 * time.Second
