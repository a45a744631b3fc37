// Package tune answers: with what does a connection to a client start, when that client's network has been
// seen before?
//
// A new TCP connection may send 10 segments and has to double its way up, a round trip each time. The edge
// has usually served the client's network (/24 of IPv4, /48 of IPv6) before and knows what it carried. A
// sock_ops program remembers that and lets a connection start where an earlier one got to.
//
//	policies (array)        leg → congestion control, ceiling of windows, half-life, sampling
//	legs (socket storage)   listening or dialling socket → leg; accepted sockets inherit it
//	flows (socket storage)  connection → window given, losses, best rate; goes with the socket
//	networks (LRU hash)     client network → window, RTT, what it has been given in this moment
//	samples (ring)          what closed connections saw, to user space
//
// Only sockets with a leg are touched: others in the same control group cost one failed look-up.
//
// What is learned is evidence only. A long connection shows a delivery rate (the kernel's own rate samples)
// that times the smallest RTT is what the path holds; a short one shows that its first flight passed. The
// next window is twice that, as slow start would have doubled it a round trip later, and never above the
// ceiling. A first flight that loses more than an eighth halves its network's window at once, and that
// connection teaches nothing more. Without news a window halves every half-life and is forgotten in the end.
//
// What is given is careful. A handshake much slower than the network's RTT means another path or a full queue,
// and starts as if nothing were known. Connections that open together share one window (a leaky bucket a
// network). And the first flight is paced over half an RTT, as a burst at the speed of the edge's own link
// overruns queues that the same packets at twice the path's speed do not.
package tune
