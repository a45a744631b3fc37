package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
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

const sysNGINX = "nginx stream"

// clocksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const clocksPerSecond = 100

type rawSystem struct {
	name, program string
	tcp, udp      netip.AddrPort // zero: does not do that
}

type rawBench struct {
	w       *world.World
	opt     Options
	client  *netns.NS
	systems []rawSystem
	seconds time.Duration
	out     []Raw
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
	for _, name := range []string{"client", "near-1", "fra-1", "eu-fra-1-app-1"} {
		if err := w.NS(name).Sysctl("net.ipv4.ip_local_port_range", "10240 65535"); err != nil {
			return nil, err
		}
	}
	app, err := w.Accelerate(ctx, opt.Say)
	if err != nil {
		return nil, err
	}
	p := &peers{dir: opt.Dir}
	defer p.stop()
	if err := p.start(ctx, chain{
		edge: w.NS("near-1"), gateway: w.NS("fra-1"), gatewayAddr: w.Host("fra-1").Cable,
		app: w.EndpointAddr(app.Home, 0), appTCP: load.PortHTTP, appUDP: load.PortUDP, withNginx: true,
	}); err != nil {
		return nil, err
	}
	edge := netip.MustParseAddr("172.16.0.2") // the edge's end of the client's cable
	b := &rawBench{w: w, opt: opt, client: w.NS("client"), seconds: 5 * time.Second, systems: []rawSystem{
		{sysHAPlain, "haproxy", netip.AddrPortFrom(edge, portPlainIn), netip.AddrPort{}},
		{sysHAProxy, "haproxy", netip.AddrPortFrom(edge, portTLSIn), netip.AddrPort{}},
		{sysNGINX, "nginx", netip.AddrPort{}, netip.AddrPortFrom(edge, portNginxUDP)},
		{sysNearcast, "nearcast-edge", netip.AddrPortFrom(app.Addresses[0], world.ListenHTTP),
			netip.AddrPortFrom(app.Addresses[0], load.PortUDP)},
	}}
	if opt.Quick {
		b.seconds = 2 * time.Second
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

// all runs each kind of load on each system in turn.
func (b *rawBench) all(ctx context.Context) error {
	kinds := []struct {
		what, unit, cpuUnit string
		scale               float64 // what of work's count makes one Unit, and one CPUUnit
		workers             int
		work                func(ctx context.Context, s rawSystem, count *atomic.Int64) error
		udp                 bool
	}{
		{"bulk, 4 downloads", "Gbit/s", "GB", 1e9, 4, bulk, false},
		{"new connections", "connections/s", "connection", 1, 64, connections, false},
		{"request/response, 64 kept", "requests/s", "request", 1, 64, requests, false},
		{"UDP request/reply, 64 flows", "requests/s", "request", 1, 64, datagrams, true},
	}
	for _, k := range kinds {
		if !strings.Contains(k.what, b.opt.Only) {
			continue
		}
		for _, s := range b.systems {
			if (k.udp && !s.udp.IsValid()) || (!k.udp && !s.tcp.IsValid()) {
				continue
			}
			count, cpu, took, err := b.drive(ctx, s, k.what, k.workers, k.work)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", k.what, s.name, err)
			}
			r := Raw{What: k.what, System: s.name, Unit: k.unit, CPUUnit: k.cpuUnit,
				Rate: float64(count) / k.scale / took.Seconds(), CPU: cpu / (float64(count) / k.scale)}
			if k.unit == "Gbit/s" {
				r.Rate *= 8
			}
			b.add(r)
		}
	}
	if !strings.Contains("memory of an idle flow", b.opt.Only) {
		return nil
	}
	return b.idle(ctx)
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

// idleFlows is bounded by the descriptors of one process: HAProxy needs two a flow.
const idleFlows = 8000

// idle opens flows that each did one request and then nothing, and sees what they cost in memory.
func (b *rawBench) idle(ctx context.Context) error {
	for _, s := range b.systems {
		if !s.tcp.IsValid() {
			continue
		}
		edge0, gateway0 := b.memory(s, "near-1"), b.memory(s, "fra-1")
		conns := make([]net.Conn, 0, idleFlows)
		err := b.client.Do(func() error {
			for range idleFlows {
				c, err := net.Dial("tcp", s.tcp.String())
				if err != nil {
					return err
				}
				conns = append(conns, c)
				if err := ask(c, 1, make([]byte, 4096)); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			edge, gateway := b.memory(s, "near-1")-edge0, b.memory(s, "fra-1")-gateway0
			b.add(Raw{What: "memory of an idle flow, edge", System: s.name, Rate: edge / idleFlows, Unit: "bytes"})
			b.add(Raw{What: "memory of an idle flow, gateway", System: s.name, Rate: gateway / idleFlows, Unit: "bytes"})
		}
		for _, c := range conns {
			c.Close()
		}
		if err != nil {
			return fmt.Errorf("idle flows, %s, after %d: %w", s.name, len(conns), err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// ask sends one request and reads its answer of at most a buffer.
func ask(c net.Conn, size int, buf []byte) error {
	if _, err := fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: bench\r\n\r\n", size); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.Read(buf[n:])
		n += m
		if i := strings.Index(string(buf[:n]), "\r\n\r\n"); i >= 0 && n >= i+4+size {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func bulk(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	buf := make([]byte, 256<<10)
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.tcp.String())
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		fmt.Fprintf(c, "GET /bytes/%d HTTP/1.1\r\nHost: bench\r\n\r\n", int64(8<<30))
		for {
			n, err := c.Read(buf)
			count.Add(int64(n))
			if err != nil {
				break
			}
		}
		stop()
		c.Close()
	}
	return nil
}

func connections(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", s.tcp.String())
		if err != nil {
			return err
		}
		err = ask(c, 1, buf)
		c.Close()
		if err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func requests(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	c, err := net.Dial("tcp", s.tcp.String())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		if err := ask(c, 1, buf); err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

func datagrams(ctx context.Context, s rawSystem, count *atomic.Int64) error {
	c, err := net.Dial("udp", s.udp.String())
	if err != nil {
		return err
	}
	defer c.Close()
	out, in := make([]byte, 64), make([]byte, 2048)
	for ctx.Err() == nil {
		if _, err := c.Write(out); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := io.ReadAtLeast(c, in, 1); err != nil {
			continue // lost: send again
		}
		count.Add(1)
	}
	return nil
}

func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return name + " is not installed"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// writeRaw prints a line for each kind of load and system, with Nearcast's ratio to it: above 1 is
// better than that system, whichever direction better is.
func (r *Report) writeRaw(out io.Writer) {
	if len(r.Raw) == 0 {
		return
	}
	ours := map[string]Raw{}
	for _, x := range r.Raw {
		if x.System == sysNearcast {
			ours[x.What] = x
		}
	}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "what\tsystem\tnearcast is\tits CPU is\tfigure\t\tCPU s a\t\t")
	for _, x := range r.Raw {
		o := ours[x.What]
		rate, cpu := "", ""
		if x.System != sysNearcast && o.Rate > 0 {
			ratio := o.Rate / x.Rate
			if x.Unit == "bytes" {
				ratio = 1 / ratio
			}
			rate = fmt.Sprintf("%.2f × as good", ratio)
			if x.CPU > 0 && o.CPU > 0 {
				cpu = fmt.Sprintf("%.2f ×", o.CPU/x.CPU)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.4g\t%s\t%.3g\t%s\t\n", x.What, x.System, rate, cpu, x.Rate, x.Unit, x.CPU, x.CPUUnit)
	}
	tw.Flush()
}
