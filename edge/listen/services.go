package listen

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/edge/flow"
	"github.com/nearcast/nearcast/proto/model"
)

// This file keeps the dispatcher, which is asked before any socket, from taking ports of the machine's own
// addresses away from what else serves there: SSH, or this node's own backbone. With plain sockets the kernel
// refuses to open such a port; with a dispatcher it has to be looked for. Addresses that are no interface's
// but the loopback's (those of anycast pools) are nobody else's, and are not looked at.

// Service is a port that another socket of this machine has.
type Service struct {
	Proto flow.Proto
	At    netip.AddrPort
}

func (s Service) String() string {
	if s.Proto == flow.UDP {
		return s.At.String() + "/udp"
	}
	return s.At.String() + "/tcp"
}

// left is what was left to services when the rules were last made.
type left struct {
	wide   []Service // by listeners of many ports, which do not mean each of them
	narrow []Service // by listeners that mean these ports
}

// Left returns the ports that are left to other services of this machine, and those among them that a listener
// asks for by itself.
func (s *Set) Left() (all, wanted []Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.shared.left.narrow, s.shared.left.wide), slices.Clone(s.shared.left.narrow)
}

// leaveServices takes from bindings the ports of the machine's own addresses that others listen on. When that
// cannot be found out, nothing is taken.
func (s *Set) leaveServices(bindings []Binding) ([]Binding, left) {
	own, err := s.machine.addresses()
	if err == nil && !slices.ContainsFunc(bindings, func(b Binding) bool { return own[b.Addr.Unmap()] }) {
		return bindings, left{}
	}
	var taken map[Service]bool
	if err == nil {
		taken, err = s.machine.services()
	}
	if err != nil {
		s.cfg.Log.Warn("what else listens on this machine is not known, and not spared", "error", err)
		return bindings, left{}
	}
	return spare(bindings, own, taken)
}

// spare takes services from bindings to own addresses. A service at the unspecified address is one at each.
func spare(bindings []Binding, own map[netip.Addr]bool, taken map[Service]bool) (kept []Binding, l left) {
	wide, narrow := map[Service]bool{}, map[Service]bool{}
	for _, b := range bindings {
		addr := b.Addr.Unmap()
		if !own[addr] {
			kept = append(kept, b)
			continue
		}
		var ports []uint16
		for svc := range taken {
			if at := svc.At.Addr(); svc.Proto == b.Proto && b.Ports.Contains(svc.At.Port()) &&
				(at == addr || at == netip.IPv6Unspecified() || at == netip.IPv4Unspecified() && addr.Is4()) {
				ports = append(ports, svc.At.Port())
			}
		}
		slices.Sort(ports)
		from := int(b.Ports.From)
		for _, port := range slices.Compact(ports) {
			svc := Service{b.Proto, netip.AddrPortFrom(addr, port)}
			if b.Ports.Len() >= wideRange {
				wide[svc] = true
			} else {
				narrow[svc] = true
			}
			if from < int(port) {
				part := b
				part.Ports = model.PortRange{From: uint16(from), To: port - 1}
				kept = append(kept, part)
			}
			from = int(port) + 1
		}
		if from <= int(b.Ports.To) {
			b.Ports.From = uint16(from)
			kept = append(kept, b)
		}
	}
	return kept, left{sortedServices(wide), sortedServices(narrow)}
}

func sortedServices(m map[Service]bool) []Service {
	return slices.SortedFunc(maps.Keys(m), func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.At.Compare(b.At))
	})
}

// machine is what is asked of the kernel; tests answer for it.
type machine struct {
	addresses func() (map[netip.Addr]bool, error)
	services  func() (map[Service]bool, error)
}

// interfaceAddresses returns the addresses of all interfaces but the loopback's.
func interfaceAddresses() (map[netip.Addr]bool, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				own[p.Addr().Unmap()] = true
			}
		}
	}
	return own, nil
}

// States of sockets, as sock_diag(7) asks for them by bits (linux/tcp_states.h).
const (
	stateUnconnected = 7 // UDP without a peer
	stateListen      = 10
)

// listening returns where this machine's sockets take anybody's packets: TCP sockets that listen, and UDP
// sockets that have no peer, the unspecified address and a port that the kernel does not choose for clients.
// A node's own UDP sockets of other addresses are those that its answers leave by.
func listening() (map[Service]bool, error) {
	found := map[Service]bool{}
	first, last := ephemeral()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for _, of := range []struct {
			proto flow.Proto
			state uint32
		}{{flow.TCP, stateListen}, {flow.UDP, stateUnconnected}} {
			at, err := diagnose(family, uint8(of.proto), 1<<of.state)
			if err != nil {
				return nil, err
			}
			for _, a := range at {
				if of.proto == flow.UDP && (!a.Addr().IsUnspecified() || a.Port() >= first && a.Port() <= last) {
					continue
				}
				found[Service{of.proto, a}] = true
			}
		}
	}
	return found, nil
}

// ephemeral returns the ports that the kernel chooses for clients.
func ephemeral() (first, last uint16) {
	first, last = 32768, 60999 // the kernel's default
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return first, last
	}
	fields := bytes.Fields(text)
	if len(fields) != 2 {
		return first, last
	}
	a, err1 := strconv.ParseUint(string(fields[0]), 10, 16)
	b, err2 := strconv.ParseUint(string(fields[1]), 10, 16)
	if err1 != nil || err2 != nil {
		return first, last
	}
	return uint16(a), uint16(b)
}

// diagRequest is inet_diag_req_v2 of linux/inet_diag.h: family, protocol, two bytes, a set of states, and the
// id of a socket, which is left out.
type diagRequest [8 + diagIDBytes]byte

const (
	diagIDBytes = 48 // inet_diag_sockid: two ports, two addresses of 16 bytes, interface, cookie
	diagSource  = 4  // of inet_diag_msg: state and timers come first, then the id
)

func (r *diagRequest) Len() int          { return len(r) }
func (r *diagRequest) Serialize() []byte { return r[:] }

// diagnose returns the local addresses of sockets in some states.
func diagnose(family, proto uint8, states uint32) (all []netip.AddrPort, err error) {
	r := &diagRequest{family, proto}
	binary.NativeEndian.PutUint32(r[4:], states)
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(r)
	answers, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	for _, m := range answers {
		if at, ok := diagnosed(m); ok {
			all = append(all, at)
		}
	}
	return all, nil
}

// diagnosed reads the local address of an inet_diag_msg.
func diagnosed(m []byte) (netip.AddrPort, bool) {
	if len(m) < diagSource+diagIDBytes {
		return netip.AddrPort{}, false
	}
	id := m[diagSource:]
	port := binary.BigEndian.Uint16(id)
	if m[0] == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(id[4:8])), port), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(id[4:20])).Unmap(), port), true
}
