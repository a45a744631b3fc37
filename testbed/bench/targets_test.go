package bench

import (
	"strings"
	"testing"
	"time"
)

// TestTargets: the worst world counts, a missed target is said first, and what was not measured is left out.
func TestTargets(t *testing.T) {
	const ms = time.Millisecond
	r := &Report{
		Transfers: []Transfer{
			{R: 100 * ms, Bytes: 1, System: sysNearcast, Median: 126 * ms, Floor: 120 * ms},
			{R: 200 * ms, Bytes: 1, System: sysNearcast, Median: 264 * ms, Floor: 220 * ms},
			{R: 100 * ms, Bytes: 1_000_000, System: sysNearcast, Median: 200 * ms, Floor: 200 * ms},
			{R: 100 * ms, Bytes: 1_000_000, System: sysDirect, Median: 800 * ms},
			{R: 100 * ms, Bytes: 1_000_000, System: sysDirectBBR, Median: 700 * ms},
			{R: 100 * ms, Bytes: 1_000_000, System: sysHAProxy, Median: 300 * ms},
			{R: 100 * ms, Bytes: 1_000_000, Loss: 0.01, System: sysDirect, Median: 1 * ms},
		},
		Raw: []Raw{
			{What: kindBulk, System: sysNearcast, CPU: 1.8}, {What: kindBulk, System: sysHAProxy, CPU: 2},
			{What: kindUDP, System: sysNearcast, CPU: 1}, {What: kindUDP, System: sysNGINX, CPU: 1.4},
			{What: kindIdle + ", edge", System: sysNearcast, Rate: 9000},
		},
		Filtered: []Filtered{
			{Job: "a", System: sysInet, PerCPUSecond: 3}, {Job: "a", System: sysNetdev, PerCPUSecond: 4},
			{Job: "a", System: sysNothing, PerCPUSecond: 9}, {Job: "a", System: sysNative, PerCPUSecond: 6},
			{Job: "a", System: sysGeneric, PerCPUSecond: 1}, {Job: "b", System: sysNative, PerCPUSecond: 6},
		},
	}
	r.Flooded = []Flooded{
		{System: sysGuarded, Flood: FloodPhases{Attempts: 1000, Failed: 5}, P99Ratio: 2.5},
		{System: sysUnguarded, Flood: FloodPhases{Attempts: 1000, Failed: 500}, P99Ratio: 9},
	}
	want := map[string]struct {
		got     float64
		reached bool
	}{
		"first byte, × floor": {1.2, false},
		"1 MB at R = 100 ms without loss, × faster than direct":  {3.5, true},
		"any download, × as fast as HAProxy's TLS chain":         {1.5, true},
		"connections that succeed in a flood of SYNs":            {0.995, true},
		"p99 of first bytes in a flood of SYNs, × that in quiet": {2.5, false},
		"CPU a GB, × that of HAProxy's TLS chain":                {0.9, true},
		"UDP packets a CPU second, × nginx's":                    {1.4, false},
		"memory of an idle flow, edge, bytes":                    {9000, true},
		"packets a CPU second, × those of nftables: a":           {1.5, true},
	}
	got := r.Targets()
	if len(got) != len(want) {
		t.Errorf("%d targets, want %d: %+v", len(got), len(want), got)
	}
	for _, g := range got {
		w, ok := want[g.What]
		if !ok || g.Got < w.got*0.999 || g.Got > w.got*1.001 || g.Reached() != w.reached {
			t.Errorf("%s: %v, reached %v; want %v, %v", g.What, g.Got, g.Reached(), w.got, w.reached)
		}
	}
	var out strings.Builder
	r.writeTargets(&out)
	if lines := strings.Split(out.String(), "\n"); !strings.HasPrefix(lines[0], "missed") || !strings.HasPrefix(lines[3], "reached") {
		t.Errorf("missed targets are not first:\n%s", out.String())
	}
}

func TestMedian(t *testing.T) {
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("median of three is %v", m)
	}
	if m := median([]float64{4, 1}); m != 1 {
		t.Errorf("median of two is %v", m)
	}
}
