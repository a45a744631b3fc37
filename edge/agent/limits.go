package agent

import (
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

const (
	// Reconnecting waits a random time up to a bound that doubles from retryMin to retryMax ("full
	// jitter"): a fleet that lost its controllers together comes back spread over half a minute, and
	// one node never tries more than about once a second.
	retryMin = time.Second
	retryMax = 30 * time.Second

	// steadyAfter is how long a session must have lasted for the next wait to begin at retryMin.
	steadyAfter = 30 * time.Second

	// connectTimeout bounds one attempt: TCP, TLS and the first answer, over a path of up to 1 s.
	connectTimeout = 10 * time.Second

	// A controller that answers nothing for keepaliveIdle is asked, and given up after
	// keepaliveTimeout more.
	keepaliveIdle    = 20 * time.Second
	keepaliveTimeout = 10 * time.Second

	// healthInterval is how often all verdicts are reported again, so that a lost change heals.
	healthInterval = time.Minute
	// pathsInterval is how often paths are reported, and notes looked at.
	pathsInterval = 10 * time.Second

	// What is measured of clients' networks is reported at most this often, and this many bytes a second.
	clientsEvery          = 5 * time.Second
	clientsBytesPerSecond = 4 << 10

	// messageBytesMax bounds one message of a controller: a snapshot and its envelope.
	messageBytesMax = model.SnapshotBytesMax + 1<<10

	// acksMax bounds acknowledgements that wait for a stream; older ones are dropped, since only
	// what became of the latest snapshot matters.
	acksMax = 16
	// healthMax bounds changed verdicts that wait for a stream. Beyond it the next complete report,
	// at most a minute later, says them.
	healthMax = 100_000
	// Traffic reports that wait for a controller: a day of a node with few listeners, and about two hours
	// of one with 1,000 busy listeners. A row has some 200 bytes.
	trafficReportsMax = 1440
	trafficRowsMax    = 120_000
	// trafficAgain is how long an acknowledgement may take. It is more than a controller takes to
	// find out that its store is away.
	trafficAgain  = 30 * time.Second
	trafficAtOnce = 32 // reports sent before anything else is looked at
	// rejectionsMax bounds the reasons sent for one refused snapshot.
	rejectionsMax = 50
	// controllersMax bounds the addresses learnt and kept.
	controllersMax = 32

	// snapshotsKept is how many snapshots stay on disk: the newest, and one to fall back on.
	snapshotsKept = 2

	// A snapshot that crashed this process twice within trialPeriod of being applied is not applied
	// again until the process has lasted a trialPeriod without it.
	trialPeriod  = time.Minute
	trialCrashes = 2
	// restartSlack is how long a supervisor may take to start the process again.
	restartSlack = 30 * time.Second
	trialsKept   = 8

	// A certificate is renewed at two thirds of its life plus up to renewJitter of the last third, so
	// that nodes which enrolled together do not renew together. Failing to, it is tried again with
	// full jitter from renewRetryMin to renewRetryMax.
	renewJitter   = 0.25
	renewRetryMin = 10 * time.Second
	renewRetryMax = 5 * time.Minute

	// saveRetry is how often a snapshot that could not be written is tried again.
	saveRetry = time.Minute
)

// repliesMax bounds the explanations that wait to be sent.
const repliesMax = 16
