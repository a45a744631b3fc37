// Package dispatch answers: how do any accelerated addresses and port ranges reach a node's few sockets?
//
// An sk_lookup program looks at what the kernel's table of connected sockets does not know: a SYN, or a
// datagram. Rules say which (address prefix, port range, protocol) belongs to which slot, and a slot has up
// to 64 sockets a protocol and family. The sockets may be bound to anything (a port of the kernel's choice on
// the loopback address): a connection keeps its original destination, and that is its LocalAddr.
//
//	prefixes, ranges      protocol, family, address, port → slot (package ports)
//	control (array of 1)  live generation, steering, whether flows are held
//	groups (array)        generation, slot, protocol, family → count of sockets
//	sockets (sockmap)     generation, slot, protocol, family, n → socket
//	held (LRU hash)       UDP flow → generation of the process that still serves it
//
// So a listener of 65,535 ports costs one range, and 10,000 listeners 14 steps of a binary search. A change of
// a prefix is one write, before which the old rules hold and after which the new ones do.
//
// Two lifetimes meet here. The program, its attachment and the maps live for months, pinned below
// Config.PinDir; a daemon lives until its next upgrade. A daemon that starts opens the pins, puts its own
// sockets into the next generation and makes it live by one byte: new connections are its own from then on.
// The daemon before it goes on with what it has: connected TCP sockets never come here again; what its
// listening sockets still have in their queues it goes on accepting for HandshakeGrace; and UDP flows that it
// holds (Hold) keep coming to it until it releases them.
//
// What is no rule's business passes untouched. What a rule wants while its sockets are gone is refused by the
// kernel as if nobody listened, and never answered by a service that listens on the wildcard address.
//
// UDP replies: a datagram leaves with the port that its socket is bound to, so replies of a port range need a
// socket bound to the (address, port) they leave from. Such sockets get no datagrams while the program is
// attached, as it is asked first.
package dispatch
