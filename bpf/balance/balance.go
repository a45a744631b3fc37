package balance

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/ports"
	"github.com/nearcast/nearcast/bpf/xdp"
)

// Config says how much a Balancer has room for. The zero value works.
type Config struct {
	// PinDir is a directory on a BPF file system, made if it isn't there, for attachments and maps. Empty: they
	// end with the process, and packets for other nodes' flows are refused from then on.
	PinDir   string
	FlowsMax int // 0: DefaultFlowsMax
	// TakesOver says that this process takes over from one that is running: the UDP flows that are here stay here.
	TakesOver bool
	Log       *slog.Logger // nil: discard
}

// Validate checks the configuration.
func (c Config) Validate() error {
	if c.PinDir != "" && !filepath.IsAbs(c.PinDir) {
		return fmt.Errorf("pin directory %q is not an absolute path", c.PinDir)
	}
	if c.FlowsMax < 0 || c.FlowsMax > 1<<26 {
		return fmt.Errorf("room for %d flows is not between 0 and 64 M", c.FlowsMax)
	}
	return nil
}

// Balancer is the program with its tables, and its attachments. It is safe for concurrent use.
type Balancer struct {
	objs      balanceObjects
	takesOver bool

	mu        sync.Mutex // guards what follows
	links     xdp.Attachments
	settings  balanceSettings
	members   [membersSize]balanceMember // as the map has them
	addresses map[netip.Prefix]bool
	history   history
	written   []balanceRow // the table in use
	applied   Site
	fresh     bool // nothing was applied by this process

	flowsMu sync.Mutex // guards flows; nothing is locked within
	flows   flowTable
}

// pinned are the maps that outlive a process.
var pinned = []string{"addresses", "members", "peers", "rows", "flows", "control", "next"}

// Load loads the program. What an earlier process pinned goes on to hold; otherwise everything passes. It needs
// CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and Linux 5.15 (on arm64: 6.0).
func Load(cfg Config) (*Balancer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Balancer{addresses: map[netip.Prefix]bool{}, fresh: true, takesOver: cfg.TakesOver,
		links: xdp.Attachments{Log: cfg.Log}}
	spec, err := loadBalance()
	if err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	spec.Maps["flows"].MaxEntries = uint32(cfg.FlowsMax)
	if cfg.FlowsMax == 0 {
		spec.Maps["flows"].MaxEntries = DefaultFlowsMax
	}
	opts := &ebpf.CollectionOptions{}
	if cfg.PinDir != "" {
		b.links.Dir = pins(cfg.PinDir)
		if err := xdp.PrepareDir(b.links.Dir); err != nil {
			return nil, err
		}
		opts.Maps.PinPath = b.links.Dir
		for _, name := range pinned {
			spec.Maps[name].Pinning = ebpf.PinByName
		}
	}
	err = spec.LoadAndAssign(&b.objs, opts)
	if errors.Is(err, ebpf.ErrMapIncompatible) { // another release's, or another size
		cfg.Log.Warn("what an earlier process pinned does not fit and is given up", "error", err)
		if err = xdp.Remove(b.links.Dir); err == nil {
			err = errors.Join(xdp.PrepareDir(b.links.Dir), spec.LoadAndAssign(&b.objs, opts))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	if err := b.recall(); err != nil {
		b.objs.Close()
		return nil, fmt.Errorf("read pinned maps: %w", err)
	}
	return b, nil
}

func pins(dir string) string { return filepath.Join(dir, "balance-"+layoutVersion) }

// recall reads what an earlier process left.
func (b *Balancer) recall() error {
	if err := b.objs.Control.Lookup(uint32(0), &b.settings); err != nil {
		return err
	}
	for i := range b.members {
		if err := b.objs.Members.Lookup(uint32(i), &b.members[i]); err != nil {
			return err
		}
	}
	var key balancePrefix
	var value uint32
	for it := b.objs.Addresses.Iterate(); it.Next(&key, &value); {
		addr := addressOf(key.Family, key.Address)
		b.addresses[netip.PrefixFrom(addr, int(key.Bits)-32)] = true
	}
	if b.settings.Self == 0 {
		return nil
	}
	if !b.takesOver {
		b.settings.Epoch++
		if err := b.objs.Control.Put(uint32(0), b.settings); err != nil {
			return err
		}
	}
	rows := make([]balanceRow, Rows)
	half := b.settings.Half & 1 * Rows
	for i := range rows {
		if err := b.objs.Rows.Lookup(half+uint32(i), &rows[i]); err != nil {
			return err
		}
	}
	b.history = historyOf(rows, time.Now())
	used, silent, err := countPlaces(b.objs.Flows, monotonic())
	b.flows.found = used + silent
	return err
}

// Attach attaches the program to an interface; see xdp.Attachments.
func (b *Balancer) Attach(index int, mode xdp.Mode) (xdp.Mode, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.links.Attach(b.objs.Balance, index, mode)
}

// Chain has a program look at each packet that this node takes, with what other nodes put around it taken off;
// nil: none does.
func (b *Balancer) Chain(program *ebpf.Program) error {
	if program == nil {
		if err := b.objs.Next.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("unchain xdp program: %w", err)
		}
		return nil
	}
	if err := b.objs.Next.Put(uint32(0), program); err != nil {
		return fmt.Errorf("chain xdp program: %w", err)
	}
	return nil
}

// SetAddresses says which prefixes are balanced.
func (b *Balancer) SetAddresses(prefixes []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		want[netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()] = true
	}
	if len(want) > prefixesMax {
		return fmt.Errorf("%w: %d balanced prefixes, and there is room for %d", ports.ErrFull, len(want), prefixesMax)
	}
	for p := range want {
		if b.addresses[p] {
			continue
		}
		if err := b.objs.Addresses.Put(ports.KeyOf(0, p), uint32(1)); err != nil {
			return fmt.Errorf("write addresses: %w", err)
		}
		b.addresses[p] = true
	}
	for p := range b.addresses {
		if want[p] {
			continue
		}
		if err := b.objs.Addresses.Delete(ports.KeyOf(0, p)); err != nil {
			return fmt.Errorf("write addresses: %w", err)
		}
		delete(b.addresses, p)
	}
	return nil
}

// Alive tells the program that its daemon runs. Five seconds without a word, and this node's rows go to others.
func (b *Balancer) Alive() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settings.AliveNs = monotonic()
	return b.objs.Control.Put(uint32(0), b.settings)
}

// monotonic is the time of the program's clock, in nanoseconds.
func monotonic() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // can't happen: the clock exists
	}
	return uint64(t.Nano())
}

// Remove takes away everything that a Balancer pinned below pinDir. It is no error if there is nothing.
func Remove(pinDir string) error { return xdp.Remove(pins(pinDir)) }

// Detach ends what is pinned for one interface.
func Detach(pinDir string, index int) error { return xdp.Detach(pins(pinDir), index) }

// Close lets go of the program: what is pinned goes on balancing, what isn't ends.
func (b *Balancer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.links.Close(), b.objs.Close())
}
