// Package pump answers: how do bytes pass between a TCP socket and a stream of the backbone, or another
// socket, with no goroutine or buffer waiting where none is needed?
//
//	socket → stream   Pair.Copy: one goroutine, parked in the poller, without a buffer while nothing comes
//	stream → socket   Pair.Deliver: the carrier's reader writes straight into the socket; only while the
//	                  socket is full does a goroutine wait for it, and the bytes wait in the stream,
//	                  bounded by its credit
//	socket → socket   Splice: both directions in the kernel, with a pipe only while there are bytes
//
// The end of one direction is the end of that direction only (half-close). A reset of either side is a
// reset of the other, with a reason.
package pump

import (
	"errors"
	"net"
	"sync"

	"github.com/nearcast/nearcast/edge/backbone"
	"github.com/nearcast/nearcast/proto/wire"
)

// Cause says who ended a flow.
type Cause uint8

// The causes of an end.
const (
	EndedWell    Cause = iota // both directions have ended
	SocketFailed              // the socket was reset, or failed
	StreamReset               // the peer or the backbone reset the stream, or the other socket failed
	OwnerEnded                // End was called
)

func (c Cause) String() string {
	return [...]string{"well", "socket", "stream", "owner"}[c&3]
}

// End says how a flow ended.
type End struct {
	Cause    Cause
	Reason   wire.ResetReason
	Progress Progress // of the socket (of a Splice: the first one)
}

// Owner is told when a flow is over, once. Its socket is closed by then. The call may come from a
// carrier's reader: it must not block.
type Owner interface{ Ended(End) }

// Pair joins a socket and a stream until both directions have ended, or either was reset. Its owner
// embeds it in the stream's sink, calls Begin and then Attach, and starts Copy once the stream is good
// for it. Deliver may be called when Attach has returned true.
type Pair struct {
	Socket
	owner   Owner
	running *sync.WaitGroup

	mu       sync.Mutex // held briefly, never while anything is called
	stream   *backbone.Stream
	attached bool
	read     bool // the socket's direction has ended
	wrote    bool // the stream's has
	over     bool
}

// Begin says who is told of the end, and where the goroutines that wait for the socket are counted.
// The Pair may be ended from now on.
func (p *Pair) Begin(owner Owner, running *sync.WaitGroup) { p.owner, p.running = owner, running }

// Attach gives the Pair its connection. It reports false when the Pair is over already, and then has
// reset the connection.
func (p *Pair) Attach(conn *net.TCPConn) bool {
	p.mu.Lock()
	if !p.over {
		p.attached = p.Socket.Init(conn) == nil
	}
	ok := p.attached
	p.mu.Unlock()
	if !ok {
		Abort(conn)
	}
	return ok
}

// SetStream says which stream the socket is joined to from now on. It reports false when the Pair is
// over: the stream must be reset then.
func (p *Pair) SetStream(s *backbone.Stream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream = s
	return !p.over
}

// Stream returns the stream, or nil.
func (p *Pair) Stream() *backbone.Stream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream
}

// Over reports whether the flow has ended.
func (p *Pair) Over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// Copy sends what the socket brings until it ends or fails. It blocks.
func (p *Pair) Copy() {
	stream := p.Stream()
	_, err := stream.ReadFrom(p.conn)
	p.copied(stream, err)
}

// copied does what follows when the socket's direction has come to an end.
func (p *Pair) copied(stream *backbone.Stream, err error) {
	var reset *backbone.ResetError
	switch {
	case err == nil:
		stream.CloseWrite()
		p.SourceEnded()
	case errors.As(err, &reset), errors.Is(err, backbone.ErrClosed):
		// The sink is told, or was: that ends the flow.
	default:
		p.finish(SocketFailed, wire.ResetByPeer)
	}
}

// SourceEnded says that the socket has brought its end, and that it was passed on.
func (p *Pair) SourceEnded() {
	p.mu.Lock()
	p.read = true
	both := p.wrote
	p.mu.Unlock()
	if both {
		p.finish(EndedWell, wire.ResetUnspecified)
	}
}

// Deliver writes to the socket what it takes at once, as backbone.Sink's does.
func (p *Pair) Deliver(b []byte, fin bool) (n int) {
	n, err := p.TryWrite(b)
	switch {
	case err != nil:
		p.finish(SocketFailed, wire.ResetByPeer)
	case n < len(b):
		p.mu.Lock()
		if !p.over { // who waits for running has ended every flow before
			p.running.Go(p.awaitRoom)
		}
		p.mu.Unlock()
	case fin:
		p.sinkEnded()
	}
	return n
}

// awaitRoom has delivery go on when the socket takes bytes again.
func (p *Pair) awaitRoom() {
	if p.AwaitWritable() == nil {
		p.Stream().Resume()
	}
}

// sinkEnded passes the stream's end on to the socket.
func (p *Pair) sinkEnded() {
	if p.conn.CloseWrite() != nil {
		p.finish(SocketFailed, wire.ResetByPeer)
		return
	}
	p.mu.Lock()
	p.wrote = true
	both := p.read
	p.mu.Unlock()
	if both {
		p.finish(EndedWell, wire.ResetUnspecified)
	}
}

// Reset ends the flow because its stream was reset.
func (p *Pair) Reset(reason wire.ResetReason) { p.finish(StreamReset, reason) }

// Failed ends the flow because the owner's own reading found the socket reset.
func (p *Pair) Failed() { p.finish(SocketFailed, wire.ResetByPeer) }

// End ends the flow for a reason of the owner's. Ending what is over does nothing.
func (p *Pair) End(reason wire.ResetReason) { p.finish(OwnerEnded, reason) }

// finish ends the flow, the first time that it is called.
func (p *Pair) finish(cause Cause, reason wire.ResetReason) {
	p.mu.Lock()
	over, stream, attached := p.over, p.stream, p.attached
	p.over = true
	p.mu.Unlock()
	if over {
		return
	}
	if stream != nil && (cause == SocketFailed || cause == OwnerEnded) {
		stream.Reset(reason)
	}
	end := End{Cause: cause, Reason: reason}
	if attached {
		end.Progress, _ = p.Progress()
		CloseFor(p.conn, cause, reason)
	}
	p.owner.Ended(end)
}

// CloseFor closes a connection as it befits the end of its flow: with a reset, but for those that ended
// well or idled for too long (AWS Global Accelerator sends a FIN then).
func CloseFor(conn *net.TCPConn, cause Cause, reason wire.ResetReason) {
	if cause == EndedWell || reason == wire.ResetIdle {
		_ = conn.Close()
		return
	}
	Abort(conn)
}
