package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// addresses makes addresses this machine's own, by a local route each (ip route add local ADDRESS dev lo proto 178).
// It takes away only what it gave, which its protocol number tells, also after a crash.
//
// An address on the loopback interface would do the same. But the kernel keeps an interface's addresses in a list
// that it walks for each change, and takes more than a millisecond to take away one of IPv6: 4,096 addresses took
// 0.9 s to give (routes: 0.2 s) and 5.9 s to take away (0.1 s). Such addresses are also candidates for the source
// of this machine's own connections. Whole prefixes are an operator's choice, and are found: see routedHere.
type addresses struct {
	added map[netip.Addr]bool
}

// routeProtocol marks the routes that are ours (rtnetlink(7): numbers that nobody has registered are free to use).
const routeProtocol = 178

// add gives what is used and missing.
func (a *addresses) add(used map[netip.Addr]bool) error {
	if len(used) == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("ask the kernel for routes: %w", err)
	}
	defer h.Close()
	if a.added, err = givenRoutes(); err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	var errs []error
	for addr := range used {
		if a.added[addr] || routedHere(h, addr) {
			continue
		}
		if err := h.RouteAdd(ours(lo, addr)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("make address %v this machine's own (or do it yourself, without "+
				"manage-addresses): %w", addr, err))
			continue
		}
		a.added[addr] = true
	}
	return errors.Join(errs...)
}

// routedHere reports whether the kernel takes an address for this machine's own already: an interface has it, or the
// operator gave a whole prefix to this machine (ip route add local 198.51.100.0/24 dev lo).
func routedHere(h *netlink.Handle, addr netip.Addr) bool {
	routes, err := h.RouteGet(addr.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

// removeOthers takes away what was given and is not used any more.
func (a *addresses) removeOthers(used map[netip.Addr]bool) error {
	var gone []netip.Addr
	for addr := range a.added {
		if !used[addr] {
			gone = append(gone, addr)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("ask the kernel for routes: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	var errs []error
	for _, addr := range gone {
		if err := h.RouteDel(ours(lo, addr)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove address %v: %w", addr, err))
			continue
		}
		delete(a.added, addr)
	}
	return errors.Join(errs...)
}

// ours is the local route of an address.
func ours(lo netlink.Link, addr netip.Addr) *netlink.Route {
	bits := addr.BitLen()
	return &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: routeProtocol,
		Scope: unix.RT_SCOPE_HOST, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, bits)},
	}
}

// givenRoutes returns the addresses of the routes that are ours. The kernel is asked for the local table only: a
// router's main table may have a million routes, and the library would ask for all.
func givenRoutes() (map[netip.Addr]bool, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for routes: %w", err)
	}
	defer s.Close()
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return nil, fmt.Errorf("ask the kernel for routes: NETLINK_GET_STRICT_CHK: %w", err)
	}
	given := map[netip.Addr]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		messages, err := dumpGiven(s, family)
		if family == unix.AF_INET6 && errors.Is(err, unix.ENOENT) {
			break // this machine has no IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		for _, m := range messages {
			if addr, ok := givenAddress(m); ok {
				given[addr] = true
			}
		}
	}
	return given, nil
}

// dumpGiven asks for a family's routes, again if they changed meanwhile.
func dumpGiven(s *nl.NetlinkSocket, family uint8) (messages [][]byte, err error) {
	for range dumpsMax {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
			Family: family, Table: unix.RT_TABLE_LOCAL, Protocol: routeProtocol, Type: unix.RTN_LOCAL,
		}})
		messages, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			return messages, err
		}
	}
	return messages, err
}

// givenAddress reads the address of a route of ours.
func givenAddress(m []byte) (netip.Addr, bool) {
	if len(m) < unix.SizeofRtMsg {
		return netip.Addr{}, false
	}
	head := nl.DeserializeRtMsg(m)
	if head.Protocol != routeProtocol || head.Table != unix.RT_TABLE_LOCAL {
		return netip.Addr{}, false
	}
	attributes, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Addr{}, false
	}
	for _, at := range attributes {
		if at.Attr.Type == unix.RTA_DST {
			return netip.AddrFromSlice(at.Value)
		}
	}
	return netip.Addr{}, false
}
