package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/bpf/ports"
)

// Mode is where the kernel runs the program.
type Mode uint8

// The modes.
const (
	Auto    Mode = 0 // native, or generic where the driver can't
	Native  Mode = 1 // in the driver, before a packet costs anything
	Generic Mode = 2 // after the driver: works on any interface, and costs an allocation per packet
)

func (m Mode) String() string {
	switch m {
	case Native:
		return "native"
	case Generic:
		return "generic"
	}
	return "auto"
}

// Config says how much a Guard has room for. The zero value works.
type Config struct {
	// PinDir is a directory on a BPF file system, made if it isn't there, for the attachments. Empty: they end
	// with the process.
	PinDir string

	// Room of the maps; zero: the defaults of limits.go.
	AddressesMax, PrefixesMax, RangesMax, ListenersMax, ListedMax, SourcesMax int

	SampleEvery int // dropped packets an Event; zero: none

	Log *slog.Logger // nil: discard
}

// Validate checks the configuration.
func (c Config) Validate() error {
	if c.PinDir != "" && !filepath.IsAbs(c.PinDir) {
		return fmt.Errorf("pin directory %q is not an absolute path", c.PinDir)
	}
	for _, n := range []int{c.AddressesMax, c.PrefixesMax, c.RangesMax, c.ListenersMax, c.ListedMax, c.SourcesMax} {
		if n < 0 || n > 1<<26 {
			return fmt.Errorf("a map's room of %d is not between 0 and 64 M", n)
		}
	}
	if c.SampleEvery < 0 {
		return errors.New("sampling is negative")
	}
	return nil
}

// ErrFull says that the rules need more room than a map has.
var ErrFull = ports.ErrFull

// Guard is a program with its rules, and its attachments. It is safe for concurrent use.
type Guard struct {
	cfg  Config
	log  *slog.Logger
	objs guardObjects

	mu        sync.Mutex // guards what follows
	table     *ports.Table
	listeners names
	lists     names
	addresses map[netip.Prefix]uint32
	listed    map[netip.Prefix]membership
	links     []link.Link
}

// Load loads the program with empty rules: it passes everything. It needs CAP_BPF and CAP_NET_ADMIN (before
// Linux 5.19 CAP_PERFMON too), and Linux 5.15.
func Load(cfg Config) (*Guard, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, log: cfg.Log, addresses: map[netip.Prefix]uint32{}, listed: map[netip.Prefix]membership{}}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	spec, err := loadGuard()
	if err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	for name, room := range map[string]int{
		// Half of the tries is for the new beside the old.
		"addresses": 2 * orDefault(cfg.AddressesMax, DefaultAddressesMax),
		"prefixes":  2 * orDefault(cfg.PrefixesMax, DefaultPrefixesMax),
		"ranges":    orDefault(cfg.RangesMax, DefaultRangesMax),
		"listeners": orDefault(cfg.ListenersMax, DefaultListenersMax),
		"states":    orDefault(cfg.ListenersMax, DefaultListenersMax),
		"lists":     2 * orDefault(cfg.ListedMax, DefaultListedMax),
		"sources":   orDefault(cfg.SourcesMax, DefaultSourcesMax),
	} {
		spec.Maps[name].MaxEntries = uint32(room)
	}
	if err := spec.LoadAndAssign(&g.objs, nil); err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	g.listeners = names{numbers: map[string]uint32{}, max: spec.Maps["listeners"].MaxEntries}
	g.lists = names{numbers: map[string]uint32{}, max: listsMax}
	g.table, err = ports.Open(g.objs.Prefixes, g.objs.Ranges)
	if err == nil {
		err = g.objs.Control.Put(uint32(0), guardSettings{SampleEvery: uint32(cfg.SampleEvery)})
	}
	if err != nil {
		g.objs.Close()
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	return g, nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// Attach attaches the program to an interface, or puts it in the place of the one that an earlier process
// pinned for it. Rules come first: from then on they hold. It returns the mode that came of Auto; of a pinned
// attachment the mode is its maker's, and Auto is returned.
func (g *Guard) Attach(index int, mode Mode) (Mode, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pin := ""
	if g.cfg.PinDir != "" {
		dir := filepath.Join(g.cfg.PinDir, "guard-"+layoutVersion)
		if err := prepareDir(dir); err != nil {
			return mode, err
		}
		pin = filepath.Join(dir, fmt.Sprintf("interface-%d", index))
		switch l, err := g.reattach(pin, index); {
		case err == nil:
			g.links = append(g.links, l)
			return Auto, nil
		case !errors.Is(err, os.ErrNotExist):
			return mode, err
		}
	}
	l, mode, err := g.attach(index, mode)
	if err != nil {
		return mode, fmt.Errorf("attach xdp program to interface %d: %w", index, err)
	}
	if pin != "" {
		if err := l.Pin(pin); err != nil {
			return mode, errors.Join(fmt.Errorf("pin attachment: %w", err), l.Close())
		}
	}
	g.links = append(g.links, l)
	return mode, nil
}

func (g *Guard) attach(index int, mode Mode) (link.Link, Mode, error) {
	opts := link.XDPOptions{Program: g.objs.Guard, Interface: index}
	if mode != Generic {
		opts.Flags = link.XDPDriverMode
		l, err := link.AttachXDP(opts)
		if err == nil || mode == Native {
			return l, Native, err
		}
		g.log.Warn("no native XDP on the interface, so generic XDP is used", "interface", index, "err", err)
	}
	opts.Flags = link.XDPGenericMode
	l, err := link.AttachXDP(opts)
	return l, Generic, err
}

// reattach is os.ErrNotExist when nothing is pinned, or something for an interface that is gone.
func (g *Guard) reattach(pin string, index int) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned attachment: %w", err)
	}
	info, err := l.Info()
	if x := info; err == nil && x.XDP() != nil && x.XDP().Ifindex != uint32(index) {
		l.Close() // the kernel says 0 once the interface is gone
		return nil, os.Remove(pin)
	}
	if err == nil {
		err = l.Update(g.objs.Guard)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("take over pinned attachment: %w", err)
	}
	return l, nil
}

func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at pin directory: %w", err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin directory %s is not on a BPF file system: "+
			"mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	return nil
}

// Update makes the rules hold, and only them. What did not change is not touched, and keeps its buckets. When
// it fails some of the rules may hold already; calling it again is right.
func (g *Guard) Update(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// What others point to comes first: lists, then listeners, then ports, then addresses, which may be
	// exclusive.
	for name := range r.Lists {
		if _, ok := g.lists.assign(name); !ok {
			return fmt.Errorf("%w: old and new lists together are more than %d", ErrFull, g.lists.max)
		}
	}
	if err := g.updateLists(r.Lists); err != nil {
		return err
	}
	rules, err := g.updateListeners(r.Listeners)
	if err != nil {
		return err
	}
	if err := g.table.Update(rules); err != nil {
		return err
	}
	if err := g.updateAddresses(r.Addresses); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, l := range r.Listeners {
		used[l.Name] = true
	}
	g.listeners.keep(func(name string) bool { return used[name] })
	g.lists.keep(func(name string) bool { _, ok := r.Lists[name]; return ok })
	return nil
}

func (g *Guard) updateLists(lists map[string][]netip.Prefix) error {
	want := compileLists(lists, g.lists.numbers)
	if room := int(g.objs.Lists.MaxEntries() / 2); len(want) > room {
		return fmt.Errorf("%w: %d listed prefixes, and there is room for %d", ErrFull, len(want), room)
	}
	if err := syncTrie(g.objs.Lists, g.listed, want); err != nil {
		return fmt.Errorf("write lists: %w", err)
	}
	return nil
}

func (g *Guard) updateAddresses(addresses []Address) error {
	want := make(map[netip.Prefix]uint32, len(addresses))
	for _, a := range addresses {
		var flags uint32
		if a.Exclusive {
			flags |= addressExclusive
		}
		if a.NoFragments {
			flags |= addressNoFragments
		}
		want[a.Prefix] = flags
	}
	if room := int(g.objs.Addresses.MaxEntries() / 2); len(want) > room {
		return fmt.Errorf("%w: %d addresses, and there is room for %d", ErrFull, len(want), room)
	}
	if err := syncTrie(g.objs.Addresses, g.addresses, want); err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	return nil
}

// syncTrie makes a trie, of which has is our picture, say what want says.
func syncTrie[V comparable](trie *ebpf.Map, has, want map[netip.Prefix]V) error {
	for p, v := range want { // first, so that what only changes its prefix is never missing
		if old, ok := has[p]; ok && old == v {
			continue
		}
		if err := trie.Put(ports.KeyOf(0, p), v); err != nil {
			return err
		}
		has[p] = v
	}
	for p := range has {
		if _, ok := want[p]; ok {
			continue
		}
		if err := trie.Delete(ports.KeyOf(0, p)); err != nil {
			return err
		}
		delete(has, p)
	}
	return nil
}

// updateListeners writes the listeners and returns the rules that lead to them.
func (g *Guard) updateListeners(listeners []Listener) ([]ports.Rule, error) {
	var rules []ports.Rule
	for _, l := range listeners {
		_, old := g.listeners.numbers[l.Name]
		index, ok := g.listeners.assign(l.Name)
		if !ok {
			return nil, fmt.Errorf("%w: %d listeners, and there is room for %d", ErrFull, len(listeners),
				g.listeners.max)
		}
		value := guardListener{Source: l.Source.value(), Total: l.Total.value(), Flood: l.Flood.value()}
		if l.NoFragments {
			value.Flags = listenerNoFragments
		}
		if l.Allow != "" {
			value.Allow = 1 + uint16(g.lists.numbers[l.Allow])
		}
		if l.Deny != "" {
			value.Deny = 1 + uint16(g.lists.numbers[l.Deny])
		}
		if err := g.objs.Listeners.Put(index, value); err != nil {
			return nil, fmt.Errorf("write listener %s: %w", l.Name, err)
		}
		if !old { // the number's last owner may have emptied the bucket
			if err := g.objs.States.Put(index, guardState{}); err != nil {
				return nil, fmt.Errorf("write listener %s: %w", l.Name, err)
			}
		}
		for _, prefix := range l.Prefixes {
			for _, r := range l.Ports {
				rules = append(rules, ports.Rule{Prefix: prefix, Ports: ports.Range(r), Proto: l.Proto, Value: index})
			}
		}
	}
	return rules, nil
}

// Remove detaches what a Guard pinned below pinDir. It is no error if there is nothing.
func Remove(pinDir string) error {
	dir := filepath.Join(pinDir, "guard-"+layoutVersion)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove attachments: %w", err)
	}
	var errs []error
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err == nil {
			err = errors.Join(l.Detach(), l.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// Close lets go of the program: what is pinned goes on guarding, what isn't ends.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	g.links = nil
	return errors.Join(append(errs, g.objs.Close())...)
}
