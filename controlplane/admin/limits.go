package admin

import "time"

const (
	pageSizeDefault = 100
	pageSizeMax     = 1000
	pageTokenMax    = 1024 // bytes

	auditEntriesMax   = 10_000 // some 5 MB; the log of the process keeps all of them
	auditRequestBytes = 4 << 10
	auditTrimEvery    = time.Minute
	auditTrimAtOnce   = 100 // deletes a transaction
	auditWriteTimeout = 5 * time.Second
	auditPrefix       = "audit/"

	storeAnswerTimeout = 2 * time.Second // a status that says that the store is away must come

	problemsMax      = 100
	laggingAfter     = 10 * time.Second // a connected node that has not applied the newest snapshot
	awayAfter        = time.Minute      // before that a node is restarting
	certificateAlarm = 4 * time.Hour    // of 24: it should have been renewed 4 hours ago
	caAlarm          = 30 * 24 * time.Hour
	pathProblemsMax  = 20 // so that they do not hide the others
)
