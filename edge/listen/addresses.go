package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addresses makes addresses this machine's own, by giving them to the loopback interface. It takes away
// only what it gave: an address that an interface had before is the operator's. After a crash, what was
// given is still there, and is found again by its label (IPv4) or left to the operator (IPv6).
type addresses struct {
	added map[netip.Addr]bool
}

// label marks the IPv4 addresses that are ours. Labels begin with the interface's name (ip-address(8)).
const label = "lo:nearcast"

// add gives what is used and missing.
func (a *addresses) add(used map[netip.Addr]bool) error {
	if len(used) == 0 {
		return nil
	}
	lo, present, err := a.look()
	if err != nil {
		return err
	}
	var errs []error
	for addr := range used {
		if present[addr] || routedHere(addr) {
			continue
		}
		if err := netlink.AddrAdd(lo, ours(addr)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add address %v to the loopback interface (or give it to one yourself, "+
				"without manage-addresses): %w", addr, err))
			continue
		}
		a.added[addr] = true
	}
	return errors.Join(errs...)
}

// routedHere reports whether the kernel takes an address for this machine's own although no interface has it:
// the operator gave a whole prefix to it (ip route add local 198.51.100.0/24 dev lo).
func routedHere(addr netip.Addr) bool {
	routes, err := netlink.RouteGet(addr.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// look finds the loopback interface, all addresses of this machine, and those that are ours from before.
func (a *addresses) look() (netlink.Link, map[netip.Addr]bool, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, nil, fmt.Errorf("find the loopback interface: %w", err)
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	present := make(map[netip.Addr]bool, len(list))
	if a.added == nil {
		a.added = map[netip.Addr]bool{}
	}
	for _, l := range list {
		addr, _ := netip.AddrFromSlice(l.IP)
		addr = addr.Unmap()
		present[addr] = true
		if l.Label == label {
			a.added[addr] = true
		}
	}
	return lo, present, nil
}

// removeOthers takes away what was given and is not used any more.
func (a *addresses) removeOthers(used map[netip.Addr]bool) error {
	var errs []error
	var lo netlink.Link
	for addr := range a.added {
		if used[addr] {
			continue
		}
		if lo == nil {
			var err error
			if lo, err = netlink.LinkByName("lo"); err != nil {
				return fmt.Errorf("find the loopback interface: %w", err)
			}
		}
		if err := netlink.AddrDel(lo, ours(addr)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %v: %w", addr, err))
			continue
		}
		delete(a.added, addr)
	}
	return errors.Join(errs...)
}

// ours is an address as it is given to the loopback interface.
func ours(addr netip.Addr) *netlink.Addr {
	bits := addr.BitLen()
	out := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)}}
	if addr.Is4() {
		out.Label = label
	} else {
		out.Flags = unix.IFA_F_NODAD // nobody else on the loopback interface has it
	}
	return out
}
