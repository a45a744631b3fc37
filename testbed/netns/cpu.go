package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuPeriod is over which a CPULimit holds. It is short, so that what is limited pauses for moments only.
const cpuPeriod = 20 * time.Millisecond

// CPULimit keeps processes to a share of one CPU, as a smaller machine would.
type CPULimit struct{ dir string }

// LimitCPU makes a cgroup of a name, which must be unique on the machine, and moves the processes into it:
// together they get share of one CPU (0.2 is a fifth). It works with cgroups of version 1 and 2 where the
// cpu controller is there. Close lifts the limit.
func LimitCPU(name string, share float64, pids ...int) (*CPULimit, error) {
	quota, period := int(share*float64(cpuPeriod.Microseconds())), int(cpuPeriod.Microseconds())
	l := &CPULimit{dir: filepath.Join("/sys/fs/cgroup/cpu", name)}
	files := []struct{ name, text string }{
		{"cpu.cfs_period_us", strconv.Itoa(period)}, {"cpu.cfs_quota_us", strconv.Itoa(quota)},
	}
	if all, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		if !strings.Contains(" "+string(all), " cpu") {
			return nil, errors.New("limit CPU: this machine's cgroups have no cpu controller")
		}
		// Without effect where it is on already.
		_ = os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu"), 0)
		l.dir = filepath.Join("/sys/fs/cgroup", name)
		files = []struct{ name, text string }{{"cpu.max", fmt.Sprintf("%d %d", quota, period)}}
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("limit CPU: %w", err)
	}
	for _, pid := range pids {
		files = append(files, struct{ name, text string }{"cgroup.procs", strconv.Itoa(pid)})
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(l.dir, f.name), []byte(f.text), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("limit CPU: %w", err), l.Close())
		}
	}
	return l, nil
}

// Close moves the processes back, and removes the cgroup.
func (l *CPULimit) Close() error {
	text, err := os.ReadFile(filepath.Join(l.dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range strings.Fields(string(text)) {
		err := os.WriteFile(filepath.Join(filepath.Dir(l.dir), "cgroup.procs"), []byte(pid), 0)
		if err != nil && !errors.Is(err, os.ErrProcessDone) && !strings.Contains(err.Error(), "no such process") {
			errs = append(errs, err)
		}
	}
	// The kernel lets go of processes that have just left, or ended, a moment later.
	for range 100 {
		if err = os.Remove(l.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return errors.Join(errs...)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(append(errs, err)...)
}
