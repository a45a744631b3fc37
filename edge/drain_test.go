package edge

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// TestDrainDatagrams: a draining node waits for flows in which datagrams pass, and not for those that are silent,
// however long they may be idle.
func TestDrainDatagrams(t *testing.T) {
	f := newFleetWith(t, func(c *Config) { c.DrainTimeout = time.Hour })
	idle := configuration(11, f.client, f.echo.addr)
	idle.Listeners[0].UDPIdleTimeout = time.Hour
	f.set(idle)
	if ack := f.applied("door", 11); !ack.GetApplied() {
		t.Fatal(ack)
	}
	silent, busy := dialUDP(t, f), dialUDP(t, f)
	for _, c := range []net.Conn{silent, busy} {
		eventually(t, "a flow of datagrams", func() bool { return says(c, "first") == nil })
	}
	f.door.stop()
	eventually(t, "the door drains", func() bool { return f.door.node.Status().Draining })
	last := time.Now()
	for n := 0; time.Since(last) < drainUDPQuiet/2 && n < 70; n++ { // longer than the silent flow is waited for
		if err := says(busy, fmt.Sprint("still ", n)); err != nil {
			t.Errorf("a flow that is busy, %v after its last datagram: %v", time.Since(last), err)
			break
		}
		last = time.Now()
		time.Sleep(50 * time.Millisecond)
	}
	f.door.wait()
}

func dialUDP(t *testing.T, f *fleet) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", f.client.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// says sends a datagram and wants it back.
func says(c net.Conn, what string) error {
	c.SetDeadline(time.Now().Add(drainUDPQuiet / 2))
	if _, err := c.Write([]byte(what)); err != nil {
		return err
	}
	b := make([]byte, 100)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if string(b[:n]) == what { // else an earlier one
			return nil
		}
	}
}
