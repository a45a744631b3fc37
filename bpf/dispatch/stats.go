package dispatch

import (
	"fmt"

	"github.com/nearcast/nearcast/bpf/ports"
)

// Stats count what the program did since it was first loaded, over all processes.
type Stats struct {
	Selected uint64 // SYNs and datagrams given to a live socket
	Held     uint64 // datagrams given to an earlier process that holds their flow
	NoSocket uint64 // wanted by a rule but refused, as no socket was there
	Unfit    uint64 // refused, as the socket did not fit the protocol or family

	ports.Usage // of the tables
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
	s.Usage = d.table.Usage()
	return s, nil
}
