package bench

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// Raw is one figure of the chain without delay: edge and gateway joined by a cable.
type Raw struct {
	What   string  `json:"what"`
	System string  `json:"system"`
	Rate   float64 `json:"rate"` // per second, in Unit
	Unit   string  `json:"unit"`
	// CPU seconds of edge and gateway together for one of CPUUnit.
	CPU     float64 `json:"cpu_s"`
	CPUUnit string  `json:"cpu_unit"`
}

// Names of systems and kinds of load that are told apart by more than their rows.
const (
	sysNGINX  = "nginx stream"
	sysRouted = "floor: routed"

	kindBulk        = "bulk, 4 downloads"
	kindConnections = "new connections"
	kindUDP         = "UDP request/reply, 64 flows"
	kindIdle        = "memory of an idle flow"
)

// clocksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const clocksPerSecond = 100

type rawSystem struct {
	name, program string
	tcp, udp      netip.AddrPort // zero: does not do that
	descriptors   int            // a flow takes in its process on a node; 0: it has no process
}

type rawBench struct {
	w       *world.World
	opt     Options
	client  *netns.NS
	systems []rawSystem
	seconds time.Duration // of a turn
	rounds  int           // turns of each system
	out     []Raw
}

// A rawKind is a kind of load.
type rawKind struct {
	what, unit, cpuUnit string
	scale               float64 // what of work's count makes one Unit, and one CPUUnit
	workers             int
	work                func(ctx context.Context, s rawSystem, count *atomic.Int64) error
	udp                 bool
}

var rawKinds = []rawKind{
	{kindBulk, "Gbit/s", "GB", 1e9, 4, bulk, false},
	{kindConnections, "connections/s", "connection", 1, 64, connections, false},
	{"request/response, 64 kept", "requests/s", "request", 1, 64, requests, false},
	{kindUDP, "requests/s", "request", 1, 64, datagrams, true},
}

// RawChain measures what the chain costs when distance costs nothing.
func RawChain(ctx context.Context, opt Options) (out []Raw, err error) {
	spec, err := world.Load("raw")
	if err != nil {
		return nil, err
	}
	w, err := world.Raise(ctx, spec, world.Options{Bin: opt.Bin, Dir: opt.Dir, Say: opt.Say})
	if err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, w.Close()) }()
	app, err := w.Accelerate(ctx, opt.Say)
	if err != nil {
		return nil, err
	}
	endpoint := w.EndpointAddr(app.Home, 0)
	if err := prepareChain(w, endpoint); err != nil {
		return nil, err
	}
	p := &peers{dir: opt.Dir}
	defer p.stop()
	if err := p.start(ctx, chain{
		edge: w.NS("near-1"), gateway: w.NS("fra-1"), gatewayAddr: w.Host("fra-1").Cable,
		app: endpoint, appTCP: load.PortHTTP, appUDP: load.PortUDP, withNginx: true,
	}); err != nil {
		return nil, err
	}
	edge := netip.MustParseAddr("172.16.0.2") // the edge's end of the client's cable
	b := &rawBench{w: w, opt: opt, client: w.NS("client"), seconds: 3 * time.Second, rounds: 3, systems: []rawSystem{
		{sysHAPlain, "haproxy", netip.AddrPortFrom(edge, portPlainIn), netip.AddrPort{}, 2},
		{sysHAProxy, "haproxy", netip.AddrPortFrom(edge, portTLSIn), netip.AddrPort{}, 2},
		{sysNGINX, "nginx", netip.AddrPort{}, netip.AddrPortFrom(edge, portNginxUDP), 2},
		{sysNearcast, "nearcast-edge", netip.AddrPortFrom(app.Addresses[0], world.ListenHTTP),
			netip.AddrPortFrom(app.Addresses[0], load.PortUDP), 1},
		{sysRouted, "", netip.AddrPortFrom(endpoint, load.PortHTTP), netip.AddrPortFrom(endpoint, load.PortUDP), 0},
	}}
	switch {
	case opt.Profiles != "":
		b.seconds, b.rounds = 5*time.Second, 1
	case opt.Quick:
		b.seconds, b.rounds = 2*time.Second, 1
	}
	for _, s := range b.systems {
		if s.tcp.IsValid() {
			if err := listening(ctx, b.client, s.tcp); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	err = b.all(ctx)
	return b.out, err
}

// prepareChain gives the machines ports enough for the benchmark's connections, and joins client and
// endpoint by the nodes' kernels as well: that way, without any proxy, is the floor.
func prepareChain(w *world.World, endpoint netip.Addr) error {
	for _, name := range []string{"client", "near-1", "fra-1", "eu-fra-1-app-1"} {
		for key, value := range map[string]string{
			"net.ipv4.ip_local_port_range": "10240 65535", "net.ipv4.tcp_tw_reuse": "1", "net.ipv4.ip_forward": "1",
		} {
			if err := w.NS(name).Sysctl(key, value); err != nil {
				return err
			}
		}
	}
	to := netip.PrefixFrom(endpoint, 24).Masked()
	back := netip.MustParsePrefix("172.16.0.0/24")
	for _, r := range []struct {
		at, dev string
		via     string
		dst     netip.Prefix
	}{
		{"client", "cable0", "172.16.0.2", to}, {"near-1", "cable2", "172.16.2.2", to},
		{"eu-fra-1-app-1", "cable1", "172.16.1.1", back}, {"fra-1", "cable2", "172.16.2.1", back},
	} {
		route := netns.Route{Dst: r.dst, Dev: r.dev, Via: netip.MustParseAddr(r.via)}
		if err := w.NS(r.at).AddRoute(route); err != nil {
			return err
		}
	}
	return nil
}

// all measures each kind of load on the systems in turns.
func (b *rawBench) all(ctx context.Context) error {
	for _, k := range rawKinds {
		if !strings.Contains(k.what, b.opt.Only) {
			continue
		}
		if err := b.kind(ctx, k); err != nil {
			return err
		}
	}
	if !strings.Contains(kindIdle, b.opt.Only) {
		return nil
	}
	return b.idle(ctx)
}

// kind measures one kind of load: the systems take turns, and the median of a system's turns counts.
func (b *rawBench) kind(ctx context.Context, k rawKind) error {
	rates, cpus := map[string][]float64{}, map[string][]float64{}
	for range b.rounds {
		for _, s := range b.systems {
			if (k.udp && !s.udp.IsValid()) || (!k.udp && !s.tcp.IsValid()) {
				continue
			}
			count, cpu, took, err := b.drive(ctx, s, k.what, k.workers, k.work)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", k.what, s.name, err)
			}
			n := float64(count) / k.scale
			rates[s.name] = append(rates[s.name], n/took.Seconds())
			cpus[s.name] = append(cpus[s.name], cpu/n)
		}
	}
	for _, s := range b.systems {
		if len(rates[s.name]) == 0 {
			continue
		}
		r := Raw{What: k.what, System: s.name, Unit: k.unit, CPUUnit: k.cpuUnit,
			Rate: median(rates[s.name]), CPU: median(cpus[s.name])}
		if k.what == kindBulk {
			r.Rate *= 8
			if s.name == sysRouted {
				r.CPU = sealingCost() // no proxy computes less than this, if the backbone is encrypted
			}
		}
		b.add(r)
	}
	return nil
}

// median returns the middle of some figures, the lower one of two.
func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	return of[(len(of)-1)/2]
}

// sealingCost returns the CPU seconds that AES-128-GCM takes to seal and open a GB in TLS records.
func sealingCost() float64 {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err) // 16 is a valid length
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	const records = 4096
	nonce, record := make([]byte, gcm.NonceSize()), make([]byte, 16<<10, 16<<10+gcm.Overhead())
	begin := time.Now()
	for range records {
		sealed := gcm.Seal(record[:0], nonce, record, nil)
		if _, err := gcm.Open(sealed[:0], nonce, sealed, nil); err != nil {
			panic(err) // it was sealed just now
		}
	}
	return time.Since(begin).Seconds() / (records * float64(len(record))) * 1e9
}

func (b *rawBench) add(r Raw) {
	b.out = append(b.out, r)
	b.opt.Say("%-28s %-14s %10.4g %s, %.3g CPU s a %s", r.What, r.System, r.Rate, r.Unit, r.CPU, r.CPUUnit)
}

// drive runs workers in the client's namespace for the bench's time, and returns what they counted
// and the CPU seconds that edge and gateway spent meanwhile.
func (b *rawBench) drive(ctx context.Context, s rawSystem, what string, workers int,
	work func(context.Context, rawSystem, *atomic.Int64) error) (count int64, cpu float64, took time.Duration, err error) {
	var total atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range workers {
		wg.Go(func() {
			errs <- b.client.Do(func() error { return work(ctx, s, &total) })
		})
	}
	select { // warm up, and leave the slow start out
	case err := <-errs:
		cancel()
		wg.Wait()
		return 0, 0, 0, fmt.Errorf("a worker ended early: %w", err)
	case <-time.After(time.Second):
	}
	profiles := b.profile(ctx, s, what)
	cpu0, n0, begin := b.cpu(s), total.Load(), time.Now()
	time.Sleep(b.seconds)
	cpu1, n1, took := b.cpu(s), total.Load(), time.Since(begin)
	profiled := profiles()
	cancel()
	wg.Wait()
	if profiled != nil {
		return 0, 0, 0, profiled
	}
	if n1 == n0 {
		return 0, 0, 0, fmt.Errorf("nothing was done in %v", took)
	}
	return n1 - n0, cpu1 - cpu0, took, nil
}

// processes lists the system's processes on edge and gateway.
func (b *rawBench) processes(s rawSystem, host string) []int {
	var pids []int
	for _, p := range b.w.NS(host).Processes() {
		if p.Command == s.program {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// cpu sums user and system time of the system's processes on both machines, in seconds.
func (b *rawBench) cpu(s rawSystem) (seconds float64) {
	for _, host := range []string{"near-1", "fra-1"} {
		for _, pid := range b.processes(s, host) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue
			}
			// proc(5): utime and stime are fields 14 and 15; the name in field 2 may hold spaces.
			fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
			user, _ := strconv.ParseFloat(fields[11], 64)
			system, _ := strconv.ParseFloat(fields[12], 64)
			seconds += (user + system) / clocksPerSecond
		}
	}
	return seconds
}

// memory sums the resident memory of the system's processes on one machine, in bytes.
func (b *rawBench) memory(s rawSystem, host string) (bytes float64) {
	for _, pid := range b.processes(s, host) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		pages, _ := strconv.ParseFloat(strings.Fields(string(text))[1], 64)
		bytes += pages * float64(os.Getpagesize())
	}
	return bytes
}

// Flows of the idle benchmark, and the descriptors that a process may count on for them.
const (
	idleFlows       = 10_000
	idleDescriptors = 16_000
	idleWorkers     = 32
)

// idle opens flows that each did one request and then nothing, and sees what they cost in memory.
func (b *rawBench) idle(ctx context.Context) error {
	for _, s := range b.systems {
		if !s.tcp.IsValid() || s.descriptors == 0 {
			continue
		}
		flows := min(idleFlows, idleDescriptors/s.descriptors)
		edge0, gateway0 := b.memory(s, "near-1"), b.memory(s, "fra-1")
		conns, err := b.open(s, flows)
		if err == nil {
			n := float64(flows)
			edge, gateway := (b.memory(s, "near-1")-edge0)/n, (b.memory(s, "fra-1")-gateway0)/n
			b.add(Raw{What: kindIdle + ", edge", System: s.name, Rate: edge, Unit: "bytes"})
			b.add(Raw{What: kindIdle + ", gateway", System: s.name, Rate: gateway, Unit: "bytes"})
		}
		for _, c := range conns {
			c.Close()
		}
		if err != nil {
			return fmt.Errorf("%d idle flows, %s: %w", flows, s.name, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// open opens flows and has each do one request.
func (b *rawBench) open(s rawSystem, flows int) (conns []net.Conn, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for worker := range idleWorkers {
		wg.Go(func() {
			werr := b.client.Do(func() error {
				buf := make([]byte, 4096)
				for i := worker; i < flows; i += idleWorkers {
					c, err := net.Dial("tcp", s.tcp.String())
					if err != nil {
						return err
					}
					mu.Lock()
					conns = append(conns, c)
					mu.Unlock()
					if err := ask(c, 1, buf); err != nil {
						return err
					}
				}
				return nil
			})
			mu.Lock()
			err = firstError(err, werr)
			mu.Unlock()
		})
	}
	wg.Wait()
	return conns, err
}
