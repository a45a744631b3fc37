package scenario

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestUpgrade has nodes upgraded under 200 new connections a second, long flows and UDP flows: an edge with the
// kernel's dispatcher and two accepting sockets, and a gateway. NEARCAST_UPGRADES=20 is the full size, with
// 500 long flows.
func TestUpgrade(t *testing.T) {
	netns.RequireRoot(t, "pins")
	upgrades, long := 3, 100
	if s := os.Getenv("NEARCAST_UPGRADES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		upgrades, long = n, 25*n
	}
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := raise(t, "main", named("upg"), world.Options{Pins: pins, NodeArgs: []string{"--accept-sockets", "2"}})
	t.Cleanup(func() { d.stopNext(t, "sin-1", "fra-1") })
	t.Run("dispatch", func(t *testing.T) { d.upgradeUnderLoad(t, "sin-1", upgrades, long, 0) })
	t.Run("gateway", func(t *testing.T) { d.upgradeUnderLoad(t, "fra-1", 1, long, -1) })
}

// TestUpgradePlain is the same without any kernel program: TCP is kept as well, UDP flows go over to the next
// process, with what was on its way lost.
func TestUpgradePlain(t *testing.T) {
	netns.RequireRoot(t, "network namespaces")
	d := raise(t, "main", named("upp"), world.Options{NodeArgs: []string{"--kernel-dispatch", "off", "--kernel-tune", "off"}})
	t.Cleanup(func() { d.stopNext(t, "sin-1") })
	d.upgradeUnderLoad(t, "sin-1", 2, 50, -1)
}

// pid returns the process that serves as a node.
func (d *deployment) pid(t *testing.T, node string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.DataDir(node), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// stopNext ends the processes that upgrades have started.
func (d *deployment) stopNext(t *testing.T, nodes ...string) {
	for _, node := range nodes {
		for _, p := range d.NS(node).Processes() {
			_ = syscall.Kill(p.PID, syscall.SIGTERM)
		}
		eventually(t, 90*time.Second, node+" ends", func() error {
			if left := d.NS(node).Processes(); len(left) > 0 {
				return fmt.Errorf("%d processes are left", len(left))
			}
			return nil
		})
	}
}

// underWayAtUpgrade bounds the new connections under way: 20 are on a machine that can do 200 a second.
const underWayAtUpgrade = 100

// slowMachine is how much later than on one with CPU to spare things may be before datagrams that are on their way at an
// upgrade may be lost.
const slowMachine = time.Second

// upgradeUnderLoad asserts that no new and no long connection fails, that every UDP flow goes on, and that no
// more datagrams than lossMax are lost (-1: any number).
func (d *deployment) upgradeUnderLoad(t *testing.T, node string, upgrades, count, lossMax int) {
	ctx, cancel := context.WithCancel(d.ctx)
	long, stop := d.openLong(t, count, 500*time.Millisecond)
	udp := &udpFlows{dial: d.Dial("jakarta"), at: d.at(load.PortUDP).String(), count: 20}
	var running sync.WaitGroup
	defer running.Wait() // also where an upgrade fails and ends the test
	defer cancel()
	running.Go(func() { udp.run(ctx, t) })
	eventually(t, 60*time.Second, "all UDP flows are answered", func() error {
		if n := udp.begun.Load(); n < int64(udp.count) {
			return fmt.Errorf("%d of %d", n, udp.count)
		}
		return nil
	})
	beside := d.direct("jakarta", "us-iad-1", 20*time.Millisecond)
	defer beside.end()
	attempts := d.steadyRateUpTo(underWayAtUpgrade, "jakarta", 5*time.Millisecond, func() {
		for n := range upgrades {
			d.upgrade(t, node)
			t.Logf("upgrade %d of %d: process %d serves", n+1, upgrades, d.pid(t, node))
		}
		sent := udp.answered.Load()
		eventually(t, 60*time.Second, "UDP flows go on", func() error {
			if udp.answered.Load() < sent+int64(20*udp.count) {
				return fmt.Errorf("%d answers more", udp.answered.Load()-sent)
			}
			return nil
		})
	})
	if slower := beside.slower(t); lossMax >= 0 && slower > slowMachine {
		lossMax += upgrades * udp.count // what is on its way at a change
	}
	cancel()
	running.Wait()
	stop()
	failed := load.Failed(attempts)
	t.Logf("%d upgrades of %s: %d new connections, %d failed; %d long ones, %d broken, %d messages, longest silence %v; "+
		"%d UDP flows, %d datagrams, %d lost, %d silent at the end", upgrades, node, len(attempts), len(failed), count,
		long.Broken.Load(), long.Messages.Load(), long.Silence().Round(time.Millisecond), udp.count, udp.sent.Load(),
		udp.sent.Load()-udp.answered.Load(), udp.silent.Load())
	if len(attempts) < 20*upgrades { // a slow machine makes fewer than 200 a second
		t.Errorf("only %d new connections were tried", len(attempts))
	}
	for i, a := range failed {
		if i < 5 {
			t.Errorf("new connection: %v", a.Err)
		}
	}
	if n := long.Broken.Load(); n > 0 {
		t.Errorf("%d of %d long connections broke: %v", n, count, long.Errors())
	}
	if n := udp.silent.Load(); n > 0 {
		t.Errorf("%d of %d UDP flows are silent", n, udp.count)
	}
	if lost := udp.sent.Load() - udp.answered.Load(); lossMax >= 0 && lost > int64(lossMax) {
		t.Errorf("%d of %d datagrams were lost, want at most %d", lost, udp.sent.Load(), lossMax)
	}
}

// upgrade upgrades a node by the operator's command.
func (d *deployment) upgrade(t *testing.T, node string) {
	t.Helper()
	cmd := d.NS(node).Cmd(d.ctx, filepath.Join(os.Getenv("NEARCAST_BIN"), "nearcast-edge"), "upgrade",
		"--data-dir", d.DataDir(node))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("upgrade: %v: %s", err, out)
	}
}

// udpFlows are clients that each send a datagram ten times a second and wait for its echo.
type udpFlows struct {
	dial  load.Dial
	at    string
	or    string // every second client's, if it is there
	count int

	sent, answered, silent atomic.Int64
	begun                  atomic.Int64 // clients that have had an answer
}

func (u *udpFlows) run(ctx context.Context, t *testing.T) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for i := range u.count {
		at := u.at
		if i%2 == 1 && u.or != "" {
			at = u.or
		}
		clients.Go(func() {
			c, err := u.dial(ctx, "udp", at)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			in, misses, first := make([]byte, 100), 0, true
			open := map[uint64]bool{} // sent, and not answered yet: on a busy machine an answer may be late
			read := func(deadline time.Time, want uint64) error {
				_ = c.SetReadDeadline(deadline)
				for {
					k, err := c.Read(in)
					if err != nil {
						return err
					}
					if k != 8 || !open[binary.BigEndian.Uint64(in)] {
						continue
					}
					got := binary.BigEndian.Uint64(in)
					delete(open, got)
					u.answered.Add(1)
					if first {
						u.begun.Add(1)
						first = false
					}
					if got == want {
						return nil
					}
				}
			}
			for n := uint64(0); ctx.Err() == nil; n++ {
				begin := time.Now()
				if _, err := c.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
					t.Error(err)
					return
				}
				u.sent.Add(1)
				open[n] = true
				if misses++; read(begin.Add(2*time.Second), n) == nil {
					misses = 0
				}
				time.Sleep(time.Until(begin.Add(100 * time.Millisecond)))
			}
			for end := time.Now().Add(10 * time.Second); len(open) > 0; {
				if read(end, 0) != nil {
					break
				}
			}
			if misses > 2 {
				u.silent.Add(1)
			}
		})
	}
}

// named gives a world namespaces of its own, so that it can stand beside another one of the same file.
func named(name string) func(*world.Spec) { return func(s *world.Spec) { s.Name = name } }
