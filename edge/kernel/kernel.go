// Package kernel answers: which of the optional kernel programs work for this node, and what does it cost
// to be without the others?
//
//	New    loads what is wanted and attaches it, each program by itself
//	Apply  gives a snapshot to those that need it, before listen opens its doors
//	Run    keeps them until the node ends
//	States present, or absent and why, and what the absence costs: for the log, metrics and notes
//
// No program is needed. One that cannot be had (no privilege, an old kernel, no BPF file system) is absent,
// which is said once, and everything goes on without it. Only a program that is asked for by On makes New
// fail. docs/KERNEL.md has the maps, pins, lifetimes and capabilities.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/bpf/balance"
	"github.com/nearcast/nearcast/bpf/dispatch"
	"github.com/nearcast/nearcast/bpf/guard"
	"github.com/nearcast/nearcast/bpf/tune"
	"github.com/nearcast/nearcast/bpf/xdp"
	"github.com/nearcast/nearcast/proto/model"
)

// Mode says whether a program is wanted.
type Mode string

// The modes.
const (
	Auto Mode = "auto" // if it can be had
	On   Mode = "on"   // the node does not start without
	Off  Mode = "off"  // not even where it could be had
)

// ParseMode reads a mode.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, On, Off:
		return m, nil
	}
	return "", fmt.Errorf("%q is not auto, on or off", s)
}

// Name is a program's name.
type Name string

// The programs.
const (
	Dispatch Name = "dispatch" // sk_lookup: any addresses and port ranges to few sockets
	Tune     Name = "tune"     // sock_ops: connections to clients begin where their network's last ones got to
	Balance  Name = "balance"  // XDP: packets of flows go to the node of the site that has them
	Guard    Name = "guard"    // XDP: drops what no listener wants
)

// Names lists the programs in the order in which they are loaded.
var Names = []Name{Dispatch, Tune, Balance, Guard}

// costs say what a node lacks without a program.
var costs = map[Name]string{
	Dispatch: "each port of each accelerated address takes a socket of its own (at most 4,096 a node), " +
		"and an upgrade does not keep UDP flows whole",
	Tune: "transfers to clients begin with 10 segments instead of what their network took before: " +
		"a few round trips between client and edge more each",
	Balance: "when the router in front of a site spreads flows anew, because a node came or went, flows whose node " +
		"changes are reset",
	Guard: "listeners' networks, countries, rates, fragments and SYN cookies are not enforced, and floods reach the " +
		"network stack",
}

// Config configures Programs.
type Config struct {
	// Modes of the programs; Auto for those that are not there.
	Modes map[Name]Mode

	// PinDir is a directory on a BPF file system where what outlives this process is pinned; no two nodes
	// of one machine share it. Empty: nothing outlives it.
	PinDir string

	// ClientCongestion is the congestion control of connections to clients, a name that the kernel has;
	// empty: bbr where the kernel has it, else the system's. Only tune sets it.
	ClientCongestion string
	// Self is this node, and GuardInterfaces are those on which clients' packets arrive.
	Self            model.NodeID
	GuardInterfaces []string
	// ClientSegment bounds the TCP segments that guard's answers let clients send, in bytes; 0: no bound.
	ClientSegment int
	// BalanceInterfaces are those on which packets of clients and of the site's other nodes arrive.
	BalanceInterfaces []string
	BalanceFlows      int      // room of balance's table of flows; 0: balance.DefaultFlowsMax
	XDPMode           xdp.Mode // of guard and balance
	// TakesOver says that this process takes over from one that is running.
	TakesOver bool

	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: not registered
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	for name, mode := range c.Modes {
		if _, known := costs[name]; !known {
			return fmt.Errorf("kernel program %q is unknown", name)
		}
		if _, err := ParseMode(string(mode)); err != nil {
			return fmt.Errorf("kernel program %s: %w", name, err)
		}
	}
	if c.PinDir != "" && !filepath.IsAbs(c.PinDir) {
		return fmt.Errorf("directory of pins %q is not an absolute path", c.PinDir)
	}
	return nil
}

func (c *Config) mode(name Name) Mode {
	if m := c.Modes[name]; m != "" {
		return m
	}
	return Auto
}

// State is what is to be known of one program.
type State struct {
	Program Name   `json:"program"`
	Mode    Mode   `json:"mode"`
	Present bool   `json:"present"`
	Why     string `json:"why,omitempty"`  // it is absent, or what it is present without
	Cost    string `json:"cost,omitempty"` // of its absence
}

// Programs are this node's kernel programs. One a process; safe for concurrent use.
type Programs struct {
	cfg Config
	log *slog.Logger

	// Set by New, then constant; nil: absent.
	dispatch *dispatch.Dispatcher
	tune     *tune.Tuner
	samples  *samples
	balance  *balance.Balancer
	guard    *guard.Guard

	drops dropLog

	mu     sync.Mutex // guards what follows
	states map[Name]State
	closed bool
	// wanted says that listeners ask for what only the guard does.
	wanted bool
	// countries are the lists of the snapshot, and unlisted those that it names and does not have.
	countries countryLists
	unlisted  []model.CountryCode
}

// New loads and attaches the programs. It fails for one that is On and cannot be had.
func New(cfg Config) (*Programs, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Programs{cfg: cfg, log: cfg.Log, states: map[Name]State{}, samples: newSamples()}
	supported := MinimumKernel()
	for _, name := range Names {
		if err := p.load(name, supported); err != nil {
			p.Close()
			return nil, err
		}
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(collector{p}); err != nil {
			p.Close()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return p, nil
}

// loaders load each program and note it.
var loaders = map[Name]func(*Programs) error{
	Dispatch: (*Programs).loadDispatch,
	Tune:     (*Programs).loadTune,
	Balance:  (*Programs).loadBalance,
	Guard:    (*Programs).loadGuard,
}

// removers take away what an earlier process pinned of programs that would go on without a daemon.
var removers = map[Name]func(string) error{Balance: balance.Remove, Guard: guard.Remove}

// load loads one program if it is wanted, and says how that went.
func (p *Programs) load(name Name, supported error) error {
	s := State{Program: name, Mode: p.cfg.mode(name)}
	err := errors.New("switched off")
	if remove := removers[name]; s.Mode == Off && remove != nil && p.cfg.PinDir != "" {
		if err := remove(p.cfg.PinDir); err != nil { // of an earlier process
			return fmt.Errorf("kernel program %s is off: %w", name, err)
		}
	}
	if s.Mode != Off {
		err = supported
		if err == nil {
			err = loaders[name](p)
		}
	}
	switch s.Present = err == nil; {
	case s.Present:
		if p.cfg.PinDir == "" {
			s.Why = noPins
		}
		p.log.Info("kernel program loaded", "program", name, "pins", p.cfg.PinDir)
	case s.Mode == On:
		return fmt.Errorf("kernel program %s is on: %w", name, explain(err))
	default:
		s.Why, s.Cost = explain(err).Error(), costs[name]
		level := slog.LevelWarn
		if s.Mode == Off || errors.Is(err, ErrNoInterfaces) || errors.Is(err, errNotBalanced) {
			level = slog.LevelInfo
		}
		p.log.Log(context.Background(), level, "kernel program absent: everything works without",
			"program", name, "why", s.Why, "cost", s.Cost)
	}
	p.mu.Lock()
	p.states[name] = s
	p.mu.Unlock()
	return nil
}

const noPins = "without pins: what it knows ends with this process"

func (p *Programs) loadDispatch() error {
	d, err := dispatch.Load(dispatch.Config{PinDir: p.cfg.PinDir, Steer: dispatch.SteerTCPByCPU, Log: p.log})
	if err != nil {
		return err
	}
	if err := d.Attach(); err != nil {
		return errors.Join(err, d.Close())
	}
	p.dispatch = d
	return nil
}

// Dispatch returns the dispatcher, or nil if it is absent.
func (p *Programs) Dispatch() *dispatch.Dispatcher { return p.dispatch }

// Apply gives the programs a snapshot. An error names what did not take it; everything else has.
func (p *Programs) Apply(s *model.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted = wantsGuard(s, p.cfg.Self)
	if p.closed {
		return nil
	}
	if p.balance != nil {
		if err := p.balance.SetAddresses(balancedAddresses(s, p.cfg.Self)); err != nil {
			return fmt.Errorf("balance: %w", err)
		}
	}
	if p.guard == nil {
		return nil
	}
	p.countries = p.countries.unpack(s, p.cfg.Self)
	p.unlisted = p.countries.missing(s, p.cfg.Self)
	if err := p.guard.Update(p.countries.rules(s, p.cfg.Self)); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// Run keeps the programs until ctx ends. What is pinned stays then; all else ends.
func (p *Programs) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	watching.Go(func() { p.watchTune(ctx) })
	watching.Go(func() { p.watchGuard(ctx) })
	<-ctx.Done()
	watching.Wait()
	return p.Close()
}

// watchTune reads samples of connections until ctx ends. Without them the program works as well; their loss is no
// reason to end the node.
func (p *Programs) watchTune(ctx context.Context) {
	if p.tune == nil {
		return
	}
	if err := p.tune.Samples(ctx, p.samples.take); err != nil && ctx.Err() == nil {
		p.log.Error("samples of connections are not read", "error", err)
	}
}

// Close lets go of the programs; Run does it at its end. A second Close does nothing.
func (p *Programs) Close() error {
	p.mu.Lock()
	done := p.closed
	p.closed = true
	p.mu.Unlock()
	if done {
		return nil
	}
	var errs []error
	if p.dispatch != nil {
		errs = append(errs, p.dispatch.Close())
	}
	if p.tune != nil {
		errs = append(errs, p.tune.Close())
	}
	if p.balance != nil {
		errs = append(errs, p.balance.Close())
	}
	if p.guard != nil {
		errs = append(errs, p.guard.Close())
	}
	return errors.Join(errs...)
}

// States returns the programs' states, in the order of Names.
func (p *Programs) States() []State {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]State, 0, len(Names))
	for _, name := range Names {
		all = append(all, p.states[name])
	}
	return all
}

// Notes says what this node runs without, for people. What is off was the operator's wish, and is no note; nor
// is a guard without interfaces that no listener needs.
func (p *Programs) Notes() []string {
	p.mu.Lock()
	unneeded := map[Name]bool{
		Guard: len(p.cfg.GuardInterfaces) == 0 && !p.wanted, Balance: len(p.cfg.BalanceInterfaces) == 0,
	}
	unlisted := p.unlisted
	var notes []string
	if p.balance != nil && !p.closed {
		if f, err := p.balance.Flows(); err != nil {
			notes = append(notes, fmt.Sprintf("balance's table of flows cannot be read: %v", err))
		} else if note := flowsNote(f); note != "" {
			notes = append(notes, note)
		}
	}
	p.mu.Unlock()
	if len(unlisted) > 0 {
		notes = append(notes, countryNote(unlisted))
	}
	for _, s := range p.States() {
		if unneeded[s.Program] {
			continue
		}
		if !s.Present && s.Mode != Off {
			notes = append(notes, fmt.Sprintf("kernel program %s is absent (%s): %s", s.Program, s.Why, s.Cost))
		}
	}
	return notes
}
