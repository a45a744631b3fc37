package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v2"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file turns values into what people and scripts read, and what people type into values.

// column is one column of a table.
type column[T any] struct {
	title string
	text  func(T) string
}

// showList prints objects as a table, or as a JSON or YAML list. what names them ("accelerators").
func showList[T proto.Message](c *cli, what string, items []T, columns ...column[T]) error {
	if c.flags.output == "table" {
		return c.table(what, rows(items, columns))
	}
	list := make([]json.RawMessage, len(items))
	for i, item := range items {
		text, err := jsonText(item)
		if err != nil {
			return err
		}
		list[i] = text
	}
	return c.data(list)
}

// showRecords is showList for values that are no messages.
func showRecords[T any](c *cli, what string, items []T, columns ...column[T]) error {
	if c.flags.output == "table" {
		return c.table(what, rows(items, columns))
	}
	return c.data(append([]T{}, items...))
}

func rows[T any](items []T, columns []column[T]) [][]string {
	table := make([][]string, 1, len(items)+1)
	for _, col := range columns {
		table[0] = append(table[0], col.title)
	}
	for _, item := range items {
		var row []string
		for _, col := range columns {
			row = append(row, col.text(item))
		}
		table = append(table, row)
	}
	return table
}

// show prints one object: for people with human, else as JSON or YAML.
func (c *cli) show(m proto.Message, human func(*page)) error {
	if c.flags.output != "table" {
		text, err := jsonText(m)
		if err != nil {
			return err
		}
		return c.data(text)
	}
	p := c.page()
	human(p)
	return p.write()
}

// jsonText is a message in protobuf's JSON, with fields that have their zero value.
func jsonText(m proto.Message) (json.RawMessage, error) {
	text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer // protojson's own spaces differ from run to run
	err = json.Compact(&compact, text)
	return compact.Bytes(), err
}

// data prints a value as JSON or YAML.
func (c *cli) data(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if c.flags.output == "yaml" {
		var generic any
		if v := new(yaml.MapSlice); yaml.Unmarshal(text, v) == nil { // keeps the order of fields
			generic = *v
		} else {
			var list []yaml.MapSlice
			if err := yaml.Unmarshal(text, &list); err != nil {
				return err
			}
			generic = list
		}
		if text, err = yaml.Marshal(generic); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(c.stdout, strings.TrimRight(string(text), "\n"))
	return err
}

// table prints rows with aligned columns; the first row holds titles. Without any other it says that
// there is nothing, on stderr, so that scripts that count lines are not misled.
func (c *cli) table(what string, rows [][]string) error {
	if len(rows) <= 1 {
		c.note("no %s", what)
		return nil
	}
	return writeRows(c.stdout, rows, "", c.width)
}

const (
	columnGap      = "  "
	columnWidthMin = 8 // what a cut column keeps
)

// writeRows aligns rows. With a width, the widest columns are cut until a row fits.
func writeRows(w io.Writer, rows [][]string, indent string, width int) error {
	var widths []int
	for _, row := range rows {
		for i := range row {
			if row[i] = printable(row[i]); row[i] == "" {
				row[i] = "-"
			}
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	fit(widths, width-len(indent))
	var out strings.Builder
	for _, row := range rows {
		line := indent
		for i, cell := range row {
			cell = cut(cell, widths[i])
			line += cell
			if i < len(row)-1 {
				line += strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)) + columnGap
			}
		}
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// fit lowers the largest widths until all fit into a line of width; 0 is a line without end.
func fit(widths []int, width int) {
	if width <= 0 || len(widths) == 0 {
		return
	}
	total := len(columnGap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := 0
		for i := range widths {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= columnWidthMin {
			return
		}
		widths[widest]--
	}
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// printable replaces what would move a terminal's cursor or colour its text: much of what is shown
// was written by others. Line ends stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// page is one object for people: lines of a key and a value, tables, and headings.
type page struct {
	c     *cli
	out   bytes.Buffer
	lines [][]string
}

func (c *cli) page() *page { return &page{c: c} }

// line adds "key  value"; one without a value is left out.
func (p *page) line(key, value string) {
	if value != "" {
		p.lines = append(p.lines, []string{key, value})
	}
}

// heading begins a part.
func (p *page) heading(format string, args ...any) {
	p.flush()
	if p.out.Len() > 0 {
		p.out.WriteByte('\n')
	}
	p.out.WriteString(printable(fmt.Sprintf(format, args...)) + "\n")
}

// rows adds an indented table.
func (p *page) rows(rows [][]string) {
	p.flush()
	_ = writeRows(&p.out, rows, "  ", p.c.width) // a Buffer takes everything
}

func (p *page) flush() {
	if len(p.lines) > 0 {
		_ = writeRows(&p.out, p.lines, "", 0) // values are not cut: this page is for reading them
		p.lines = nil
	}
}

func (p *page) write() error {
	p.flush()
	_, err := p.c.stdout.Write(p.out.Bytes())
	return err
}

// enumText is an enum value as people write it: "PROTOCOL_TCP_UDP" is "tcp_udp".
func enumText(e protoreflect.Enum) string { return manifest.EnumText(e) }

// enumValue is a flag that takes an enum's words.
type enumValue[E interface {
	~int32
	protoreflect.Enum
}] struct{ to *E }

func (v enumValue[E]) String() string {
	if v.to == nil {
		return ""
	}
	return enumText(*v.to)
}

func (v enumValue[E]) Set(text string) error {
	n, err := manifest.ParseEnum((*v.to).Descriptor(), text)
	*v.to = E(n)
	return err
}

func (v enumValue[E]) Type() string {
	return strings.Join(manifest.EnumWords((*v.to).Descriptor()), "|")
}

// enumFlag adds a flag that takes an enum's words, completed by the shell.
func enumFlag[E interface {
	~int32
	protoreflect.Enum
}](cmd *cobra.Command, to *E, name, usage string) {
	cmd.Flags().Var(enumValue[E]{to}, name, usage)
	mustComplete(cmd, name, options(manifest.EnumWords((*to).Descriptor())...))
}

func portsText(ranges []*pb.PortRange) string { return manifest.PortsText(ranges) }

// parseTags reads KEY=VALUE words.
func parseTags(words []string) (map[string]string, error) {
	tags := map[string]string{}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, usagef("%q is not a tag; write it like env=prod", w)
		}
		tags[key] = value
	}
	return tags, nil
}

func tagsText(tags map[string]string) string {
	var words []string
	for k, v := range tags {
		words = append(words, k+"="+v)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func durationText(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return manifest.DurationText(d.AsDuration())
}

// ago tells how long something has been, in one or two words.
func (c *cli) ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	return rough(c.now().Sub(t.AsTime())) + " ago"
}

// rough is a duration with one unit.
func rough(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05 UTC")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
