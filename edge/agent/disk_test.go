package agent

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// encoded returns a minimal snapshot as a controller would send it.
func encoded(t testing.TB, revision uint64, change func(*model.Snapshot)) stored {
	t.Helper()
	s := &model.Snapshot{Revision: revision, Cluster: "test"}
	if change != nil {
		change(s)
	}
	raw, hash, err := model.EncodeSnapshot(s)
	if err != nil {
		t.Fatal(err)
	}
	return stored{snapshot: s, raw: raw, hash: hash}
}

func TestDiskKeepsTheNewestTwo(t *testing.T) {
	d := disk{dir: filepath.Join(t.TempDir(), "snapshots")}
	if found, damaged := d.load(); len(found) != 0 || len(damaged) != 0 {
		t.Fatalf("an empty disk has %d snapshots, %v", len(found), damaged)
	}
	for _, revision := range []uint64{9, 10, 11} { // 9 sorts after 10 as text
		if err := d.save(revision, encoded(t, revision, nil).raw); err != nil {
			t.Fatal(err)
		}
	}
	found, damaged := d.load()
	if len(found) != 2 || len(damaged) != 0 || found[0].snapshot.Revision != 11 || found[1].snapshot.Revision != 10 {
		t.Fatalf("%d snapshots, damaged %v", len(found), damaged)
	}
	if want := encoded(t, 11, nil); found[0].hash != want.hash || !bytes.Equal(found[0].raw, want.raw) {
		t.Error("what was read is not what was written")
	}
	if entries, _ := os.ReadDir(d.dir); len(entries) != 2 {
		t.Errorf("%d files are left", len(entries))
	}
}

func TestDiskPassesOverDamage(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped bit":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"torn":          func(b []byte) []byte { return b[:len(b)-3] },
		"empty":         func([]byte) []byte { return nil },
		"other format":  func(b []byte) []byte { b[0] = 'x'; return b },
		"other content": func([]byte) []byte { return fileOf([]byte("not a snapshot")) },
		"other revision": func([]byte) []byte {
			return fileOf(encoded(t, 7, nil).raw)
		},
	} {
		d := disk{dir: t.TempDir()}
		for _, revision := range []uint64{1, 2} {
			if err := d.save(revision, encoded(t, revision, nil).raw); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(d.path(2))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(2), damage(data), 0o600); err != nil {
			t.Fatal(err)
		}
		found, damaged := d.load()
		if len(found) != 1 || found[0].snapshot.Revision != 1 || len(damaged) != 1 {
			t.Errorf("%s: %d found, damaged %v", name, len(found), damaged)
		}
	}
}

// fileOf returns the file of any bytes, with the right checksum.
func fileOf(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return append(append([]byte(fileMagic), sum[:]...), raw...)
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte{})
	f.Add(fileOf(encoded(f, 3, nil).raw))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseFile(data); err == nil && s.snapshot == nil {
			t.Error("neither a snapshot nor an error")
		}
		// With a right checksum, too, nothing may panic.
		if s, err := parseFile(fileOf(data)); err == nil && s.snapshot == nil {
			t.Error("neither a snapshot nor an error")
		}
	})
}

func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockDir(dir); err == nil {
		t.Error("locked twice")
	}
	lock.Close()
	lock, err = LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}
