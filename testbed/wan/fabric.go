package wan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strconv"
	"sync"

	"github.com/nearcast/nearcast/testbed/netns"
	"golang.org/x/sys/unix"
)

const (
	coreName = "core" // of the namespace between the hosts
	hostDev  = "eth0" // of a host's interface

	// Routing tables and rules of the core: table out+i carries what host i sends to its TUN, in+i what the
	// TUN gives back to the host.
	tableOut, tableIn = 1000, 2000
	rulePref          = 100
)

// Addresses that only the two ends of a veth know. Each pair uses the same ones: a route names its interface
// too.
var (
	coreV4, hostV4 = netip.MustParseAddr("169.254.0.1"), netip.MustParseAddr("169.254.0.2")
	coreV6, hostV6 = netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	// coreGlobalV6 is what ICMPv6 errors of the core come from.
	coreGlobalV6 = netip.MustParseAddr("fd00:e:e::1")
	anyV4, anyV6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	hostSysctls  = map[string]string{
		// The default of 4 MB for sending limits a flow to 282 Mbit/s at 100 ms.
		"net.ipv4.tcp_rmem": "4096 131072 67108864",
		"net.ipv4.tcp_wmem": "4096 65536 67108864",
		// What one connection learned of a path must not colour the next measurement.
		"net.ipv4.tcp_no_metrics_save": "1",
	}
	coreSysctls = map[string]string{
		"net.ipv4.ip_forward":          "1",
		"net.ipv6.conf.all.forwarding": "1",
		"net.ipv4.icmp_ratelimit":      "0",
		"net.ipv6.icmp.ratelimit":      "0",
		// TUNs need no addresses of their own, and would send router solicitations from them.
		"net.ipv6.conf.default.addr_gen_mode": "1",
	}
)

// Fabric is a running network of hosts. Its methods may be called concurrently.
type Fabric struct {
	log   *slog.Logger
	set   *netns.Set
	core  *netns.NS
	hosts []*netns.NS

	engine *engine
	tuns   []int
	wake   int

	mu      sync.Mutex // guards what is below, and orders changes
	plan    *plan
	running bool
	closed  bool
}

// Build makes the hosts' namespaces and a core namespace in set, and wires them. Packets move from Run on.
// The caller closes the Fabric, and then the set; on an error only the set.
func Build(set *netns.Set, spec Spec) (*Fabric, error) {
	p, err := newPlan(&spec)
	if err != nil {
		return nil, err
	}
	f := &Fabric{log: spec.Log, set: set, plan: p, wake: -1}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.build(spec.Hosts); err != nil {
		return nil, errors.Join(fmt.Errorf("build fabric: %w", err), f.Close())
	}
	f.engine = newEngine(f.tuns, f.wake, spec.Seed)
	f.engine.tables.Store(p.compile())
	return f, nil
}

func (f *Fabric) build(hosts []Host) (err error) {
	if f.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	if f.core, err = f.set.New(coreName); err != nil {
		return err
	}
	if err := setSysctls(f.core, coreSysctls); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{single(coreV4), single(coreGlobalV6)} {
		if err := f.core.AddAddr("lo", p); err != nil {
			return err
		}
	}
	for i := range hosts {
		if err := f.addHost(i, &hosts[i]); err != nil {
			return fmt.Errorf("host %s: %w", hosts[i].Name, err)
		}
	}
	return nil
}

// addHost makes one host's namespace, veth and TUN.
func (f *Fabric) addHost(i int, h *Host) error {
	ns, err := f.set.New(h.Name)
	if err != nil {
		return err
	}
	f.hosts = append(f.hosts, ns)
	if err := errors.Join(setSysctls(ns, hostSysctls), setSysctls(ns, h.Sysctls)); err != nil {
		return err
	}
	veth, tun := "h"+strconv.Itoa(i), "t"+strconv.Itoa(i)
	if err := netns.Veth(netns.End{NS: f.core, Dev: veth}, netns.End{NS: ns, Dev: hostDev}); err != nil {
		return err
	}
	var fd int
	err = f.core.Do(func() (err error) {
		fd, err = openTUN(tun)
		return err
	})
	if err != nil {
		return err
	}
	f.tuns = append(f.tuns, fd)
	return errors.Join(
		f.core.SetTxQueue(tun, tunQueueLen), // before the first packet: it overflows silently
		f.core.SetMTU(tun, mtu),
		f.core.SetUp(tun),
		f.wireNeighbours(ns, veth),
		f.wireHost(ns, h),
		f.wireCore(i, veth, tun, h),
	)
}

// wireNeighbours tells both ends of a veth each other's hardware address, so that no first packet waits for
// ARP.
func (f *Fabric) wireNeighbours(ns *netns.NS, veth string) error {
	coreMAC, err1 := f.core.MAC(veth)
	hostMAC, err2 := ns.MAC(hostDev)
	return errors.Join(err1, err2,
		ns.AddNeighbour(hostDev, coreV4, coreMAC), ns.AddNeighbour(hostDev, coreV6, coreMAC),
		f.core.AddNeighbour(veth, hostV4, hostMAC), f.core.AddNeighbour(veth, hostV6, hostMAC),
	)
}

// wireHost gives a host its addresses and default routes.
func (f *Fabric) wireHost(ns *netns.NS, h *Host) error {
	var err error
	for _, a := range h.Addrs {
		err = errors.Join(err, ns.AddAddr(hostDev, single(a)))
	}
	for _, p := range h.Prefixes {
		err = errors.Join(err, ns.AddRoute(netns.Route{Dst: p.Masked(), Local: true}))
	}
	var v4, v6 bool
	for _, a := range h.Addrs {
		switch {
		case a.Is4() && !v4:
			v4 = true
			err = errors.Join(err, ns.AddRoute(netns.Route{Dst: anyV4, Via: coreV4, Dev: hostDev, Src: a}))
		case a.Is6() && !v6:
			v6 = true
			err = errors.Join(err, ns.AddRoute(netns.Route{Dst: anyV6, Via: coreV6, Dev: hostDev, Src: a}))
		}
	}
	return err
}

// wireCore lets the core send what comes from a host into its TUN, and what comes out of the TUN to the host,
// whatever the addresses are: where packets go is the engine's decision alone.
func (f *Fabric) wireCore(i int, veth, tun string, h *Host) error {
	var err error
	add := func(r netns.Route) { err = errors.Join(err, f.core.AddRoute(r)) }
	for _, v6 := range []bool{false, true} {
		all, host := anyV4, hostV4
		if v6 {
			all, host = anyV6, hostV6
		}
		add(netns.Route{Dst: all, Dev: tun, Table: tableOut + i})
		add(netns.Route{Dst: all, Via: host, Dev: veth, Table: tableIn + i})
		err = errors.Join(err,
			f.core.AddRule(netns.Rule{Pref: rulePref, V6: v6, Iif: veth, Table: tableOut + i}),
			f.core.AddRule(netns.Rule{Pref: rulePref, V6: v6, Iif: tun, Table: tableIn + i}))
	}
	// For the core's own ICMP errors.
	for _, p := range h.allPrefixes() {
		host := hostV4
		if p.Addr().Is6() {
			host = hostV6
		}
		add(netns.Route{Dst: p, Via: host, Dev: veth})
	}
	return err
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func setSysctls(ns *netns.NS, values map[string]string) error {
	var err error
	for name, value := range values {
		err = errors.Join(err, ns.Sysctl(name, value))
	}
	return err
}

// Run moves packets until ctx ends, and then returns nil. It may be called once.
//
// It takes a thread of its own, in the SCHED_FIFO class where permitted, and one more processor (P) of the Go
// runtime while it runs: the thread keeps its P during sleeps, and the rest of the program should not miss
// it.
func (f *Fabric) Run(ctx context.Context) error {
	f.mu.Lock()
	again := f.running || f.closed
	f.running = true
	f.mu.Unlock()
	if again {
		return errors.New("fabric has been run or closed before")
	}
	addProcs(1)
	defer addProcs(-1)
	ended := make(chan error, 1)
	netns.Thread(func() { ended <- f.runEngine() })
	select {
	case err := <-ended:
		return fmt.Errorf("engine: %w", err)
	case <-ctx.Done():
	}
	if _, err := unix.Write(f.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("stop engine: %w", err) // an eventfd that takes no write: not in this kernel
	}
	return <-ended
}

func (f *Fabric) runEngine() error {
	if err := becomeRealtime(); err != nil {
		f.log.Warn("wan engine runs without realtime priority: it will be late under load", "err", err)
	} else {
		f.engine.totals.realtime.Store(true)
	}
	f.engine.totals.tid.Store(int32(unix.Gettid()))
	defer f.engine.totals.tid.Store(0)
	return f.engine.run()
}

// procsMu makes reading and changing GOMAXPROCS one step, for several Fabrics in one process.
var procsMu sync.Mutex

func addProcs(n int) {
	procsMu.Lock()
	defer procsMu.Unlock()
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
}

// Close takes the TUNs away. Run must have returned. The namespaces stay until the Set is closed.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	var errs []error
	for _, fd := range f.tuns {
		errs = append(errs, unix.Close(fd))
	}
	if f.wake >= 0 {
		errs = append(errs, unix.Close(f.wake))
	}
	return errors.Join(errs...)
}

// NS returns the namespace of a host, or nil.
func (f *Fabric) NS(host string) *netns.NS {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i, ok := f.plan.byName[host]; ok {
		return f.hosts[i]
	}
	return nil
}

// Stats returns what the engine has done so far.
func (f *Fabric) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &f.engine.totals
	s := Stats{
		Delivered: t.delivered.Load(), NoRoute: t.noRoute.Load(), Overflow: t.overflow.Load(),
		Malformed: t.malformed.Load(), WriteErrors: t.writeErrors.Load(), MemoryBytes: t.memory.Load(),
		Realtime: t.realtime.Load(), Lateness: t.lateness(), CPU: t.cpu(),
	}
	f.plan.book.stats(&s)
	for dev, n := range f.core.Drops() {
		switch dev[0] {
		case 't':
			s.RingDrops += n.Tx
		case 'h':
			s.BacklogDrops += n.Rx
		}
	}
	return s
}

// ForTest builds a Fabric for one test and runs it until the test ends, then takes everything away and checks
// that nothing is left. It skips or fails as netns.RequireRoot does. Other namespaces may be made in the Set.
func ForTest(t netns.TB, what string, spec Spec) (*Fabric, *netns.Set) {
	t.Helper()
	set := netns.ForTest(t, what)
	netns.Require(t, what, canMakeTUN())
	f, err := Build(set, spec)
	if err != nil {
		t.Fatalf("build fabric: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, f.Close()); err != nil {
			t.Errorf("end fabric: %v", err)
		}
	})
	return f, set
}

func canMakeTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun (%w)", err)
	}
	return unix.Close(fd)
}
