package tune

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoCgroup says that the machine has no control group hierarchy of version 2 mounted, so there is nothing to
// attach to: windows start as the kernel's do, and congestion control is the system's.
var ErrNoCgroup = errors.New("no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)")

// ownCgroup returns the directory of this process's control group.
func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	return cgroupDir(string(mounts), string(groups))
}

// cgroupDir finds the directory in the texts of /proc/self/mountinfo and /proc/self/cgroup.
func cgroupDir(mountinfo, cgroups string) (string, error) {
	for line := range strings.Lines(mountinfo) {
		// 31 23 0:27 /root /mount/point rw,… optional… - cgroup2 source options
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		root, mount := fields[3], unescape(fields[4])
		for group := range strings.Lines(cgroups) {
			path, ok := strings.CutPrefix(strings.TrimSpace(group), "0::")
			if !ok {
				continue
			}
			// What is mounted may be a part of the hierarchy. A group outside it can't be named from here; the
			// mounted part's top is then an ancestor only if we are below it.
			inside, err := filepath.Rel(root, path)
			if err != nil || strings.HasPrefix(inside, "..") {
				continue
			}
			return filepath.Join(mount, inside), nil
		}
	}
	return "", ErrNoCgroup
}

// unescape undoes the octal escapes that the kernel writes for white space and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
