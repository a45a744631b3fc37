package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/world"
)

// TestBalance has a router spread flows over the three nodes of a site, and changes its mind: nodes are added,
// drained, killed and brought back under downloads and UDP flows, over IPv4 and IPv6. Only a killed node's own flows
// end. NEARCAST_BALANCE_FULL=1 is the full size: 400 downloads and 100 UDP flows.
func TestBalance(t *testing.T) {
	d, tcp, udp := raiseSite(t, "bal", world.Options{Balance: true})
	d.changes(t, tcp, udp)
}

// TestBalanceNatively has the programs run in the driver, the nodes reach each other over IPv6, and guard look at what
// each of them takes. The full size has all the changes of TestBalance.
func TestBalanceNatively(t *testing.T) {
	d, tcp, udp := raiseSite(t, "baln", world.Options{Balance: true, BalanceIPv6: true, XDPNative: true, Guard: true})
	d.natively(t)
	if balanceFull() {
		d.changes(t, tcp, udp)
	} else {
		d.added(t, tcp, udp)
	}
	g := &guardedSite{deployment: d}
	g.listen(t)
	t.Run("denied networks", g.denied)
	t.Run("too often", g.often)
	t.Run("forged SYNs", g.flooded)
	if !balanceFull() {
		own := d.clients(t, "fra-1")
		kill(t, d.Nodes["fra-1"])
		d.agreed(t, 2, 2)
		d.alone(t, "a node killed", own, tcp)
		d.goesOn(t, udp)
	}
}

// added starts with two nodes and adds the third one.
func (d *deployment) added(t *testing.T, tcp *downloads, udp *udpFlows) {
	d.opened(t, tcp, udp)
	d.whole(t, "all stand", tcp, udp)
	d.start(t, d.Nodes["fra-3"])
	d.agreed(t, 3, 3)
	d.whole(t, "a node added", tcp, udp)
	d.crossed(t)
}

// changes adds, drains, kills, brings back and upgrades nodes.
func (d *deployment) changes(t *testing.T, tcp *downloads, udp *udpFlows) {
	d.added(t, tcp, udp)

	before := d.clients(t, "fra-2")
	if _, err := d.CLI(d.ctx, "node", "drain", "fra-2"); err != nil {
		t.Fatal(err)
	}
	d.agreed(t, 2, 2)
	more := d.download(t, 12)
	d.whole(t, "a node drained", tcp, udp, more)
	if after := d.clients(t, "fra-2"); !slices.Equal(after, before) {
		t.Errorf("the drained node had the flows %v, and then %v", before, after)
	}
	if _, err := d.CLI(d.ctx, "node", "restore", "fra-2"); err != nil {
		t.Fatal(err)
	}
	d.agreed(t, 3, 3)
	d.whole(t, "and restored", tcp, udp, more)

	own := d.clients(t, "fra-1")
	kill(t, d.Nodes["fra-1"])
	d.agreed(t, 2, 2)
	if len(own) == 0 {
		t.Fatal("the node that is killed has no flows")
	}
	d.alone(t, "a node killed", own, tcp, more)
	d.goesOn(t, udp)
	d.start(t, d.Nodes["fra-1"])
	d.agreed(t, 3, 3)
	d.alone(t, "and brought back", own, tcp, more)
	d.goesOn(t, udp)

	d.upgrade(t, "fra-3") // its new process begins new sessions with the router
	d.agreed(t, 3, 3)
	d.alone(t, "a node upgraded", own, tcp, more)
	d.goesOn(t, udp)
}

// TestWithoutBalance is the same site without: flows break as soon as a node is added.
func TestWithoutBalance(t *testing.T) {
	d, tcp, udp := raiseSite(t, "bal0", world.Options{})
	d.opened(t, tcp, udp)
	d.whole(t, "all stand", tcp)
	d.start(t, d.Nodes["fra-3"])
	d.routes(t, 3)
	d.goesOn(t, udp)
	eventually(t, 60*time.Second, "flows break", func() error {
		if n := len(tcp.broken()); n < tcp.count/10 {
			return fmt.Errorf("%d of %d", n, tcp.count)
		}
		return nil
	})
	t.Logf("without balance: a node added: %d of %d downloads broke", len(tcp.broken()), tcp.count)
}

func balanceFull() bool { return os.Getenv("NEARCAST_BALANCE_FULL") != "" }

// raiseSite raises the site with two nodes, and begins the flows.
func raiseSite(t *testing.T, name string, opt world.Options) (*deployment, *downloads, *udpFlows) {
	netns.RequireRoot(t, "pins")
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	opt.Pins, opt.NodeArgs = pins, []string{"--drain-timeout", "2s"} // UDP flows that are silent last longer
	d := raise(t, "site", named(name), opt)
	t.Cleanup(func() { d.stopNext(t, "fra-3") })
	d.routes(t, 3)
	if err := d.Nodes["fra-3"].Stop(); err != nil {
		t.Fatal(err)
	}
	if opt.Balance {
		d.agreed(t, 2, 2)
	} else {
		d.routes(t, 2)
	}
	n, clients := 40, 20
	if balanceFull() {
		n, clients = 400, 100
	}
	u := &udpFlows{dial: d.Dial("london"), at: d.at(load.PortUDP).String(), or: d.at6(load.PortUDP).String(), count: clients}
	ctx, cancel := context.WithCancel(d.ctx)
	done := make(chan struct{})
	go func() { defer close(done); u.run(ctx, t) }()
	t.Cleanup(func() { cancel(); <-done })
	return d, d.download(t, n), u
}

// natively asserts that the kernel runs the nodes' programs in the driver.
func (d *deployment) natively(t *testing.T) {
	t.Helper()
	for name, p := range d.Nodes {
		if p.PID() == 0 {
			continue
		}
		out, err := d.NS(name).Cmd(d.ctx, "ip", "link", "show", "type", "veth").CombinedOutput()
		if err != nil || !strings.Contains(string(out), " xdp ") && !strings.Contains(string(out), " xdp/") ||
			strings.Contains(string(out), "xdpgeneric") {
			t.Errorf("%s does not run its program natively: %v\n%s", name, err, out)
		}
	}
}

// routes waits until the router spreads flows over so many nodes.
func (d *deployment) routes(t *testing.T, n int) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("the router has %d routes", n), func() error {
		for _, prefix := range d.Spec.Pools[0].Prefixes {
			family := "-4"
			if prefix.Addr().Is6() {
				family = "-6"
			}
			out, err := d.NS("rt-fra").Cmd(d.ctx, "ip", family, "route", "show", prefix.String()).CombinedOutput()
			if got := strings.Count(string(out), " via "); err != nil || got != n {
				return fmt.Errorf("%v, %d routes: %s", err, got, out)
			}
		}
		return nil
	})
}

// agreed waits until the router and all nodes that run have so many nodes serving.
func (d *deployment) agreed(t *testing.T, routes, serving int) {
	t.Helper()
	took := eventually(t, 60*time.Second, fmt.Sprintf("%d nodes serve", serving), func() error {
		for name, p := range d.Nodes {
			if p.PID() == 0 {
				continue
			}
			s, err := d.siteStatus(p)
			if err != nil {
				return err
			}
			n := 0
			for _, m := range s.Balance {
				if m.State == "serving" {
					n++
				}
			}
			if n != serving {
				return fmt.Errorf("%s has %+v", name, s.Balance)
			}
		}
		return nil
	})
	t.Logf("%d nodes serve, as all of them have it after %v", serving, took.Round(10*time.Millisecond))
	d.routes(t, routes)
}

type siteStatus struct {
	Balance []struct{ Address, State string }
	Traffic struct{ TCP, UDP int }
}

func (d *deployment) siteStatus(p *world.Process) (s siteStatus, err error) {
	text, err := p.Get(d.ctx, "/status")
	if err == nil {
		err = json.Unmarshal([]byte(text), &s)
	}
	return s, err
}

// opened waits until all flows are under way, on the nodes that there are.
func (d *deployment) opened(t *testing.T, tcp *downloads, udp *udpFlows) {
	t.Helper()
	eventually(t, 60*time.Second, "all flows are open", func() error {
		if n := d.sessions(t); n != udp.count {
			return fmt.Errorf("%d UDP flows", n)
		}
		return nil
	})
	for _, name := range []string{"fra-1", "fra-2"} {
		if n := len(d.clients(t, name)); n < tcp.count/6 {
			t.Errorf("%s has only %d of %d flows", name, n, tcp.count)
		}
	}
}

// sessions returns how many UDP flows the nodes have. A flow that has moved is two for a while.
func (d *deployment) sessions(t *testing.T) (n int) {
	t.Helper()
	for _, p := range d.Nodes {
		if p.PID() == 0 {
			continue
		}
		s, err := d.siteStatus(p)
		if err != nil {
			t.Fatal(err)
		}
		n += s.Traffic.UDP
	}
	return n
}

// whole asserts that every flow goes on, and that none has moved.
func (d *deployment) whole(t *testing.T, what string, flows ...any) {
	t.Helper()
	for _, f := range flows {
		switch f := f.(type) {
		case *downloads:
			f.progress(t)
			broken := f.broken()
			t.Logf("%s: %d of %d downloads broke", what, len(broken), f.count)
			if len(broken) > 0 {
				t.Errorf("%s: %d of %d downloads broke, the first: %v", what, len(broken), f.count, broken[0].err)
			}
		case *udpFlows:
			d.goesOn(t, f)
			if n := d.sessions(t); n != f.count {
				t.Errorf("%s: the nodes have %d sessions of %d UDP flows", what, n, f.count)
			}
		}
	}
}

// alone asserts that of the downloads exactly those broke whose clients are given.
func (d *deployment) alone(t *testing.T, what string, own []netip.AddrPort, flows ...*downloads) {
	t.Helper()
	eventually(t, 40*time.Second, "the killed node's flows are refused", func() error {
		n := 0
		for _, f := range flows {
			n += len(f.broken())
		}
		if n < len(own) {
			return fmt.Errorf("%d of %d", n, len(own))
		}
		return nil
	})
	total := 0
	for _, f := range flows {
		f.progress(t)
		total += f.count
		for _, x := range f.broken() {
			if !slices.Contains(own, x.client) {
				t.Errorf("%s: a flow of another node broke: %v", what, x.err)
			}
		}
	}
	t.Logf("%s: of %d downloads the %d of that node broke", what, total, len(own))
}

// goesOn waits until UDP flows have been answered a good deal more.
func (d *deployment) goesOn(t *testing.T, u *udpFlows) {
	t.Helper()
	was := u.answered.Load()
	eventually(t, 40*time.Second, "UDP flows go on", func() error {
		if n := u.answered.Load() - was; n < int64(15*u.count) {
			return fmt.Errorf("%d answers", n)
		}
		return nil
	})
}

// crossed asserts that nodes passed packets on to each other: otherwise nothing was shown.
func (d *deployment) crossed(t *testing.T) {
	t.Helper()
	text := metrics(t, d.Nodes["fra-3"])
	for _, reason := range []string{"forward", "ask", "return"} {
		name := fmt.Sprintf("nearcast_kernel_balance_packets_total{reason=%q,verdict=\"sent\"}", reason)
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, name+" "); ok {
				t.Logf("the new node: %s: %s", reason, strings.TrimSpace(v))
				if reason != "return" && strings.TrimSpace(v) == "0" {
					t.Errorf("the new node has sent no %s", reason)
				}
			}
		}
	}
}

// clients returns the clients of the downloads that a node has, sorted.
func (d *deployment) clients(t *testing.T, node string) (all []netip.AddrPort) {
	t.Helper()
	out, err := d.NS(node).Cmd(d.ctx, "ss", "-Htn", "state", "established", "sport", "=",
		fmt.Sprintf(":%d", load.PortSource)).CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		local, err := netip.ParseAddrPort(f[2])
		peer, err2 := netip.ParseAddrPort(f[3])
		if err != nil || err2 != nil || !slices.Contains(d.app.Addresses, local.Addr().Unmap()) {
			continue
		}
		all = append(all, netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()))
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}
