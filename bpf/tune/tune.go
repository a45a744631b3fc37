package tune

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Leg says what a TCP connection is for.
type Leg uint32

// The legs.
const (
	Client   Leg = 0 // edge and client; the only one whose windows are learned
	Carrier  Leg = 1 // edge and gateway
	Endpoint Leg = 2 // gateway and endpoint
)

// Policy is how the connections of a leg are treated. The zero value changes nothing.
type Policy struct {
	// CongestionControl is a name that the kernel has (bbr, cubic). Empty: the system's default. A name that
	// the kernel doesn't have leaves connections at the default.
	CongestionControl string

	// WindowMax is the ceiling of learned initial windows in segments. Up to 10: windows are left alone. The
	// higher, the more a network that got slower loses in the first flight that finds out.
	WindowMax int

	// HalfLife is how long without news it takes a learned window to count half. Zero: DefaultHalfLife.
	HalfLife time.Duration

	// SampleEvery makes one in so many closed connections a Sample. Zero: none.
	SampleEvery int
}

// Validate checks the policy.
func (p Policy) Validate() error {
	switch {
	case len(p.CongestionControl) > congestionNameMax:
		return fmt.Errorf("congestion control %q: the name is too long", p.CongestionControl)
	case p.WindowMax < 0 || p.WindowMax > windowMaxMax:
		return fmt.Errorf("window ceiling %d is not between 0 and %d segments", p.WindowMax, windowMaxMax)
	case p.HalfLife < 0 || p.SampleEvery < 0:
		return errors.New("half-life or sampling is negative")
	}
	return nil
}

// Config says where a Tuner works. The zero value works: this process's control group, nothing pinned.
type Config struct {
	// PinDir is a directory on a BPF file system, made if it isn't there. What networks taught outlives the
	// process there. Empty: it ends with the process.
	PinDir string

	// Cgroup is the directory of a control group (version 2) that this process's sockets are made in. Empty:
	// the one that the process is in.
	Cgroup string

	NetworksMax int // remembered client networks, fixed when the map is made; zero: DefaultNetworksMax

	Log *slog.Logger // nil: discard
}

// Validate checks the configuration.
func (c Config) Validate() error {
	switch {
	case c.PinDir != "" && !filepath.IsAbs(c.PinDir):
		return fmt.Errorf("pin directory %q is not an absolute path", c.PinDir)
	case c.NetworksMax < 0 || c.NetworksMax > 1<<26:
		return fmt.Errorf("room for %d networks is not between 0 and 64 M", c.NetworksMax)
	}
	return nil
}

// Tuner is this process's hold on the program. It is safe for concurrent use.
type Tuner struct {
	log  *slog.Logger
	cfg  Config
	objs tuneObjects

	mu   sync.Mutex // guards link
	link link.Link
}

// Load loads the program and opens or makes its maps. It needs CAP_BPF and CAP_NET_ADMIN, and Linux 5.15.
func Load(cfg Config) (*Tuner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Tuner{log: cfg.Log, cfg: cfg}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	spec, err := loadTune()
	if err != nil {
		return nil, fmt.Errorf("load sock_ops program: %w", err)
	}
	networks := spec.Maps["networks"]
	networks.MaxEntries = DefaultNetworksMax
	if cfg.NetworksMax > 0 {
		networks.MaxEntries = uint32(cfg.NetworksMax)
	}
	opts := ebpf.CollectionOptions{}
	if cfg.PinDir != "" {
		if opts.Maps.PinPath, err = preparePins(cfg.PinDir, networks); err != nil {
			return nil, err
		}
	}
	if err := spec.LoadAndAssign(&t.objs, &opts); err != nil {
		return nil, fmt.Errorf("load sock_ops program: %w", err)
	}
	return t, nil
}

// preparePins makes the directory, and lets the spec fit the map that may be pinned there. Only the networks
// are worth keeping: everything else belongs to sockets of one process.
func preparePins(pinDir string, networks *ebpf.MapSpec) (dir string, err error) {
	dir = filepath.Join(pinDir, "tune-"+layoutVersion)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("look at pin directory: %w", err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return "", fmt.Errorf("pin directory %s is not on a BPF file system: "+
			"mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	networks.Pinning = ebpf.PinByName
	pinned, err := ebpf.LoadPinnedMap(filepath.Join(dir, networks.Name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("open pinned networks: %w", err)
	}
	networks.MaxEntries = pinned.MaxEntries()
	return dir, pinned.Close()
}

// Attach attaches the program to the control group. It is ErrNoCgroup when there is no hierarchy of version 2.
// While two processes of one control group have it attached, the first to see a connection treats it.
func (t *Tuner) Attach() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.link != nil {
		return errors.New("already attached")
	}
	dir := t.cfg.Cgroup
	if dir == "" {
		var err error
		if dir, err = ownCgroup(); err != nil {
			return err
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{
		Path: dir, Attach: ebpf.AttachCGroupSockOps, Program: t.objs.Tune,
	})
	if err != nil {
		return fmt.Errorf("attach sock_ops program to %s: %w", dir, err)
	}
	t.link = l
	return nil
}

// SetPolicy says how connections of a leg are treated from now on.
func (t *Tuner) SetPolicy(leg Leg, p Policy) error {
	if leg >= legsMax {
		return fmt.Errorf("leg %d does not exist", leg)
	}
	if err := p.Validate(); err != nil {
		return err
	}
	if p.HalfLife == 0 {
		p.HalfLife = DefaultHalfLife
	}
	value := tunePolicy{
		WindowMax: uint32(p.WindowMax), SampleEvery: uint32(p.SampleEvery),
		HalfLifeNs: uint64(p.HalfLife.Nanoseconds()),
	}
	for i, c := range []byte(p.CongestionControl) {
		value.Congestion[i] = int8(c)
	}
	if err := t.objs.Policies.Put(uint32(leg), value); err != nil {
		return fmt.Errorf("write policy: %w", err)
	}
	return nil
}

// Mark says which leg a socket is: a listening socket, whose connections inherit it (those accepted later), or
// one that is about to connect.
func (t *Tuner) Mark(sock syscall.Conn, leg Leg) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return fmt.Errorf("mark socket: %w", err)
	}
	return t.markRaw(raw, leg)
}

// Control returns a function for net.ListenConfig.Control and net.Dialer.Control that marks their sockets.
func (t *Tuner) Control(leg Leg) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error { return t.markRaw(c, leg) }
}

func (t *Tuner) markRaw(raw syscall.RawConn, leg Leg) error {
	var putErr error
	err := raw.Control(func(fd uintptr) { putErr = t.objs.Legs.Put(int32(fd), uint32(leg)) })
	if err := errors.Join(err, putErr); err != nil {
		return fmt.Errorf("mark socket: %w", err)
	}
	return nil
}

// Close detaches the program. What is pinned stays; connections keep what they have.
func (t *Tuner) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	if t.link != nil {
		errs = append(errs, t.link.Close())
		t.link = nil
	}
	return errors.Join(append(errs, t.objs.Close())...)
}

// networkOf returns the key of an address's network, as the program makes it.
func networkOf(a netip.Addr) uint64 {
	a = a.Unmap()
	raw := a.AsSlice()
	var key uint64
	n := 6
	if a.Is4() {
		n = 3
	}
	for _, b := range raw[:n] {
		key = key<<8 | uint64(b)
	}
	version := uint64(6)
	if a.Is4() {
		version = 4
	}
	return version<<56 | key
}

// prefixOf is the inverse of networkOf.
func prefixOf(key uint64) netip.Prefix {
	if key>>56 == 4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(key >> 16), byte(key >> 8), byte(key)}), 24)
	}
	var raw [16]byte
	for i := range 6 {
		raw[i] = byte(key >> (8 * (5 - i)))
	}
	return netip.PrefixFrom(netip.AddrFrom16(raw), 48)
}
