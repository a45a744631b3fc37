package listen

import (
	"time"

	"github.com/nearcast/nearcast/bpf/dispatch"
)

const (
	// portsMaxDefault bounds address × port × protocol on plain sockets, each of which costs one or more
	// descriptors and, for TCP, a goroutine.
	portsMaxDefault = 4096

	// manyUDPPorts is from when on a UDP port gets one small socket, and not one a CPU: spreading one
	// port's load over CPUs matters when there are few.
	manyUDPPorts    = 64
	smallRecvBuffer = 1 << 20

	// wideRange is from how many ports on a listener does not mean each of them: those that other services of
	// the machine have are left to them without more ado.
	wideRange = 1024

	dumpsMax    = 5                     // times that the kernel is asked for routes which change meanwhile
	retryEvery  = 5 * time.Second       // for sockets that could not be opened
	drainAccept = 10 * time.Millisecond // at a time, for connections in the backlog of a socket that is closed
	drainMax    = 2 * time.Second       // for all of them, however many come meanwhile

	backlogMax = 1<<16 - 1 // the kernel takes net.core.somaxconn if that is less

	// AcceptSocketsMax bounds Config.AcceptSockets.
	AcceptSocketsMax = dispatch.GroupSockets

	// acceptorCPUs is how many CPUs' flows one accepting socket is enough for, with a dispatcher.
	acceptorCPUs = 8

	acceptBackoffMin = 5 * time.Millisecond // after "too many open files" and the like, doubled each time
	acceptBackoffMax = time.Second

	// answersMax bounds the sockets that answers leave from with a dispatcher, one for each address and port
	// that datagrams came to. When there are as many, datagrams to others are dropped and counted; one that
	// no flow uses is closed after answerIdle.
	answersMax   = 8192
	answerShards = 64
	answerIdle   = 30 * time.Second

	// Keep-alive towards clients finds those that went without a word in three minutes, at the cost of a
	// packet a minute.
	keepAliveIdle     = 60 // seconds
	keepAliveInterval = 30 // seconds
	keepAliveCount    = 4

	// notsentLowat bounds what the kernel holds of a connection beyond what the client's window takes:
	// without it, one that stops reading costs up to tcp_wmem (4 MB). 256 KiB is what 10 Gbit/s take away
	// in 0.2 ms, which a goroutine needs to wake up at worst.
	notsentLowat = 256 << 10

	// behindMax is how long a UDP socket may not be found empty before that is overload and no burst: the
	// interval of CoDel, as in package overload.
	behindMax = 100 * time.Millisecond
)
