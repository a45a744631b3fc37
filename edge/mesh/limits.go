package mesh

import "time"

const (
	// metaBytesMax is memberlist's own limit (MetaMaxSize).
	metaBytesMax = 512

	// wordBytesMax bounds each of the metadata's three words: three of them, their lengths and two
	// bytes more stay well below metaBytesMax. Longer words are cut: they are for people to read.
	wordBytesMax = 128

	// packetQueue bounds the packets read and not yet taken by memberlist. 1,000 nodes send a few
	// hundred a second to each; what does not fit is dropped and counted, as on any UDP path.
	packetQueue = 256

	// streamsMax bounds the state exchanges that others have open with this node. Beyond it they are
	// closed at once and counted; a peer tries again a minute later.
	streamsMax = 64

	// streamTimeout bounds one state exchange or joining attempt. memberlist's WAN profile has 30 s,
	// which would let one dead node in the list delay a join for as long.
	streamTimeout = 10 * time.Second

	// reclaimAfter is when a node that died without leaving may come back under another address.
	reclaimAfter = 30 * time.Second

	// Joining is tried at once, then with full jitter up to joinRetryMax while some node of the
	// snapshot is not alive here, and looked at again every joinCheck otherwise.
	joinRetryMin = time.Second
	joinRetryMax = 15 * time.Second
	joinCheck    = 30 * time.Second

	// joinTargets is how many absent nodes one round tries. One that answers brings all others.
	joinTargets = 3

	// leaveWait is how long the farewell may take: one round of gossip reaches up to four others, who
	// pass it on. Changed metadata is queued at once, and nobody needs to wait until it has left.
	leaveWait  = 600 * time.Millisecond
	updateWait = time.Millisecond

	// stopWait bounds how long Run waits for memberlist's goroutines after its sockets are closed. A
	// probe that waits for its own timer may outlast it; it holds nothing and calls nothing of ours.
	stopWait = 250 * time.Millisecond

	// logsPerSecond bounds what memberlist may log; it logs every bad packet, and anybody can send
	// those.
	logsPerSecond = 5
	logsBurst     = 20
)
