package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nearcast/nearcast/bpf/ports"
)

// Proto is a transport protocol.
type Proto = ports.Proto

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// The protocols that listeners have.
const (
	TCP = ports.TCP
	UDP = ports.UDP
)

// Address is an accelerated prefix.
type Address struct {
	Prefix      netip.Prefix
	Exclusive   bool // drop what no listener wants: nothing else of the machine lives on it
	NoFragments bool // drop fragments
}

// Rate is how much may come. The zero value is no limit.
type Rate struct {
	PerSecond int // new TCP flows or UDP packets; up to 1,000,000,000
	Burst     int // how many may come at once after a pause; at least 1
}

// Validate checks the rate.
func (r Rate) Validate() error {
	if r == (Rate{}) {
		return nil
	}
	if r.PerSecond < 1 || r.PerSecond > 1e9 || r.Burst < 1 || r.Burst > 1e9 {
		return fmt.Errorf("rate %+v: both numbers must be between 1 and 1,000,000,000", r)
	}
	return nil
}

func (r Rate) value() guardRate {
	if r.PerSecond == 0 {
		return guardRate{}
	}
	cost := 1e9 / uint64(r.PerSecond)
	return guardRate{CostNs: cost, BurstNs: uint64(r.Burst-1) * cost}
}

// Listener is what one listener lets in.
type Listener struct {
	Name     string // identity: buckets and counters stay with it through changes
	Prefixes []netip.Prefix
	Ports    []Ports
	Proto    Proto

	// Names of lists, or "". A source on the denied list is dropped, and so is one that is not on the allowed
	// list, if there is one.
	Allow, Deny string

	// Names of countries. The lists above come first: a source on the denied list is dropped and one on the
	// allowed list passes, whatever its country. Then one from a denied country is dropped, and so is one that
	// is not from an allowed country, if there are any; the allowed list then is not the only way in.
	AllowCountries, DenyCountries []string

	Source Rate // of one source: an IPv4 address or an IPv6 /64
	Total  Rate // of all sources

	// Flood is the rate of SYNs beyond which they are answered with SYN cookies, here and not by the network
	// stack, while the listening socket's queue is full. The system's net.ipv4.tcp_syncookies must not be 0.
	Flood Rate

	NoFragments bool // drop fragments that have ports; the others are Address's to drop
}

// Rules are all that is to hold.
type Rules struct {
	Addresses []Address
	Listeners []Listener
	Lists     map[string][]netip.Prefix // by name; at most 256
	// Countries are networks by the name of their country; at most 255. Of networks of several countries that
	// overlap the narrower one counts, and of equal ones the one of the name that is first in order. Update
	// keeps these and Lists' slices: they must not be altered. Those that come again are not looked at.
	Countries map[string][]netip.Prefix
}

// Validate checks what can be checked without the kernel. Ports are checked when they are compiled.
func (r Rules) Validate() error {
	if len(r.Lists) > listsMax {
		return fmt.Errorf("%d lists are more than %d", len(r.Lists), listsMax)
	}
	for _, a := range r.Addresses {
		if err := checkPrefix(a.Prefix); err != nil {
			return fmt.Errorf("address: %w", err)
		}
	}
	if len(r.Countries) > countriesMax {
		return fmt.Errorf("%d countries are more than %d", len(r.Countries), countriesMax)
	}
	for what, lists := range map[string]map[string][]netip.Prefix{"list": r.Lists, "country": r.Countries} {
		for name, prefixes := range lists {
			for _, p := range prefixes {
				if err := checkPrefix(p); err != nil {
					return fmt.Errorf("%s %s: %w", what, name, err)
				}
			}
		}
	}
	seen := map[string]bool{}
	for _, l := range r.Listeners {
		if l.Name == "" || seen[l.Name] {
			return fmt.Errorf("listener %q: no name, or not its own", l.Name)
		}
		seen[l.Name] = true
		if err := errors.Join(l.Source.Validate(), l.Total.Validate(), l.Flood.Validate()); err != nil {
			return fmt.Errorf("listener %s: %w", l.Name, err)
		}
		for _, list := range []string{l.Allow, l.Deny} {
			if _, ok := r.Lists[list]; !ok && list != "" {
				return fmt.Errorf("listener %s: list %q does not exist", l.Name, list)
			}
		}
		for _, country := range slices.Concat(l.AllowCountries, l.DenyCountries) {
			if _, ok := r.Countries[country]; !ok {
				return fmt.Errorf("listener %s: country %q does not exist", l.Name, country)
			}
		}
	}
	return nil
}

func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return fmt.Errorf("%v is not a masked IPv4 or IPv6 prefix", p)
	}
	return nil
}

// names gives numbers to names, keeps them while the names are in use, and reuses them afterwards.
type names struct {
	numbers map[string]uint32
	free    []uint32
	next    uint32
	max     uint32
}

// assign returns the name's number; ok is false when all are in use.
func (n *names) assign(name string) (number uint32, ok bool) {
	if number, ok := n.numbers[name]; ok {
		return number, true
	}
	switch {
	case len(n.free) > 0:
		number = n.free[len(n.free)-1]
		n.free = n.free[:len(n.free)-1]
	case n.next < n.max:
		number = n.next
		n.next++
	default:
		return 0, false
	}
	n.numbers[name] = number
	return number, true
}

// keep frees the numbers of all names that are not in use.
func (n *names) keep(used func(name string) bool) {
	for name, number := range n.numbers {
		if !used(name) {
			delete(n.numbers, name)
			n.free = append(n.free, number)
		}
	}
}
