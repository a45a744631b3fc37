package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/nearcast/nearcast/bpf/ports"
	"github.com/nearcast/nearcast/bpf/xdp"
)

// Mode is where the kernel runs the program.
type Mode = xdp.Mode

// The modes.
const (
	Auto    = xdp.Auto
	Native  = xdp.Native
	Generic = xdp.Generic
)

// Config says how much a Guard has room for. The zero value works.
type Config struct {
	// PinDir is a directory on a BPF file system, made if it isn't there, for the attachments. Empty: they end
	// with the process.
	PinDir string

	// Room of the maps; zero: the defaults of limits.go.
	AddressesMax, PrefixesMax, RangesMax, ListenersMax, ListedMax, SourcesMax int

	SampleEvery int // dropped packets an Event; zero: none

	// MaxSegment bounds the TCP segments that clients are told to send by answers with SYN cookies, in bytes; 0: an
	// Ethernet's. It is what the listening sockets say, too (TCP_MAXSEG).
	MaxSegment int

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
	if c.MaxSegment < 0 || c.MaxSegment > 65_495 {
		return fmt.Errorf("segments of %d bytes are not between 0 and 65,495", c.MaxSegment)
	}
	return nil
}

// ErrFull says that the rules need more room than a map has.
var ErrFull = ports.ErrFull

// Guard is a program with its rules, and its attachments. It is safe for concurrent use.
type Guard struct {
	cfg   Config
	log   *slog.Logger
	objs  guardObjects
	lines *ebpf.MapSpec // of the array that holds the source lists

	mu        sync.Mutex // guards what follows
	table     *ports.Table
	listeners names
	lists     names
	countries names
	addresses map[netip.Prefix]uint32
	listed    listed
	links     xdp.Attachments
}

// Load loads the program with empty rules: it passes everything. It needs CAP_BPF, CAP_NET_ADMIN
// and CAP_PERFMON, and Linux 5.15.
func Load(cfg Config) (*Guard, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	g := &Guard{cfg: cfg, log: cfg.Log, addresses: map[netip.Prefix]uint32{}}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.links.Log = g.log
	if cfg.PinDir != "" {
		g.links.Dir = pins(cfg.PinDir)
	}
	spec, err := loadGuard()
	if err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	for name, room := range map[string]int{
		// Half of the tries is for the new beside the old. Lists take as much as they need.
		"addresses": 2 * orDefault(cfg.AddressesMax, DefaultAddressesMax),
		"prefixes":  2 * orDefault(cfg.PrefixesMax, DefaultPrefixesMax),
		"ranges":    orDefault(cfg.RangesMax, DefaultRangesMax),
		"listeners": orDefault(cfg.ListenersMax, DefaultListenersMax),
		"states":    orDefault(cfg.ListenersMax, DefaultListenersMax),
		"sources":   orDefault(cfg.SourcesMax, DefaultSourcesMax),
	} {
		spec.Maps[name].MaxEntries = uint32(room)
	}
	g.lines = spec.Maps["lists"].InnerMap
	if err := spec.LoadAndAssign(&g.objs, nil); err != nil {
		return nil, fmt.Errorf("load xdp program: %w", err)
	}
	g.listeners = names{numbers: map[string]uint32{}, max: spec.Maps["listeners"].MaxEntries}
	g.lists = names{numbers: map[string]uint32{}, max: listsMax}
	g.countries = names{numbers: map[string]uint32{}, max: countriesMax}
	g.table, err = ports.Open(g.objs.Prefixes, g.objs.Ranges)
	if err == nil {
		err = g.objs.Control.Put(uint32(0), guardSettings{SampleEvery: uint32(cfg.SampleEvery),
			Segment: uint32(cfg.MaxSegment)})
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
	return g.links.Attach(g.objs.Guard, index, mode)
}

// Program is the program itself, for another one to pass packets on to. It is closed with the Guard.
func (g *Guard) Program() *ebpf.Program { return g.objs.Guard }

func pins(dir string) string { return filepath.Join(dir, "guard-"+layoutVersion) }

// Update makes the rules hold, and only them. What did not change is not touched, and keeps its buckets. When
// it fails some of the rules may hold already; calling it again is right.
func (g *Guard) Update(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// What others point to comes first: lists, then listeners, then ports, then addresses, which may be
	// exclusive. Lists are taken away last, as listeners point to them until then.
	if err := g.number(r); err != nil {
		return err
	}
	if err := g.addLists(r); err != nil {
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
	if err := g.settleLists(r); err != nil {
		return err
	}
	used := map[string]bool{}
	for _, l := range r.Listeners {
		used[l.Name] = true
	}
	g.listeners.keep(func(name string) bool { return used[name] })
	g.lists.keep(func(name string) bool { _, ok := r.Lists[name]; return ok })
	g.countries.keep(func(name string) bool { _, ok := r.Countries[name]; return ok })
	return nil
}

// number gives lists and countries their numbers.
func (g *Guard) number(r Rules) error {
	for name := range r.Lists {
		if _, ok := g.lists.assign(name); !ok {
			return fmt.Errorf("%w: old and new lists together are more than %d", ErrFull, g.lists.max)
		}
	}
	for name := range r.Countries {
		if _, ok := g.countries.assign(name); !ok {
			return fmt.Errorf("%w: old and new countries together are more than %d", ErrFull, g.countries.max)
		}
	}
	return nil
}

// Listed is how many source prefixes are on lists or of countries, and how many there is room for.
func (g *Guard) Listed() (n, room int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listed.prefixes, g.room()
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
		g.refuse(&value, &l)
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

// refuse notes the countries whose sources a listener drops. With allowed ones it is all others, and number 0.
func (g *Guard) refuse(value *guardListener, l *Listener) {
	if len(l.AllowCountries) > 0 {
		value.Flags |= listenerCountries | listenerOnlyCountries
		for i := range value.Refused {
			value.Refused[i] = ^uint64(0)
		}
	}
	for _, country := range l.AllowCountries {
		n := 1 + g.countries.numbers[country]
		value.Refused[n/64] &^= 1 << (n % 64)
	}
	for _, country := range l.DenyCountries {
		n := 1 + g.countries.numbers[country]
		value.Flags |= listenerCountries
		value.Refused[n/64] |= 1 << (n % 64)
	}
}

// Remove detaches what a Guard pinned below pinDir. It is no error if there is nothing.
func Remove(pinDir string) error { return xdp.Remove(pins(pinDir)) }

// Detach is Remove for one interface.
func Detach(pinDir string, index int) error { return xdp.Detach(pins(pinDir), index) }

// Close lets go of the program: what is pinned goes on guarding, what isn't ends.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.links.Close(), g.objs.Close())
}
