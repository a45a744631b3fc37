package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// deployment is a raised world with an accelerated application, shared by the scenarios of a test.
type deployment struct {
	*world.World
	app *world.App
	ctx context.Context
}

// raise raises a shipped world for one test with its accelerated application, and asserts afterwards that
// nothing of it is left.
func raise(t *testing.T, name string, change func(*world.Spec), opt world.Options) *deployment {
	t.Helper()
	d := stand(t, name, change, opt)
	app, err := d.Accelerate(d.ctx, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	d.app = app
	return d
}

// stand is raise without the application.
func stand(t *testing.T, name string, change func(*world.Spec), opt world.Options) *deployment {
	t.Helper()
	netns.RequireRoot(t, "network namespaces")
	if opt.Bin = os.Getenv("NEARCAST_BIN"); opt.Bin == "" {
		t.Fatal("NEARCAST_BIN must name the directory of the built binaries: use make test-root")
	}
	spec, err := world.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(spec)
	}
	// Of this process's own, so that a world can stand beside another process's of the same file: three letters, and
	// five of a process id.
	short := spec.Name[:min(3, len(spec.Name))]
	spec.Name = short + strconv.FormatInt(int64(os.Getpid()), 36)
	if _, err := netns.Sweep(short); err != nil { // what a run left that was killed
		t.Log(err)
	}
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	opt.Say = t.Logf
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	w, err := world.Raise(ctx, spec, opt)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left := netns.Names(spec.Name + "-"); len(left) != 0 {
			t.Errorf("namespaces left: %v", left)
		}
		if t.Failed() {
			w.DumpLogs(t.Logf)
		}
	})
	return &deployment{World: w, ctx: ctx}
}

// at returns an accelerated address and port, IPv4.
func (d *deployment) at(port int) netip.AddrPort {
	return netip.AddrPortFrom(d.app.Addresses[0], uint16(port))
}

// at6 returns an accelerated address and port, IPv6, in a world whose pools have both.
func (d *deployment) at6(port int) netip.AddrPort {
	for _, a := range d.app.Addresses {
		if a.Is6() {
			return netip.AddrPortFrom(a, uint16(port))
		}
	}
	return netip.AddrPort{}
}

// eventually waits until cond holds, and fails the test after limit.
func eventually(t *testing.T, limit time.Duration, what string, cond func() error) time.Duration {
	t.Helper()
	begin, last := time.Now(), error(nil)
	for time.Since(begin) < limit {
		if last = cond(); last == nil {
			return time.Since(begin)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: not within %v: %v", what, limit, last)
	return 0
}

// steadyRate runs new connections from a city while fn breaks things, and returns the attempts.
func (d *deployment) steadyRate(city string, every time.Duration, fn func()) []load.Attempt {
	return d.steadyRateUpTo(0, city, every, fn)
}

// steadyRateUpTo is steadyRate with at most so many connections under way at once (0: any number), so that a machine
// which can't do as many is not buried under those that wait.
func (d *deployment) steadyRateUpTo(most int, city string, every time.Duration, fn func()) []load.Attempt {
	r := d.rate(city, d.at(world.ListenHTTP), every, most)
	defer r.end() // also where fn ends the test: what follows has the machine to itself
	fn()
	return r.end()
}

// running is connections that are made at a steady pace until end.
type running struct {
	rate   *load.Rate
	cancel context.CancelFunc
	done   chan struct{}
}

// rate makes connections from a city to an address at a steady pace.
func (d *deployment) rate(city string, to netip.AddrPort, every time.Duration, most int) *running {
	ctx, cancel := context.WithCancel(d.ctx)
	r := &running{&load.Rate{Dial: d.Dial(city), Addr: to, Every: every, Timeout: attemptTimeout, Size: 100, Most: most},
		cancel, make(chan struct{})}
	go func() { r.rate.Run(ctx); close(r.done) }()
	return r
}

// attemptTimeout is how long a client of a steady rate waits for its answer.
const attemptTimeout = 10 * time.Second

// end stops them and returns what came of them. It may be called again.
func (r *running) end() []load.Attempt {
	r.cancel()
	<-r.done
	return r.rate.Attempts()
}

// openLong opens connections from jakarta that stay, and waits until each of them has been answered: before that
// they are new ones. stop ends them, and so does the test's end.
func (d *deployment) openLong(t *testing.T, count int, every time.Duration) (long *load.Long, stop func()) {
	t.Helper()
	long = &load.Long{Dial: d.Dial("jakarta"), Addr: d.at(load.PortEcho), Count: count, Every: every}
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan error, 1)
	go func() { done <- long.Run(ctx, nil) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	eventually(t, 60*time.Second, "all long connections are answered", func() error {
		if n := long.Answered.Load(); n < int64(count) {
			return errors.Join(fmt.Errorf("%d of %d", n, count), long.Errors())
		}
		return nil
	})
	return long, stop
}

// fetchFrom asks once and returns who answered.
func (d *deployment) fetchFrom(city string) (load.Times, error) {
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	return load.Fetch(ctx, d.Dial(city), d.at(world.ListenHTTP), 100)
}

// metric reads one sample (without labels, or the sum over them) from a process's /metrics.
func metric(t *testing.T, p *world.Process, name string) float64 {
	t.Helper()
	sum, found := 0.0, false
	for line := range strings.Lines(metrics(t, p)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if labels := strings.IndexByte(key, '{'); labels >= 0 {
			value = line[strings.LastIndexByte(line, ' ')+1:]
			key = key[:labels]
		}
		if !ok || key != name {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			t.Fatalf("metric %s: %v", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		t.Fatalf("%s has no metric %s", p.Name, name)
	}
	return sum
}

// metrics returns all that a process counts.
func metrics(t *testing.T, p *world.Process) (text string) {
	t.Helper()
	eventually(t, 60*time.Second, p.Name+" shows its metrics", func() (err error) { // it may be busy
		text, err = p.Get(context.Background(), "/metrics")
		return err
	})
	return text
}

func mib(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }
