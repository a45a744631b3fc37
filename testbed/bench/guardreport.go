package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// writeFiltered has a line for each job and system, with how much better guard is than nftables' better half, by
// packets a second of CPU time.
func (r *Report) writeFiltered(out io.Writer) {
	if len(r.Filtered) == 0 {
		return
	}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "job\tsystem\tguard native is\tguard generic is\tM packets a CPU second\tM packets/s\t")
	for _, f := range r.Filtered {
		native, generic := "", ""
		if f.System != sysNative && f.System != sysGeneric {
			_, n := bestPeer(r.Filtered, f.Job, sysNative)
			_, g := bestPeer(r.Filtered, f.Job, sysGeneric)
			native = fmt.Sprintf("%.2f ×", n.PerCPUSecond/f.PerCPUSecond)
			generic = fmt.Sprintf("%.2f ×", g.PerCPUSecond/f.PerCPUSecond)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.2f\t%.2f\t\n", f.Job, f.System, native, generic, f.PerCPUSecond/1e6, f.PerSecond/1e6)
	}
	tw.Flush()
	fmt.Fprintln(out)
}

func filterTargets(all []Filtered) (out []Target) {
	for _, job := range jobsOf(all) {
		peer, own := bestPeer(all, job, sysNative)
		if peer.PerCPUSecond == 0 || own.PerCPUSecond == 0 {
			continue
		}
		out = append(out, Target{What: "packets a CPU second, × those of nftables: " + job, Want: wantFiltered,
			Got: own.PerCPUSecond / peer.PerCPUSecond, Where: peer.System})
	}
	return out
}
