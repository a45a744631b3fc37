package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nearcast/nearcast/testbed/blast"
	"github.com/nearcast/nearcast/testbed/netns"
)

// Filtered is one figure of the guard benchmark: what one system did with packets that came faster than it could
// take them.
type Filtered struct {
	Job    string `json:"job"`
	System string `json:"system"`
	// Packets a second on the one CPU that received, and a second of that CPU's time. The time is that of the
	// kernel's thread that receives, to the point where a packet is dropped, lies at its socket, or is answered.
	PerSecond    float64 `json:"per_second"`
	PerCPUSecond float64 `json:"per_cpu_second"`
	// Share of the packets that the system did what it is measured for with.
	Share float64 `json:"share"`
}

// Names of the guard benchmark's systems.
const (
	sysNothing = "nothing"
	sysNetdev  = "nftables, netdev ingress"
	sysInet    = "nftables, inet raw"
	sysProxy   = "nftables, synproxy"
	sysNative  = "guard, native"
	sysGeneric = "guard, generic"
)

// The CPUs that generator and receiver are bound to.
const (
	cpuSends    = 0
	cpuReceives = 1
)

// filterLab is a cable with a generator at one end and who is measured at the other.
type filterLab struct {
	set      *netns.Set
	from, to *netns.NS
	dev      string // the receiving end
	placed   *blast.Placed
	macs     [2]net.HardwareAddr // of from and to
	dir      string
}

const sendDev = "send"

// raiseFilterLab lays the cable. What is received is worked on by a thread of its own on a CPU of its own.
func raiseFilterLab(dir string) (l *filterLab, err error) {
	if runtime.NumCPU() < 2 {
		return nil, errors.New("the generator needs a CPU, and what is measured another one: there are not two")
	}
	l = &filterLab{dev: blast.DeviceName(), dir: dir}
	if l.set, err = netns.Create("guardbench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.set.Close())
		}
	}()
	if l.from, err = l.set.New("from"); err != nil {
		return nil, err
	}
	if l.to, err = l.set.New("to"); err != nil {
		return nil, err
	}
	if err := netns.Veth(netns.End{NS: l.from, Dev: sendDev}, netns.End{NS: l.to, Dev: l.dev}); err != nil {
		return nil, err
	}
	if l.macs[0], err = l.from.MAC(sendDev); err != nil {
		return nil, err
	}
	if l.macs[1], err = l.to.MAC(l.dev); err != nil {
		return nil, err
	}
	if err := l.address(); err != nil {
		return nil, err
	}
	l.placed, err = blast.Place(l.to, l.dev, cpuReceives)
	return l, err
}

// Addresses of the receiver, and the neighbour whom it sends all answers to.
var (
	filterAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}
	filterHops  = []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}
)

func (l *filterLab) address() error {
	var errs []error
	for i, hop := range filterHops {
		bits := hop.BitLen()
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if hop.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		errs = append(errs,
			l.to.AddAddr(l.dev, netip.PrefixFrom(filterAddrs[i], bits)),
			l.to.AddRoute(netns.Route{Dst: netip.PrefixFrom(hop, bits), Dev: l.dev}),
			l.to.AddRoute(netns.Route{Dst: all, Dev: l.dev, Via: hop}),
			l.to.AddNeighbour(l.dev, hop, l.macs[0]))
	}
	return errors.Join(errs...)
}

// received returns how many packets the receiving end has taken.
func (l *filterLab) received() (packets uint64, err error) {
	err = l.to.Do(func() error {
		link, err := netlink.LinkByName(l.dev)
		if err == nil {
			packets = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	return packets, err
}

type guardBench struct {
	*filterLab
	opt     Options
	seconds time.Duration
	rounds  int
}

// Filters measures guard beside nftables.
func Filters(ctx context.Context, opt Options) (out []Filtered, err error) {
	l, err := raiseFilterLab(opt.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, l.set.Close()) }()
	b := &guardBench{filterLab: l, opt: opt, seconds: time.Second, rounds: 3}
	if opt.Quick {
		b.rounds = 1
	}
	for _, j := range filterJobs() {
		if !strings.Contains(j.name, opt.Only) {
			continue
		}
		rows, err := b.job(ctx, j)
		if err != nil {
			return out, fmt.Errorf("%s: %w", j.name, err)
		}
		out = append(out, rows...)
	}
	return out, nil
}

// job has the systems take turns at one job; the medians of their turns count.
func (b *guardBench) job(ctx context.Context, j filterJob) (out []Filtered, err error) {
	got := map[string][]Filtered{}
	for range b.rounds {
		for _, system := range j.systems {
			f, err := b.turn(ctx, j, system)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", system, err)
			}
			got[system] = append(got[system], f)
		}
	}
	for _, system := range j.systems {
		pick := func(of func(Filtered) float64) float64 {
			var list []float64
			for _, f := range got[system] {
				list = append(list, of(f))
			}
			return median(list)
		}
		f := Filtered{Job: j.name, System: system,
			PerSecond:    pick(func(f Filtered) float64 { return f.PerSecond }),
			PerCPUSecond: pick(func(f Filtered) float64 { return f.PerCPUSecond }),
			Share:        pick(func(f Filtered) float64 { return f.Share })}
		out = append(out, f)
		b.opt.Say("%-44s %-26s %6.2f M/s, %6.2f M a CPU second", j.name, system, f.PerSecond/1e6, f.PerCPUSecond/1e6)
	}
	return out, nil
}

// turn measures one system once.
func (b *guardBench) turn(ctx context.Context, j filterJob, system string) (f Filtered, err error) {
	stream := j.stream
	stream.From, stream.To = b.macs[0], b.macs[1]
	source, err := blast.New(b.from, sendDev, stream)
	if err != nil {
		return f, err
	}
	defer func() { err = firstError(err, source.Close()) }()
	if err := source.Sink(b.from, sendDev); err != nil {
		return f, err
	}
	closeSocket, err := b.listen(ctx, stream, source)
	if err != nil {
		return f, err
	}
	defer closeSocket()
	s, err := b.install(ctx, j, system)
	if err != nil {
		return f, err
	}
	defer func() { err = firstError(err, s.remove()) }()
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, b.from, cpuSends) }()
	f, err = b.watch(ctx, j, s, source)
	cancel()
	return f, firstError(err, <-ended)
}

// listen opens the socket that packets are for.
func (b *guardBench) listen(ctx context.Context, stream blast.Stream, source *blast.Source) (stop func(), err error) {
	at := netip.AddrPortFrom(stream.Destination.Addr(), portWanted)
	if stream.TCP {
		l, err := b.to.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		return func() { l.Close() }, nil
	}
	c, err := b.to.ListenPacket(ctx, "udp", at)
	if err != nil {
		return nil, err
	}
	return func() { c.Close() }, source.Count(c)
}

// reading is what is read before and after.
type reading struct {
	at       time.Time
	cpu      time.Duration
	received uint64
	done     uint64 // that the system did its job with
}

func (b *guardBench) read(j filterJob, s *filterSystem, source *blast.Source) (r reading, err error) {
	if r.cpu, err = b.placed.CPU(); err != nil {
		return r, err
	}
	r.at = time.Now()
	if r.received, err = b.received(); err != nil {
		return r, err
	}
	c, err := source.Counts()
	if err != nil {
		return r, err
	}
	switch {
	case j.answers:
		r.done, err = s.answered()
	case j.passes || s.name == sysNothing:
		r.done = c.Arrived
	default:
		r.done = r.received - c.Arrived
	}
	return r, err
}

// watch reads, waits and reads again, once the flow of packets is steady.
func (b *guardBench) watch(ctx context.Context, j filterJob, s *filterSystem, source *blast.Source) (f Filtered, err error) {
	pause := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(b.seconds / 4); err != nil {
		return f, err
	}
	before, err := b.read(j, s, source)
	if err != nil {
		return f, err
	}
	if err := pause(b.seconds); err != nil {
		return f, err
	}
	after, err := b.read(j, s, source)
	if err != nil {
		return f, err
	}
	n, cpu := float64(after.received-before.received), after.cpu-before.cpu
	if n == 0 || cpu == 0 {
		return f, errors.New("no packets were received")
	}
	f = Filtered{PerSecond: n / after.at.Sub(before.at).Seconds(), PerCPUSecond: n / cpu.Seconds(),
		Share: float64(after.done-before.done) / n}
	if need := j.least - j.allowed/f.PerSecond; (s.name != sysNothing || j.answers) && f.Share < need {
		return f, fmt.Errorf("it did its job with %.1f %% of the packets only, and is not to be compared", 100*f.Share)
	}
	return f, nil
}

// bestPeer returns the better of a job's nftables, and the system of ours.
func bestPeer(all []Filtered, job, ours string) (peer, own Filtered) {
	for _, f := range all {
		if f.Job != job {
			continue
		}
		switch {
		case f.System == ours:
			own = f
		case strings.HasPrefix(f.System, "nftables") && f.PerCPUSecond > peer.PerCPUSecond:
			peer = f
		}
	}
	return peer, own
}

// jobsOf lists the jobs in the order of the report.
func jobsOf(all []Filtered) (jobs []string) {
	for _, f := range all {
		if !slices.Contains(jobs, f.Job) {
			jobs = append(jobs, f.Job)
		}
	}
	return jobs
}
