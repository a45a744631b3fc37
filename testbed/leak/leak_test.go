package leak

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { Main(m) }

// TestWait: what is slow to end is no leak, what stays is one and is named.
func TestWait(t *testing.T) {
	before := goleak.IgnoreCurrent()
	time.AfterFunc(0, func() { lingers(time.Second) })
	if err := wait(patience, before); err != nil {
		t.Errorf("a goroutine that ends after a second: %v", err)
	}
	stop := make(chan struct{})
	go stays(stop)
	if err := wait(time.Millisecond, before); err == nil || !strings.Contains(err.Error(), "leak.stays") {
		t.Errorf("a goroutine that stays: %v", err)
	}
	close(stop)
}

func lingers(d time.Duration) { time.Sleep(d) }

func stays(stop <-chan struct{}) { <-stop }

// failures is a test that remembers how it failed instead of failing.
type failures struct {
	testing.TB
	said    []string
	cleanup func()
}

func (*failures) Helper()             {}
func (f *failures) Cleanup(fn func()) { f.cleanup = fn }
func (f *failures) Errorf(form string, args ...any) {
	f.said = append(f.said, fmt.Sprintf(form, args...))
}

// TestRun: what runs ends with the test or before it, once, and its error fails the test.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"in order":      {nil, nil},
		"with an error": {errors.New("broken"), []string{"Run: broken"}},
	} {
		for _, early := range []bool{false, true} {
			f, ends := &failures{TB: t}, 0
			stop := Run(f, func(ctx context.Context) error { <-ctx.Done(); ends++; return c.err })
			if early {
				stop()
				stop()
			}
			f.cleanup()
			if ends != 1 || !slices.Equal(f.said, c.want) {
				t.Errorf("%s: ended %d times, %q; want once, %q", name, ends, f.said, c.want)
			}
		}
	}
}
