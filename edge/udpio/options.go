package udpio

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setOptions applies everything that must be set before bind, and what each socket has.
func setOptions(fd int, v6 bool, local netip.AddrPort, o Options) error {
	if o.ReusePort {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"); err != nil {
			return err
		}
	}
	if o.Shared {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR"); err != nil {
			return err
		}
	}
	if o.FreeBind {
		if err := setInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1, "IP_FREEBIND"); err != nil {
			return err
		}
	}
	if o.Transparent {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if v6 {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		if err := setInt(fd, level, option, 1, "IP_TRANSPARENT"); err != nil {
			return err
		}
	}
	if err := setAncillary(fd, v6, o); err != nil {
		return err
	}
	setBuffer(fd, o.RecvBuffer, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	setBuffer(fd, o.SendBuffer, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	if v6 {
		only := 1
		if local.Addr() == netip.IPv6Unspecified() {
			only = 0
		}
		return setInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only, "IPV6_V6ONLY")
	}
	return nil
}

// setAncillary asks for addresses and TOS with each datagram. The IPv4 options are set on IPv6
// sockets as well: they speak for the IPv4 datagrams that arrive there.
func setAncillary(fd int, v6 bool, o Options) error {
	discover4, discover6 := unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_DONT
	if o.NoFragment {
		discover4, discover6 = unix.IP_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_PROBE
	}
	type option struct {
		level, name, value int
		title              string
	}
	options := []option{
		{unix.SOL_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"},
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, discover4, "IP_MTU_DISCOVER"},
	}
	if v6 {
		options = append(options,
			option{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
			option{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"},
			option{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, discover6, "IPV6_MTU_DISCOVER"})
	} else {
		options = append(options, option{unix.SOL_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"})
	}
	if o.OriginalPort {
		options = append(options, option{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1, "IP_RECVORIGDSTADDR"})
		if v6 {
			options = append(options, option{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1, "IPV6_RECVORIGDSTADDR"})
		}
	}
	for _, op := range options {
		if err := setInt(fd, op.level, op.name, op.value, op.title); err != nil {
			return err
		}
	}
	if !o.NoGRO {
		// Kernels before 5.0 do not know it, and then datagrams simply come one by one.
		_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1)
	}
	return nil
}

// setBuffer takes what it can get: a smaller buffer loses datagrams under load, which is counted,
// while a socket that refuses to open loses all.
func setBuffer(fd, size, force, option int) {
	if size < 0 {
		return
	}
	if size == 0 {
		size = defaultSocketBuffer
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
	}
}

func setInt(fd, level, option, value int, title string) error {
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("set %s: %w", title, err)
	}
	return nil
}

// kernelDrops is the socket's count of datagrams dropped for a full buffer (SO_MEMINFO), or 0 where
// the kernel does not tell.
func kernelDrops(fd int) uint64 {
	var info [unix.SK_MEMINFO_DROPS + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, soMeminfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[unix.SK_MEMINFO_DROPS])
}

// soMeminfo is SO_MEMINFO of the generic socket ABI (linux/include/uapi/asm-generic/socket.h).
const soMeminfo = 55
