package model

import (
	"fmt"
	"net/netip"
)

// EndpointRules says where endpoints must not lie, so that nobody who may configure an endpoint can
// make the fleet talk to itself or to what only its machines may reach. It is compiled once from a
// snapshot, immutable, and asked three times: when an endpoint is configured, before it is probed,
// and at every dial after its name was resolved (a name may resolve to another address by then).
type EndpointRules struct {
	allow   []netip.Prefix
	anycast map[netip.Addr][]PortRange // accelerated addresses and what listeners serve there
	serving map[netip.Addr]bool        // nodes' own addresses, which serve node pools
	ports   portSet                    // that listeners of node pools serve, on all of them
	own     map[netip.AddrPort]string
}

// portSet is a set of ports, one bit each.
type portSet [1 << 16 / 64]uint64

func (s *portSet) add(r PortRange) {
	for p := uint32(r.From); p <= uint32(r.To); p++ {
		s[p/64] |= 1 << (p % 64)
	}
}

func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

// NewEndpointRules compiles the rules of a snapshot. A nil snapshot has the general rules only.
func NewEndpointRules(s *Snapshot) *EndpointRules {
	r := &EndpointRules{
		anycast: map[netip.Addr][]PortRange{},
		serving: map[netip.Addr]bool{},
		own:     map[netip.AddrPort]string{},
	}
	if s == nil {
		return r
	}
	r.allow = s.EndpointAllowNetworks
	addresses := make(map[AcceleratorID][]netip.Addr, len(s.Accelerators))
	for i := range s.Accelerators {
		a := &s.Accelerators[i]
		addresses[a.ID] = a.Addresses
		for _, addr := range a.Addresses {
			r.anycast[addr.Unmap()] = nil
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		for _, addr := range n.ServiceAddresses {
			r.serving[addr.Unmap()] = true
		}
		for _, b := range n.BackboneAddresses {
			r.own[unmap(b)] = "backbone"
		}
		r.own[unmap(n.GossipAddress)] = "gossip"
	}
	for i := range s.Listeners {
		l := &s.Listeners[i]
		at := addresses[l.Accelerator]
		for _, addr := range at {
			r.anycast[addr.Unmap()] = append(r.anycast[addr.Unmap()], l.PortRanges...)
		}
		if len(at) == 0 { // a node pool: every node's own addresses serve
			for _, ports := range l.PortRanges {
				r.ports.add(ports)
			}
		}
	}
	return r
}

// Check returns nil if an endpoint may be at to, and otherwise an error that says why not. With
// port 0 only the address is judged.
//
// An address and port that a listener serves is refused always, since it would be a loop. All else
// (see ForbiddenAddr, accelerated addresses on anycast pools, backbone and gossip ports) is allowed
// where the operators' endpoint_allow_networks hold it.
func (r *EndpointRules) Check(to netip.AddrPort) error {
	to = unmap(to)
	addr := to.Addr()
	ranges, anycast := r.anycast[addr]
	for _, ports := range ranges {
		if to.Port() != 0 && ports.Contains(to.Port()) {
			return fmt.Errorf("%v is served by a listener: a loop", to)
		}
	}
	if r.serving[addr] && to.Port() != 0 && r.ports.has(to.Port()) {
		return fmt.Errorf("%v is served by a listener: a loop", to)
	}
	if allowed(addr, r.allow) {
		return nil
	}
	if anycast {
		return fmt.Errorf("%v is an accelerated address: a loop", addr)
	}
	if what := r.own[to]; what != "" {
		return fmt.Errorf("%v is a node's %s address", to, what)
	}
	return ForbiddenAddr(addr, nil)
}

// ForbiddenEndpoint is Check for a single question; see EndpointRules.
func ForbiddenEndpoint(to netip.AddrPort, s *Snapshot) error { return NewEndpointRules(s).Check(to) }

// forbiddenNetworks are refused by default. Link-local holds the metadata service of AWS, GCP, Azure
// and most others; those that lie elsewhere are listed by themselves.
var forbiddenNetworks = []struct {
	net  netip.Prefix
	what string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this-network"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata service (Alibaba Cloud)"},
	{netip.MustParsePrefix("168.63.129.16/32"), "platform service (Azure)"},
	{netip.MustParsePrefix("192.0.0.192/32"), "metadata service (Oracle Cloud)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved or broadcast"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	// What a local NAT64 makes of an address depends on the length its operator chose.
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local NAT64 (RFC 8215)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local (RFC 3879)"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata service (AWS)"},
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata service (GCP)"},
	{netip.MustParsePrefix("fd00:42::42/128"), "metadata service (Scaleway)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// ForbiddenAddr applies the rules that need no snapshot: it returns an error naming the class if
// addr is loopback, link-local, a metadata service, multicast, reserved or unspecified, directly or
// as an IPv4 address inside an IPv6 one (mapped, compatible, NAT64, 6to4, Teredo),
// and lies in none of allow.
func ForbiddenAddr(addr netip.Addr, allow []netip.Prefix) error {
	addr = addr.Unmap()
	if !addr.IsValid() {
		return fmt.Errorf("not an address")
	}
	if addr.Zone() != "" {
		return fmt.Errorf("%v has a zone", addr)
	}
	if allowed(addr, allow) {
		return nil
	}
	for _, f := range forbiddenNetworks {
		if f.net.Contains(addr) {
			return fmt.Errorf("%v is a %s address", addr, f.what)
		}
	}
	for _, in := range EmbeddedIPv4(addr) {
		if allowed(in, allow) {
			continue
		}
		for _, f := range forbiddenNetworks {
			if f.net.Contains(in) {
				return fmt.Errorf("%v holds %v, a %s address", addr, in, f.what)
			}
		}
	}
	return nil
}

// ForbiddenPrefix is ForbiddenAddr for a whole IPv4 network: it returns an error if any address of it may
// not be an endpoint's.
func ForbiddenPrefix(p netip.Prefix, allow []netip.Prefix) error {
	within := func(inner, outer netip.Prefix) bool {
		return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
	}
	for _, f := range forbiddenNetworks {
		if !f.net.Overlaps(p) {
			continue
		}
		common := f.net
		if within(p, f.net) {
			common = p
		}
		covered := false
		for _, a := range allow {
			covered = covered || within(common, a)
		}
		if !covered {
			return fmt.Errorf("%v holds %s addresses, %v", p, f.what, f.net)
		}
	}
	return nil
}

var (
	nat64Known = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixToFour  = netip.MustParsePrefix("2002::/16")    // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")    // RFC 4380
	compatible = netip.MustParsePrefix("::/96")        // RFC 4291 2.5.5.1
)

// EmbeddedIPv4 returns the IPv4 addresses that a translator on the way could make of addr: those inside
// an IPv4-compatible, NAT64, 6to4 or Teredo address. (An IPv4-mapped one is IPv4: see Unmap.)
func EmbeddedIPv4(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	at := func(i, j, k, l int) netip.Addr { return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}) }
	switch {
	case nat64Known.Contains(addr), compatible.Contains(addr):
		return []netip.Addr{at(12, 13, 14, 15)}
	case sixToFour.Contains(addr):
		return []netip.Addr{at(2, 3, 4, 5)}
	case teredo.Contains(addr): // the relay's server in clear, the client inverted
		client := netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
		return []netip.Addr{at(4, 5, 6, 7), client}
	}
	return nil
}

func allowed(addr netip.Addr, allow []netip.Prefix) bool {
	for _, p := range allow {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
