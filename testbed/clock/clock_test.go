package clock_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/clock"
	"github.com/nearcast/nearcast/testbed/netns"
)

// TestMain is the program under test, too: one that says what time it is, before and after a pause.
func TestMain(m *testing.M) {
	if os.Getenv("CLOCK_TEST_SAYS") == "" {
		os.Exit(m.Run())
	}
	begin := time.Now()
	fmt.Println(begin.Unix())
	time.Sleep(20 * time.Millisecond)
	fmt.Println(time.Since(begin).Nanoseconds())
}

// TestShift: a Go program and one of the C library have another wall clock, and pauses are as long as ever.
func TestShift(t *testing.T) {
	ns, err := netns.ForTest(t, "a process of its own clock").New("a")
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []time.Duration{time.Hour, -time.Hour, 0} {
		run := func(name string, args ...string) []string {
			cmd := ns.Cmd(t.Context(), name, args...)
			cmd.Env = append(os.Environ(), "CLOCK_TEST_SAYS=1")
			cmd.AtExec = func(pid int) error { return clock.Shift(pid, off) }
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s, %v off: %v", name, off, err)
			}
			return strings.Fields(string(out))
		}
		near := func(what, text string) {
			t.Helper()
			says, err := strconv.ParseInt(text, 10, 64)
			if got := time.Until(time.Unix(says, 0)); err != nil || (got-off).Abs() > 5*time.Minute {
				t.Errorf("%s: its clock is %v off, want %v (%v)", what, got, off, err)
			}
		}
		words := run(os.Args[0])
		near("Go", words[0])
		// A pause is measured by the monotonic clock: a wall clock that is an hour off is none of its business.
		if pause, err := strconv.ParseInt(words[1], 10, 64); err != nil || pause < 20e6 || pause > 60e9 {
			t.Errorf("a pause of 20 ms was %d ns, %v", pause, err)
		}
		near("C", run("date", "+%s")[0])
	}
}

func TestShiftRefuses(t *testing.T) {
	for _, off := range []time.Duration{time.Millisecond, 1 << 62} {
		if err := clock.Shift(os.Getpid(), off); err == nil {
			t.Errorf("%v: no error", off)
		}
	}
	if err := clock.Shift(1<<30, time.Hour); err == nil {
		t.Error("a process that is not there: no error")
	}
}
