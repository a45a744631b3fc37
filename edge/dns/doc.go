// Package dns answers: what do clients' resolvers get when they ask for a name?
//
//	recvmmsg ─▶ query (own parser) ─▶ cookie, rate ─▶ zone.Lookup ─▶ geo.Choose ─▶ dnssec.Sign ─▶ sendmmsg
//
// One goroutine a socket and as many sockets a port as CPUs; nothing is shared between them but an
// immutable State, which is swapped whole, and the signatures. TCP (and TLS) connections answer what a
// client sends ahead in one write. The server is authoritative only: it refuses recursion, transfers,
// NOTIFY and UPDATE.
package dns
