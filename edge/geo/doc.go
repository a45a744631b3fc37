// Package geo answers: which sites are best for this client, and for how large a network does that
// hold?
//
//	operator's networks ─▶ measured round trips ─▶ place by database ─▶ country's centre ─▶ default site
//
// What is known first decides; the rest orders the sites behind. Map holds what is known of clients,
// Table adds which nodes can take them now. Both are immutable and do no I/O; only Open reads files.
// With every answer comes a scope: the widest network around the client for which it is the same.
package geo
