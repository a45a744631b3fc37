package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/nearcast/nearcast/testbed/netns"
)

const (
	portBalance = 6080
	balanceMTU  = 1600
)

// cableEnd is what one machine has at a cable.
type cableEnd struct{ v4, v6 netip.Addr } // v6 is used where a pool has IPv6 prefixes

// cableNets are the networks that all cables lie in.
var cableNets = [2]netip.Prefix{netip.MustParsePrefix("172.31.0.0/16"), netip.MustParsePrefix("fd00:31::/32")}

// cable joins two machines by networks of their own, 172.31.N.0/30 and fd00:31:0:N::/64.
func (w *World) cable(a, b string) (ends [2]cableEnd, err error) {
	n := w.cables
	w.cables++
	dev := fmt.Sprintf("bgp%d", n)
	if err := netns.Veth(netns.End{NS: w.NS(a), Dev: dev}, netns.End{NS: w.NS(b), Dev: dev}); err != nil {
		return ends, err
	}
	for i, host := range []string{a, b} {
		ends[i] = cableEnd{
			netip.AddrFrom4([4]byte{172, 31, byte(n), byte(i + 1)}),
			netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x31, 7: byte(n), 15: byte(i + 1)}),
		}
		ns := w.NS(host)
		if err := errors.Join(ns.AddAddr(dev, netip.PrefixFrom(ends[i].v4, 30)), ns.SetUp(dev),
			ns.Sysctl("net.ipv4.conf."+dev+".rp_filter", "0"), ns.Sysctl("net.ipv4.ip_forward", "1")); err != nil {
			return ends, err
		}
		if w.Spec.dual() {
			if err := ns.AddAddr(dev, netip.PrefixFrom(ends[i].v6, 64)); err != nil {
				return ends, err
			}
		}
		if w.Spec.BGP.ECMP { // what is larger than a packet can't be encapsulated
			if err := w.ethtool(host, dev, "tso", "off", "gso", "off"); err != nil {
				return ends, err
			}
		}
	}
	return ends, nil
}

func (w *World) ethtool(host, dev string, features ...string) error {
	args := append([]string{"-K", dev}, features...)
	if out, err := w.NS(host).Cmd(context.Background(), "ethtool", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ethtool %s of %s: %w: %s", dev, host, err, out)
	}
	return nil
}

// balanceEnd is where a node takes packets of its site's flows.
type balanceEnd struct {
	dev string
	at  netip.AddrPort
}

// layBalance makes the cable that was laid last one that balances flows: the node reaches the others of its site
// through the router, in packets that are larger than clients' are.
func (w *World) layBalance(router, node string, ends [2]cableEnd) error {
	dev := fmt.Sprintf("bgp%d", w.cables-1)
	at := ends[1].v4
	if w.opt.BalanceIPv6 {
		at = ends[1].v6
	}
	w.balanced[node] = balanceEnd{dev, netip.AddrPortFrom(at, portBalance)}
	err := errors.Join(
		w.NS(router).SetMTU(dev, balanceMTU), w.NS(node).SetMTU(dev, balanceMTU),
		w.NS(router).Sysctl("net.ipv4.fib_multipath_hash_policy", "1"),
		w.NS(node).AddRoute(netns.Route{Dst: cableNets[0], Dev: dev, Via: ends[0].v4}))
	if w.Spec.dual() {
		err = errors.Join(err, w.NS(router).Sysctl("net.ipv6.conf.all.forwarding", "1"),
			w.NS(router).Sysctl("net.ipv6.fib_multipath_hash_policy", "1"),
			w.NS(node).AddRoute(netns.Route{Dst: cableNets[1], Dev: dev, Via: ends[0].v6}))
	}
	if w.opt.XDPNative {
		// What a veth takes natively has the checksums that its sender made, which leaves them to a card that isn't there
		// unless it is told that there is none; and a veth takes frames from a program at its other end only if it has a
		// program as well, or GRO.
		err = errors.Join(err, w.ethtool(router, dev, "tx", "off", "gro", "on"))
	}
	return err
}

// balanceArgs are the flags of a node that shares its site's flows.
func (w *World) balanceArgs(node string) []string {
	end, ok := w.balanced[node]
	if !ok || !w.opt.Balance {
		return nil
	}
	mode := "generic"
	if w.opt.XDPNative {
		mode = "native"
	}
	args := []string{"--balance-interfaces", end.dev, "--balance-address", end.at.String(), "--kernel-balance", "on",
		"--xdp-mode", mode}
	if w.opt.Guard {
		args = append(args, "--guard-interfaces", end.dev, "--kernel-guard", "on")
	}
	return args
}
