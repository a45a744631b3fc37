package bench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// WriteDispatch prints the rows for a person: ratios to plain sockets with as many listeners first. The rows of every
// port of a /16, for which there are no plain sockets, are beside one plain socket.
func WriteDispatch(out io.Writer, rows []DispatchRow) error {
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	writeConnections(tw, rows)
	fmt.Fprintln(tw)
	err := tw.Flush()
	writeDatagrams(tw, rows)
	fmt.Fprintln(tw)
	err = firstError(err, tw.Flush())
	writeDoors(tw, rows)
	return firstError(err, tw.Flush())
}

// plainBeside is the row of plain sockets that a row is compared with.
func plainBeside(rows []DispatchRow, r *DispatchRow) *DispatchRow {
	i := slices.IndexFunc(rows, func(x DispatchRow) bool {
		return x.System == sysSockets && x.Listeners == max(1, r.Listeners) && x.UDP == r.UDP
	})
	if i < 0 {
		return &DispatchRow{}
	}
	return &rows[i]
}

func manyListeners(n int) string {
	if n == 0 {
		return "every port of a /16"
	}
	return fmt.Sprint(n)
}

func timesOf(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}

func writeConnections(out io.Writer, rows []DispatchRow) {
	fmt.Fprintln(out, "TCP: listeners\tdoors\trate ×\tCPU ×\tp50 ×\tp99 ×\tfull p99 ×\tconn/s\tCPU µs\tserver's\tp50 µs\t"+
		"p99 µs\tfull p50\tfull p99\tfailed\t")
	micro := func(s float64) string { return fmt.Sprintf("%.0f", s*1e6) }
	for i := range rows {
		r, p := &rows[i], plainBeside(rows, &rows[i])
		if r.UDP {
			continue
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.0f\t%.1f\t%.1f\t%s\t%s\t%s\t%s\t%d\t\n",
			manyListeners(r.Listeners), r.System, timesOf(r.Rate, p.Rate), timesOf(r.CPU, p.CPU), timesOf(r.P50, p.P50),
			timesOf(r.P99, p.P99), timesOf(r.FullP99, p.FullP99), r.Rate, r.CPU*1e6, r.ServerCPU*1e6,
			micro(r.P50), micro(r.P99), micro(r.FullP50), micro(r.FullP99), r.Failed)
	}
}

func writeDatagrams(out io.Writer, rows []DispatchRow) {
	fmt.Fprintln(out, "UDP: listeners\tdoors\trate ×\tCPU ×\tpackets/s\tCPU µs\tserver's\t")
	for i := range rows {
		if r, p := &rows[i], plainBeside(rows, &rows[i]); r.UDP {
			fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%.0f\t%.2f\t%.2f\t\n", manyListeners(r.Listeners), r.System,
				timesOf(r.Rate, p.Rate), timesOf(r.CPU, p.CPU), r.Rate, r.CPU*1e6, r.ServerCPU*1e6)
		}
	}
}

// writeDoors prints what the listeners themselves take.
func writeDoors(out io.Writer, rows []DispatchRow) {
	fmt.Fprintln(out, "listeners\tdoors\topen\tremove one\tadd one\tsockets, MB\tprocess, MB\tmaps, MB\t")
	duration := func(s float64) string {
		if s == 0 {
			return "-"
		}
		return time.Duration(s * 1e9).Round(10 * time.Microsecond).String()
	}
	mega := func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }
	for i := range rows {
		r := &rows[i]
		if r.UDP {
			continue
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", manyListeners(r.Listeners), r.System, duration(r.Open),
			duration(r.Remove), duration(r.Add), mega(r.Slab), mega(r.Resident), mega(r.Maps))
	}
}
