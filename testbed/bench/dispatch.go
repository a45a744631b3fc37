package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// DispatchOptions say how the doors are measured.
type DispatchOptions struct {
	Dir       string        // empty, for a file that both sides share
	Rounds    int           // turns of each; medians count
	Turn      time.Duration // how long connections, datagrams, and connections at a steady rate are counted, each
	Listeners []int         // 0: each port of each address of a /16
	// Doors returns the program and arguments that run RunDoors with a spec.
	Doors func(spec string) (name string, args []string)
	Say   func(format string, args ...any)
}

// DispatchRow is what one kind of doors with so many listeners did: medians of the rounds, except where noted. Times
// are in seconds.
type DispatchRow struct {
	System    string  `json:"system"`
	Listeners int     `json:"listeners"` // 0: every port of every address of a /16
	UDP       bool    `json:"udp,omitempty"`
	Rate      float64 `json:"rate"`         // connections or datagrams a second, as many as there can be
	CPU       float64 `json:"cpu_s"`        // CPU time of a connection or datagram, of both sides
	ServerCPU float64 `json:"server_cpu_s"` // that of the server's process alone
	// From before the SYN to after the accept, of all rounds: at a steady 1,000 a second, and at the full rate.
	P50     float64 `json:"p50_s,omitempty"`
	P99     float64 `json:"p99_s,omitempty"`
	FullP50 float64 `json:"full_p50_s,omitempty"`
	FullP99 float64 `json:"full_p99_s,omitempty"`
	Failed  int     `json:"failed"`             // connections of all rounds
	Open    float64 `json:"open_s"`             // until all listeners were there
	Remove  float64 `json:"remove_s,omitempty"` // until one of them was gone
	Add     float64 `json:"add_s,omitempty"`    // until it was there again
	// Bytes that all listeners take: the machine's small objects, the process, its BPF maps.
	Slab     int64 `json:"slab_bytes"`
	Resident int64 `json:"resident_bytes"`
	Maps     int64 `json:"maps_bytes"`

	latencies, fullLatencies []float64
}

// Of the load.
const (
	doorsWorkers = 16                    // clients that connect at once
	doorsEvery   = time.Millisecond      // between connections at the steady rate
	doorsSources = 64                    // addresses of clients
	doorsTimeout = 20 * time.Second      // of one connection
	doorsWindow  = 128                   // datagrams under way at most: none is dropped
	doorsBatch   = 16                    // datagrams in a system call
	doorsPause   = 20 * time.Microsecond // while too many are
	// doorsUDPMax is fewer than 10,000, as with dispatch each port that is used takes a socket to answer from, and
	// there are at most 8,192 of them.
	doorsUDPMax = 8_000
)

type dispatchBench struct {
	opt            DispatchOptions
	client, server *netns.NS
	counter        *atomic.Int64
	rows           []*DispatchRow
	rounds         map[*DispatchRow]*doorsRounds
}

// doorsRounds are the figures of each round.
type doorsRounds struct {
	rate, cpu, serverCPU, open, remove, add, slab, resident, maps []float64
}

// Dispatch measures the node's doors with and without the kernel program in namespaces of its own.
func Dispatch(ctx context.Context, opt DispatchOptions) (out []DispatchRow, err error) {
	set, err := netns.Create(fmt.Sprintf("ncb%d-", time.Now().UnixNano()%1e6))
	if err != nil {
		return nil, err
	}
	defer func() { err = firstError(err, set.Close()) }()
	b := &dispatchBench{opt: opt, rounds: map[*DispatchRow]*doorsRounds{}}
	if err := b.wire(set); err != nil {
		return nil, err
	}
	if b.counter, err = mapCounter(b.counterFile()); err != nil {
		return nil, err
	}
	b.plan()
	for round := range opt.Rounds {
		for i := range b.rows {
			row := b.rows[(i+round*5)%len(b.rows)] // none always follows the same one
			if err := b.turn(ctx, row); err != nil {
				return nil, fmt.Errorf("%s, %d listeners: %w", row.System, row.Listeners, err)
			}
		}
		opt.Say("round %d of %d", round+1, opt.Rounds)
	}
	for _, row := range b.rows {
		b.settle(row)
		out = append(out, *row)
	}
	return out, nil
}

func (b *dispatchBench) counterFile() string { return filepath.Join(b.opt.Dir, "datagrams") }

// wire joins a client and a server. Both prefixes are the server's, and on none of its interfaces.
func (b *dispatchBench) wire(set *netns.Set) (err error) {
	if b.client, err = set.New("client"); err != nil {
		return err
	}
	if b.server, err = set.New("server"); err != nil {
		return err
	}
	at := netip.MustParseAddr("10.9.255.2")
	clients := netip.MustParsePrefix("10.9.0.0/24")
	return firstError(
		netns.Veth(netns.End{NS: b.client, Dev: "wire"}, netns.End{NS: b.server, Dev: "wire"}),
		b.client.AddAddr("wire", netip.MustParsePrefix("10.9.255.1/24")),
		b.server.AddAddr("wire", netip.MustParsePrefix("10.9.255.2/24")),
		b.client.AddRoute(netns.Route{Dst: clients, Local: true}),
		b.server.AddRoute(netns.Route{Dst: clients, Dev: "wire", Via: netip.MustParseAddr("10.9.255.1")}),
		b.client.AddRoute(netns.Route{Dst: netip.PrefixFrom(doorsAddress, 24).Masked(), Dev: "wire", Via: at}),
		b.client.AddRoute(netns.Route{Dst: doorsPrefix, Dev: "wire", Via: at}),
		b.server.AddRoute(netns.Route{Dst: netip.PrefixFrom(doorsAddress, 24).Masked(), Local: true}),
		b.server.AddRoute(netns.Route{Dst: doorsPrefix, Local: true}),
		b.server.Sysctl("net.core.somaxconn", "65535"),
		b.server.Sysctl("net.ipv4.tcp_max_syn_backlog", "65535"),
		b.client.Sysctl("net.ipv4.ip_local_port_range", "10240 65535"),
	)
}

// plan lists what is measured.
func (b *dispatchBench) plan() {
	systems := []string{sysSockets, sysOne, sysEach}
	if _, err := exec.LookPath("nft"); err == nil {
		systems = append(systems, sysTPROXY)
	} else {
		b.opt.Say("nft is not installed: without the packet filter's TPROXY")
	}
	add := func(r DispatchRow) {
		b.rows = append(b.rows, &r)
		b.rounds[&r] = &doorsRounds{}
	}
	for _, n := range b.opt.Listeners {
		for _, s := range systems {
			if n > 0 || s != sysSockets { // 4 billion sockets
				add(DispatchRow{System: s, Listeners: n})
			}
		}
	}
	for _, n := range b.opt.Listeners {
		if n = min(n, doorsUDPMax); n == 0 {
			continue
		}
		for _, s := range []string{sysSockets, sysOne} {
			add(DispatchRow{System: s, Listeners: n, UDP: true})
		}
	}
}

// doorsProcess is the other side.
type doorsProcess struct {
	cmd     *netns.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
	said    *strings.Builder // its last words
}

func (b *dispatchBench) start(ctx context.Context, row *DispatchRow) (*doorsProcess, doorsOpened, error) {
	var opened doorsOpened
	spec, err := json.Marshal(DoorsSpec{System: row.System, Listeners: row.Listeners, UDP: row.UDP, Counter: b.counterFile()})
	if err != nil {
		return nil, opened, err
	}
	name, args := b.opt.Doors(string(spec))
	p := &doorsProcess{cmd: b.server.Cmd(ctx, name, args...), said: &strings.Builder{}}
	p.cmd.Stderr = p.said
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, opened, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, opened, err
	}
	p.answers = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, opened, err
	}
	if err := p.read(&opened); err != nil {
		return nil, opened, errors.Join(err, p.stop())
	}
	return p, opened, nil
}

func (p *doorsProcess) read(answer any) error {
	line, err := p.answers.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the other side does not answer: %w", err)
	}
	return json.Unmarshal(line, answer)
}

func (p *doorsProcess) ask(question string, answer any) error {
	if _, err := fmt.Fprintln(p.in, question); err != nil {
		return err
	}
	return p.read(answer)
}

// stop ends the process and waits for it.
func (p *doorsProcess) stop() error {
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("the other side: %w: %s", err, p.said)
	}
	return nil
}

// turn measures one row once.
func (b *dispatchBench) turn(ctx context.Context, row *DispatchRow) (err error) {
	p, opened, err := b.start(ctx, row)
	if err != nil {
		return err
	}
	defer func() { err = firstError(err, p.stop()) }()
	r := b.rounds[row]
	r.open, r.slab = append(r.open, opened.Seconds), append(r.slab, float64(opened.Slab))
	r.resident, r.maps = append(r.resident, float64(opened.Resident)), append(r.maps, float64(opened.Maps))
	full := b.connections
	if row.UDP {
		full = b.datagrams
		if err := b.everyPort(row); err != nil {
			return err
		}
	}
	if _, err := full(row, b.opt.Turn/10); err != nil { // the first ones are other
		return err
	}
	var server [2]float64
	own, err := cpuSeconds()
	if err := firstError(err, p.ask("cpu", &server[0])); err != nil {
		return err
	}
	begin := time.Now()
	done, err := full(row, b.opt.Turn)
	took := time.Since(begin).Seconds()
	if err := firstError(err, p.ask("cpu", &server[1])); err != nil {
		return err
	}
	now, err := cpuSeconds()
	if err != nil {
		return err
	}
	n, used := float64(len(done.latencies)+done.datagrams), server[1]-server[0]
	r.rate = append(r.rate, n/took)
	r.cpu, r.serverCPU = append(r.cpu, (now-own+used)/n), append(r.serverCPU, used/n)
	row.Failed += done.failed
	if row.UDP {
		return nil
	}
	row.fullLatencies = append(row.fullLatencies, done.latencies...)
	steady, err := b.steady(row)
	if err != nil {
		return err
	}
	row.Failed += steady.failed
	row.latencies = append(row.latencies, steady.latencies...)
	if row.Listeners < 2 {
		return nil
	}
	var change [2]float64
	err = p.ask("change", &change)
	r.remove, r.add = append(r.remove, change[0]), append(r.add, change[1])
	return err
}

// settle makes a row's figures of those of its rounds.
func (b *dispatchBench) settle(row *DispatchRow) {
	r := b.rounds[row]
	middle := func(of []float64) float64 {
		if len(of) == 0 {
			return 0
		}
		return median(of)
	}
	row.Rate, row.CPU, row.ServerCPU, row.Open = middle(r.rate), middle(r.cpu), middle(r.serverCPU), middle(r.open)
	row.Remove, row.Add = middle(r.remove), middle(r.add)
	row.Slab, row.Resident, row.Maps = int64(middle(r.slab)), int64(middle(r.resident)), int64(middle(r.maps))
	row.P50, row.P99 = quantiles(row.latencies)
	row.FullP50, row.FullP99 = quantiles(row.fullLatencies)
	row.latencies, row.fullLatencies = nil, nil
}

func quantiles(of []float64) (p50, p99 float64) {
	if len(of) == 0 {
		return 0, 0
	}
	slices.Sort(of)
	return of[len(of)/2], of[len(of)*99/100]
}
