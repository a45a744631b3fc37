package store

import (
	"math/rand/v2"
	"time"
)

const (
	// operationTimeout ends an operation whose caller set no nearer deadline: three leader elections
	// (1 s each) fit, a controller that hangs for longer is better told.
	operationTimeout = 5 * time.Second
	// relistInterval bounds how long a lost watch event goes unnoticed.
	relistInterval = 5 * time.Minute
	// quotaBytes is etcd's own default; a configuration of 100,000 objects has some 50 MB.
	quotaBytes = 2 << 30
	// QuotaBytesMin is the least quota of an embedded member: a few times the greatest transaction, and room for
	// what a small cluster has.
	QuotaBytesMin = 16 << 20
	// QuotaBytesMax is what etcd recommends as the most.
	QuotaBytesMax = 8 << 30
	// roomLook is how often a member looks whether it is full.
	roomLook = time.Second
	// roomTenths of the quota may be in use when a full member takes writes again: with less room it would be
	// full again at once.
	roomTenths = 9
	// roomTell is how often a member that stays full says so.
	roomTell = time.Minute
	// historyRetention lets a watch that was away for most of an hour continue without a new listing.
	historyRetention = time.Hour
	// pageItems is the most keys of one request: some 10,000 messages stay below gRPC's usual size.
	pageItems = 1000
	// TxnOpsMax is the most conditions, and the most writes, that one transaction may have. etcd's
	// default is 128, which external clusters have.
	TxnOpsMax = 128
	// TxnBytesMax is the most bytes of one transaction (etcd's default 1.5 MiB, less a reserve).
	TxnBytesMax = 1400 << 10

	// slowApply is when etcd's log says that a write took long.
	slowApply = 500 * time.Millisecond
	// keepAliveTime and keepAliveTimeout find a dead connection to an external endpoint within 10 s.
	keepAliveTime    = 5 * time.Second
	keepAliveTimeout = 5 * time.Second
	// backoffMin and backoffMax bound the waits between attempts.
	backoffMin = 50 * time.Millisecond
	backoffMax = 5 * time.Second
	// sessionTTLMin is etcd's own least (one election of its leader).
	sessionTTLMin = 2 * time.Second
	// electionTTL is how long nobody leads after a leader was killed.
	electionTTL = 5 * time.Second
	// electionLook is how often who waits for leadership looks again by itself, in case the event that
	// it waits for was lost.
	electionLook = 30 * time.Second
	// revokeTimeout bounds the wait for a lease's orderly end.
	revokeTimeout = time.Second
)

// jitter returns a random part of d.
func jitter(d time.Duration) time.Duration { return rand.N(d) + 1 }
