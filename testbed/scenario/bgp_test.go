package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestAnycast announces the same addresses from three sites to real routers, and takes the sites away in
// every way: gently, by a crash, whole, and one zone of two. Sessions are MD5-signed and under TTL security.
func TestAnycast(t *testing.T) {
	d := raise(t, "bgp", nil, world.Options{})
	if err := d.Routed(d.ctx, d.app.Addresses); err != nil {
		text, _ := d.CLI(d.ctx, "announce", "status")
		t.Fatalf("%v\n%s", err, text)
	}
	text, err := d.CLI(d.ctx, "announce", "status")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("nearcast announce status:\n%s", text)
	t.Run("nothing else leaves", d.onlyOwnPrefixes)
	t.Run("a wrong password", d.wrongPassword)
	t.Run("no neighbour, for all one knows", d.fartherAway)
	t.Run("site drained", d.siteDrained)
	t.Run("node drained", d.nodeDrained)
	// What follows takes minutes, and has not been seen to pass as a whole yet.
	if os.Getenv("NEARCAST_ANYCAST_FULL") == "" {
		return
	}
	t.Run("each city reaches its nearest site", d.nearestSite)
	t.Run("node stopped", d.nodeStopped)
	t.Run("node killed", d.nodeKilled)
	t.Run("process restarted gracefully", d.gracefulRestart)
	t.Run("one zone lost", d.zoneLost)
	t.Run("every controller killed", d.announcedWithoutControllers)
	t.Run("site lost, BFD", func(t *testing.T) { d.siteLost(t, "with BFD (3 × 100 ms)", 9*time.Second) })
	d.Spec.BGP.NoBFD = true
	if err := d.Reject(); err != nil { // which writes the routers' configurations anew
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "no router of London's watches by BFD", func() error {
		for _, r := range []string{"london", "rt-fra"} {
			// birdc fails where no BFD runs at all.
			if out, _ := d.Birdc(d.ctx, r, "show", "bfd", "sessions"); out == "" || strings.Contains(out, "172.31.") {
				return fmt.Errorf("%s: %s", r, out)
			}
		}
		return nil
	})
	t.Run("site lost, hold time", func(t *testing.T) { d.siteLost(t, "by the hold time (9 s)", 9*time.Second) })
}

// servedBy returns which node took a city's connections, by what the nodes count.
func (d *deployment) servedBy(t *testing.T, city string, addr netip.AddrPort) string {
	t.Helper()
	count := func() map[string]float64 {
		all := map[string]float64{}
		for name, p := range d.Nodes {
			if p.PID() != 0 {
				all[name] = metric(t, p, "nearcast_listen_accepted_total")
			}
		}
		return all
	}
	before := count()
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	for range 3 {
		if _, err := load.Fetch(ctx, d.Dial(city), addr, 100); err != nil {
			t.Errorf("%s to %v: %v", city, addr, err)
			return ""
		}
	}
	for name, n := range count() {
		if n-before[name] >= 3 {
			return name
		}
	}
	return ""
}

func (d *deployment) nearestSite(t *testing.T) {
	for _, c := range d.Spec.Cities {
		for _, a := range d.app.Addresses {
			at := netip.AddrPortFrom(a, world.ListenHTTP)
			if got := d.servedBy(t, c.Name, at); got != c.Site+"-1" {
				t.Errorf("%s reached %v at %q, want %s-1", c.Name, a, got, c.Site)
			}
		}
	}
}

// onlyOwnPrefixes: a router has exactly the two prefixes of the pools from a node, though the node's
// machine has many routes, and the router sent it all that it knows.
func (d *deployment) onlyOwnPrefixes(t *testing.T) {
	want := []string{"198.51.100.0/28", "203.0.113.0/28"}
	eventually(t, 30*time.Second, "the router has the node's two prefixes", func() error {
		out, err := d.Birdc(d.ctx, "rt-fra", "show", "route", "protocol", "fra_1")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var got []string
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 0 && strings.Contains(f[0], "/") {
				got = append(got, f[0])
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("the router has %v of the node, want %v:\n%s", got, want, out)
		}
		return nil
	})
	d.home(t)
}

// gentle runs new connections from London while something is taken away gently and brought back: none is
// refused or left without an answer but those that are under way when the route moves.
func (d *deployment) gentle(t *testing.T, what string, away, back func() error) {
	t.Helper()
	defer func() {
		if t.Failed() {
			text, _ := d.CLI(d.ctx, "announce", "status")
			status, _ := d.Nodes["fra-1"].Get(d.ctx, "/status")
			t.Logf("nearcast announce status:\n%s\n%s", text, status)
		}
	}()
	var moved time.Duration
	var gone time.Time
	as := d.steadyRate("london", 10*time.Millisecond, func() {
		time.Sleep(500 * time.Millisecond)
		begin := time.Now()
		if err := away(); err != nil {
			t.Error(err)
			return
		}
		eventually(t, 60*time.Second, "London goes elsewhere", func() error { return d.leads("london", false) })
		gone = time.Now()
		moved = gone.Sub(begin)
		time.Sleep(4 * time.Second) // past the withdrawal, and the shutting of doors
		if err := back(); err != nil {
			t.Error(err)
			return
		}
		eventually(t, 60*time.Second, "London comes back", func() error { return d.leads("london", true) })
		time.Sleep(time.Second)
	})
	say(t, what, as)
	t.Logf("%s: London went elsewhere %v after the command", what, moved.Round(time.Millisecond))
	// What is under way when a route moves meets a site that does not know it and is reset, be it in the
	// handshake: that is anycast, and routes may move more than once until all routers agree. Nobody is
	// refused, and nobody waits in vain.
	broken := 0
	for _, a := range load.Failed(as) {
		if errors.Is(a.Err, syscall.ECONNRESET) {
			broken++
			continue
		}
		t.Errorf("a new flow failed %v after the command: %v", a.At.Sub(gone.Add(-moved)).Round(time.Millisecond), a.Err)
	}
	t.Logf("%s: none was refused or timed out; %d of %d flows were under way when the route moved, and broke", what,
		broken, len(as))
	// A route moves twice, and may do so in two steps; on a slow machine flows take longer.
	if most := max(underWayMax, int(4*p99(as)/(10*time.Millisecond))); broken > most {
		t.Errorf("%s: %d flows broke while the routes moved, more than the %d that were under way", what, broken, most)
	}
}

// underWayMax is how many flows of these tests (100 a second, 130 ms each) are under way when a route moves,
// away and back, a few times each.
const underWayMax = 60

// leads says whether a city's best route leads to its own site's router, or why not.
func (d *deployment) leads(city string, home bool) error {
	out, err := d.NS(city).Cmd(d.ctx, "ip", "route", "get", d.app.Addresses[0].String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	near, err := d.Birdc(d.ctx, city, "show", "route", "for", d.app.Addresses[0].String(), "primary")
	if err != nil {
		return err
	}
	at := false
	for _, c := range d.Spec.Cities {
		if c.Name == city {
			at = strings.Contains(near, "rt_"+c.Site)
		}
	}
	if at != home || !strings.Contains(string(out), " dev bgp") {
		return fmt.Errorf("the route is %s%s", out, near)
	}
	return nil
}

func (d *deployment) cli(args ...string) func() error {
	return func() error { _, err := d.CLI(d.ctx, args...); return err }
}

func (d *deployment) siteDrained(t *testing.T) {
	d.gentle(t, "site drained and restored", d.cli("announce", "drain", "--site", "fra"),
		d.cli("announce", "restore", "--site", "fra"))
}

func (d *deployment) nodeDrained(t *testing.T) {
	d.gentle(t, "node drained and restored", d.cli("node", "drain", "fra-1"), d.cli("node", "restore", "fra-1"))
}

// nodeStopped: SIGTERM, as at an upgrade of the package: routes first, doors after.
func (d *deployment) nodeStopped(t *testing.T) {
	node := d.Nodes["fra-1"]
	d.gentle(t, "node stopped, and started again", func() error {
		go func() { _ = node.Stop() }() // takes as long as the drain
		return nil
	}, func() error {
		for node.PID() != 0 {
			time.Sleep(20 * time.Millisecond)
		}
		if err := node.Start(); err != nil {
			return err
		}
		return node.Ready(d.ctx)
	})
}

// elsewhere measures how long new connections from London fail after something was taken away.
func (d *deployment) elsewhere(t *testing.T, what string, take func() time.Time, atMost time.Duration) {
	t.Helper()
	var taken time.Time
	rate := &load.Rate{Dial: d.Dial("london"), Addr: d.at(world.ListenHTTP), Every: 20 * time.Millisecond,
		Timeout: 2 * time.Second, Size: 100}
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan struct{})
	go func() { rate.Run(ctx); close(done) }()
	time.Sleep(500 * time.Millisecond)
	taken = take()
	time.Sleep(atMost + 3*time.Second)
	cancel()
	<-done
	as := load.Since(rate.Attempts(), taken)
	say(t, what, as)
	i := len(as)
	for i > 0 && as[i-1].Err == nil {
		i--
	}
	if i == len(as) {
		t.Fatalf("%s: new connections fail still, the last: %v", what, as[i-1].Err)
	}
	outage := as[i].At.Sub(taken)
	t.Logf("%s: every connection that began %v after or later succeeded elsewhere", what, outage.Round(time.Millisecond))
	if outage > atMost+2*time.Second {
		t.Errorf("%s: it took %v, want at most %v", what, outage, atMost)
	}
}

func (d *deployment) home(t *testing.T) {
	t.Helper()
	defer func() {
		if t.Failed() {
			d.sayRoutes(t, "london", "rt-fra")
		}
	}()
	eventually(t, 60*time.Second, "London comes back, and stays for two seconds", func() error {
		for range 20 {
			if err := d.leads("london", true); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	})
}

// sayRoutes prints what nodes and routers think of their sessions and routes.
func (d *deployment) sayRoutes(t *testing.T, routers ...string) {
	text, _ := d.CLI(d.ctx, "announce", "status")
	t.Logf("nearcast announce status:\n%s", text)
	for _, r := range routers {
		for _, what := range [][]string{{"show", "protocols"}, {"show", "bfd", "sessions"}, {"show", "route", "all"}} {
			out, err := d.Birdc(d.ctx, r, what...)
			t.Logf("%s %s (%v):\n%s", r, strings.Join(what, " "), err, out)
		}
	}
	if b, err := os.ReadFile(d.Nodes["fra-1"].Log); err == nil {
		t.Logf("fra-1 says:\n%s", b[max(0, len(b)-12_000):])
	}
}

func (d *deployment) nodeKilled(t *testing.T) {
	node := d.Nodes["fra-1"]
	d.elsewhere(t, "node killed (SIGKILL)", func() time.Time {
		begin := time.Now()
		kill(t, node)
		return begin
	}, 9*time.Second)
	d.start(t, node)
	d.home(t)
}

// routeTime finds since when BIRD has a route.
var routeTime = regexp.MustCompile(`\d\d:\d\d:\d\d\.\d\d\d`)

// gracefulRestart: the process dies and is back within the restart time; the city's route never moves.
func (d *deployment) gracefulRestart(t *testing.T) {
	changed := time.Now()
	if _, err := d.CLI(d.ctx, "peer", "update", "fra/fra-1", "--restart-time", "60s", "--bfd=false"); err != nil {
		t.Fatal(err)
	}
	established := func() error {
		text, err := d.CLI(d.ctx, "announce", "status", "--site", "fra")
		if err == nil && strings.Count(text, "announced") < 2 {
			err = fmt.Errorf("not announced:\n%s", text)
		}
		return err
	}
	renewed := func() error { // and not the session of before
		var nodes []struct {
			Report struct {
				Sessions []struct {
					State string
					Since time.Time
				}
			}
		}
		if err := d.CLIJSON(d.ctx, &nodes, "announce", "status", "--site", "fra", "-o", "json"); err != nil {
			return err
		}
		for _, n := range nodes {
			for _, s := range n.Report.Sessions {
				if s.State == "established" && s.Since.After(changed) {
					return established()
				}
			}
		}
		return fmt.Errorf("no session since %v: %+v", changed, nodes)
	}
	eventually(t, 40*time.Second, "the session is back with graceful restart", renewed)
	d.home(t)
	route := func() (string, time.Time) {
		out, err := d.Birdc(d.ctx, "london", "show", "route", "for", d.app.Addresses[0].String(), "primary")
		if err != nil {
			t.Fatal(err)
		}
		since, err := time.Parse("15:04:05.000", routeTime.FindString(out))
		if err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		return routeTime.ReplaceAllString(out, "…"), since
	}
	before, was := route()
	kill(t, d.Nodes["fra-1"])
	d.start(t, d.Nodes["fra-1"])
	eventually(t, 30*time.Second, "the session is back", established)
	time.Sleep(7 * time.Second) // past the restarted speaker's waits and its End-of-RIB
	// (BIRD's time of the same moment wanders by a millisecond.)
	if after, since := route(); after != before || since.Sub(was).Abs() > 100*time.Millisecond {
		t.Errorf("the route of London has moved:\nsince %v %s\nsince %v %s", was, before, since, after)
	}
	t.Logf("London's route, before and after the restart: %s", strings.TrimSpace(before))
	if got := d.servedBy(t, "london", d.at(world.ListenHTTP)); got != "fra-1" {
		t.Errorf("London is served by %q", got)
	}
	changed = time.Now()
	if _, err := d.CLI(d.ctx, "peer", "update", "fra/fra-1", "--restart-time", "0s", "--bfd"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 40*time.Second, "the session is back", renewed)
	d.home(t)
}

// zoneLost: no router takes the first zone's prefix any more; the second address serves.
func (d *deployment) zoneLost(t *testing.T) {
	a, b := d.app.Addresses[0], d.app.Addresses[1]
	if err := d.Reject(d.Spec.Pools[0].Prefixes[0]); err != nil {
		t.Fatal(err)
	}
	fetch := func(addr netip.Addr) error {
		ctx, cancel := context.WithTimeout(d.ctx, 2*time.Second)
		defer cancel()
		_, err := load.Fetch(ctx, d.Dial("london"), netip.AddrPortFrom(addr, world.ListenHTTP), 100)
		return err
	}
	eventually(t, 30*time.Second, "the first zone is lost", func() error {
		if fetch(a) == nil {
			return fmt.Errorf("%v answers still", a)
		}
		return nil
	})
	for range 20 {
		if err := fetch(b); err != nil {
			t.Errorf("the second zone: %v", err)
		}
	}
	if err := d.Reject(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the first zone is back", func() error { return fetch(a) })
	d.home(t)
}

// announcedWithoutControllers: nothing is withdrawn because nobody controls.
func (d *deployment) announcedWithoutControllers(t *testing.T) {
	as := d.steadyRate("london", 20*time.Millisecond, func() {
		kill(t, d.Controllers...)
		time.Sleep(4 * time.Second)
		if err := d.leads("london", true); err != nil {
			t.Error(err)
		}
		d.start(t, d.Controllers...)
	})
	say(t, "every controller dead", as)
	if f := load.Failed(as); len(f) != 0 {
		t.Errorf("%d new flows failed, the first: %v", len(f), f[0].Err)
	}
}

// siteLost freezes a whole site, node and router: nobody says goodbye, and only silence tells.
func (d *deployment) siteLost(t *testing.T, how string, atMost time.Duration) {
	d.home(t)
	site := append(slices.Clone(d.RouterProcesses("rt-fra")), d.Nodes["fra-1"])
	each := func(sig syscall.Signal) {
		for _, p := range site {
			if err := p.Signal(sig); err != nil {
				t.Error(err)
			}
		}
	}
	defer func() {
		each(syscall.SIGCONT)
		d.home(t)
	}()
	d.elsewhere(t, "site lost, noticed "+how, func() time.Time {
		begin := time.Now()
		each(syscall.SIGSTOP)
		return begin
	}, atMost)
}
