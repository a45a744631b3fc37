package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process found in a namespace.
type Process struct {
	PID     int
	Command string
}

// Processes lists the processes in the namespace, this one not included. There are none in one that was removed.
func (ns *NS) Processes() []Process {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.removed {
		return nil
	}
	return processesIn(ns.inode)
}

// processesIn looks through /proc for processes whose network namespace has this inode. Zombies have none.
func processesIn(inode uint64) []Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := fmt.Sprintf("net:[%d]", inode)
	self := os.Getpid()
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		if got, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net")); err != nil || got != want {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		found = append(found, Process{PID: pid, Command: strings.TrimSpace(string(comm))})
	}
	return found
}

// killIn kills all processes of a namespace, those that they start meanwhile too, and waits until it is
// empty.
func killIn(name string, inode uint64) error {
	deadline := time.Now().Add(killTimeout)
	for {
		left := processesIn(inode)
		if len(left) == 0 {
			return nil
		}
		for _, p := range left {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d (%s) in %s: %w", p.PID, p.Command, name, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes in %s don't end, first is %d (%s)",
				len(left), name, left[0].PID, left[0].Command)
		}
		time.Sleep(killPause)
	}
}
