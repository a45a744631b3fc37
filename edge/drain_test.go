package edge

import (
	"errors"
	"fmt"
	"net"
	"os"
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
	for _, c := range []*talker{silent, busy} {
		eventually(t, "a flow of datagrams", func() bool { return c.says("first") == nil })
	}
	busy.pause = 0
	f.door.stop()
	for n := range 70 { // longer than the silent flow is waited for
		if err := busy.says(fmt.Sprint("still ", n)); err != nil {
			if busy.pause > drainUDPQuiet/2 {
				t.Logf("this machine let the flow be silent for %v: nothing is to be said of it", busy.pause)
				break
			}
			t.Fatalf("a flow that was never silent for more than %v: %v", busy.pause, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	f.door.wait()
}

// talker is a client whose datagrams come back.
type talker struct {
	net.Conn
	last  time.Time     // when it last sent one
	pause time.Duration // the longest between two
}

func dialUDP(t *testing.T, f *fleet) *talker {
	t.Helper()
	c, err := net.Dial("udp", f.client.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &talker{Conn: c}
}

// says sends a datagram, again and again, until it comes back.
func (c *talker) says(what string) error {
	for end := time.Now().Add(patience); ; {
		if _, err := c.Write([]byte(what)); err != nil {
			return err
		}
		now := time.Now()
		if !c.last.IsZero() {
			c.pause = max(c.pause, now.Sub(c.last))
		}
		c.last = now
		c.SetReadDeadline(now.Add(300 * time.Millisecond))
		if err := c.hears(what); !errors.Is(err, os.ErrDeadlineExceeded) || now.After(end) {
			return err
		}
	}
}

// hears waits for a datagram.
func (c *talker) hears(what string) error {
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
