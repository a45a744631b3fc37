package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestDisk has a node's disk fill up, and damages what lies on it.
func TestDisk(t *testing.T) {
	d := raise(t, "main", nil, world.Options{})
	t.Run("full", d.diskFull)
	t.Run("newest snapshot damaged", d.diskDamaged)
}

// diskFull: a change is applied and served although it cannot be written down; a restart without
// controllers begins from what could be.
func (d *deployment) diskFull(t *testing.T) {
	edge, dir := d.Nodes["sin-1"], d.DataDir("sin-1")
	if err := edge.Stop(); err != nil {
		t.Fatal(err)
	}
	aside := dir + ".aside"
	d.do(t, os.Rename(dir, aside))
	d.do(t, os.Mkdir(dir, 0o700))
	d.do(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() {
		kill(t, edge)
		d.do(t, unix.Unmount(dir, unix.MNT_DETACH))
		d.do(t, os.Remove(dir))
		d.do(t, os.Rename(aside, dir))
		d.start(t, edge)
	})
	d.do(t, os.CopyFS(dir, os.DirFS(aside)))
	d.start(t, edge)
	if err := d.Settled(d.ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 20 { // ready means ready: not one is refused
		if _, err := d.fetchFrom("jakarta"); err != nil {
			t.Errorf("flow %d of 20 through the restarted edge: %v", i+1, err)
		}
	}
	fill(t, filepath.Join(dir, "filler"))
	errorsBefore := metric(t, edge, "nearcast_agent_disk_errors_total")
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		if _, err := d.CLI(d.ctx, "accelerator", "create", "unwritten", "--wait"); err != nil {
			t.Error(err)
		}
	})
	say(t, "a change while the disk is full", as)
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
	eventually(t, 30*time.Second, "writing the change down fails", func() error { // that is done after it is served
		if n := metric(t, edge, "nearcast_agent_disk_errors_total"); n <= errorsBefore {
			return fmt.Errorf("%v errors: the disk is not full", n)
		}
		return nil
	})
	kill(t, d.Controllers...)
	kill(t, edge)
	begin := time.Now()
	d.do(t, edge.Start())
	eventually(t, 60*time.Second, "the edge serves from a full disk", func() error {
		_, err := d.fetchFrom("jakarta")
		return err
	})
	t.Logf("disk full, every controller dead: served a client %v after the start", time.Since(begin).Round(time.Millisecond))
	d.start(t, d.Controllers...)
}

// fill writes zeros until nothing fits any more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
}

// diskDamaged: with every controller dead and its newest snapshot damaged, an edge serves from the one
// before.
func (d *deployment) diskDamaged(t *testing.T) {
	edge := d.Nodes["sin-1"]
	files := func() []string {
		found, err := filepath.Glob(filepath.Join(d.DataDir("sin-1"), "snapshots", "*.snapshot"))
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(found)
		return found
	}
	// A change, so that there is a snapshot before the newest.
	if _, err := d.CLI(d.ctx, "accelerator", "create", "another", "--wait"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "two snapshots on disk", func() error {
		if n := len(files()); n != 2 {
			return fmt.Errorf("%d files", n)
		}
		return nil
	})
	kill(t, d.Controllers...)
	kill(t, edge)
	newest := files()[1]
	text, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 0x40
	d.do(t, os.WriteFile(newest, text, 0o600))
	begin := time.Now()
	d.do(t, edge.Start())
	eventually(t, 60*time.Second, "the edge serves from the snapshot before", func() error {
		_, err := d.fetchFrom("jakarta")
		return err
	})
	t.Logf("newest snapshot damaged, every controller dead: served a client %v after the start",
		time.Since(begin).Round(time.Millisecond))
	d.start(t, d.Controllers...)
}
