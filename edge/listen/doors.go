package listen

import "net/netip"

// Doors is how many sockets of an address are open, and how many are wanted and are not.
type Doors struct{ Open, Missing int }

// Doors returns the state of each address that has listeners.
func (s *Set) Doors() map[netip.Addr]Doors {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[netip.Addr]Doors{}
	count := func(a netip.Addr, open bool) {
		d := all[a]
		if open {
			d.Open++
		} else {
			d.Missing++
		}
		all[a] = d
	}
	for _, b := range s.shared.bindings { // with a dispatcher; they hold together or not at all
		count(b.Addr.Unmap(), s.shared.missing == 0)
	}
	for _, w := range s.wanted {
		count(w.at.Addr(), s.sockets[w.socketKey] != nil)
	}
	for a, n := range s.short {
		d := all[a]
		d.Missing += n
		all[a] = d
	}
	return all
}
