package bench

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/netns"
)

// doorsRole makes this test's program the other side of the dispatch bench; its value is the spec.
const doorsRole = "NEARCAST_TEST_DOORS"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == doorsRole {
		var spec DoorsSpec
		err := json.Unmarshal([]byte(os.Args[2]), &spec)
		if err == nil {
			err = RunDoors(context.Background(), spec, os.Stdin, os.Stdout)
		}
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestDispatch: each kind of doors takes the bench's connections and datagrams, and the report has a line for each.
func TestDispatch(t *testing.T) {
	netns.RequireRoot(t, "network namespaces")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := Dispatch(t.Context(), DispatchOptions{
		Dir: t.TempDir(), Rounds: 1, Turn: 20 * time.Millisecond, Listeners: []int{0, 3}, Say: t.Logf,
		Doors: func(spec string) (string, []string) { return self, []string{doorsRole, spec} },
	})
	if err != nil {
		t.Fatal(err)
	}
	tcp := 0
	for i := range rows {
		r := &rows[i]
		if r.Rate <= 0 || r.CPU <= 0 || r.Open <= 0 || r.Failed > 0 {
			t.Errorf("%+v", r)
		}
		if r.UDP {
			continue
		}
		if tcp++; r.P50 <= 0 || r.P99 < r.P50 || (r.Listeners > 1 && (r.Add <= 0 || r.Remove <= 0)) {
			t.Errorf("%+v", r)
		}
		if r.System == sysOne && r.Maps == 0 {
			t.Errorf("the program has no maps: %+v", r)
		}
	}
	if tcp < 5 || len(rows) < 7 {
		t.Errorf("%d rows, %d of connections", len(rows), tcp)
	}
	var report strings.Builder
	if err := WriteDispatch(&report, rows); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{sysSockets, sysOne, sysEach, "every port of a /16"} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, &report)
		}
	}
}
