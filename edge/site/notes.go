package site

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nearcast/nearcast/bpf/balance"
)

// Notes says what is wrong with the site, for people.
func (s *Site) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var notes []string
	switch {
	case s.without:
		notes = append(notes, fmt.Sprintf("flows are not balanced here: %d nodes of a site can share its flows, and this "+
			"is one more", balance.MembersMax))
	case !s.self.IsValid():
		notes = append(notes, "the snapshot has no address of this node for its site (--balance-address): "+
			"flows are not balanced")
	case s.problem != "":
		notes = append(notes, "flows are not balanced as the site is now: "+s.problem)
	}
	if len(s.extra) > 0 && !s.without {
		notes = append(notes, fmt.Sprintf("%d nodes of a site can share its flows; there is no room for %s",
			balance.MembersMax, strings.Join(s.extra, ", ")))
	}
	notes = append(append(notes, s.peerNotes()...), s.pastNotes()...)
	for _, m := range s.applied.Members {
		if room := m.Route.MTU - overhead(m.Address); !m.Self && room < usualMTU {
			notes = append(notes, fmt.Sprintf("the network to %v has an MTU of %d: packets of clients above %d bytes do "+
				"not pass between nodes; make it %d", m.Address.Addr(), m.Route.MTU, room, usualMTU+overhead(m.Address)))
			break
		}
	}
	slices.Sort(notes)
	return notes
}

// peerNotes says which other nodes can't take part, and why. It holds mu.
func (s *Site) peerNotes() (notes []string) {
	if !s.self.IsValid() {
		return nil
	}
	first := map[netip.AddrPort]string{}
	for _, p := range s.sorted() {
		switch other := first[p.at]; {
		case p.at == s.self:
			notes = append(notes, fmt.Sprintf("%s has this node's balance address (%v): each takes itself for it, and "+
				"the others leave out one of both", p.name, p.at))
		case other != "":
			notes = append(notes, fmt.Sprintf("%s has the balance address of %s (%v) and is left out", p.name, other, p.at))
		case p.at.Addr().Is4() != s.self.Addr().Is4():
			notes = append(notes, fmt.Sprintf("%s has a balance address of the other IP version (%v) and is left out",
				p.name, p.at.Addr()))
		case p.at.Port() != s.self.Port():
			notes = append(notes, fmt.Sprintf("%s has another balance port (%d) and is left out", p.name, p.at.Port()))
		}
		first[p.at] = cmp.Or(first[p.at], p.name)
	}
	return notes
}

// pastNotes says what of the last hour's changes there is no room for.
func (s *Site) pastNotes() (notes []string) {
	rows, tables := s.cfg.Balancer.Beyond()
	const then = "flows from before break when the router moves them"
	if rows > 0 {
		notes = append(notes, fmt.Sprintf("in the last hour %d of %d rows had more owners than can be asked for a flow: %s",
			rows, balance.Rows, then))
	}
	if tables {
		notes = append(notes, "the site has changed too often within an hour to remember it all: "+then)
	}
	return notes
}

func overhead(a netip.AddrPort) int {
	if a.Addr().Unmap().Is4() {
		return balance.OverheadIPv4
	}
	return balance.OverheadIPv6
}

// describe is what of a site is news for people.
func describe(site balance.Site) []string {
	all := make([]string, len(site.Members))
	for i, m := range site.Members {
		state := "draining"
		switch {
		case m.Owner:
			state = "serving"
		case m.Suspect:
			state = "suspect"
		}
		all[i] = fmt.Sprintf("%v %s", m.Address.Addr(), state)
	}
	return all
}
