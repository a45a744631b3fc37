package dispatch

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

// Steer says how one socket of a group is chosen.
type Steer uint8

const (
	// SteerHash chooses by a hash of the remote address and port and the local port: a UDP flow keeps its
	// socket as long as the process lives.
	SteerHash Steer = 0

	// SteerCPU chooses by the CPU that the packet is processed on, which is best where the network card spreads
	// flows over CPUs by itself (RSS): everything about a flow stays on one CPU.
	SteerCPU Steer = 1

	// SteerTCPByCPU chooses for TCP by the CPU that works on the SYN, so that CPUs do not meet at one accept queue,
	// and for UDP by hash, so that a flow keeps its socket.
	SteerTCPByCPU Steer = 2
)

// Config says where a Dispatcher works. The zero value works: nothing pinned, this thread's network namespace.
type Config struct {
	// PinDir is a directory on a BPF file system, made if it isn't there; what is below it belongs to this
	// package. Empty: nothing is pinned, and everything ends with the process.
	PinDir string

	// NetNS is the file of the network namespace to attach to, like /run/netns/NAME. Empty: the namespace of
	// the thread that calls Attach.
	NetNS string

	Steer Steer // default SteerHash

	// Room of the maps, fixed when they are made: who opens pinned maps gets theirs. Zero: the defaults of
	// limits.go.
	PrefixesMax int // different (protocol, prefix) pairs
	RangesMax   int // port ranges of different contents; a change needs room for the new beside the old
	HeldMax     int // UDP flows held during hand-overs

	Log *slog.Logger // nil: discard
}

// Validate checks the configuration.
func (c Config) Validate() error {
	switch {
	case c.PinDir != "" && !filepath.IsAbs(c.PinDir):
		return fmt.Errorf("pin directory %q is not an absolute path", c.PinDir)
	case c.Steer > SteerTCPByCPU:
		return fmt.Errorf("steer %d is unknown", c.Steer)
	case c.PrefixesMax < 0 || c.RangesMax < 0 || c.HeldMax < 0:
		return errors.New("a map's room is negative")
	case c.PrefixesMax > 1<<24 || c.RangesMax > 1<<26 || c.HeldMax > 1<<26:
		return errors.New("a map's room is beyond all sense (more than 16 M prefixes, 64 M ranges or flows)")
	}
	return nil
}

// Proto is a transport protocol.
type Proto = ports.Proto

// Ports is a range of ports, both ends included.
type Ports struct{ First, Last uint16 }

// The protocols that can be dispatched.
const (
	TCP = ports.TCP
	UDP = ports.UDP
)

// ErrFull says that the rules need more prefixes or port ranges than the maps have.
var ErrFull = ports.ErrFull

// Rule sends what is addressed to Prefix and Ports to the sockets of Slot.
type Rule struct {
	Prefix netip.Prefix
	Ports  Ports
	Proto  Proto
	Slot   uint8
}

// ErrTakenOver says that a newer process has made its sockets live: the rules are no longer ours to change.
var ErrTakenOver = errors.New("another process has taken over")

// Dispatcher is this process's hold on the program and its maps. It is safe for concurrent use.
type Dispatcher struct {
	// Never change.
	cfg  Config
	log  *slog.Logger
	dir  string // where the pins are; empty: nowhere
	objs dispatchObjects

	mu         sync.Mutex // guards what follows, and lets one change at a time reach the maps
	table      *ports.Table
	link       link.Link
	generation int // of our sockets; -1: we have none
	held       map[Flow]struct{}
}

// Load opens what PinDir has, or makes it. Nothing is dispatched until Attach, SetSockets and Update have been
// called, or all three by an earlier process. It needs CAP_BPF and CAP_NET_ADMIN, and Linux 5.15.
func Load(cfg Config) (*Dispatcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Dispatcher{cfg: cfg, log: cfg.Log, generation: -1, held: map[Flow]struct{}{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	unlock := func() {}
	if cfg.PinDir != "" {
		d.dir = filepath.Join(cfg.PinDir, "dispatch-"+layoutVersion)
		var err error
		if unlock, err = prepareDir(d.dir); err != nil {
			return nil, err
		}
	}
	defer unlock()
	err := d.open()
	if err == nil {
		d.table, err = ports.Open(d.objs.Prefixes, d.objs.Ranges)
	}
	if err != nil {
		d.objs.Close()
		return nil, fmt.Errorf("load sk_lookup program: %w", err)
	}
	return d, nil
}

// open loads the program with new maps or with the pinned ones.
func (d *Dispatcher) open() error {
	spec, err := loadDispatch()
	if err != nil {
		return err
	}
	sizes := map[string]int{
		"prefixes": 2 * orDefault(d.cfg.PrefixesMax, DefaultPrefixesMax), // half is for what is new beside the old
		"ranges":   orDefault(d.cfg.RangesMax, DefaultRangesMax),
		"held":     orDefault(d.cfg.HeldMax, DefaultHeldMax),
	}
	for name, size := range sizes {
		spec.Maps[name].MaxEntries = uint32(size)
	}
	opts := ebpf.CollectionOptions{}
	if d.dir != "" {
		opts.Maps.PinPath = d.dir
		for name, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
			if _, tunable := sizes[name]; !tunable {
				continue
			}
			// The room of a pinned map is what its maker gave it.
			pinned, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name), nil)
			if err == nil {
				m.MaxEntries = pinned.MaxEntries()
				pinned.Close()
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return spec.LoadAndAssign(&d.objs, &opts)
}

// Attach attaches the program to the network namespace, or puts it in the place of the one that an earlier
// process attached, without a moment in between when there is none.
func (d *Dispatcher) Attach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link != nil {
		return errors.New("already attached")
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	ns, err := d.openNetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	if d.dir != "" {
		switch l, err := d.reattach(ns); {
		case err == nil:
			d.link = l
			return nil
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	l, err := link.AttachNetNs(int(ns.Fd()), d.objs.Dispatch)
	if err != nil {
		return fmt.Errorf("attach sk_lookup program: %w", err)
	}
	if d.dir != "" {
		if err := l.Pin(d.linkPath()); err != nil {
			return errors.Join(fmt.Errorf("pin attachment: %w", err), l.Close())
		}
	}
	d.link = l
	return nil
}

// reattach opens the pinned attachment and gives it our program. It is os.ErrNotExist when there is none.
func (d *Dispatcher) reattach(ns *os.File) (link.Link, error) {
	l, err := link.LoadPinnedLink(d.linkPath(), nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned attachment: %w", err)
	}
	err = sameNetNS(l, ns)
	if errors.Is(err, os.ErrNotExist) {
		if err := errors.Join(l.Unpin(), l.Close()); err != nil {
			return nil, fmt.Errorf("remove the pin of an attachment that ended with its namespace: %w", err)
		}
		return nil, os.ErrNotExist
	}
	if err == nil {
		err = l.Update(d.objs.Dispatch)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("take over pinned attachment: %w", err)
	}
	return l, nil
}

// sameNetNS is os.ErrNotExist for an attachment whose namespace is gone: a container's before its restart.
func sameNetNS(l link.Link, ns *os.File) error {
	info, err := l.Info()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return err
	}
	n := info.NetNs()
	if n != nil && n.NetnsInode == 0 {
		return os.ErrNotExist
	}
	if n == nil || uint64(n.NetnsInode) != st.Ino {
		return fmt.Errorf("it is for another network namespace; remove it first, or use another directory")
	}
	return nil
}

func (d *Dispatcher) openNetNS() (*os.File, error) {
	path := d.cfg.NetNS
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return ns, nil
}

// Update makes the rules hold, and only them. Prefixes whose rules did not change are not touched, a prefix
// whose rules did changes by one write, and no SYN sees anything but the old rules or the new ones of its
// address. It fails with ErrFull, having changed nothing, when the maps have not enough room, and with
// ErrTakenOver when a newer process is live.
func (d *Dispatcher) Update(rules []Rule) error {
	compiled := make([]ports.Rule, len(rules))
	for i, r := range rules {
		if r.Slot >= Slots {
			return fmt.Errorf("rule %+v: slot is not below %d", r, Slots)
		}
		compiled[i] = ports.Rule{Prefix: r.Prefix, Ports: ports.Range(r.Ports), Proto: r.Proto, Value: uint32(r.Slot)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.mustBeLive(); err != nil {
		return err
	}
	return d.table.Update(compiled)
}

// Close lets go of the program. What is pinned goes on dispatching to whatever sockets are open; what isn't
// ends.
func (d *Dispatcher) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.link != nil {
		errs = append(errs, d.link.Close())
		d.link = nil
	}
	return errors.Join(append(errs, d.objs.Close())...)
}
