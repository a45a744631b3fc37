// Package balance answers: which node of a site is a packet for, when the router in front of them has changed its
// mind?
//
// Routers spread flows over the nodes of a site by hash, and a node more or less moves many flows to another one,
// which knows nothing of them. So each node has the same Maglev table over the site's nodes (Table), which says
// who owns a flow, and an XDP program that sends packets on to their owner, in UDP encapsulation (encap.h draws
// it). When the table changes, the new owner of a row asks the owners before, the last one first, for flows that it
// does not know: they take the packet, or return it.
//
//	addresses (LPM trie)  accelerated prefixes that are balanced
//	rows (array)          flow's hash → its owner, owners before, the other nodes; two tables, one in use
//	members (array)       node's number → address, MAC, interface, state
//	peers (hash)          node's address → number: who may send encapsulated packets
//	flows (LRU hash)      flow → node that was last seen to have it, and when
//	firsts (LRU hash)     fragmented packet → where its first fragment went
//	control (array)       which table, which keys, when the daemon was last alive
//	counts (per-CPU)      reason → packets, bytes
//	next (programs)       what looks at the packets that this node takes: the guard
//
// The truth about a TCP flow is its socket, be it still in its handshake; about a UDP flow, whose sockets say
// nothing, it is the table of flows. SYNs go to the owner of their row and nowhere else: they are new flows.
//
// Table is pure Go. A Balancer keeps the tables of the last hour, so that a node that was away for a while, or is
// drained, still gets what is its own. All but counts and firsts may be pinned: then forwarding goes on when the
// daemon is gone, with its own rows left to others.
package balance
