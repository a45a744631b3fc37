package netns

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
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
	time.Sleep(time.Second)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.dir); err == nil {
		t.Error("the cgroup is still there")
	}
	_ = busy.Process.Kill()
	_ = busy.Wait()
	// It may have run freely before and after; it cannot have been limited to nothing.
	used := busy.ProcessState.UserTime() + busy.ProcessState.SystemTime()
	if used > 600*time.Millisecond || used == 0 {
		t.Errorf("it used %v of a second, and was given a tenth", used)
	}
}
