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
	taken := 0
	for connect(200 * time.Millisecond) {
		if taken++; taken > 10 {
			t.Fatal("the backlog has no bound")
		}
	}
	if taken < 2 || socketDrops(l) == 0 {
		t.Errorf("%d connections wait with a bound of 2, and %d were dropped", taken, socketDrops(l))
	}
	if err := setBacklog(l, 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if !connect(15 * time.Second) {
			t.Fatal("the bound is still there")
		}
	}
}
