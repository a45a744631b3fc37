package backbone

import (
	"context"
	"io"

	"github.com/nearcast/nearcast/proto/model"
	"github.com/nearcast/nearcast/proto/wire"
)

// Memory bounds the bytes that the streams of a process hold.
type Memory struct{ max int64 }

// NewMemory returns a Memory of so many bytes.
func NewMemory(bytes int64) *Memory { return &Memory{max: bytes} }

// Used returns the bytes held now.
func (m *Memory) Used() int64 { return 0 }

// Pool keeps tunnels open to gateways.
type Pool struct{}

// NewPool returns a Pool that does nothing until Run.
func NewPool(cfg PoolConfig) (*Pool, error) { return &Pool{}, cfg.Validate() }

// Run keeps tunnels until ctx ends.
func (p *Pool) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SetPeers names the nodes that the snapshot authorises.
func (p *Pool) SetPeers(nodes []model.Node) {}

// Open begins a stream to a peer, without waiting for anything.
func (p *Pool) Open(peer model.NodeID, o wire.Open, sink Sink) (*Stream, error) {
	return nil, ErrNoPath
}

// Peer returns what is known about a peer; it takes no lock.
func (p *Pool) Peer(id model.NodeID) (PeerState, bool) { return PeerState{}, false }

// Peers returns what is known about every peer.
func (p *Pool) Peers() map[model.NodeID]PeerState { return nil }

// GroupState returns a peer's own word about which endpoint groups it can serve.
func (p *Pool) GroupState(peer model.NodeID) map[model.GroupID]bool { return nil }

// OnChange has f called after changes of peers' states or groups.
func (p *Pool) OnChange(f func()) {}

// SendDatagrams sends datagram messages to a peer, never blocks, returns how many were taken.
func (p *Pool) SendDatagrams(peer model.NodeID, msgs [][]byte) int { return 0 }

// Server accepts tunnels of edges.
type Server struct{}

// NewServer returns a Server that does nothing until Run.
func NewServer(cfg ServerConfig) (*Server, error) { return &Server{}, cfg.Validate() }

// Run accepts tunnels until ctx ends.
func (s *Server) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SetPeers says which nodes may connect; others are cut at once.
func (s *Server) SetPeers(nodes []model.Node) {}

// AnnounceGroups tells every edge which endpoint groups can be served here.
func (s *Server) AnnounceGroups(groups map[model.GroupID]bool) {}

// SendDatagrams sends datagram messages to a peer, never blocks, returns how many were taken.
func (s *Server) SendDatagrams(peer model.NodeID, msgs [][]byte) int { return 0 }

// Drain tells every edge to open no more streams here.
func (s *Server) Drain() {}

// Stream is one flow's bytes, both ways.
type Stream struct{}

// Peer returns the node at the other end.
func (s *Stream) Peer() model.NodeID { return "" }

// Write sends bytes; it copies them, and blocks while the peer's credit or memory is used up.
func (s *Stream) Write(p []byte) (int, error) { return 0, ErrClosed }

// ReadFrom sends what it reads from r until r ends, like io.Copy. If r is a *net.TCPConn it holds no
// memory while r is silent and copies nothing. It does not call CloseWrite.
func (s *Stream) ReadFrom(r io.Reader) (int64, error) { return 0, ErrClosed }

// CloseWrite ends this side's direction (FIN).
func (s *Stream) CloseWrite() {}

// Reset ends the stream at once. The sink gets no more calls, but for one that runs now.
func (s *Stream) Reset(reason wire.ResetReason) {}

// Resume has what the sink did not take delivered again.
func (s *Stream) Resume() {}

// OpenResult answers the Open; at the gateway's side, once, before the first Write. A code other
// than OpenOK ends the stream.
func (s *Stream) OpenResult(r wire.OpenResult) {}

// Stats returns the stream's figures.
func (s *Stream) Stats() StreamStats { return StreamStats{} }
