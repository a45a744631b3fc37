package listen

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/edge/flow"
)

// Listeners returns the plain TCP sockets by what they are bound to, for the next process.
func (s *Set) Listeners() map[netip.AddrPort]syscall.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[netip.AddrPort]syscall.Conn{}
	for key, k := range s.sockets {
		if k.tcp != nil {
			all[key.at] = k.tcp
		}
	}
	return all
}

// Release closes the plain UDP sockets, so that the next process can open its own, and opens nothing any more.
func (s *Set) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handed = true
	for key, k := range s.sockets {
		if key.proto == flow.UDP {
			s.shut([]*socket{k})
			delete(s.sockets, key)
		}
	}
	s.wanted = slices.DeleteFunc(slices.Clone(s.wanted), func(w socketWish) bool { return w.proto == flow.UDP })
}

// HandOver is called when the next process serves. Plain TCP sockets are closed, which are the next process's as
// well, with what waits in their queues. Those of a dispatcher go on accepting for the handshakes that began
// there, and its UDP sockets for the flows that are held.
func (s *Set) HandOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handed = true
	s.wanted = nil
	gone := slices.Collect(maps.Values(s.sockets))
	clear(s.sockets)
	s.shut(gone)
	s.shared.until = time.Now().Add(dispatch.HandshakeGrace)
}

// leaveAccepting closes the shared sockets for TCP. The caller holds mu.
func (s *Set) leaveAccepting() {
	var accepting []*socket
	for _, k := range s.shared.sockets {
		if k.tcp != nil {
			accepting = append(accepting, k)
		}
	}
	s.shut(accepting) // together, as each has its queue to empty
	s.shared.sockets = slices.DeleteFunc(s.shared.sockets, func(k *socket) bool { return k.tcp != nil })
}

// inherit returns the socket that the process before left for an address, marked anew, or nil.
func (s *Set) inherit(at netip.AddrPort) (*net.TCPListener, error) {
	if s.cfg.Inherited == nil {
		return nil, nil
	}
	l, err := s.cfg.Inherited(at)
	if l == nil || err != nil {
		return nil, err
	}
	if s.cfg.Mark != nil {
		raw, err := l.SyscallConn()
		if err == nil {
			err = s.cfg.Mark(raw)
		}
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("take over %v: %w", at, err)
		}
	}
	return l, nil
}

// Hold keeps the datagrams of flows coming here after the next process has taken over, where there is a
// dispatcher; else they go to that one.
func (s *Set) Hold(flows []flow.Tuple) error {
	if s.cfg.Dispatch == nil || len(flows) == 0 {
		return nil
	}
	return s.cfg.Dispatch.Hold(dispatched(flows))
}

// Let ends the hold of flows that are over.
func (s *Set) Let(flows []flow.Tuple) error {
	if s.cfg.Dispatch == nil {
		return nil
	}
	return s.cfg.Dispatch.Release(dispatched(flows))
}

func dispatched(flows []flow.Tuple) []dispatch.Flow {
	all := make([]dispatch.Flow, len(flows))
	for i, f := range flows {
		all[i] = dispatch.Flow{Remote: f.Src, Local: f.Dst}
	}
	return all
}
