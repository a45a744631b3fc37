package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is one named network namespace. Make it with Set.New. All methods may be called concurrently.
type NS struct {
	short string // as given to Set.New
	name  string // with the Set's prefix
	inode uint64

	// mu guards what remove takes away: a reader may use file and link while it holds mu for reading.
	mu      sync.RWMutex
	removed bool
	file    *os.File
	link    *netlink.Handle

	spawnOnce  sync.Once
	spawn      chan func(error) // work for the thread that starts this namespace's processes
	done       chan struct{}    // closed by remove
	spawnEnded chan struct{}    // closed when that thread ends, or will never be
}

var errRemoved = errors.New("namespace is removed")

// create makes the namespace and its name. The namespace is made on a thread that is thrown away, because a
// thread that has unshared its network must not run other goroutines.
func create(short, name string) (*NS, error) {
	path := filepath.Join(runDir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	errc := make(chan error, 1)
	Thread(func() { errc <- unshareOnto(path) })
	if err := <-errc; err != nil {
		return nil, errors.Join(err, unmountNamed(path))
	}
	ns := &NS{
		short: short, name: name,
		spawn: make(chan func(error)), done: make(chan struct{}), spawnEnded: make(chan struct{}),
	}
	if err := ns.open(path); err != nil {
		return nil, errors.Join(err, ns.remove())
	}
	return ns, nil
}

func unshareOnto(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

func (ns *NS) open(path string) error {
	var err error
	if ns.file, err = os.Open(path); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.file.Fd()), &st); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	ns.inode = st.Ino
	if ns.link, err = netlink.NewHandleAt(vnetns.NsHandle(ns.file.Fd()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	for _, s := range baseSysctls {
		if err := ns.Sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return ns.SetUp("lo")
}

// baseSysctls take out what costs time or surprises in a testbed, and is nothing a namespace is here to test.
var baseSysctls = []struct{ name, value string }{
	{"net.ipv6.conf.all.disable_ipv6", "0"}, // images built for containers often come with IPv6 off
	{"net.ipv6.conf.default.disable_ipv6", "0"},
	{"net.ipv6.conf.lo.disable_ipv6", "0"},
	{"net.ipv6.conf.all.accept_dad", "0"}, // an address is usable at once
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
	{"net.ipv4.conf.all.rp_filter", "0"}, // asymmetric routes are what anycast is about
	{"net.ipv4.conf.default.rp_filter", "0"},
}

// Name returns the full name, as `ip netns` knows it.
func (ns *NS) Name() string { return ns.name }

// Short returns the name without the Set's prefix.
func (ns *NS) Short() string { return ns.short }

// Path returns the file that names the namespace.
func (ns *NS) Path() string { return filepath.Join(runDir, ns.name) }

// Do runs fn in the namespace, on an OS thread that runs nothing else meanwhile, and returns fn's error. The
// namespace is the thread's: goroutines that fn starts are not in it. Sockets that fn creates stay in the
// namespace for their lifetime. fn must not call t.FailNow.
func (ns *NS) Do(fn func() error) error {
	errc := make(chan error, 1)
	go ns.doHere(fn, errc)
	return <-errc
}

func (ns *NS) doHere(fn func() error, errc chan<- error) {
	err := fmt.Errorf("function in namespace %s ended its goroutine", ns.name)
	defer func() { errc <- err }()
	runtime.LockOSThread()
	home, openErr := os.Open("/proc/thread-self/ns/net")
	if openErr != nil {
		runtime.UnlockOSThread()
		err = openErr
		return
	}
	defer home.Close()
	if enterErr := ns.enter(); enterErr != nil {
		runtime.UnlockOSThread()
		err = enterErr
		return
	}
	defer func() {
		// A thread that can't be brought home stays locked: the runtime ends it with this goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	err = fn()
}

// enter moves the calling thread into the namespace.
func (ns *NS) enter() error {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.removed {
		return fmt.Errorf("enter %s: %w", ns.name, errRemoved)
	}
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", ns.name, err)
	}
	return nil
}

// remove kills what runs in the namespace, and takes its name, handles and thread away.
func (ns *NS) remove() error {
	ns.mu.Lock()
	again := ns.removed
	ns.removed = true
	ns.mu.Unlock()
	if again {
		return nil
	}
	close(ns.done)
	ns.spawnOnce.Do(func() { close(ns.spawnEnded) })
	<-ns.spawnEnded // nothing can be started any more
	var errs []error
	if ns.inode != 0 {
		errs = append(errs, killIn(ns.name, ns.inode))
	}
	ns.mu.Lock() // whoever still uses the handles ends first
	defer ns.mu.Unlock()
	if ns.link != nil {
		ns.link.Close()
	}
	errs = append(errs, unmountNamed(ns.Path()))
	for _, p := range processesIn(ns.inode) { // as long as its file is open, its inode is no other one's
		errs = append(errs, fmt.Errorf("process %d (%s) is left in %s", p.PID, p.Command, ns.name))
	}
	if ns.file != nil {
		errs = append(errs, ns.file.Close())
	}
	return errors.Join(errs...)
}

// Thread runs fn on an OS thread of its own, which ends with it, and returns at once. For code that changes
// its thread for good (scheduling class, namespace). The thread is never the process's main thread: the
// runtime can't end that one, and /proc/PID would show its namespace as the process's.
func Thread(fn func()) { go ownThread(fn) }

func ownThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return // still locked: the thread ends
	}
	ended := make(chan struct{})
	go func() { // can't get the main thread: this goroutine holds it
		defer close(ended)
		runtime.LockOSThread()
		fn()
	}()
	<-ended
	runtime.UnlockOSThread()
}
