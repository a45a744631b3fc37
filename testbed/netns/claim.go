package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runDir is where iproute2 keeps named namespaces; claimDir is where we keep who owns which prefix.
const (
	runDir   = "/run/netns"
	claimDir = "/run/nearcast-testbed"
)

// ErrInUse says that a living process owns the prefix.
var ErrInUse = errors.New("prefix is in use")

// Owner says who claimed a prefix.
type Owner struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// A claim is a file with an flock on it. The lock goes with the process however it dies, and unlike a bare
// pid it can't be mistaken for another process that got the same number. It is close-on-exec, so children of
// the owner don't inherit it.

func claimPath(prefix string) string { return filepath.Join(claimDir, prefix+".claim") }

// takeClaim locks the claim of prefix and writes the owner into it.
func takeClaim(prefix string) (*os.File, error) {
	if err := os.MkdirAll(claimDir, 0o755); err != nil {
		return nil, fmt.Errorf("make claim directory: %w", err)
	}
	f, err := lockClaim(claimPath(prefix), os.O_RDWR|os.O_CREATE)
	if errors.Is(err, ErrInUse) {
		owner, _ := readOwner(claimPath(prefix))
		return nil, fmt.Errorf("claim %q: %w by process %d (%s)", prefix, ErrInUse, owner.PID, owner.Command)
	}
	if err != nil {
		return nil, fmt.Errorf("claim %q: %w", prefix, err)
	}
	owner := Owner{PID: os.Getpid(), Command: filepath.Base(os.Args[0]), Since: time.Now().UTC()}
	text, err := json.Marshal(owner)
	if err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write claim %q: %w", prefix, err), dropClaim(f))
	}
	return f, nil
}

// lockClaim opens and locks a claim file, or returns ErrInUse. The file may be unlinked by another process
// between open and lock: then what we locked is no longer the claim, and we start again. Nobody else looks at claims
// meanwhile: one who is about to lock the file that it has just made must not lose it to one who only looks whether
// its owner lives.
func lockClaim(path string, flags int) (*os.File, error) {
	unlock, err := lockDir(claimDir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return openClaim(path, flags)
}

// openClaim is lockClaim for one who has locked claimDir.
func openClaim(path string, flags int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flags, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrInUse
			}
			return nil, err
		}
		held, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return f, nil
		}
		f.Close()
	}
}

// lockDir locks a directory against other processes, and other callers in this one.
func lockDir(path string) (unlock func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { dir.Close() }, nil
}

// dropClaim removes and then unlocks a claim that we hold.
func dropClaim(f *os.File) error {
	return errors.Join(os.Remove(f.Name()), f.Close())
}

func readOwner(path string) (Owner, error) {
	var o Owner
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	return o, err
}

// FindOwner returns the living owner of prefix; ok is false when there is none.
func FindOwner(prefix string) (o Owner, ok bool) {
	path := claimPath(prefix)
	unlock, err := lockDir(claimDir)
	if err != nil {
		return Owner{}, false
	}
	defer unlock()
	f, err := openClaim(path, os.O_RDWR)
	if err == nil {
		f.Close() // nobody held it
		return Owner{}, false
	}
	if !errors.Is(err, ErrInUse) {
		return Owner{}, false
	}
	o, err = readOwner(path)
	return o, err == nil
}

// Sweep removes the namespaces (and kills the processes in them) of every Set whose prefix starts with prefix
// and whose owner has died, and returns the names removed. Sets with a living owner are not touched, nor are
// namespaces that no Set of this package made.
func Sweep(prefix string) (removed []string, err error) {
	entries, err := os.ReadDir(claimDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep %q: %w", prefix, err)
	}
	var errs []error
	for _, e := range entries {
		name, isClaim := strings.CutSuffix(e.Name(), ".claim")
		if !isClaim || !strings.HasPrefix(name, prefix) {
			continue
		}
		f, err := lockClaim(claimPath(name), os.O_RDWR)
		if errors.Is(err, ErrInUse) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %q: %w", name, err))
			continue
		}
		names, err := removeAll(name)
		removed = append(removed, names...)
		errs = append(errs, err, dropClaim(f))
	}
	return removed, errors.Join(errs...)
}

// Names lists the named namespaces of this machine that start with prefix.
func Names(prefix string) []string {
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// removeAll removes every named namespace with the prefix. The caller holds the claim.
func removeAll(prefix string) ([]string, error) {
	var errs []error
	names := Names(prefix)
	for _, name := range names {
		path := filepath.Join(runDir, name)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			errs = append(errs, killIn(name, st.Ino))
		}
		errs = append(errs, unmountNamed(path))
	}
	return names, errors.Join(errs...)
}

// prepareRunDir makes runDir a shared mount, exactly as `ip netns add` does: so that a name which is removed
// here also goes from mount namespaces that copied ours, and `ip netns` finds what it expects.
func prepareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", runDir, err)
	}
	// iproute2 takes the same lock, against two processes mounting at once.
	unlock, err := lockDir(runDir)
	if err != nil {
		return err
	}
	defer unlock()
	const share = unix.MS_SHARED | unix.MS_REC
	err = unix.Mount("", runDir, "none", share, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", runDir, "none", share, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share mount %s: %w", runDir, err)
	}
	return nil
}

// unmountNamed takes the name of a namespace away. The namespace itself ends with its last process and
// socket.
func unmountNamed(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: not mounted
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
