package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
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
	rate := &load.Rate{Dial: d.Dial(city), Addr: d.at(world.ListenHTTP), Every: every, Timeout: 10 * time.Second, Size: 100}
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan struct{})
	go func() { rate.Run(ctx); close(done) }()
	fn()
	cancel()
	<-done
	return rate.Attempts()
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
	text, err := p.Get(context.Background(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(text) {
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

func mib(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }
