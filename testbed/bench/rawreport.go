package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// writeRaw prints a line for each kind of load and system, with Nearcast's ratio to it: above 1 is
// better than that system, whichever direction better is.
func (r *Report) writeRaw(out io.Writer) {
	if len(r.Raw) == 0 {
		return
	}
	ours := map[string]Raw{}
	for _, x := range r.Raw {
		if x.System == sysNearcast {
			ours[x.What] = x
		}
	}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "what\tsystem\tnearcast is\tits CPU is\tfigure\t\tCPU s a\t\t")
	for _, x := range r.Raw {
		o := ours[x.What]
		rate, cpu := "", ""
		if x.System != sysNearcast && o.Rate > 0 {
			ratio := o.Rate / x.Rate
			if x.Unit == "bytes" {
				ratio = 1 / ratio
			}
			rate = fmt.Sprintf("%.2f × as good", ratio)
			if x.CPU > 0 && o.CPU > 0 {
				cpu = fmt.Sprintf("%.2f ×", o.CPU/x.CPU)
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%.4g\t%s\t%.3g\t%s\t\n", x.What, x.System, rate, cpu, x.Rate, x.Unit, x.CPU, x.CPUUnit)
	}
	tw.Flush()
}
