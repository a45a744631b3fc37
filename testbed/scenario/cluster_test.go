package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestThreeControllers keeps one store on three controllers, kills each in turn and goes on changing
// the configuration through the others.
func TestThreeControllers(t *testing.T) {
	d := raise(t, "main", func(s *world.Spec) { s.Controllers.Count = 3 }, world.Options{})
	for i, victim := range d.Controllers {
		kill(t, victim)
		begin := time.Now()
		name := fmt.Sprintf("during-%d", i)
		took := eventually(t, 20*time.Second, "a change through another controller", func() error {
			_, err := d.CLIVia(d.ctx, (i+1)%3, "accelerator", "create", name, "--disabled")
			return err
		})
		t.Logf("%s killed: a change was taken %v after", victim.Name, took.Round(time.Millisecond))
		as := d.steadyRate("jakarta", 50*time.Millisecond, func() { time.Sleep(time.Second) })
		if f := load.Failed(as); len(f) != 0 {
			t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
		}
		d.start(t, victim)
		t.Logf("%s is back %v after it was killed", victim.Name, time.Since(begin).Round(time.Millisecond))
		eventually(t, 20*time.Second, "it knows the change", func() error {
			_, err := d.CLIVia(d.ctx, i, "accelerator", "get", name)
			return err
		})
	}
}

// TestDamagedDisk restarts an edge with every controller dead after its newest snapshot was damaged:
// the one before is used.
func TestDamagedDisk(t *testing.T) {
	d := raise(t, "main", nil, world.Options{})
	edge := d.Nodes["sin-1"]
	// A second snapshot, so that there is one before the newest.
	if _, err := d.CLI(d.ctx, "accelerator", "create", "another", "--disabled", "--wait"); err != nil {
		t.Fatal(err)
	}
	kill(t, d.Controllers...)
	kill(t, edge)
	newest := newestFile(t, filepath.Join(d.DataDir("sin-1"), "snapshots"))
	text, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 0x40
	if err := os.WriteFile(newest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := edge.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the edge serves from the snapshot before", func() error {
		_, err := d.fetchFrom("jakarta")
		return err
	})
	t.Logf("newest snapshot damaged, every controller dead: served a client %v after the start",
		time.Since(begin).Round(time.Millisecond))
	d.start(t, d.Controllers...)
}

func newestFile(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	newest, at := "", time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if !e.IsDir() && info.ModTime().After(at) {
			newest, at = filepath.Join(dir, e.Name()), info.ModTime()
		}
	}
	if newest == "" {
		t.Fatalf("no files in %s", dir)
	}
	return newest
}
