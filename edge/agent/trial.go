package agent

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"sync"
	"time"
)

// trials remember across crashes which snapshot was new when this process crashed. A snapshot that
// brings the process down (where recovering from a panic did not help) would otherwise bring it down
// again at every start: its predecessor serves in its place for a while.
//
// Only crashes count that the process itself noted (a panic or fatal error of the runtime); a node
// that is killed from outside, however often, suspects nothing. Errors of the disk are ignored: then
// there is no protection, and everything else works.
type trials struct {
	path string

	mu    sync.Mutex // guards state
	state trialState
}

type trialState struct {
	Current string         `json:"current"` // hash of the snapshot that was applied last
	Started time.Time      `json:"started"` // when
	Crashes map[string]int `json:"crashes"` // by hash
}

// openTrials reads what an earlier process left; crashed says that it ended by crashing.
func openTrials(path string, crashed bool, now time.Time) *trials {
	t := &trials{path: path}
	if data, err := os.ReadFile(path); err != nil || json.Unmarshal(data, &t.state) != nil {
		t.state = trialState{}
	}
	if t.state.Crashes == nil || len(t.state.Crashes) > trialsKept {
		t.state.Crashes = map[string]int{}
	}
	lasted := now.Sub(t.state.Started)
	if crashed && t.state.Current != "" && lasted >= 0 && lasted < trialPeriod+restartSlack {
		t.state.Crashes[t.state.Current]++
	}
	t.state.Current = ""
	t.write()
	return t
}

// suspect reports whether the snapshot must not be applied for now.
func (t *trials) suspect(hash [32]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state.Crashes[hex.EncodeToString(hash[:])] >= trialCrashes
}

// begin notes that a snapshot is about to be applied.
func (t *trials) begin(hash [32]byte, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state.Current, t.state.Started = hex.EncodeToString(hash[:]), now
	t.write()
}

// passed notes that the process has lasted long enough, or ended in order. The snapshot in use is no
// suspect any more; one that was held back gets another chance, which one more crash ends. It
// reports whether any was held back.
func (t *trials) passed() (released bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state.Current == "" {
		return false
	}
	delete(t.state.Crashes, t.state.Current)
	t.state.Current = ""
	for hash, n := range t.state.Crashes {
		if n >= trialCrashes {
			t.state.Crashes[hash] = trialCrashes - 1
			released = true
		}
	}
	t.write()
	return released
}

// write saves the state as it can. It is not synced: it has to outlive the process, not the machine.
func (t *trials) write() {
	data, err := json.Marshal(t.state)
	if err != nil {
		return
	}
	next := t.path + ".new"
	if os.WriteFile(next, data, 0o600) == nil {
		os.Rename(next, t.path)
	}
}
