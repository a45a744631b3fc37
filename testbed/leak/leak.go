// Package leak answers: has everything ended that a package's tests started?
package leak

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines may take to end after the last test. goleak by itself gives them less than
// half a second, in which a busy machine may not have given each of hundreds its last turn: connections that
// were closed, members of a store that were stopped. One that stays, stays longer than this.
const patience = 15 * time.Second

// Main runs a package's tests and exits: with their code, or with 1 if they passed and left goroutines behind.
// It is all that a TestMain has to call.
func Main(m goleak.TestingM, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if err := wait(patience, options...); err != nil {
			fmt.Fprintf(os.Stderr, "%v after the last test there are goroutines left: %v\n", patience, err)
			code = 1
		}
	}
	os.Exit(code)
}

// wait returns nil as soon as no goroutines are left, and after patience those that are.
func wait(patience time.Duration, options ...goleak.Option) error {
	for end := time.Now().Add(patience); ; {
		err := goleak.Find(options...) // looks for up to half a second
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// runPatience is how long what a test runs may take to end when it is told to.
const runPatience = 30 * time.Second

// Run starts run in a goroutine and has it end with the test, or before that when stop is called, which may be
// done more than once. The test fails if run returns an error or does not end.
func Run(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(runPatience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}
