package balance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/ports"
)

// Site is the nodes among which flows are balanced.
type Site struct {
	Members []Member // this node among them; none: everything passes here
	// Keys are what encapsulated packets carry, so that nobody outside can forge them: the first is sent, all are
	// taken. None is 0. At most four.
	Keys []uint64
}

// Member is one node.
type Member struct {
	Name    string         // what its rows follow from, so the same on all nodes
	Address netip.AddrPort // on the network between the nodes; all of one family, and one port
	Weight  int            // its share of flows, 1 to 1,000
	Self    bool
	Owner   bool // new flows may be its own
	Up      bool // it answers; only then it is sent packets
	Suspect bool // it answered a moment ago: what only it can have is still sent to it
	Route   Route
}

// Route is how packets leave for a member. Of this node itself it is not used.
type Route struct {
	Interface int
	MTU       int
	From, To  net.HardwareAddr // of the interface; of the member, or the router on the way
	Direct    bool             // there is no router on the way
}

// Validate reports what is wrong with the site.
func (s Site) Validate() error {
	var self *Member
	seen := map[netip.AddrPort]bool{}
	for i := range s.Members {
		m := &s.Members[i]
		switch {
		case m.Weight < 1 || m.Weight > 1000:
			return fmt.Errorf("member %s: weight %d is not between 1 and 1000", m.Name, m.Weight)
		case !m.Address.IsValid() || m.Address.Port() == 0:
			return fmt.Errorf("member %s: no address", m.Name)
		case seen[m.Address]:
			return fmt.Errorf("member %s: another one has its address %v", m.Name, m.Address)
		case m.Self && self != nil:
			return fmt.Errorf("members %s and %s are both this node", self.Name, m.Name)
		case m.Address.Addr().Unmap().Is4() != s.Members[0].Address.Addr().Unmap().Is4():
			return fmt.Errorf("member %s: its address is of another family than %s's", m.Name, s.Members[0].Name)
		case !m.Self && (len(m.Route.From) != 6 || len(m.Route.To) != 6 || m.Route.Interface < 1) && (m.Up || m.Owner):
			return fmt.Errorf("member %s: the way to it is not known", m.Name)
		}
		seen[m.Address] = true
		if m.Self {
			self = m
		}
	}
	switch {
	case len(s.Members) > MembersMax:
		return fmt.Errorf("%d members, at most %d are possible", len(s.Members), MembersMax)
	case len(s.Members) > 0 && self == nil:
		return errors.New("this node is not among the members")
	case len(s.Members) > 0 && len(s.Keys) == 0:
		return errors.New("no keys")
	}
	return nil
}

// Update has flows balanced among the members of a site. The table is put into use by one write; the ones before
// are kept for the flows that began under them.
func (b *Balancer) Update(s Site, now time.Time) error {
	if err := s.Validate(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.history.before)
	if b.history.expire(now); reflect.DeepEqual(s, b.applied) && len(b.history.before) == before {
		return nil
	}
	numbers, err := b.number(s.Members)
	if err != nil {
		return err
	}
	if err := b.writeMembers(s.Members, numbers); err != nil {
		return fmt.Errorf("write members: %w", err)
	}
	var self uint8
	var present []uint8
	for i, m := range s.Members {
		if m.Self {
			self = numbers[i]
			b.settings.Address = ports.Words(m.Address.Addr().Unmap())
			b.settings.Family = uint32(ports.Family(m.Address.Addr().Unmap()))
			b.settings.Port = swap16(m.Address.Port())
		}
		present = append(present, numbers[i])
	}
	if len(s.Members) > 0 {
		table := tableOf(s.Members, numbers, func(m Member) bool { return m.Owner })
		if b.fresh {
			// The others had this table while this node was away.
			b.history.remember(tableOf(s.Members, numbers, func(m Member) bool { return m.Owner && !m.Self }), now)
		}
		if !slices.Equal(table, b.history.current) {
			b.settings.UnsettledNs = monotonic() + uint64(settleTime)
		}
		b.history.change(table, now)
		slices.Sort(present)
		if err := b.writeRows(b.history.rows(present)); err != nil {
			return fmt.Errorf("write rows: %w", err)
		}
	}
	b.settings.Self = uint32(self)
	b.settings.Keys = [keysMax]uint64{}
	copy(b.settings.Keys[:], s.Keys)
	b.settings.AliveNs = monotonic()
	if err := b.objs.Control.Put(uint32(0), b.settings); err != nil {
		return fmt.Errorf("put table into use: %w", err)
	}
	b.applied, b.fresh = s, b.fresh && len(s.Members) == 0
	return b.forget(present)
}

// tableOf is the table of the members that may own rows; without any it is this node's alone.
func tableOf(members []Member, numbers []uint8, may func(Member) bool) owners {
	var all []Share
	var of []uint8
	var self uint8
	for i, m := range members {
		if may(m) {
			all = append(all, Share{Name: m.Name, Weight: m.Weight})
			of = append(of, numbers[i])
		}
		if m.Self {
			self = numbers[i]
		}
	}
	o := make(owners, Rows)
	if len(all) == 0 {
		for row := range o {
			o[row] = self
		}
		return o
	}
	for row, i := range Table(all) {
		o[row] = of[i]
	}
	return o
}

// number gives members their numbers: those that they have, also from an earlier process, by their addresses.
func (b *Balancer) number(members []Member) ([]uint8, error) {
	numbers := make([]uint8, len(members))
	var taken [membersSize]bool
	for i, m := range members {
		want := balanceMember{Address: ports.Words(m.Address.Addr().Unmap()), Family: ports.Family(m.Address.Addr().Unmap())}
		for n := 1; n < membersSize; n++ {
			if b.members[n].Address == want.Address && b.members[n].Family == want.Family {
				numbers[i], taken[n] = uint8(n), true
			}
		}
	}
	for i := range members {
		if numbers[i] != 0 {
			continue
		}
		n := freeNumber(taken, func(n int) bool { return b.members[n].Family == 0 })
		if n == 0 { // then that of somebody who has gone
			n = freeNumber(taken, func(int) bool { return true })
		}
		if n == 0 {
			return nil, fmt.Errorf("no number is left for member %s", members[i].Name)
		}
		numbers[i], taken[n] = uint8(n), true
	}
	return numbers, nil
}

func freeNumber(taken [membersSize]bool, may func(int) bool) int {
	for n := 1; n < membersSize; n++ {
		if !taken[n] && may(n) {
			return n
		}
	}
	return 0
}

func (b *Balancer) writeMembers(members []Member, numbers []uint8) error {
	for i, m := range members {
		v := balanceMember{
			Address: ports.Words(m.Address.Addr().Unmap()), Family: ports.Family(m.Address.Addr().Unmap()), Port: swap16(m.Address.Port()),
			Interface: uint32(m.Route.Interface), Mtu: uint16(min(m.Route.MTU, 65535)),
		}
		copy(v.Mac[:], m.Route.To)
		copy(v.OwnMac[:], m.Route.From)
		switch {
		case m.Self:
			v.Flags = memberSelf
		case m.Up:
			v.Flags = memberUp
		case m.Suspect:
			v.Flags = memberSuspect
		}
		if m.Route.Direct && !m.Self {
			v.Flags |= memberDirect
		}
		n := numbers[i]
		if b.members[n] == v {
			continue
		}
		if old := b.members[n]; old.Family != 0 && old.Address != v.Address {
			_ = b.objs.Peers.Delete(peerKey(old)) // it may be gone already
		}
		if err := b.objs.Members.Put(uint32(n), v); err != nil {
			return err
		}
		if err := b.objs.Peers.Put(peerKey(v), uint32(n)); err != nil {
			return err
		}
		b.members[n] = v
	}
	return nil
}

// forget takes the members that are gone away; their numbers stay theirs as long as there are others.
func (b *Balancer) forget(present []uint8) error {
	for n := 1; n < membersSize; n++ {
		v := b.members[n]
		if v.Family == 0 || slices.Contains(present, uint8(n)) || v.Flags == 0 {
			continue
		}
		v.Flags = 0
		if err := b.objs.Members.Put(uint32(n), v); err != nil {
			return fmt.Errorf("take member away: %w", err)
		}
		b.members[n] = v
		_ = b.objs.Peers.Delete(peerKey(v)) // it may be gone already
	}
	return nil
}

// writeRows writes the table that is not in use, and names it in the settings.
func (b *Balancer) writeRows(rows []balanceRow) error {
	if slices.Equal(rows, b.written) {
		return nil
	}
	half := (b.settings.Half + 1) & 1
	keys := make([]uint32, len(rows))
	for i := range keys {
		keys[i] = half*Rows + uint32(i)
	}
	if _, err := b.objs.Rows.BatchUpdate(keys, rows, nil); err != nil {
		return err
	}
	b.settings.Half, b.written = half, rows
	return nil
}

func peerKey(m balanceMember) balanceAddress {
	return balanceAddress{Family: uint32(m.Family), Words: m.Address}
}

// Beyond says what of the last hour there is no room for: rows that had more owners than can be asked, of which the
// earliest are left out, and whether tables were given up. Flows from then break when the router moves them.
func (b *Balancer) Beyond() (rows int, tables bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.history.beyond(time.Now())
}

// Shares returns how many rows each member owns, by address, for people.
func (b *Balancer) Shares() map[netip.Addr]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[netip.Addr]int{}
	for _, n := range b.history.current {
		if m := b.members[n]; m.Family != 0 {
			all[addressOf(m.Family, m.Address)]++
		}
	}
	return all
}

func addressOf(family uint8, w [4]uint32) netip.Addr {
	var raw [16]byte
	for i, word := range w {
		binary.NativeEndian.PutUint32(raw[4*i:], word)
	}
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(raw[:4]))
	}
	return netip.AddrFrom16(raw)
}

func swap16(n uint16) uint16 {
	var raw [2]byte
	binary.BigEndian.PutUint16(raw[:], n)
	return binary.NativeEndian.Uint16(raw[:])
}
