package blast

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/netns"
)

var devices atomic.Uint32

// DeviceName returns a name for an interface that is the only one of its name on the machine.
func DeviceName() string {
	return fmt.Sprintf("b%sx%d", strconv.FormatInt(int64(os.Getpid()), 36), devices.Add(1)%100)
}

// Placed is the receiving work of one interface, on a kernel thread of its own.
type Placed struct {
	dev string
}

// Place has an end of a cable receive as a driver does (with generic receive offload, and so by NAPI), and all work
// that it has with packets then (XDP programs, and what the network stack does until the packet lies at a socket)
// done by a kernel thread of its own on one CPU. The interface's name must be unique on the machine.
func Place(ns *netns.NS, dev string, cpu int) (*Placed, error) {
	if out, err := ns.Cmd(context.Background(), "ethtool", "-K", dev, "gro", "on").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ethtool %s: %w: %s", dev, err, out)
	}
	dir, err := os.MkdirTemp("", "nearcast-sysfs-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	err = ns.Do(func() error { // a sysfs shows the interfaces of the namespace in which it was mounted
		if err := unix.Mount("sysfs", dir, "sysfs", 0, ""); err != nil {
			return fmt.Errorf("mount sysfs: %w", err)
		}
		err := os.WriteFile(filepath.Join(dir, "class/net", dev, "threaded"), []byte("1"), 0)
		return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	})
	if err != nil {
		return nil, fmt.Errorf("give %s a thread (Linux 5.12): %w", dev, err)
	}
	p := &Placed{dev}
	return p, p.bind(cpu)
}

func (p *Placed) threads() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err == nil && strings.HasPrefix(string(name), "napi/"+p.dev+"-") {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("%s has no thread of its own", p.dev)
	}
	return pids, nil
}

func (p *Placed) bind(cpu int) error {
	pids, err := p.threads()
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	for _, pid := range pids {
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			return fmt.Errorf("bind thread of %s to CPU %d: %w", p.dev, cpu, err)
		}
	}
	return nil
}

// CPU returns the CPU time that the threads have had.
func (p *Placed) CPU() (total time.Duration, err error) {
	pids, err := p.threads()
	for _, pid := range pids {
		// Time on a CPU, time waiting for one, turns: in nanoseconds (Documentation/scheduler/sched-stats.rst).
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, err
}
