// Package clients answers: how far is each client network from here, and what did its flows see?
//
//	flow's end (TCP_INFO that is read anyway) ─▶ Table.Saw ─▶ network (/24, /48): smoothed round trip
//	                                                              └─ region: open time, backbone, throughput
//	Table.Networks ─▶ the agent's report, the busiest first
//
// Nothing asks the kernel or the network for this: what a flow's counts read at its end has the round trip,
// too. The round trip is the kernel's smallest of the last minutes, so that queues and delayed
// acknowledgements do not count.
package clients
