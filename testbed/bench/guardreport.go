package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
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

// writeFlooded has a line for each system and phase.
func (r *Report) writeFlooded(out io.Writer) {
	if len(r.Flooded) == 0 {
		return
	}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "system\tSYNs/s\tconnections\tsucceeded\tconnect p50\tfirst byte p50\tp99\t× quiet\tdownload\t")
	for _, f := range r.Flooded {
		for i, p := range []FloodPhases{f.Quiet, f.Flood} {
			rate, ratio := 0.0, ""
			if i == 1 {
				rate, ratio = f.PerSecond, fmt.Sprintf("%.2f", f.P99Ratio)
			}
			fmt.Fprintf(tw, "%s\t%.0f\t%d\t%.2f %%\t%v\t%v\t%v\t%s\t%.2f Gbit/s\t\n", f.System, rate, p.Attempts,
				100*p.succeeded(), p.Connected.Round(time.Microsecond), p.P50.Round(time.Microsecond), p.P99.Round(time.Microsecond),
				ratio, p.Goodput/1e9)
		}
	}
	tw.Flush()
}

func (p *FloodPhases) succeeded() float64 {
	return 1 - float64(p.Failed)/float64(max(p.Attempts, 1))
}

func floodTargets(all []Flooded) (out []Target) {
	for _, f := range all {
		if f.System != sysGuarded {
			continue
		}
		out = append(out,
			Target{What: "connections that succeed in a flood of SYNs", Want: wantInFlood, Got: f.Flood.succeeded()},
			Target{What: "p99 of first bytes in a flood of SYNs, × that in quiet", Want: wantFloodP99, AtMost: true, Got: f.P99Ratio})
	}
	return out
}
