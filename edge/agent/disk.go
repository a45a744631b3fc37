package agent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/nearcast/nearcast/proto/model"
)

// A snapshot's file:
//
//	+--------------------+--------------------+----------+
//	| "nearcast-snap-1\n"| SHA-256 of the rest| snapshot |
//	|      16 bytes      |      32 bytes      |          |
//	+--------------------+--------------------+----------+
//
// Its name is <revision>.snapshot, 20 digits, so that names sort like revisions. A file is written
// aside, synced and renamed; what is found damaged all the same is passed over.
const (
	fileMagic  = "nearcast-snap-1\n"
	fileSuffix = ".snapshot"
)

// LockDir makes sure that no other process uses a data directory, which it makes if needed. The lock
// ends when the file is closed, here and in every process that inherited it.
func LockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.Open(dir) // the directory itself: this works on a read-only file system too
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process", dir)
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return f, nil
}

// disk is the snapshots in a directory.
type disk struct{ dir string }

// stored is a snapshot with the bytes that it was read from.
type stored struct {
	snapshot *model.Snapshot
	raw      []byte
	hash     [sha256.Size]byte // of raw
}

// save writes a snapshot and removes all but the newest few.
func (d disk) save(revision uint64, raw []byte) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("save snapshot %d: %w", revision, err)
	}
	sum := sha256.Sum256(raw)
	err := replaceFile(d.path(revision), []byte(fileMagic), sum[:], raw)
	if err != nil {
		return fmt.Errorf("save snapshot %d: %w", revision, err)
	}
	revisions, err := d.revisions()
	if err != nil {
		return err
	}
	for _, old := range revisions[min(len(revisions), snapshotsKept):] {
		if err := os.Remove(d.path(old)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old snapshot: %w", err)
		}
	}
	return nil
}

// load returns the snapshots that are intact, newest first, and an error for each that is not.
func (d disk) load() (found []stored, damaged []error) {
	revisions, err := d.revisions()
	if err != nil {
		return nil, []error{err}
	}
	for _, revision := range revisions {
		s, err := d.read(revision)
		if err != nil {
			damaged = append(damaged, fmt.Errorf("snapshot %d on disk: %w", revision, err))
			continue
		}
		found = append(found, s)
	}
	return found, damaged
}

func (d disk) read(revision uint64) (s stored, err error) {
	f, err := os.Open(d.path(revision))
	if err != nil {
		return s, err
	}
	defer f.Close()
	limit := int64(len(fileMagic) + sha256.Size + model.SnapshotBytesMax)
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return s, err
	}
	if int64(len(data)) > limit {
		return s, fmt.Errorf("has more than %d bytes", limit)
	}
	s, err = parseFile(data)
	if err == nil && s.snapshot.Revision != revision {
		err = fmt.Errorf("holds revision %d", s.snapshot.Revision)
	}
	return s, err
}

// parseFile reads the contents of a snapshot's file; the result keeps data.
func parseFile(data []byte) (s stored, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(fileMagic))
	if !ok || len(rest) < sha256.Size {
		return s, errors.New("not a snapshot's file")
	}
	s.raw = rest[sha256.Size:]
	s.hash = sha256.Sum256(s.raw)
	if !bytes.Equal(s.hash[:], rest[:sha256.Size]) {
		return s, errors.New("checksum is wrong")
	}
	s.snapshot, err = model.DecodeSnapshot(s.raw)
	return s, err
}

// revisions returns the revisions on disk, newest first.
func (d disk) revisions() ([]uint64, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var revisions []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), fileSuffix)
		if n, err := strconv.ParseUint(name, 10, 64); ok && err == nil {
			revisions = append(revisions, n)
		}
	}
	slices.Sort(revisions)
	slices.Reverse(revisions)
	return revisions, nil
}

func (d disk) path(revision uint64) string {
	return filepath.Join(d.dir, fmt.Sprintf("%020d%s", revision, fileSuffix))
}

// replaceFile makes path hold parts, durably, or leaves what was there.
func replaceFile(path string, parts ...[]byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	for _, part := range parts {
		if err == nil {
			_, err = f.Write(part)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
