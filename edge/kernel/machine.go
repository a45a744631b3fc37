package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The least kernel that the programs are written for.
const (
	kernelMajor = 5
	kernelMinor = 15
)

// bpfFileSystem is where BPF file systems are mounted by systemd and by convention.
const bpfFileSystem = "/sys/fs/bpf"

// MinimumKernel reports why this kernel is too old for the programs, if it is.
func MinimumKernel() error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	major, minor, err := parseRelease(release)
	if err != nil {
		return err
	}
	if major < kernelMajor || major == kernelMajor && minor < kernelMinor {
		return fmt.Errorf("Linux %s is older than %d.%d", release, kernelMajor, kernelMinor)
	}
	return nil
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// parseRelease reads the first two numbers of a kernel's release, like 6.8.0-31-generic.
func parseRelease(s string) (major, minor int, err error) {
	if n, _ := fmt.Sscanf(s, "%d.%d", &major, &minor); n != 2 {
		return 0, 0, fmt.Errorf("kernel release %q has no version", s)
	}
	return major, minor, nil
}

// DefaultPins returns where a node pins what outlives its process: a directory of its own, named by its data
// directory, on the machine's BPF file system. It is empty, with the reason, where there is none to write to.
func DefaultPins(dataDir string) (dir string, err error) {
	if err := onBPFFS(bpfFileSystem); err != nil {
		return "", err
	}
	if err := unix.Access(bpfFileSystem, unix.W_OK); err != nil {
		return "", fmt.Errorf("%s is not writable: %w", bpfFileSystem, err)
	}
	path, err := filepath.Abs(dataDir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(bpfFileSystem, "nearcast", hex.EncodeToString(sum[:6])), nil
}

// onBPFFS reports why a directory is not on a BPF file system.
func onBPFFS(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("no BPF file system is mounted at %s (mount -t bpf bpf %s)", dir, dir)
	}
	return nil
}

// explain says in an operator's words why a program cannot be had.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		missing := missingCapabilities(bpfCapabilities)
		if len(missing) == 0 {
			missing = missingCapabilities(xdpCapabilities)
		}
		if len(missing) == 0 {
			return fmt.Errorf("the kernel does not permit it: %w", err)
		}
		return fmt.Errorf("not permitted: this process lacks %s", strings.Join(missing, ", "))
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("this kernel is built without BPF: %w", err)
	}
	return err
}
