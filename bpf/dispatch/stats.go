package dispatch

import "fmt"

// Stats count what the program did since it was first loaded, over all processes.
type Stats struct {
	Selected uint64 // SYNs and datagrams given to a live socket
	Held     uint64 // datagrams given to an earlier process that holds their flow
	NoSocket uint64 // wanted by a rule but refused, as no socket was there
	Unfit    uint64 // refused, as the socket did not fit the protocol or family

	Prefixes    int // (protocol, prefix) pairs in use
	Ranges      int // port ranges in use
	PrefixesMax int
	RangesMax   int
}

// Stats reads the counters.
func (d *Dispatcher) Stats() (Stats, error) {
	var s Stats
	for i, n := range []*uint64{&s.Selected, &s.Held, &s.NoSocket, &s.Unfit} {
		var perCPU []uint64
		if err := d.objs.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return s, fmt.Errorf("read counter %d: %w", i, err)
		}
		for _, v := range perCPU {
			*n += v
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Prefixes, s.PrefixesMax = len(d.table.places), d.table.placesMax()
	s.RangesMax = int(d.table.ranges.MaxEntries())
	s.Ranges = s.RangesMax
	for _, e := range d.table.free {
		s.Ranges -= int(e.count)
	}
	return s, nil
}
