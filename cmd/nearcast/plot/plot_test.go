package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// TestBars: what is written is XML with a bar for each value, and hostile labels stay text.
func TestBars(t *testing.T) {
	for _, rows := range [][]Row{nil, {{Label: "zero"}}, {
		{Label: `<script>"&`, First: 400, Second: 50.5, FirstGuessed: true, Text: "-87 %"},
		{Label: "b", First: 3, Second: 4},
	}} {
		b := Bars{Title: "A < B", Unit: "ms", First: "direct", Second: "accelerated", Rows: rows, Note: "note"}
		var out bytes.Buffer
		if n, err := b.WriteTo(&out); err != nil || n != int64(out.Len()) {
			t.Fatal(n, err)
		}
		rects, d := 0, xml.NewDecoder(&out)
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if e, ok := token.(xml.StartElement); ok {
				if e.Name.Local == "script" {
					t.Error("a label became an element")
				}
				if e.Name.Local == "rect" {
					rects++
				}
				for _, a := range e.Attr {
					if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
						t.Errorf("%s is %s", a.Name.Local, a.Value)
					}
				}
			}
		}
		if rects != 3+2*len(rows) {
			t.Errorf("%d rectangles for %d rows", rects, len(rows))
		}
	}
}

func TestNiceStep(t *testing.T) {
	for most, want := range map[float64]float64{400: 100, 399: 50, 1: 0.2, 90: 20, 0: 0, math.Inf(1): 0} {
		if got := niceStep(most); math.Abs(got-want) > want*1e-9 {
			t.Errorf("niceStep(%v) is %v, want %v", most, got, want)
		}
	}
}
