package dispatch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// prepareDir makes the directory of pins and locks it. Who holds the lock is alone with the pins; it is held
// for single changes only, and goes with the process.
func prepareDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make pin directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("look at pin directory: %w", err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return nil, fmt.Errorf("pin directory %s is not on a BPF file system: "+
			"mount one (mount -t bpf bpf /sys/fs/bpf)", dir)
	}
	return lockDir(dir)
}

func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock pin directory: %w", err)
	}
	return func() { f.Close() }, nil
}

// lock keeps other processes from changing the maps.
func (d *Dispatcher) lock() (unlock func(), err error) {
	if d.dir == "" {
		return func() {}, nil
	}
	return lockDir(d.dir)
}

func (d *Dispatcher) linkPath() string { return filepath.Join(d.dir, "link") }

// Remove takes away everything that a Dispatcher pinned below pinDir: from then on the kernel dispatches as if
// it had never been there, also for a Dispatcher that is still open. It is no error if there is nothing.
func Remove(pinDir string) error {
	dir := filepath.Join(pinDir, "dispatch-"+layoutVersion)
	unlock, err := lockDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	// The attachment goes first: the program must not run with maps that a newcomer would not find.
	l, err := link.LoadPinnedLink(filepath.Join(dir, "link"), nil)
	if err == nil { // not left to the last reference, which the kernel drops when it likes
		err = errors.Join(l.Detach(), l.Close())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove attachment: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}
