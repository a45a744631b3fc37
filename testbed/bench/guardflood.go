package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/testbed/blast"
	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// Flooded is what clients of the shipped programs see while SYNs from forged sources come to the edge as well,
// beside what they see when none come: phases of both took turns.
type Flooded struct {
	System    string      `json:"system"`
	PerSecond float64     `json:"syns_per_second"` // that were sent
	Quiet     FloodPhases `json:"quiet"`
	Flood     FloodPhases `json:"flood"`
	P99Ratio  float64     `json:"p99_ratio"` // of first bytes: the median of the rounds' own ratios
}

// FloodPhases are all phases of one kind together.
type FloodPhases struct {
	Attempts  int           `json:"attempts"`
	Failed    int           `json:"failed"`
	Connected time.Duration `json:"connected_p50_ns"`
	P50       time.Duration `json:"first_byte_p50_ns"`
	P99       time.Duration `json:"first_byte_p99_ns"`
	Goodput   float64       `json:"goodput"` // bits a second of one download, the median
}

// Names of the flood's systems.
const (
	sysGuarded   = "nearcast, guard"
	sysUnguarded = "nearcast, no guard"
)

const (
	kindFlood  = "flood of SYNs"
	floodRate  = 100_000 // SYNs a second
	floodEvery = 2 * time.Millisecond
	floodLimit = 5 * time.Second // of a connection
)

// floodBench is a world with clients and an attacker.
type floodBench struct {
	w       *world.World
	opt     Options
	to      netip.Addr
	stream  blast.Stream
	seconds time.Duration // of a phase
	rounds  int
	sink    *blast.Source // takes what is answered to forged sources
	pass    io.Closer     // at the client's end of its cable
	sent    int
	flooded time.Duration
}

// Floods measures the chain of edge, gateway and application in a flood, with guard and without.
func Floods(ctx context.Context, opt Options) (out []Flooded, err error) {
	if !strings.Contains(kindFlood, opt.Only) {
		return nil, nil
	}
	for _, system := range []string{sysGuarded, sysUnguarded} {
		f, err := floodSystem(ctx, opt, system)
		if err != nil {
			return out, fmt.Errorf("%s, %s: %w", kindFlood, system, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func floodSystem(ctx context.Context, opt Options, system string) (f Flooded, err error) {
	spec, err := world.Load("flood")
	if err != nil {
		return f, err
	}
	// The first two cables end at the edge. The gateway has no such interfaces, and goes on without guard.
	args := []string{"--guard-interfaces", "cable0,cable1"}
	if system == sysUnguarded {
		args = []string{"--kernel-guard", "off"}
	}
	w, err := world.Raise(ctx, spec, world.Options{Bin: opt.Bin, Dir: filepath.Join(opt.Dir, strings.ReplaceAll(system, " ", "")),
		Say: func(string, ...any) {}, NodeArgs: args})
	if err != nil {
		return f, err
	}
	defer func() { err = firstError(err, w.Close()) }()
	app, err := w.Accelerate(ctx, func(string, ...any) {})
	if err != nil {
		return f, err
	}
	b := &floodBench{w: w, opt: opt, to: app.Addresses[0], seconds: 3 * time.Second, rounds: 5}
	if opt.Quick {
		b.seconds, b.rounds = 1500*time.Millisecond, 3
	}
	defer func() {
		if b.sink != nil {
			err = firstError(err, b.sink.Close())
		}
		if b.pass != nil {
			err = firstError(err, b.pass.Close())
		}
	}()
	if err := b.prepare(); err != nil {
		return f, err
	}
	if system == sysGuarded {
		if err := b.guarded(ctx, app); err != nil {
			return f, err
		}
	}
	return b.measure(ctx, system)
}

// prepare gives the answers to forged sources a way: to the attacker, who throws them away.
func (b *floodBench) prepare() error {
	attacker, edge := b.w.NS("attacker"), b.w.NS("near-1")
	from, err := attacker.MAC("cable1")
	if err != nil {
		return err
	}
	to, err := edge.MAC("cable1")
	if err != nil {
		return err
	}
	hop := netip.MustParseAddr("172.16.1.9")
	b.stream = blast.Stream{TCP: true, From: from, To: to, Networks: blast.NetworksMax,
		Destination: netip.AddrPortFrom(b.to, load.PortGreet)}
	if b.sink, err = blast.New(attacker, "cable1", b.stream); err != nil {
		return err
	}
	if b.pass, err = blast.Pass(b.w.NS("client"), "cable0"); err != nil {
		return err
	}
	return errors.Join(b.sink.Sink(attacker, "cable1"), edge.AddNeighbour("cable1", hop, from),
		edge.AddRoute(netns.Route{Dst: netip.MustParsePrefix("32.0.0.0/3"), Dev: "cable1", Via: hop}),
		b.w.NS("client").Sysctl("net.ipv4.ip_local_port_range", "10240 65535"))
}

// guarded has the listener answer SYNs with cookies, and waits until the node has the rule.
func (b *floodBench) guarded(ctx context.Context, app *world.App) error {
	text, err := b.w.Nodes["near-1"].Get(ctx, "/drops")
	if err != nil {
		return err
	}
	var drops struct{ Present bool }
	if err := json.Unmarshal([]byte(text), &drops); err != nil || !drops.Present {
		return fmt.Errorf("the edge has no guard: %.200s", text)
	}
	if _, err := b.w.CLI(ctx, "listener", "update", app.TCP, "--syn-cookies-above", "1000"); err != nil {
		return err
	}
	return b.w.Settled(ctx)
}

// measure has quiet and flood take turns.
func (b *floodBench) measure(ctx context.Context, system string) (f Flooded, err error) {
	var all [2]struct {
		connected, first []time.Duration
		failed           int
		goodput          []float64
	}
	var ratios []float64
	for range b.rounds {
		var p99 [2]float64
		for i, rate := range []int{0, floodRate} {
			k, goodput, err := b.phase(ctx, rate)
			if err != nil {
				return f, err
			}
			all[i].connected = append(all[i].connected, k.Connected...)
			all[i].first = append(all[i].first, k.FirstByte...)
			all[i].failed += len(k.Errs)
			all[i].goodput = append(all[i].goodput, goodput)
			p99[i] = float64(load.Quantile(k.FirstByte, 0.99))
		}
		if p99[0] > 0 {
			ratios = append(ratios, p99[1]/p99[0])
		}
	}
	if len(ratios) == 0 {
		return f, errors.New("no connection succeeded")
	}
	f = Flooded{System: system, PerSecond: float64(b.sent) / b.flooded.Seconds(), P99Ratio: median(ratios)}
	for i, to := range []*FloodPhases{&f.Quiet, &f.Flood} {
		a := all[i]
		*to = FloodPhases{Attempts: len(a.first) + a.failed, Failed: a.failed, Goodput: median(a.goodput),
			Connected: load.Quantile(a.connected, 0.5), P50: load.Quantile(a.first, 0.5), P99: load.Quantile(a.first, 0.99)}
	}
	b.opt.Say("%s, %s: p99 of first bytes %v, without flood %v; %d of %d failed", kindFlood, system,
		f.Flood.P99.Round(time.Microsecond), f.Quiet.P99.Round(time.Microsecond), f.Flood.Failed, f.Flood.Attempts)
	return f, nil
}

// phase measures connections and then a download with so many SYNs a second.
func (b *floodBench) phase(ctx context.Context, rate int) (k load.Knocks, goodput float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, begin := make(chan error, 1), time.Now()
	if rate == 0 {
		done <- nil
	} else {
		go func() {
			n, err := blast.Flood{Stream: b.stream, PerSecond: rate}.Run(ctx, b.w.NS("attacker"), "cable1")
			b.sent += n
			b.flooded += time.Since(begin)
			done <- err
		}()
	}
	time.Sleep(200 * time.Millisecond) // the queue fills, and cookies begin
	client := b.w.NS("client")
	k = load.Knocks{Addr: netip.AddrPortFrom(b.to, load.PortGreet), Every: floodEvery, Timeout: floodLimit}
	err = client.Do(func() error {
		run, stop := context.WithTimeout(ctx, b.seconds)
		defer stop()
		k.Run(run)
		return nil
	})
	if err == nil {
		goodput, err = b.download(ctx)
	}
	cancel()
	return k, goodput, firstError(err, <-done)
}

// download returns the bits a second of one download, without its beginning.
func (b *floodBench) download(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var count atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- b.w.NS("client").Do(func() error {
			return bulk(ctx, rawSystem{tcp: netip.AddrPortFrom(b.to, world.ListenHTTP)}, &count)
		})
	}()
	time.Sleep(b.seconds / 6)
	n, begin := count.Load(), time.Now()
	time.Sleep(b.seconds / 3)
	bits := float64(count.Load()-n) * 8 / time.Since(begin).Seconds()
	cancel()
	return bits, <-done
}
