package netns

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLimitCPU: a process that would take a whole CPU gets what it is given, and the cgroup goes away.
func TestLimitCPU(t *testing.T) {
	RequireRoot(t, "cgroups")
	busy := exec.Command("sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = busy.Process.Kill()
		_ = busy.Wait()
	}()
	l, err := LimitCPU(fmt.Sprintf("nearcast-unit-%d", os.Getpid()), 0.1, busy.Process.Pid)
	if err != nil {
		t.Skipf("no cgroup with a cpu controller can be made here: %v", err)
	}
	start, before := time.Now(), cpuTime(t, busy.Process.Pid)
	time.Sleep(time.Second)
	used := cpuTime(t, busy.Process.Pid) - before
	took := time.Since(start)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.dir); err == nil {
		t.Error("the cgroup is still there")
	}
	// However long it was: what the kernel let it have too much, it takes back in the periods that follow.
	if used > took/10+100*time.Millisecond || used == 0 {
		t.Errorf("it used %v of %v, and was given a tenth", used, took)
	}
}

// cpuTime is the processor time that a process has had.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	// The kernel's encoding of the CPU clock of any process (clock_getcpuclockid).
	const schedClock = 2
	var ts unix.Timespec
	must(t, unix.ClockGettime(int32(^pid<<3|schedClock), &ts))
	return time.Duration(ts.Nano())
}
