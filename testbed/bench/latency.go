package bench

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/wan"
	"github.com/nearcast/nearcast/testbed/world"
)

// Transfer is one cell of the latency benchmark: what one system took in one world for one size.
type Transfer struct {
	R      time.Duration `json:"r_ns"` // client to endpoint
	Loss   float64       `json:"loss"` // on the client's access, each way
	Bytes  int64         `json:"bytes"`
	System string        `json:"system"`
	Median time.Duration `json:"median_ns"`
	P90    time.Duration `json:"p90_ns"`
	Runs   int           `json:"runs"`
	Failed int           `json:"failed"` // of the runs, mostly those longer than the limit
	Floor  time.Duration `json:"floor_ns"`
}

// The sizes of the latency benchmark. The first is the first byte's.
var transferSizes = []int64{1, 100_000, 1_000_000, 10_000_000}

// Names of the systems that are compared.
const (
	sysDirect    = "direct, CUBIC"
	sysDirectBBR = "direct, BBR"
	sysHAProxy   = "HAProxy, TLS"
	sysHAPlain   = "HAProxy, plain"
	sysNearcast  = "nearcast"
	sysUntuned   = "nearcast, no tune" // without the kernel program that learns windows
)

const transferLimit = 60 * time.Second

// runs is how often a size is measured; long ones less often.
func runs(size int64, quick bool) int {
	switch {
	case quick:
		return 3
	case size > 1_000_000:
		return 3
	}
	return 11
}

// Latency measures every size, system, distance and loss rate in one world.
func Latency(ctx context.Context, opt Options) (out []Transfer, err error) {
	spec, err := world.Load("bench")
	if err != nil {
		return nil, err
	}
	w, err := world.Raise(ctx, spec, world.Options{
		Bin: opt.Bin, Dir: opt.Dir, Say: opt.Say, EndpointCongestion: []string{"cubic", "bbr"},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, w.Close()) }()
	if opt.ClientWindow > 0 {
		for _, city := range spec.Cities {
			// The kernel gives half of the buffer to the window.
			buffer := fmt.Sprintf("4096 %d 67108864", 2*opt.ClientWindow)
			if err := w.NS(city.Name).Sysctl("net.ipv4.tcp_rmem", buffer); err != nil {
				return nil, err
			}
		}
	}
	app, err := w.Accelerate(ctx, opt.Say)
	if err != nil {
		return nil, err
	}
	p := &peers{dir: opt.Dir}
	defer p.stop()
	for _, city := range spec.Cities {
		edge := city.Site + "-1"
		err := p.start(ctx, chain{
			edge: w.NS(edge), gateway: w.NS("fra-1"), gatewayAddr: w.Host("fra-1").V4,
			app: w.EndpointAddr(app.Home, 0), appTCP: load.PortHTTP, sequence: edge,
		})
		if err != nil {
			return nil, err
		}
	}
	measure := func(systems ...string) error {
		for _, city := range spec.Cities {
			for _, loss := range []float64{0, 0.01} {
				name := fmt.Sprintf("R %v, loss %.0f %%", w.RTT(city.Name, "fra"), loss*100)
				if !strings.Contains(name, opt.Only) {
					continue
				}
				cells, err := latencyCell(ctx, w, app, city, loss, systems, opt)
				if err != nil {
					return err
				}
				out = append(out, cells...)
			}
		}
		return nil
	}
	if err := measure(sysDirect, sysDirectBBR, sysHAPlain, sysHAProxy, sysNearcast); err != nil {
		return out, err
	}
	opt.Say("the edges start again, without the kernel program that learns windows")
	for _, city := range spec.Cities {
		p := w.Nodes[city.Site+"-1"]
		if err := p.Stop(); err != nil {
			return out, err
		}
		p.AddArgs("--kernel-tune", "off")
		if err := firstError(p.Start(), p.Ready(ctx)); err != nil {
			return out, err
		}
	}
	return out, measure(sysUntuned)
}

func latencyCell(ctx context.Context, w *world.World, app *world.App, city world.CitySpec, loss float64,
	only []string, opt Options) ([]Transfer, error) {
	params := wan.Params{Rate: int64(city.Access.Rate), Loss: loss}
	if err := w.Fabric.Change(func(c *wan.Change) error {
		return c.SetAccess(wan.Access{At: city.Name, Up: params, Down: params})
	}); err != nil {
		return nil, err
	}
	edge := w.Host(city.Site + "-1").V4
	type system struct {
		name string
		addr netip.AddrPort
	}
	systems := []system{
		{sysDirect, netip.AddrPortFrom(w.EndpointAddr(app.Home, 0), load.PortHTTP)},
		{sysDirectBBR, netip.AddrPortFrom(w.EndpointAddr(app.Home, 1), load.PortHTTP)},
		{sysHAPlain, netip.AddrPortFrom(edge, portPlainIn)},
		{sysHAProxy, netip.AddrPortFrom(edge, portTLSIn)},
		{sysNearcast, netip.AddrPortFrom(app.Addresses[0], world.ListenHTTP)},
		{sysUntuned, netip.AddrPortFrom(app.Addresses[0], world.ListenHTTP)},
	}
	systems = slices.DeleteFunc(systems, func(s system) bool { return !slices.Contains(only, s.name) })
	for _, s := range systems {
		if err := listening(ctx, w.NS(city.Name), s.addr); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	r, R := w.RTT(city.Name, city.Site), w.RTT(city.Name, "fra")
	var out []Transfer
	for _, size := range transferSizes {
		took, failed := map[string][]time.Duration{}, map[string]int{}
		n := runs(size, opt.Quick)
		for range n {
			for _, s := range systems {
				if failed[s.name] >= 2 {
					continue // it takes longer than the limit; two minutes of proof are enough
				}
				one, cancel := context.WithTimeout(ctx, transferLimit)
				t, err := load.Fetch(one, w.Dial(city.Name), s.addr, size)
				cancel()
				if ctx.Err() != nil {
					return out, ctx.Err()
				}
				if err != nil {
					failed[s.name]++
					continue
				}
				took[s.name] = append(took[s.name], t.Total)
			}
		}
		floor := r + R + time.Duration(float64(size*8)/float64(city.Access.Rate)*1e9)
		for _, s := range systems {
			slices.Sort(took[s.name])
			c := Transfer{R: R, Loss: loss, Bytes: size, System: s.name, Median: load.Median(took[s.name]),
				P90: load.Quantile(took[s.name], 0.9), Runs: n, Failed: failed[s.name], Floor: floor}
			out = append(out, c)
			opt.Say("R %v, loss %.0f %%, %8d B, %-14s median %v, floor %v", R, loss*100, size, s.name,
				c.Median.Round(time.Millisecond), floor.Round(time.Millisecond))
		}
	}
	return out, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
