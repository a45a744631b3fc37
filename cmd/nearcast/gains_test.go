package main

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearcast/nearcast/cmd/nearcast/measure"
)

// TestGainsReport: a report says what the figures say, and its table has all of them.
func TestGainsReport(t *testing.T) {
	w := newWorld(t, newFake().serve(t))
	dir := filepath.Join(t.TempDir(), "a", "report")
	w.must(t, "gains", "report", "--dir", dir)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, want := range []string{"3 client networks and regions, 952 flows", "does not pay for 1% of the flows", "For 4% of the flows",
		"| 192.0.2.0/24 | eu-fra-1 |", "(throughput.svg)"} {
		if !strings.Contains(read("report.md"), want) {
			t.Errorf("report.md lacks %q:\n%s", want, read("report.md"))
		}
	}
	rows, err := csv.NewReader(strings.NewReader(read("gains.csv"))).ReadAll()
	if err != nil || len(rows) != 4 || rows[1][0] != "198.51.100.0/24" || rows[1][10] != "221.000" {
		t.Errorf("gains.csv: %v, %v", rows, err)
	}
	if svg := read("gains.svg"); strings.Count(svg, "stroke-dasharray") != 1 || !strings.Contains(svg, "2001:db8:7::/48") {
		t.Errorf("gains.svg marks not just the one estimate:\n%s", svg)
	}
	if !strings.Contains(read("throughput.svg"), "5.0x") {
		t.Error("throughput.svg lacks the ratio")
	}
}

// TestProbe: the table and the verdict, without a controller.
func TestProbe(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }))
	defer s.Close()
	addr := s.Listener.Addr().String()
	w := &world{dir: t.TempDir()}
	out := w.must(t, "probe", addr, "--direct", addr, "--rounds", "3")
	if !strings.Contains(out, "accelerated") || !strings.Contains(out, "acceleration ") || !strings.Contains(out, addr) {
		t.Error(out)
	}
	var r measure.Result
	if err := json.Unmarshal([]byte(w.must(t, "probe", addr, "--direct", addr, "--rounds", "2", "-o", "json")), &r); err != nil ||
		r.Direct.Rounds != 2 || r.Accelerated.FirstByte == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	got := w.run("probe", addr, "--direct", addr, "--rounds", "1", "--report", "--region", "eu-fra-1")
	if got.code == exitOK || !strings.Contains(got.stderr, "--network") {
		t.Errorf("a report of a loopback address: %+v", got)
	}
}
