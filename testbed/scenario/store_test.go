package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/nearcast/nearcast/testbed/world"
)

// TestStore has the controller's store fill up, its disk, too, and its disk be read-only: clients notice
// nothing, operators are told what to do, and when that is done changes are taken.
func TestStore(t *testing.T) {
	d := raise(t, "main", func(s *world.Spec) { s.Name = "store" }, world.Options{ControllerArgs: []string{
		"--etcd-client-listen", "127.0.0.1:2379", "--store-quota", "16MiB"}})
	t.Run("history", d.storeHistory)
	t.Run("full", d.storeFull)
	t.Run("disk", d.storeDisk)
}

// etcd connects to the controller's store, as etcd's own tools do.
func (d *deployment) etcd(t *testing.T) *clientv3.Client {
	t.Helper()
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		return d.NS(d.Controllers[0].Name).DialContext(ctx, "tcp", addr)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fillStore writes at keys that name makes of a number until the store refuses and full says that it will go on
// to: at first it makes room of what fragments it has.
func (d *deployment) fillStore(t *testing.T, name func(i int) string, full func() bool) {
	t.Helper()
	c, end := d.etcd(t), time.Now().Add(time.Minute)
	for i := 0; time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(d.ctx, 30*time.Second)
		_, err := c.Put(ctx, name(i), strings.Repeat("x", 200<<10))
		cancel()
		switch {
		case err == nil:
			i++
		case !errors.Is(err, rpctypes.ErrNoSpace):
			t.Fatal(err)
		case full():
			return
		default:
			time.Sleep(50 * time.Millisecond)
		}
	}
	t.Fatal("the store did not fill up within a minute")
}

func (d *deployment) create(name string) error {
	_, err := d.CLI(d.ctx, "accelerator", "create", name, "--disabled", "--idempotency-token", name)
	return err
}

// storeHistory: old revisions fill the store, as many changes would; it makes room by itself.
func (d *deployment) storeHistory(t *testing.T) {
	d.fillStore(t, func(int) string { return "/filler" }, func() bool { return true })
	took := eventually(t, 30*time.Second, "a change is taken again", func() error { return d.create("after-history") })
	t.Logf("full of history: a change was taken %v after", took.Round(time.Millisecond))
	eventually(t, 10*time.Second, "it is counted", func() error {
		if n := metric(t, d.Controllers[0], "nearcast_store_freed_total"); n < 1 {
			return fmt.Errorf("freed %v times", n)
		}
		return nil
	})
}

// storeFull: live data fills the store. The controller goes on, also anew, and takes changes with more room.
func (d *deployment) storeFull(t *testing.T) {
	ctl := d.Controllers[0]
	d.fillStore(t, func(i int) string { return fmt.Sprint("/filler-", i) }, func() bool {
		text, err := os.ReadFile(ctl.Log)
		return err == nil && strings.Contains(string(text), "also without history")
	})
	as := d.steadyRate("jakarta", 25*time.Millisecond, func() {
		err := d.create("in-a-full-store")
		if err == nil || !strings.Contains(err.Error(), "store is full") || !strings.Contains(err.Error(), "--store-quota") {
			t.Errorf("a change in a full store: %v", err)
		}
		t.Logf("a change in a full store: %v", err)
		if v := metric(t, ctl, "nearcast_store_full"); v != 1 {
			t.Errorf("nearcast_store_full is %v", v)
		}
		if out, err := d.CLI(d.ctx, "status", "--check"); err == nil || !strings.Contains(out, "--store-quota") {
			t.Errorf("status --check: %v: %s", err, out)
		}
		kill(t, ctl)
		d.do(t, ctl.Start())
		pid := ctl.PID()
		eventually(t, 30*time.Second, "the controller, begun anew, answers", func() error {
			_, err := d.CLI(d.ctx, "accelerator", "get", "after-history")
			return err
		})
		d.connected(t, "sin-1")
		if body, err := ctl.Get(d.ctx, "/readyz"); err == nil || !strings.Contains(body, "store is full") {
			t.Errorf("/readyz: %v %q", err, body)
		}
		if ctl.PID() != pid {
			t.Error("the controller ended because its store is full")
		}
	})
	d.noneFailed(t, "a full store", as)
	kill(t, d.Nodes["sin-1"])
	d.start(t, d.Nodes["sin-1"])
	if _, err := d.fetchFrom("jakarta"); err != nil {
		t.Errorf("an edge that was started with a full store: %v", err)
	}
	kill(t, ctl)
	ctl.AddArgs("--store-quota", "32MiB")
	begin := time.Now()
	d.do(t, ctl.Start())
	eventually(t, 30*time.Second, "a change is taken with more room", func() error { return d.create("more-room") })
	t.Logf("with a larger quota: a change was taken %v after the start", time.Since(begin).Round(time.Millisecond))
}

// connected waits until the control plane has a stream to a node.
func (d *deployment) connected(t *testing.T, node string) {
	t.Helper()
	eventually(t, 30*time.Second, node+" is connected", func() error {
		var n struct {
			Connected bool `json:"connected"`
		}
		if err := d.CLIJSON(d.ctx, &n, "node", "get", node, "-o", "json"); err != nil {
			return err
		}
		if !n.Connected {
			return errors.New("it is not")
		}
		return nil
	})
}

// storeDisk: the controller's disk is full, then read-only. It ends and says why; when there is room it has
// all that it had said yes to.
func (d *deployment) storeDisk(t *testing.T) {
	ctl, dir := d.Controllers[0], d.DataDir(d.Controllers[0].Name)
	kill(t, ctl)
	aside := dir + ".aside"
	d.do(t, os.Rename(dir, aside))
	d.do(t, os.Mkdir(dir, 0o700))
	d.do(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"))
	t.Cleanup(func() {
		kill(t, ctl)
		d.do(t, unix.Unmount(dir, 0))
		d.do(t, os.Remove(dir))
		d.do(t, os.Rename(aside, dir))
	})
	d.do(t, os.CopyFS(dir, os.DirFS(aside)))
	d.start(t, ctl)
	d.do(t, d.create("before"))
	filler := dir + "/filler"
	fill(t, filler)
	taken := []string{"before"}
	d.noneFailed(t, "the controller's disk is full", d.steadyRate("jakarta", 25*time.Millisecond, func() {
		c := d.etcd(t)
		// Some fits into what the store has of the disk already.
		eventually(t, 60*time.Second, "the controller ends", func() error {
			if ctl.PID() == 0 {
				return nil
			}
			if name := fmt.Sprint("disk-", len(taken)); len(taken) < 5 && d.create(name) == nil {
				taken = append(taken, name)
			}
			ctx, cancel := context.WithTimeout(d.ctx, time.Second)
			defer cancel()
			_, err := c.Put(ctx, "/disk", strings.Repeat("x", 1<<20))
			return fmt.Errorf("it runs: %v", err)
		})
	}))
	t.Logf("it took %d changes more, and ended with: %s", len(taken)-1, d.lastWords(t, ctl, "no space left on device"))
	d.do(t, os.Remove(filler))
	d.start(t, ctl)
	d.have(t, taken)

	kill(t, ctl)
	d.do(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	d.noneFailed(t, "the controller's disk is read-only", d.steadyRate("jakarta", 25*time.Millisecond, func() {
		d.do(t, ctl.Start())
		eventually(t, 60*time.Second, "the controller ends", func() error {
			if ctl.PID() != 0 {
				return errors.New("it runs")
			}
			return nil
		})
	}))
	t.Logf("read-only: it ended with: %s", d.lastWords(t, ctl, "read-only file system"))
	d.do(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=256m"))
	d.start(t, ctl)
	d.have(t, taken)
	d.do(t, d.create("after"))
}

// lastWords returns the last line of a process's log that says why.
func (d *deployment) lastWords(t *testing.T, p *world.Process, why string) string {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i := len(lines) - 1; i >= max(0, len(lines)-40); i-- {
		if strings.Contains(lines[i], why) {
			return lines[i]
		}
	}
	t.Errorf("%s did not say %q", p.Name, why)
	return ""
}

func (d *deployment) have(t *testing.T, names []string) {
	t.Helper()
	for _, name := range names {
		if _, err := d.CLI(d.ctx, "accelerator", "get", name); err != nil {
			t.Errorf("a change that was taken is lost: %v", err)
		}
	}
}
