package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
)

// birdPath and frrPath are where Debian puts the routing daemons; the first is not in everybody's PATH.
const (
	birdPath = "/usr/sbin/bird"
	frrPath  = "/usr/lib/frr/"
)

// installed says which packages a world's routers lack on this machine.
func (b *BGPSpec) installed() error {
	if b == nil {
		return nil
	}
	var missing []string
	if _, err := exec.LookPath("bird"); err != nil {
		if _, err := os.Stat(birdPath); err != nil {
			missing = append(missing, "bird2")
		}
	}
	for _, r := range b.Routers {
		if !r.FRR {
			continue
		}
		if _, err := os.Stat(frrPath + "bgpd"); err != nil {
			missing = append(missing, "frr")
			break
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("this world's routers need the packages %[1]s: apt-get install %[1]s, or make demo-bgp",
		strings.Join(missing, " "))
}

// ASPath is a city's best route to an address: the autonomous systems on the way, the last of them the sites';
// empty while there is no route.
func (w *World) ASPath(ctx context.Context, city string, addr netip.Addr) (string, error) {
	out, err := w.Birdc(ctx, city, "show", "route", "for", addr.String(), "primary", "all")
	if err != nil && !strings.Contains(out, "not found") {
		return "", fmt.Errorf("%s: birdc: %w: %s", city, err, strings.TrimSpace(out))
	}
	return asPath(out), nil
}

func asPath(text string) string {
	for line := range strings.Lines(text) {
		if _, path, ok := strings.Cut(line, "BGP.as_path:"); ok {
			return strings.TrimSpace(path)
		}
	}
	return ""
}

// reachTries is how many connections tell which node a city reaches.
const reachTries = 3

// Reached makes a few connections from a city and says which node took them, by what the nodes count. Nothing
// else may connect meanwhile.
func (w *World) Reached(ctx context.Context, city string, addr netip.AddrPort) (string, error) {
	before, err := w.accepted(ctx)
	if err != nil {
		return "", err
	}
	for range reachTries {
		one, cancel := context.WithTimeout(ctx, attemptTimeout)
		_, err := load.Fetch(one, w.Dial(city), addr, 100)
		cancel()
		if err != nil {
			return "", fmt.Errorf("%s to %v: %w", city, addr, err)
		}
	}
	after, err := w.accepted(ctx)
	for name, n := range after {
		if n-before[name] >= reachTries {
			return name, err
		}
	}
	return "", errors.Join(err, fmt.Errorf("%s to %v: no node counted all of %d connections", city, addr, reachTries))
}

// accepted is what each living node has taken so far.
func (w *World) accepted(ctx context.Context) (map[string]float64, error) {
	all := map[string]float64{}
	for name, p := range w.Nodes {
		if p.PID() == 0 {
			continue
		}
		text, err := p.Get(ctx, "/metrics")
		if err != nil {
			return nil, err
		}
		all[name] = sumMetric(text, "nearcast_listen_accepted_total")
	}
	return all, nil
}

// sumMetric adds up a metric over its labels in Prometheus' text format.
func sumMetric(text, name string) (sum float64) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64); err == nil {
			sum += v
		}
	}
	return sum
}

// Away is what new connections of a city saw when the site that it reached was taken away.
type Away struct {
	Moved         time.Duration // until the city's best route led elsewhere
	Outage        time.Duration // connections that began later than this all succeeded
	Tried, Failed int           // connections since it was taken away
	Path          string        // the way that they go now
}

const (
	awayEvery = 20 * time.Millisecond
	awayAfter = 3 * time.Second // how long it is watched once the route has moved
)

// TakeAway makes new connections from a city at a steady pace while take does away with the site that it reaches,
// until its route has led elsewhere for a while.
func (w *World) TakeAway(ctx context.Context, city string, addr netip.AddrPort, take func() error) (Away, error) {
	before, err := w.ASPath(ctx, city, addr.Addr())
	if err != nil {
		return Away{}, err
	}
	rate := &load.Rate{Dial: w.Dial(city), Addr: addr, Every: awayEvery, Timeout: 2 * time.Second, Size: 100}
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); rate.Run(run) }()
	stop := func() { cancel(); <-done }
	defer stop()
	if err := sleep(ctx, 500*time.Millisecond); err != nil {
		return Away{}, err
	}
	begin := time.Now()
	if err := take(); err != nil {
		return Away{}, err
	}
	a := Away{}
	if a.Path, err = w.Moved(ctx, city, addr.Addr(), func(path string) bool { return path != before }); err != nil {
		return a, err
	}
	a.Moved = time.Since(begin)
	if err := sleep(ctx, awayAfter); err != nil {
		return a, err
	}
	stop()
	as := load.Since(rate.Attempts(), begin)
	a.Tried, a.Failed = len(as), len(load.Failed(as))
	i := len(as)
	for i > 0 && as[i-1].Err == nil {
		i--
	}
	switch {
	case i == len(as):
		return a, fmt.Errorf("new connections from %s fail still", city)
	case i > 0:
		a.Outage = as[i].At.Sub(begin)
	}
	a.Path, err = w.ASPath(ctx, city, addr.Addr())
	return a, err
}

// Moved waits until a city has a route and its path is as wanted, and returns it.
func (w *World) Moved(ctx context.Context, city string, addr netip.Addr, want func(string) bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, routerWait)
	defer cancel()
	for {
		path, err := w.ASPath(ctx, city, addr)
		if err == nil && path != "" && want(path) {
			return path, nil
		}
		if late := sleep(ctx, awayEvery); late != nil {
			return "", errors.Join(fmt.Errorf("%s's route to %v is %q still", city, addr, path), err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
