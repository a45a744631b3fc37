package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// writerDir tells a child of this test binary to write to a store there until it is killed.
const writerDir = "NEARCAST_STORE_TEST_WRITER"

// TestKilled kills a process that writes, again and again, and checks that every boot works and that no
// write that was acknowledged is missing (R-ET3).
func TestKilled(t *testing.T) {
	if dir := os.Getenv(writerDir); dir != "" {
		writeForEver(t, dir)
		return
	}
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	dir := t.TempDir()
	acknowledged := 0
	for round := range rounds {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$", "-test.v")
		child.Env = append(os.Environ(), writerDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		writes, until := 0, 1+rand.IntN(60)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, ok := strings.CutPrefix(lines.Text(), "wrote "); ok {
				if _, err := fmt.Sscan(n, &acknowledged); err != nil {
					t.Fatal(err)
				}
				if writes++; writes == until { // it goes on writing while the signal is on its way
					if err := child.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if err := child.Wait(); err == nil || writes < until {
			t.Fatalf("round %d: the child ended by itself after %d writes: %v", round, writes, err)
		}
	}
	s, _ := start(t, Config{DataDir: dir})
	page := must[Page](t)(s.List(t.Context(), "n/", ListOptions{}))
	if len(page.Items) < acknowledged {
		t.Fatalf("%d of %d acknowledged writes are there", len(page.Items), acknowledged)
	}
	for i, kv := range page.Items {
		if kv.Key != fmt.Sprintf("n/%08d", i+1) {
			t.Fatalf("write %d is missing", i+1)
		}
	}
	t.Logf("%d writes acknowledged, %d there", acknowledged, len(page.Items))
}

// writeForEver writes n/1, n/2 … and says each one that was acknowledged. It goes on where an earlier
// one was killed, and tries again what a slow disk was not in time for: that may have been written all the same.
func writeForEver(t *testing.T, dir string) {
	s, err := New(Config{DataDir: dir, Timeout: time.Minute}) // with fsync
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	go s.Run(ctx)
	page := settled(t, func() (Page, error) { return s.List(ctx, "n/", ListOptions{}) })
	for n := len(page.Items) + 1; ; n++ {
		key, tries := fmt.Sprintf("n/%08d", n), 0
		settled(t, func() (uint64, error) {
			tries++
			rev, err := s.Txn(ctx, []Cond{Absent(key)}, Put(key, nil))
			if tries > 1 && errors.Is(err, ErrConflict) {
				err = nil
			}
			return rev, err
		})
		fmt.Printf("\nwrote %d\n", n)
	}
}
