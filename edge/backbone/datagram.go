package backbone

// keyState is the tunnel's part in keying the datagram channel.
type keyState struct{}

func (t *tunnel) joinKeys(*carrier)             {}
func (t *tunnel) lostKeys(*carrier)             {}
func (t *tunnel) closeKeys()                    {}
func (t *tunnel) onKey(*carrier, uint32)        {}
func (t *tunnel) udpUp() bool                   { return false }
func (t *tunnel) sendUDP(msgs [][]byte) (n int) { return 0 }

// sendDatagrams sends messages by UDP, or over a carrier where UDP does not pass. It never blocks,
// and returns how many were taken; the others are counted as dropped.
func (t *tunnel) sendDatagrams(msgs [][]byte) (n int) {
	if t.udpUp() {
		return t.sendUDP(msgs)
	}
	if c := t.pick(nil); c != nil && !c.stalled.Load() {
		n = c.sendDatagrams(msgs)
	}
	t.env.metrics.datagramsCarried.Add(float64(n))
	t.env.metrics.datagramsDropped.Add(float64(len(msgs) - n))
	return n
}

// onDatagram takes a message that came over a carrier. Those of one read are handed on together.
func (t *tunnel) onDatagram(c *carrier, msg []byte) {
	if c.arrived = append(c.arrived, msg); len(c.arrived) >= arrivedMax {
		t.flushDatagrams(c)
	}
}

// flushDatagrams hands on what onDatagram has collected, before the read buffer is used again.
func (t *tunnel) flushDatagrams(c *carrier) {
	if len(c.arrived) == 0 {
		return
	}
	if t.env.HandleDatagrams != nil {
		t.env.HandleDatagrams(t.peer, c.arrived)
	}
	clear(c.arrived)
	c.arrived = c.arrived[:0]
}
