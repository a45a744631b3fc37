package leak

import (
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
