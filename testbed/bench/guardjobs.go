package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/testbed/blast"
)

// Ports of the guard benchmark's receiver.
const (
	portWanted   = 53
	portUnwanted = 9
)

// filterJob is something that guard and nftables both do.
type filterJob struct {
	name    string
	systems []string
	stream  blast.Stream
	rules   guard.Rules
	sets    string  // of nftables
	chain   string  // rules of nftables
	passes  bool    // packets are to reach their socket
	answers bool    // they are to be answered with cookies
	least   float64 // share of the packets that it has to be done with; counters are not read all at one moment
	allowed float64 // packets a second that it need not be done with
}

var beside = []string{sysNothing, sysInet, sysNetdev, sysGeneric, sysNative}

// filterJobs are all jobs.
func filterJobs() []filterJob {
	jobs := []filterJob{
		dropDenied(1, false), dropDenied(10_000, false), dropDenied(100_000, false), dropDenied(10_000, true),
		dropUnwanted(),
		passAll(false), passAll(true),
		dropFrequent(1, 10), dropFrequent(100_000, 1),
	}
	return append(jobs, answerSYNs())
}

func v4or6[T any](v6 bool, four, six T) T {
	if v6 {
		return six
	}
	return four
}

// listener is the one listener of most jobs.
func listener(v6 bool, proto guard.Proto) guard.Listener {
	addr := v4or6(v6, filterAddrs[0], filterAddrs[1])
	return guard.Listener{Name: "bench", Prefixes: []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())},
		Ports: []guard.Ports{{First: portWanted, Last: portWanted}}, Proto: proto}
}

func rulesOf(l guard.Listener, denied []netip.Prefix) guard.Rules {
	r := guard.Rules{Addresses: []guard.Address{{Prefix: l.Prefixes[0], Exclusive: true}}, Listeners: []guard.Listener{l}}
	if len(denied) > 0 {
		r.Lists = map[string][]netip.Prefix{"denied": denied}
		r.Listeners[0].Deny = "denied"
	}
	return r
}

func streamTo(v6 bool, port uint16, networks int) blast.Stream {
	return blast.Stream{Destination: netip.AddrPortFrom(v4or6(v6, filterAddrs[0], filterAddrs[1]), port), Networks: networks}
}

// deniedSet is nftables' set of networks.
func deniedSet(networks []netip.Prefix) string {
	var b strings.Builder
	kind := v4or6(networks[0].Addr().Is6(), "ipv4_addr", "ipv6_addr")
	fmt.Fprintf(&b, "set denied { type %s; flags interval; elements = {", kind)
	for _, p := range networks {
		b.WriteString(p.String() + ",")
	}
	return b.String() + "} }\n"
}

// who is nftables' name of an IP version.
func who(v6 bool) string { return v4or6(v6, "ip", "ip6") }

// dropDenied: all sources are on a list. nftables asks nothing but the list.
func dropDenied(networks int, v6 bool) filterJob {
	list := blast.Networks(networks, v6)
	return filterJob{
		name:    fmt.Sprintf("drop: denied, list of %d%s", networks, v4or6(v6, "", ", IPv6")),
		systems: beside, stream: streamTo(v6, portWanted, networks), least: 0.99,
		rules: rulesOf(listener(v6, guard.UDP), list), sets: deniedSet(list),
		chain: who(v6) + " saddr @denied drop\n",
	}
}

// dropUnwanted: no listener has the port. There are ten listeners with a range of ports each.
func dropUnwanted() filterJob {
	rules := rulesOf(listener(false, guard.UDP), nil)
	ports := []string{strconv.Itoa(portWanted)}
	for i := range uint16(9) {
		l := listener(false, guard.UDP)
		l.Name = fmt.Sprintf("bench-%d", i)
		l.Ports = []guard.Ports{{First: 1000 * (i + 1), Last: 1000*(i+1) + 99}}
		rules.Listeners = append(rules.Listeners, l)
		ports = append(ports, fmt.Sprintf("%d-%d", l.Ports[0].First, l.Ports[0].Last))
	}
	return filterJob{
		name: "drop: a port that no listener wants", systems: beside, least: 0.99,
		stream: streamTo(false, portUnwanted, 1000), rules: rules,
		chain: fmt.Sprintf("ip daddr %v meta l4proto udp udp dport != { %s } drop\n", filterAddrs[0], strings.Join(ports, ", ")),
	}
}

// passAll: packets pass a list of 10,000 networks and their sources' rates, 64,000 of them.
func passAll(v6 bool) filterJob {
	l := listener(v6, guard.UDP)
	l.Source = guard.Rate{PerSecond: 1_000_000, Burst: 1_000_000}
	all := blast.Networks(11_000, v6)
	to := fmt.Sprintf("%s daddr %v udp dport %d ", who(v6), l.Prefixes[0].Addr(), portWanted)
	return filterJob{
		name: "pass: UDP through list and source rates" + v4or6(v6, "", ", IPv6"), systems: beside, passes: true, least: 0.95,
		stream: streamTo(v6, portWanted, 1000), rules: rulesOf(l, all[1000:]),
		sets:  deniedSet(all[1000:]) + meterSet(v6),
		chain: to + who(v6) + " saddr @denied drop\n" + to + meter(v6, 1_000_000, 1_000_000),
	}
}

func meterSet(v6 bool) string {
	return fmt.Sprintf("set sources { type %s; size 262144; flags dynamic, timeout; timeout 1m; }\n",
		v4or6(v6, "ipv4_addr", "ipv6_addr"))
}

func meter(v6 bool, rate, burst int) string {
	key := v4or6(v6, "ip saddr", "ip6 saddr & ffff:ffff:ffff:ffff::")
	return fmt.Sprintf("update @sources { %s limit rate over %d/second burst %d packets } drop\n", key, rate, burst)
}

// dropFrequent: sources send more than their rate.
func dropFrequent(sources, rate int) filterJob {
	l := listener(false, guard.UDP)
	l.Source = guard.Rate{PerSecond: rate, Burst: 1}
	stream := streamTo(false, portWanted, sources)
	stream.OneEach = true
	return filterJob{
		name: fmt.Sprintf("drop: beyond the rate of each of %d sources", sources), systems: beside, least: 0.99,
		allowed: 1.2 * float64(sources*rate), stream: stream, rules: rulesOf(l, nil), sets: meterSet(false),
		chain: fmt.Sprintf("ip daddr %v udp dport %d ", filterAddrs[0], portWanted) + meter(false, rate, 1),
	}
}

// answerSYNs: a flood of SYNs, each of which is answered with a cookie. Without a filter it is the kernel's.
func answerSYNs() filterJob {
	l := listener(false, guard.TCP)
	l.Flood = guard.Rate{PerSecond: 100, Burst: 1}
	stream := streamTo(false, portWanted, blast.NetworksMax)
	stream.TCP = true
	return filterJob{
		name: "answer: SYNs, with cookies", answers: true, least: 0.95,
		systems: []string{sysNothing, sysProxy, sysGeneric, sysNative}, stream: stream, rules: rulesOf(l, nil),
	}
}

// filterSystem is a system that was set to a job.
type filterSystem struct {
	name     string
	remove   func() error
	answered func() (uint64, error) // SYNs, so far
}

// install sets a system to a job.
func (b *guardBench) install(ctx context.Context, j filterJob, system string) (*filterSystem, error) {
	s := &filterSystem{name: system, remove: func() error { return nil }, answered: func() (uint64, error) {
		return b.procValue("netstat", "TcpExt:", "SyncookiesSent")
	}}
	switch system {
	case sysNothing:
		return s, nil
	case sysNative, sysGeneric:
		return s, b.installGuard(j, s)
	}
	file := filepath.Join(b.dir, "rules.nft")
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, []byte(b.nftables(j, system)), 0o644); err != nil {
		return nil, err
	}
	s.remove = func() error { return b.nft(context.Background(), "flush", "ruleset") }
	if system == sysProxy {
		s.answered = b.proxied
	}
	return s, b.nft(ctx, "-f", file)
}

func (b *guardBench) nft(ctx context.Context, args ...string) error {
	out, err := b.to.Cmd(ctx, "nft", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft %s: %w: %.500s", strings.Join(args, " "), err, out)
	}
	return nil
}

// nftables writes a job's rules.
func (b *guardBench) nftables(j filterJob, system string) string {
	switch system {
	case sysNetdev:
		return fmt.Sprintf("table netdev bench {\n%schain c { type filter hook ingress device %q priority filter;\n%s}\n}\n",
			j.sets, b.dev, j.chain)
	case sysProxy:
		return fmt.Sprintf(`table inet bench {
chain raw { type filter hook prerouting priority raw; tcp dport %d tcp flags syn notrack; }
chain in { type filter hook input priority filter; tcp dport %d ct state invalid,untracked synproxy mss 1460; }
}
`, portWanted, portWanted)
	}
	return fmt.Sprintf("table inet bench {\n%schain c { type filter hook prerouting priority raw;\n%s}\n}\n", j.sets, j.chain)
}

// installGuard loads guard and attaches it.
func (b *guardBench) installGuard(j filterJob, s *filterSystem) error {
	g, err := guard.Load(guard.Config{SampleEvery: 1000})
	if err != nil {
		return err
	}
	s.remove = g.Close
	s.answered = func() (uint64, error) {
		counts, err := g.Counts()
		if err != nil {
			return 0, err
		}
		return counts[guard.Answered].Packets, nil
	}
	err = g.Update(j.rules)
	if err == nil {
		err = b.to.Do(func() error {
			i, err := net.InterfaceByName(b.dev)
			if err != nil {
				return err
			}
			_, err = g.Attach(i.Index, map[string]guard.Mode{sysNative: guard.Native, sysGeneric: guard.Generic}[s.name])
			return err
		})
	}
	if err != nil {
		return errors.Join(err, g.Close())
	}
	return nil
}

// procValue reads one of a protocol's counters in /proc/net/FILE: a line of names and one of values, both of which
// begin with the protocol.
func (b *guardBench) procValue(file, proto, name string) (value uint64, err error) {
	text, err := b.procFile(file)
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != proto {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				return strconv.ParseUint(fields[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("/proc/net/%s has no %s", file, name)
}

func (b *guardBench) procFile(file string) (text string, err error) {
	err = b.to.Do(func() error {
		t, err := os.ReadFile(filepath.Join("/proc/thread-self/net", file))
		text = string(t)
		return err
	})
	return text, err
}

// proxied counts the SYNs that nftables' synproxy has taken: hexadecimal, a line for each CPU.
func (b *guardBench) proxied() (total uint64, err error) {
	text, err := b.procFile("stat/synproxy")
	if err != nil {
		return 0, err
	}
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		fields := strings.Fields(line)
		if i == 0 || len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 16, 64) // entries, syn_received, …
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
