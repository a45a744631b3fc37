// Package bfd answers: is the router at the other end of this link still there, to a fraction of a second?
//
// It is Bidirectional Forwarding Detection in asynchronous mode between direct neighbours (RFC 5880, RFC
// 5881), without authentication, echo and demand mode. A Machine decides and does no I/O; a session owns
// one and its timers; the Server owns the sockets:
//
//	UDP 3784 ─▶ TTL 255? ─▶ Parse ─▶ session by discriminator or address ─▶ Machine ─▶ OnChange
//	                                     Machine ─▶ timer ─▶ UDP from 49152…65535, TTL 255
package bfd
