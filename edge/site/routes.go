package site

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/balance"
)

// finder keeps the ways that were last looked up, which costs a few system calls each.
type finder struct {
	mu   sync.Mutex
	at   time.Time
	ways map[netip.Addr]balance.Route
}

// routes returns the way to each address, as the kernel has it now or had it less than routesEvery ago. An address
// whose neighbour is not known is left out; heartbeats make it known.
func (known *finder) routes(addrs []netip.Addr) map[netip.Addr]balance.Route {
	known.mu.Lock()
	defer known.mu.Unlock()
	fresh := time.Since(known.at) < routesEvery
	for _, a := range addrs {
		_, ok := known.ways[a]
		fresh = fresh && ok
	}
	if fresh {
		return known.ways
	}
	known.at, known.ways = time.Now(), map[netip.Addr]balance.Route{}
	for _, a := range addrs {
		if way, ok := route(a); ok {
			known.ways[a] = way
		}
	}
	return known.ways
}

// route asks the kernel for the way to an address.
func route(a netip.Addr) (balance.Route, bool) {
	found, err := netlink.RouteGet(a.AsSlice())
	if err != nil || len(found) == 0 {
		return balance.Route{}, false
	}
	hop := net.IP(a.AsSlice())
	if found[0].Gw != nil {
		hop = found[0].Gw
	}
	dev, err := netlink.LinkByIndex(found[0].LinkIndex)
	if err != nil || len(dev.Attrs().HardwareAddr) != 6 {
		return balance.Route{}, false // no Ethernet
	}
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	neighbours, err := netlink.NeighList(dev.Attrs().Index, family)
	if err != nil {
		return balance.Route{}, false
	}
	const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
	for _, n := range neighbours {
		if n.IP.Equal(hop) && n.State&usable != 0 && len(n.HardwareAddr) == 6 {
			return balance.Route{
				Interface: dev.Attrs().Index, MTU: dev.Attrs().MTU, From: dev.Attrs().HardwareAddr, To: n.HardwareAddr,
				Direct: found[0].Gw == nil,
			}, true
		}
	}
	return balance.Route{}, false
}
