package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestNoteCrashes(t *testing.T) {
	t.Cleanup(func() { _ = debug.SetCrashOutput(nil, debug.CrashOptions{}) })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, crashFile)
	for range 2 { // first start, and one after an end in order or by SIGKILL
		if noteCrashes(dir, log) {
			t.Error("a crash was seen where none was")
		}
	}
	words := bytes.Repeat([]byte("panic: it broke\n"), crashBytesMax/8)
	if err := os.WriteFile(path, words, 0o600); err != nil {
		t.Fatal(err)
	}
	if !noteCrashes(dir, log) {
		t.Error("the crash was not seen")
	}
	if kept, err := os.ReadFile(path + ".old"); err != nil || len(kept) != crashBytesMax {
		t.Errorf("%d bytes of its last words are kept, %v", len(kept), err)
	}
	if noteCrashes(dir, log) {
		t.Error("the crash was counted twice")
	}
	if noteCrashes(path, log) { // a file where the directory should be
		t.Error("a crash was seen without a data directory")
	}
}
