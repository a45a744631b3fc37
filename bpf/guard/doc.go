// Package guard answers: which packets for accelerated addresses are dropped before the network stack has any
// work with them?
//
// An XDP program looks at every packet that an interface receives. Packets for other addresses pass, and so
// does what can't be read as far as the destination: the machine's own traffic is not this package's business.
//
//	addresses (LPM trie)  destination → exclusive? fragments?
//	prefixes, ranges      protocol, destination, port → listener (package ports)
//	listeners (array)     listener → lists to allow and deny, countries to refuse, rates
//	lists (search tree)   source → bits of the lists it is on, number of its country (tree.go)
//	sources (LRU hash)    listener, source (/32 or /64) → bucket
//	states (array)        listener → its buckets, when it last handed out cookies
//	counts (per-CPU)      reason → packets, bytes
//	events (ring)         samples of dropped packets
//
// On an exclusive address, what no listener wants is dropped; on others it passes, as an SSH server of the
// machine may live there. Rates count new TCP flows (SYN) and UDP packets; packets of established TCP flows
// cost only the look-ups. A bucket is one time stamp, the generic cell rate algorithm's; a source has one for
// every listener. When the table of sources is full the least recently seen is forgotten and starts with a
// full bucket: a flood from many forged sources is what Total and
// Flood are for.
//
// Of a source's country the tree has one number, and each listener a bit for every number: which countries a
// listener refuses can change without a new tree, however many networks they have. The tree is compiled here and
// replaced whole: a packet meets the old one or the new one. Each line of it is one of the CPU's cache lines, as a long
// list costs what the lines cost that are not in its caches.
//
// Beyond Flood the program answers SYNs itself, with the kernel's own cookies, while the listening socket's queue
// is full: the helper makes them only then, and the socket takes the client's ACK only after that.
//
// The attachment may be pinned: then the program outlives the daemon with the rules it has, and the next
// daemon, whose maps are new, puts its own program into its place in one step.
package guard
