package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	NS  *NS
	Dev string // interface name, at most 15 characters
}

// Veth makes a pair of connected interfaces and brings both up.
func Veth(a, b End) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Dev
	attrs.TxQLen = 1000
	err := a.NS.withLink(func(h *netlink.Handle) error {
		b.NS.mu.RLock()
		defer b.NS.mu.RUnlock()
		if b.NS.removed {
			return errRemoved
		}
		return h.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: b.Dev, PeerNamespace: netlink.NsFd(b.NS.file.Fd()),
		})
	})
	if err != nil {
		return fmt.Errorf("veth %s/%s to %s/%s: %w", a.NS.name, a.Dev, b.NS.name, b.Dev, err)
	}
	if err := a.NS.SetUp(a.Dev); err != nil {
		return err
	}
	return b.NS.SetUp(b.Dev)
}

// withLink runs fn with the namespace's netlink handle.
func (ns *NS) withLink(fn func(*netlink.Handle) error) error {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.removed {
		return errRemoved
	}
	return fn(ns.link)
}

// withDev runs fn with the handle and the named interface.
func (ns *NS) withDev(dev, what string, fn func(*netlink.Handle, netlink.Link) error) error {
	err := ns.withLink(func(h *netlink.Handle) error {
		l, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		return fn(h, l)
	})
	if err != nil {
		return fmt.Errorf("%s %s in %s: %w", what, dev, ns.name, err)
	}
	return nil
}

// SetUp brings an interface up.
func (ns *NS) SetUp(dev string) error {
	return ns.withDev(dev, "bring up", func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetUp(l) })
}

// SetDown takes an interface down: the peer loses its carrier, routes over it go.
func (ns *NS) SetDown(dev string) error {
	return ns.withDev(dev, "take down", func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetDown(l)
	})
}

// SetMTU sets an interface's MTU in bytes.
func (ns *NS) SetMTU(dev string, mtu int) error {
	return ns.withDev(dev, "set mtu of", func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetMTU(l, mtu)
	})
}

// SetTxQueue sets the length of an interface's transmit queue in packets. For a TUN it is the ring that its
// reader empties.
func (ns *NS) SetTxQueue(dev string, packets int) error {
	return ns.withDev(dev, "set queue of", func(h *netlink.Handle, l netlink.Link) error {
		return h.LinkSetTxQLen(l, packets)
	})
}

// Drops are how many packets an interface could not send, and could not receive.
type Drops struct{ Tx, Rx uint64 }

// Drops returns the Drops of each interface by its name. Nil when the namespace is gone.
func (ns *NS) Drops() map[string]Drops {
	var drops map[string]Drops
	err := ns.withLink(func(h *netlink.Handle) error {
		links, err := h.LinkList()
		drops = make(map[string]Drops, len(links))
		for _, l := range links {
			if st := l.Attrs().Statistics; st != nil {
				drops[l.Attrs().Name] = Drops{Tx: st.TxDropped, Rx: st.RxDropped}
			}
		}
		return err
	})
	if err != nil {
		return nil
	}
	return drops
}

// MAC returns an interface's hardware address.
func (ns *NS) MAC(dev string) (mac net.HardwareAddr, err error) {
	err = ns.withDev(dev, "look at", func(_ *netlink.Handle, l netlink.Link) error {
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// AddAddr adds an address with its prefix length to an interface. It is usable when AddAddr returns, if the
// interface is up at both ends (there is no duplicate address detection), and adding it twice is no error.
func (ns *NS) AddAddr(dev string, p netip.Prefix) error {
	return ns.withDev(dev, "add address "+p.String()+" to", func(h *netlink.Handle, l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if !p.Addr().Is6() {
			return h.AddrReplace(l, addr)
		}
		addr.Flags = unix.IFA_F_NODAD
		const carried = unix.IFF_UP | unix.IFF_LOWER_UP
		if err := h.AddrReplace(l, addr); err != nil || l.Attrs().RawFlags&carried != carried {
			return err
		}
		return untilLocal(h, p.Addr())
	})
}

// untilLocal waits until packets to an IPv6 address that was added are taken here. The kernel adds the route that
// does it in a worker of its own, also without duplicate address detection: connecting before fails.
func untilLocal(h *netlink.Handle, ip netip.Addr) error {
	for end := time.Now().Add(addrTimeout); ; time.Sleep(addrPause) {
		routes, err := h.RouteGet(ip.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("no local route to it after %v (%v)", addrTimeout, err)
		}
	}
}

// DelAddr removes an address from an interface.
func (ns *NS) DelAddr(dev string, p netip.Prefix) error {
	return ns.withDev(dev, "delete address "+p.String()+" from", func(h *netlink.Handle, l netlink.Link) error {
		return h.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
	})
}

// AddNeighbour tells an interface for good which hardware address an IP address has.
func (ns *NS) AddNeighbour(dev string, ip netip.Addr, mac net.HardwareAddr) error {
	return ns.withDev(dev, "add neighbour "+ip.String()+" to", func(h *netlink.Handle, l netlink.Link) error {
		return h.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac,
		})
	})
}

// Route is one route.
type Route struct {
	Dst    netip.Prefix // 0.0.0.0/0 or ::/0 is the default route
	Dev    string       // outgoing interface; for Local it defaults to lo
	Via    netip.Addr   // next hop; taken as on-link whatever Dev's addresses are. Zero: Dst is on the link
	Src    netip.Addr   // preferred source of locally made packets. Zero: the kernel chooses
	Table  int          // 0: main
	MTU    int          // path MTU of the route in bytes; 0: Dev's
	Local  bool         // all addresses in Dst are this namespace's own ("AnyIP")
	Metric int          // lower wins; 0: the kernel's default
}

// AddRoute adds a route, or replaces the one with the same destination, table and metric.
func (ns *NS) AddRoute(r Route) error {
	if r.Local && r.Dev == "" {
		r.Dev = "lo"
	}
	return ns.withDev(r.Dev, "add route "+r.Dst.String()+" over", func(h *netlink.Handle, l netlink.Link) error {
		return h.RouteReplace(r.netlink(l.Attrs().Index))
	})
}

// DelRoute removes a route.
func (ns *NS) DelRoute(r Route) error {
	if r.Local && r.Dev == "" {
		r.Dev = "lo"
	}
	what := "delete route " + r.Dst.String() + " over"
	return ns.withDev(r.Dev, what, func(h *netlink.Handle, l netlink.Link) error {
		return h.RouteDel(r.netlink(l.Attrs().Index))
	})
}

func (r Route) netlink(index int) *netlink.Route {
	n := &netlink.Route{
		LinkIndex: index, Dst: ipNet(r.Dst.Masked()), Table: r.Table, MTU: r.MTU, Priority: r.Metric,
		Family: family(r.Dst.Addr()),
	}
	if r.Via.IsValid() {
		n.Gw = r.Via.AsSlice()
		n.Flags = int(netlink.FLAG_ONLINK)
	} else {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.Src.IsValid() {
		n.Src = r.Src.AsSlice()
	}
	if r.Local {
		n.Type = unix.RTN_LOCAL
		n.Scope = netlink.SCOPE_HOST
		if n.Table == 0 {
			n.Table = unix.RT_TABLE_LOCAL
		}
	}
	return n
}

// Rule is one policy routing rule of one address family.
type Rule struct {
	Pref  int          // position; lower is looked at first
	V6    bool         // the IPv6 rules; else IPv4
	Iif   string       // only packets that came in here; empty: all
	From  netip.Prefix // only packets from here; zero: all
	To    netip.Prefix // only packets to here; zero: all
	Mark  uint32       // only packets with this mark; 0: all
	Table int          // the table to look in
}

// AddRule adds a rule.
func (ns *NS) AddRule(r Rule) error {
	err := ns.withLink(func(h *netlink.Handle) error { return h.RuleAdd(r.netlink()) })
	if err != nil {
		return fmt.Errorf("add rule %+v in %s: %w", r, ns.name, err)
	}
	return nil
}

// DelRule removes a rule.
func (ns *NS) DelRule(r Rule) error {
	err := ns.withLink(func(h *netlink.Handle) error { return h.RuleDel(r.netlink()) })
	if err != nil {
		return fmt.Errorf("delete rule %+v in %s: %w", r, ns.name, err)
	}
	return nil
}

func (r Rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Priority, n.Table, n.IifName, n.Mark = r.Pref, r.Table, r.Iif, r.Mark
	n.Family = unix.AF_INET
	if r.V6 {
		n.Family = unix.AF_INET6
	}
	if r.From.IsValid() {
		n.Src = ipNet(r.From)
	}
	if r.To.IsValid() {
		n.Dst = ipNet(r.To)
	}
	return n
}

// Sysctl sets a kernel parameter of the namespace, named with dots (net.ipv4.tcp_rmem) or slashes.
func (ns *NS) Sysctl(name, value string) error {
	err := ns.Do(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("sysctl %s in %s: %w", name, ns.name, err)
	}
	return nil
}

// ReadSysctl returns a kernel parameter of the namespace.
func (ns *NS) ReadSysctl(name string) (value string, err error) {
	err = ns.Do(func() error {
		text, err := os.ReadFile(sysctlPath(name))
		value = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s in %s: %w", name, ns.name, err)
	}
	return value, nil
}

func sysctlPath(name string) string {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
