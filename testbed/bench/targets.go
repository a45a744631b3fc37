package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Target is a figure that the project promises to reach, and what came out. Both are ratios or bytes;
// where several worlds count, Got is the worst of them.
type Target struct {
	What   string  `json:"what"`
	Want   float64 `json:"want"`
	AtMost bool    `json:"at_most"` // Want is an upper limit, else a lower one
	Got    float64 `json:"got"`
	Where  string  `json:"where"` // the worst world, if there are several
}

// Reached reports whether the figure is what was promised.
func (t *Target) Reached() bool {
	if t.AtMost {
		return t.Got <= t.Want
	}
	return t.Got >= t.Want
}

// What is promised. The slack of "no slower" is for the noise of a median: what is less than a
// thirtieth apart cannot be told apart here.
const (
	wantFirstByte   = 1.10
	wantMegabyte100 = 2.5
	wantMegabyte200 = 4.0
	wantNoSlower    = 0.97
	wantBulkCPU     = 1.0
	wantConnections = 2.0
	wantUDP         = 1.5
	wantIdleBytes   = 10_000
	wantFiltered    = 1.0
	wantInFlood     = 0.99
	wantFloodP99    = 2.0
)

// Targets compares a report with what is promised. Those that the report cannot tell are left out.
func (r *Report) Targets() []Target {
	return slices.Concat(latencyTargets(r.Transfers), rawTargets(r.Raw), filterTargets(r.Filtered), floodTargets(r.Flooded))
}

// worst keeps the worst ratio of several worlds.
type worst struct {
	Target
	seen bool
}

func (w *worst) see(got float64, where string) {
	if !w.seen || w.AtMost == (got > w.Got) {
		w.Got, w.Where, w.seen = got, where, true
	}
}

func latencyTargets(all []Transfer) []Target {
	first := worst{Target: Target{What: "first byte, × floor", Want: wantFirstByte, AtMost: true}}
	near := worst{Target: Target{What: "1 MB at R = 100 ms without loss, × faster than direct", Want: wantMegabyte100}}
	far := worst{Target: Target{What: "1 MB at R = 200 ms without loss, × faster than direct", Want: wantMegabyte200}}
	chain := worst{Target: Target{What: "any download, × as fast as HAProxy's TLS chain", Want: wantNoSlower}}
	for i := range all {
		ours := &all[i]
		if ours.System != sysNearcast || ours.Median == 0 {
			continue
		}
		where := fmt.Sprintf("R %v, loss %.0f %%, %d bytes", ours.R, ours.Loss*100, ours.Bytes)
		if ours.Bytes == 1 {
			first.see(float64(ours.Median)/float64(ours.Floor), where)
		}
		for j := range all {
			other := &all[j]
			if other.R != ours.R || other.Loss != ours.Loss || other.Bytes != ours.Bytes || other.Median == 0 {
				continue
			}
			ratio := float64(other.Median) / float64(ours.Median)
			direct := (other.System == sysDirect || other.System == sysDirectBBR) && ours.Bytes == 1_000_000 && ours.Loss == 0
			switch {
			case other.System == sysHAProxy:
				chain.see(ratio, where)
			case direct && ours.R == 100*time.Millisecond:
				near.see(ratio, other.System)
			case direct && ours.R == 200*time.Millisecond:
				far.see(ratio, other.System)
			}
		}
	}
	var out []Target
	for _, w := range []worst{first, near, far, chain} {
		if w.seen {
			out = append(out, w.Target)
		}
	}
	return out
}

func rawTargets(all []Raw) (out []Target) {
	find := func(what, system string) *Raw {
		i := slices.IndexFunc(all, func(x Raw) bool { return x.What == what && x.System == system })
		if i < 0 {
			return &Raw{}
		}
		return &all[i]
	}
	add := func(t Target, got float64) {
		if got > 0 {
			t.Got = got
			out = append(out, t)
		}
	}
	ratio := func(a, b float64) float64 {
		if b == 0 {
			return 0
		}
		return a / b
	}
	add(Target{What: "CPU a GB, × that of HAProxy's TLS chain", Want: wantBulkCPU, AtMost: true},
		ratio(find(kindBulk, sysNearcast).CPU, find(kindBulk, sysHAProxy).CPU))
	add(Target{What: "new connections a second, × those of HAProxy's TLS chain", Want: wantConnections},
		ratio(find(kindConnections, sysNearcast).Rate, find(kindConnections, sysHAProxy).Rate))
	add(Target{What: "UDP packets a CPU second, × nginx's", Want: wantUDP},
		ratio(find(kindUDP, sysNGINX).CPU, find(kindUDP, sysNearcast).CPU))
	for _, side := range []string{", edge", ", gateway"} {
		add(Target{What: kindIdle + side + ", bytes", Want: wantIdleBytes, AtMost: true}, find(kindIdle+side, sysNearcast).Rate)
	}
	return out
}

// writeTargets has a line for each target, those that were missed first.
func (r *Report) writeTargets(out io.Writer) {
	targets := r.Targets()
	slices.SortStableFunc(targets, func(a, b Target) int {
		rank := map[bool]int{false: 0, true: 1}
		return cmp.Compare(rank[a.Reached()], rank[b.Reached()])
	})
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range targets {
		t := &targets[i]
		sign, verdict := "≥", "missed"
		if t.AtMost {
			sign = "≤"
		}
		if t.Reached() {
			verdict = "reached"
		}
		fmt.Fprintf(tw, "%s\t%s\t%.4g\t(promised %s %.4g)\t%s\n", verdict, t.What, t.Got, sign, t.Want, t.Where)
	}
	tw.Flush()
}
