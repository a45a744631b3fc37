package udpio

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// name is a socket address as the kernel has it, large enough for both families.
type name struct {
	raw unix.RawSockaddrInet6
}

// set writes a for a socket of the given family and returns the length. An IPv4 address on an IPv6
// socket is written mapped, as the kernel wants it.
func (n *name) set(a netip.AddrPort, v6 bool) uint32 {
	if v6 {
		n.raw.Family = unix.AF_INET6
		n.raw.Flowinfo = 0
		n.raw.Addr = a.Addr().As16()
		n.raw.Scope_id = 0
		setPort(&n.raw.Port, a.Port())
		return unix.SizeofSockaddrInet6
	}
	sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&n.raw))
	sa.Family = unix.AF_INET
	sa.Addr = a.Addr().Unmap().As4()
	sa.Zero = [8]uint8{}
	setPort(&sa.Port, a.Port())
	return unix.SizeofSockaddrInet4
}

// get reads what the kernel wrote.
func (n *name) get() netip.AddrPort {
	switch n.raw.Family {
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.raw.Addr).Unmap(), port(&n.raw.Port))
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&n.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), port(&sa.Port))
	}
	return netip.AddrPort{}
}

// Ports are in network order in memory, whatever the machine's.
func setPort(p *uint16, v uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], v)
}

func port(p *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:])
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
