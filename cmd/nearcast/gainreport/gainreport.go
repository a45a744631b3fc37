// Package gainreport answers: how are gains told to people? In words, as pictures, and as a table.
package gainreport

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	"github.com/nearcast/nearcast/cmd/nearcast/plot"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// plottedMax is how many rows a picture has.
const plottedMax = 25

// Files makes the files of a report.
func Files(all []*pb.Gain, now time.Time) (map[string][]byte, error) {
	files := map[string][]byte{}
	first := plot.Bars{Title: "Time to the first byte, by client network and region", Unit: "ms",
		First: "without acceleration (dashed: estimated)", Second: "accelerated (measured)",
		Note: "Without the time that the application thinks. The networks with most flows."}
	down := plot.Bars{Title: "Throughput to clients", Unit: "Mbit/s", First: "without acceleration (by a probe)",
		Second: "accelerated (flows of at least 256 KB)", Note: "While there was something to send."}
	for _, g := range all {
		label := g.GetNetwork() + " → " + g.GetRegion()
		if g.GetDirect().AsDuration() > 0 && len(first.Rows) < plottedMax {
			first.Rows = append(first.Rows, plot.Row{Label: label, Text: Saved(g), FirstGuessed: Guess(g) != "",
				First: ms(g.GetFirstByteDirect().AsDuration()), Second: ms(g.GetFirstByte().AsDuration())})
		}
		if g.GetDown() > 0 && g.GetDownDirect() > 0 && len(down.Rows) < plottedMax {
			down.Rows = append(down.Rows, plot.Row{Label: label, First: float64(g.GetDownDirect()) * 8 / 1e6,
				Second: float64(g.GetDown()) * 8 / 1e6,
				Text:   fmt.Sprintf("%.1fx", float64(g.GetDown())/float64(g.GetDownDirect()))})
		}
	}
	pictures := map[string]*plot.Bars{"gains.svg": &first}
	if len(down.Rows) > 0 {
		pictures["throughput.svg"] = &down
	}
	for name, p := range pictures {
		var b bytes.Buffer
		if _, err := p.WriteTo(&b); err != nil {
			return nil, err
		}
		files[name] = b.Bytes()
	}
	var err error
	files["report.md"] = gainsText(all, len(down.Rows) > 0, now)
	files["gains.csv"], err = gainsCSV(all)
	return files, err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func gainsCSV(all []*pb.Gain) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write([]string{"network", "region", "edge_site", "flows", "client_ms", "backbone_ms", "connect_ms", "direct_ms",
		"direct_source", "first_byte_direct_ms", "first_byte_ms", "down_bytes_per_second",
		"down_direct_bytes_per_second", "pays"})
	n := func(d time.Duration) string { return strconv.FormatFloat(ms(d), 'f', 3, 64) }
	for _, g := range all {
		_ = w.Write([]string{g.GetNetwork(), g.GetRegion(), g.GetSite(), fmt.Sprint(g.GetFlows()),
			n(g.GetClient().AsDuration()), n(g.GetBackbone().AsDuration()), n(g.GetConnect().AsDuration()),
			n(g.GetDirect().AsDuration()), manifest.EnumText(g.GetDirectSource()), n(g.GetFirstByteDirect().AsDuration()),
			n(g.GetFirstByte().AsDuration()), fmt.Sprint(g.GetDown()), fmt.Sprint(g.GetDownDirect()), fmt.Sprint(g.GetPays())})
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// gainsText is the report for people.
func gainsText(all []*pb.Gain, down bool, now time.Time) []byte {
	var flows, losing, guessed, unknown uint64
	for _, g := range all {
		flows += g.GetFlows()
		switch {
		case g.GetDirect().AsDuration() == 0:
			unknown += g.GetFlows()
			continue
		case !g.GetPays():
			losing += g.GetFlows()
		}
		if Guess(g) != "" {
			guessed += g.GetFlows()
		}
	}
	percent := func(n uint64) string { return fmt.Sprintf("%.0f%%", 100*float64(n)/float64(max(flows, 1))) }
	var b strings.Builder
	fmt.Fprintf(&b, "# What acceleration gives\n\n%s. %d client networks and regions, %d flows.\n\n",
		now.UTC().Format("2 January 2006, 15:04 UTC"), len(all), flows)
	fmt.Fprintf(&b, "- Acceleration does not pay for %s of the flows (the first byte comes no sooner).\n", percent(losing))
	fmt.Fprintf(&b, "- For %s of the flows the time without acceleration is an estimate (~), for %s it is not known. "+
		"`nearcast probe --report` in a client's network measures it.\n\n", percent(guessed), percent(unknown))
	b.WriteString("![time to the first byte](gains.svg)\n\n")
	if down {
		b.WriteString("![throughput](throughput.svg)\n\n")
	}
	b.WriteString("| network | region | edge at | flows | client | backbone | connect | direct | first byte before | after | saved |\n" +
		"|---|---|---|---|---|---|---|---|---|---|---|\n")
	for i, g := range all {
		if i == 200 {
			fmt.Fprintf(&b, "\n%d more are in gains.csv.\n", len(all)-i)
			break
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s | %s | %s | %s | %s | %s |\n", g.GetNetwork(), g.GetRegion(), g.GetSite(),
			g.GetFlows(), Milliseconds(g.GetClient().AsDuration()), Milliseconds(g.GetBackbone().AsDuration()),
			Milliseconds(g.GetConnect().AsDuration()), Direct(g),
			Guess(g)+Milliseconds(g.GetFirstByteDirect().AsDuration()), Milliseconds(g.GetFirstByte().AsDuration()), Saved(g))
	}
	b.WriteString(`
Measured of real flows: client (round trip between client and edge), backbone (edge to gateway), connect (gateway to endpoint).
First byte before: 2 direct. After: 2 client + backbone + 2 connect. Both without the time that the application thinks.
`)
	return []byte(b.String())
}

// Guess marks what rests on an estimate.
func Guess(g *pb.Gain) string {
	switch g.GetDirectSource() {
	case pb.DirectSource_DIRECT_SOURCE_PROBE, pb.DirectSource_DIRECT_SOURCE_OPERATOR:
		return ""
	}
	return "~"
}

// Direct says how far a region is without acceleration, and how that is known.
func Direct(g *pb.Gain) string {
	if g.GetDirect().AsDuration() == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%s%s (%s)", Guess(g), Milliseconds(g.GetDirect().AsDuration()), manifest.EnumText(g.GetDirectSource()))
}

// Saved says what share of the time to the first byte is saved.
func Saved(g *pb.Gain) string {
	before, after := g.GetFirstByteDirect().AsDuration(), g.GetFirstByte().AsDuration()
	switch {
	case before == 0:
		return "unknown"
	case !g.GetPays():
		return "does not pay"
	}
	return fmt.Sprintf("%s%.0f%%", Guess(g), 100*float64(before-after)/float64(before))
}

// Milliseconds shows a time; "-" one that was not measured.
func Milliseconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// Throughput shows bytes a second as bits a second, as lines are sold.
func Throughput(bytes float64) string {
	switch bits := bytes * 8; {
	case bits == 0:
		return "-"
	case bits >= 1e9:
		return fmt.Sprintf("%.2f Gbit/s", bits/1e9)
	default:
		return fmt.Sprintf("%.2f Mbit/s", bits/1e6)
	}
}
