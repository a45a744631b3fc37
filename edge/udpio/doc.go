// Package udpio answers: how do many UDP datagrams pass between this process and the kernel in few
// system calls, with the addresses and the TOS byte they carried?
//
// A batch in: recvmmsg → one message is one datagram, or a train of them that the kernel joined
// (UDP_GRO) → split → Packet values that alias the reader's buffers until the next read.
// A batch out: neighbouring packets alike in everything but their bytes become one train
// (UDP_SEGMENT) → sendmmsg.
//
// Addresses are always unmapped: an IPv4 peer of an IPv6 socket is an IPv4 address here. Zones of
// link-local addresses are not carried. Nothing is allocated per packet, and nothing blocks but
// [Conn.ReadBatch] and [Conn.Serve], which park their goroutine in the runtime's poller. For thousands of sockets,
// where a goroutine and 2 MB of buffers each would be too dear, [Poller] reads all of them with one
// goroutine a CPU.
//
// The system calls never block, so the runtime is not told of them (RawSyscall6). It would otherwise
// take the processor away from any that lasts longer than 20 µs, which on a busy node is many, and
// spend more on that and on its monitor thread than they cost: measured, a fifth of the CPU.
//
// Linux only.
package udpio
