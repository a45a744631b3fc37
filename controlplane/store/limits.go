package store

import "time"

const (
	// operationTimeout ends an operation whose caller set no nearer deadline: three leader elections
	// (1 s each) fit, a controller that hangs for longer is better told.
	operationTimeout = 5 * time.Second
	// relistInterval bounds how long a lost watch event goes unnoticed.
	relistInterval = 5 * time.Minute
	// quotaBytes is etcd's own default; a configuration of 100,000 objects has some 50 MB.
	quotaBytes = 2 << 30
	// historyRetention lets a watch that was away for most of an hour continue without a new listing.
	historyRetention = time.Hour
	// pageItems is the most keys of one request: some 10,000 messages stay below gRPC's usual size.
	pageItems = 1000
	// TxnOpsMax is the most conditions, and the most writes, that one transaction may have. etcd's
	// default is 128, which external clusters have.
	TxnOpsMax = 128
	// TxnBytesMax is the most bytes of one transaction (etcd's default 1.5 MiB, less a reserve).
	TxnBytesMax = 1400 << 10
)
