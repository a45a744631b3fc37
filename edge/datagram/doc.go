// Package datagram answers: how do two nodes that share a secret exchange small messages over UDP,
// sealed, at most once, without one message ever waiting for another?
//
// The packets are drawn in proto/wire (datagram_packet.go). The way of a message:
//
//	Channel.Send   lane by the message's flow → packed with its neighbours, or cut to pieces
//	               → sealed → sendmmsg, trains of like packets as one          (the caller's goroutine)
//	═══ network ═══
//	reader         recvmmsg, trains split → key by id → opened in place → replay window
//	               → pieces put together → recv(messages)                      (one goroutine a socket)
//
// A Transport owns the UDP sockets of the process: as many as CPUs on the port that peers are told
// (SO_REUSEPORT), and as many of its own as a channel has lanes, from which it reaches peers. A
// Channel is the association with one peer; the tunnel's TLS session gives it secrets, one an epoch.
//
// Whether a lane works, how fast, at what loss and with what packet size is decided by two pure
// machines (prober, search) that know neither socket nor clock. A lane is up after an authentic
// round trip, and down when none has succeeded for three keep-alives; a channel is up while a lane
// is. There is no congestion control: the ends of the flows inside have theirs.
//
// The outer TOS byte is always 0: the flows' own travels inside the messages. As outer packets are
// not ECN-capable, a congested router drops them rather than marking them, which RFC 6040 asks for
// when marks are not carried inwards.
//
// Locks: Transport.mu and Channel.mu are taken when channels and epochs come and go; lane.mu is the
// only one taken per packet. Order: Channel.mu or Channel.stateMu, then Transport.mu, then lane.mu.
package datagram
