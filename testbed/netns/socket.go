package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Listen listens for stream connections in the namespace. network is tcp, tcp4 or tcp6. The listener may be
// used from anywhere.
func (ns *NS) Listen(ctx context.Context, network string, addr netip.AddrPort) (l net.Listener, err error) {
	err = ns.Do(func() error {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // the kernel's socket maps refuse MPTCP sockets
		l, err = lc.Listen(ctx, network, addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", ns.name, err)
	}
	return l, nil
}

// ListenPacket opens a UDP socket in the namespace. network is udp, udp4 or udp6.
func (ns *NS) ListenPacket(ctx context.Context, network string, addr netip.AddrPort) (*net.UDPConn, error) {
	var pc net.PacketConn
	err := ns.Do(func() (err error) {
		var lc net.ListenConfig
		pc, err = lc.ListenPacket(ctx, network, addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", ns.name, err)
	}
	c, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("listen in %s: %s is no UDP network", ns.name, network)
	}
	return c, nil
}

// DialContext connects from the namespace; its signature fits http.Transport. The address must be an IP
// address and port: a name would be looked up, and tried in parallel, by goroutines that are not in the
// namespace.
func (ns *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	remote, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", ns.name, err)
	}
	return ns.Dial(ctx, network, netip.AddrPort{}, remote)
}

// Dial connects from the namespace to remote, from the local address when that is not zero (its port may be
// 0).
func (ns *NS) Dial(ctx context.Context, network string, local, remote netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	if local.IsValid() {
		switch network {
		case "tcp", "tcp4", "tcp6":
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
		default:
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
	}
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, remote.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", ns.name, err)
	}
	return c, nil
}
