package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// Options say how to measure.
type Options struct {
	Bin   string // directory with the built binaries
	Dir   string // for logs and data
	Quick bool   // fewer runs: to see that it works, not to quote
	// Only has RawChain measure just the kinds whose name contains it ("UDP", say), and Latency just the
	// worlds ("R 100ms, loss 1 %").
	Only string
	// ClientWindow is the receive window that Latency's clients begin with, in bytes; 0 leaves Linux's 64 KB,
	// of which no first flight can be more, however large a window its sender may use.
	ClientWindow int
	// Profiles is a directory for profiles of edge and gateway under each kind of load. Empty: none are
	// taken. Taking them costs a few per cent, so a run with profiles is not one to quote.
	Profiles string
	Say      func(format string, args ...any)
}

// Report is everything one run measured, with the machine that it was measured on.
type Report struct {
	Time      time.Time  `json:"time"`
	Version   string     `json:"version"`
	Machine   Machine    `json:"machine"`
	Transfers []Transfer `json:"transfers,omitempty"`
	// ClientWindow is Options.ClientWindow.
	ClientWindow int        `json:"client_window,omitempty"`
	Raw          []Raw      `json:"raw,omitempty"`
	Filtered     []Filtered `json:"filtered,omitempty"`
	Flooded      []Flooded  `json:"flooded,omitempty"`
	// Dispatch is what the doors do.
	Dispatch []DispatchRow `json:"dispatch,omitempty"`
}

// Machine is what a figure cannot be read without.
type Machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	HAProxy  string `json:"haproxy"`
	NGINX    string `json:"nginx"`
	NFTables string `json:"nftables"`
}

// DescribeMachine looks at the machine it runs on.
func DescribeMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown"}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				m.CPU = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	m.HAProxy = firstLine("haproxy", "-v")
	m.NGINX = firstLine("nginx", "-v")
	m.NFTables = firstLine("nft", "--version")
	return m
}

// Save keeps the report as JSON in dir, named by its time.
func (r *Report) Save(dir string) (string, error) {
	text, err := json.MarshalIndent(struct {
		*Report
		Targets []Target `json:"targets"`
	}{r, r.Targets()}, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, r.Time.UTC().Format("20060102-150405")+".json")
	return path, os.WriteFile(path, append(text, '\n'), 0o644)
}

// WriteTo prints the report for a person, ratios first.
func (r *Report) WriteTo(out io.Writer) (int64, error) {
	var buf bytes.Buffer
	fmt.Fprintf(&buf, "%s, %d cores, Linux %s, %s\n%s; %s; %s\n\n", r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel,
		r.Machine.Go, r.Machine.HAProxy, r.Machine.NGINX, r.Machine.NFTables)
	if r.ClientWindow > 0 {
		fmt.Fprintf(&buf, "clients begin with a receive window of %d bytes\n\n", r.ClientWindow)
	}
	r.writeTargets(&buf)
	fmt.Fprintln(&buf)
	r.writeTransfers(&buf)
	r.writeRaw(&buf)
	r.writeFiltered(&buf)
	r.writeFlooded(&buf)
	n, err := out.Write(buf.Bytes())
	return int64(n), err
}

// writeTransfers has a line for each world and size: how many times faster Nearcast is than each
// other system, its own time and how far that is from the floor.
func (r *Report) writeTransfers(out io.Writer) {
	type key struct {
		R    time.Duration
		loss float64
		size int64
	}
	cells, order := map[key]map[string]Transfer{}, []key{}
	for _, t := range r.Transfers {
		k := key{t.R, t.Loss, t.Bytes}
		if cells[k] == nil {
			cells[k] = map[string]Transfer{}
			order = append(order, k)
		}
		cells[k][t.System] = t
	}
	if len(order) == 0 {
		return
	}
	others := []string{sysDirect, sysDirectBBR, sysHAPlain, sysHAProxy, sysUntuned}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "R\tloss\tbytes\t× %s\tnearcast\tfloor\tabove floor\t\n", strings.Join(others, "\t× "))
	for _, k := range order {
		ours := cells[k][sysNearcast]
		fmt.Fprintf(tw, "%v\t%.0f %%\t%d\t", k.R, k.loss*100, k.size)
		for _, name := range others {
			fmt.Fprintf(tw, "%s\t", timesFaster(cells[k][name], ours))
		}
		fmt.Fprintf(tw, "%v\t%v\t%+.0f %%\t\n", ours.Median.Round(time.Millisecond), ours.Floor.Round(time.Millisecond),
			100*(float64(ours.Median)/float64(ours.Floor)-1))
	}
	tw.Flush()
	fmt.Fprintln(out)
}

func timesFaster(other, ours Transfer) string {
	switch {
	case ours.Median == 0:
		return "failed"
	case other.Median == 0:
		return fmt.Sprintf("> %.0f", float64(transferLimit)/float64(ours.Median))
	}
	return fmt.Sprintf("%.2f", float64(other.Median)/float64(ours.Median))
}

func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return name + " is not installed"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
