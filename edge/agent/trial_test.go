package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTrials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trial.json")
	now := time.Unix(1e9, 0)
	good, bad := [32]byte{1}, [32]byte{2}
	// start is a process's start, after which it applies snapshots one second apart.
	start := func(crashed bool, apply ...[32]byte) *trials {
		tr := openTrials(path, crashed, now)
		for _, hash := range apply {
			now = now.Add(time.Second)
			tr.begin(hash, now)
		}
		return tr
	}
	want := func(tr *trials, bads bool) {
		t.Helper()
		if tr.suspect(good) {
			t.Error("the good one is a suspect")
		}
		if tr.suspect(bad) != bads {
			t.Errorf("suspect(bad) is %v", !bads)
		}
	}
	// Killed from outside, however often, nothing is suspected.
	for range 5 {
		want(start(false, good, bad), false)
	}
	// It crashes soon after bad was applied, each time over the good one from disk.
	want(start(true, good, bad), false)
	tr := start(true, good)
	want(tr, true)
	// After a while without it, it is tried once more, and held back again at once if it crashes.
	now = now.Add(trialPeriod)
	if !tr.passed() {
		t.Error("nothing was released")
	}
	if tr.passed() {
		t.Error("released twice")
	}
	want(tr, false)
	tr.begin(bad, now)
	tr = start(true, good)
	want(tr, true)
	// A crash long after is no sign against what is in use.
	now = now.Add(trialPeriod)
	tr.passed()
	tr.begin(bad, now)
	now = now.Add(trialPeriod + restartSlack + time.Second)
	tr = start(true, good)
	want(tr, false)

	// A damaged or missing file, or no disk, protects nothing and harms nothing.
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(start(true, good, bad), false)
	gone := openTrials(filepath.Join(path, "not-a-directory"), true, now)
	gone.begin(bad, now)
	gone.passed()
	want(gone, false)
}
