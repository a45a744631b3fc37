// Package plot answers: how do pairs of values look as bars? It writes SVG, and nothing else is needed.
package plot

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// Bars is a picture of horizontal bars, two a row.
type Bars struct {
	Title, Unit   string
	First, Second string // what the two bars of a row are
	Rows          []Row
	Note          string // below
}

// Row is one pair. A value that is guessed is drawn as an outline.
type Row struct {
	Label         string
	First, Second float64
	FirstGuessed  bool
	Text          string // beside the bars
}

// Measures, in pixels.
const (
	width, left, right     = 960, 300, 150
	rowHeight, barHeight   = 34, 12
	top, bottom            = 78, 64
	firstColor, otherColor = "#8a8f98", "#1f6feb"
)

// WriteTo writes the picture.
func (b *Bars) WriteTo(w io.Writer) (int64, error) {
	most := 0.0
	for _, r := range b.Rows {
		most = max(most, r.First, r.Second)
	}
	step := niceStep(most)
	scale := 0.0 // pixels a unit
	if step > 0 {
		scale = float64(width-left-right) / (math.Ceil(most/step) * step)
	}
	height := top + rowHeight*len(b.Rows) + bottom
	var s strings.Builder
	text := func(x, y float64, anchor, extra, t string) {
		fmt.Fprintf(&s, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, extra, html.EscapeString(t))
	}
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" `+
		`font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&s, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	text(16, 26, "start", ` font-size="16" font-weight="bold"`, b.Title)
	fmt.Fprintf(&s, `<rect x="16" y="38" width="12" height="12" fill="%s"/>`+"\n", firstColor)
	text(34, 48, "start", "", b.First)
	fmt.Fprintf(&s, `<rect x="316" y="38" width="12" height="12" fill="%s"/>`+"\n", otherColor)
	text(334, 48, "start", "", b.Second)
	end := float64(top + rowHeight*len(b.Rows))
	for v := 0.0; step > 0 && v*scale <= float64(width-left-right)+1; v += step {
		x := left + v*scale
		fmt.Fprintf(&s, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%.1f" stroke="#dddddd"/>`+"\n", x, top-8, x, end)
		text(x, end+16, "middle", ` fill="#666666"`, fmt.Sprintf("%g %s", v, b.Unit))
	}
	for i, r := range b.Rows {
		y := float64(top + rowHeight*i)
		text(left-8, y+barHeight+3, "end", "", r.Label)
		fill := fmt.Sprintf(`fill="%s"`, firstColor)
		if r.FirstGuessed {
			fill = fmt.Sprintf(`fill="none" stroke="%s" stroke-dasharray="3 2"`, firstColor)
		}
		fmt.Fprintf(&s, `<rect x="%d" y="%.1f" width="%.1f" height="%d" %s/>`+"\n", left, y, r.First*scale, barHeight-1, fill)
		fmt.Fprintf(&s, `<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`+"\n",
			left, y+barHeight+1, r.Second*scale, barHeight-1, otherColor)
		text(left+max(r.First, r.Second)*scale+6, y+barHeight+3, "start", ` fill="#333333"`, r.Text)
	}
	text(16, end+44, "start", ` fill="#666666"`, b.Note)
	s.WriteString("</svg>\n")
	n, err := io.WriteString(w, s.String())
	return int64(n), err
}

// niceStep is a distance of grid lines, 1, 2 or 5 times a power of ten, of which four to ten fit.
func niceStep(most float64) float64 {
	if most <= 0 || math.IsInf(most, 0) || math.IsNaN(most) {
		return 0
	}
	step := math.Pow(10, math.Floor(math.Log10(most/4)))
	for _, f := range []float64{5, 2} {
		if most/(step*f) >= 4 {
			return step * f
		}
	}
	return step
}
