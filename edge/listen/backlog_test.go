package listen

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestBacklogBound: with a small backlog the kernel turns away whom there is no room for, which is counted, and
// takes them again when the bound is lifted.
func TestBacklogBound(t *testing.T) {
	l, err := (&Set{}).listenTCP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func(timeout time.Duration) bool {
		c, err := net.DialTimeout("tcp", l.Addr().String(), timeout)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err == nil
	}
	if err := setBacklog(l, 2); err != nil {
		t.Fatal(err)
	}
	taken, tries := 0, 0
	for end := time.Now().Add(patience); socketDrops(l) == 0; tries++ { // who is late on a busy machine has a place, too
		if connect(200 * time.Millisecond) {
			taken++
		}
		if taken > 10 || time.Now().After(end) {
			t.Fatalf("the backlog has no bound: it took %d", taken)
		}
	}
	if tries < 3 { // two that wait, and the one that was dropped
		t.Errorf("a bound of 2, and try %d was dropped", tries)
	}
	if err := setBacklog(l, 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if !connect(patience) {
			t.Fatal("the bound is still there")
		}
	}
}
