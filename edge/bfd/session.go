package bfd

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

// session owns a Machine: it sends when a packet is due and notices when none comes.
type session struct {
	peer    Peer
	machine *Machine
	inbox   chan Packet
	send    func([]byte)
	change  func(s State, why Diag, failed bool)
}

// Peer is a neighbour to watch.
type Peer struct {
	Addr   netip.Addr
	Local  netip.Addr // that packets leave from; zero: the route decides
	Params Params
}

// run runs the session until ctx ends, and then says goodbye.
func (s *session) run(ctx context.Context) {
	transmit, detect := time.NewTimer(0), time.NewTimer(time.Hour)
	defer transmit.Stop()
	defer detect.Stop()
	buf := make([]byte, 0, packetBytes)
	emit := func() {
		s.send(s.machine.Packet().Append(buf[:0]))
	}
	state, _ := s.machine.State()
	for {
		select {
		case <-ctx.Done():
			s.machine.Stop()
			for range goodbyes {
				emit()
			}
			return
		case p := <-s.inbox:
			before := s.machine.Interval()
			if s.machine.Receive(p, time.Now()) {
				emit()
			}
			if d := s.machine.Interval(); d != before {
				if d == 0 {
					transmit.Stop()
				} else {
					transmit.Reset(s.machine.Jitter(d, rand.Float64()))
				}
			}
		case <-transmit.C:
			emit()
			if d := s.machine.Interval(); d > 0 {
				transmit.Reset(s.machine.Jitter(d, rand.Float64()))
			}
		case <-detect.C:
			// What waits in the inbox was there before the time was over, if this process was slow.
			if len(s.inbox) == 0 && s.machine.Expire(time.Now()) {
				transmit.Reset(0) // says so at once
			}
		}
		if at := s.machine.Deadline(); !at.IsZero() {
			detect.Reset(max(0, time.Until(at)))
		}
		if now, why := s.machine.State(); now != state {
			state = now
			s.change(now, why, s.machine.Failed())
		}
	}
}
