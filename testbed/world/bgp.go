package world

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// BGPSpec has real routers carry the anycast prefixes of a world: one autonomous system each, joined by
// cables without delay. What goes from clients to the accelerated addresses takes the cables, wherever the
// routers' best paths lead; answers, and everything else, take the emulated network.
type BGPSpec struct {
	ASN     uint32       `json:"asn"` // of the sites
	Routers []RouterSpec `json:"routers"`
	// Links are pairs of routers, or of a city and a router. A city's own router runs on its machine.
	Links [][2]string `json:"links"`
	// Peer is added to the flags of `nearcast peer create` for each site's session.
	Peer []string `json:"peer,omitempty"`
	// Hold is the hold time of the routers' sessions, in seconds; 0: 9.
	Hold int `json:"hold,omitempty"`
	// ECMP has routers spread flows over equal paths by addresses and ports, and gives sites' nodes a way to each
	// other through their router, with room for encapsulation.
	ECMP bool `json:"ecmp,omitempty"`
	// NoBFD keeps BFD off between a site's node and its router, and between routers.
	NoBFD bool `json:"no_bfd,omitempty"`
}

// RouterSpec is one router, BIRD or FRR.
type RouterSpec struct {
	Name string `json:"name"`
	ASN  uint32 `json:"asn"`
	At   string `json:"at"`             // the place where it stands
	Site string `json:"site,omitempty"` // whose nodes have a session with it
	FRR  bool   `json:"frr,omitempty"`
}

// cityASN is the first city's autonomous system; BFD between routers: 3 × 100 ms.
const (
	cityASN     = 64801
	bfdMillis   = 100
	bgpMD5      = "nearcast-lab"
	routerWait  = 120 * time.Second
	routersPoll = 100 * time.Millisecond
)

// router is one running routing daemon, or the three of FRR.
type router struct {
	RouterSpec
	id        netip.Addr
	source    cableEnd // cities: what their clients' packets leave from
	neighbors []neighbor
	processes []*Process
	dir       string
	reject    []netip.Prefix // that it takes from nobody
}

type neighbor struct {
	name        string
	local, addr cableEnd
	asn         uint32
	node        bool // a Nearcast node
}

// spares are the machines of routers.
func (b *BGPSpec) spares() []SpareSpec {
	var all []SpareSpec
	if b != nil {
		for _, r := range b.Routers {
			all = append(all, SpareSpec{r.Name, r.At})
		}
	}
	return all
}

func (b *BGPSpec) validate(s *Spec, bad func(string, ...any)) {
	if b == nil {
		return
	}
	named := func(n string) bool {
		return slices.ContainsFunc(b.Routers, func(r RouterSpec) bool { return r.Name == n }) ||
			slices.ContainsFunc(s.Cities, func(c CitySpec) bool { return c.Name == n })
	}
	for _, l := range b.Links {
		if !named(l[0]) || !named(l[1]) {
			bad("bgp.links: %s–%s: no such router or city", l[0], l[1])
		}
	}
	if b.ASN == 0 {
		bad("bgp.asn: missing")
	}
	for _, r := range b.Routers {
		if r.FRR && s.dual() {
			bad("bgp.routers.%s: FRR has no IPv6 here, and a pool has", r.Name)
		}
	}
}

// layRouters lays the cables between routers, and to the sites' nodes.
func (w *World) layRouters() error {
	b := w.Spec.BGP
	if b == nil {
		return nil
	}
	w.routers = map[string]*router{}
	for _, r := range b.Routers {
		w.routers[r.Name] = &router{RouterSpec: r, id: w.hosts[r.Name].V4}
	}
	for i, c := range w.Spec.Cities {
		w.routers[c.Name] = &router{RouterSpec: RouterSpec{Name: c.Name, ASN: cityASN + uint32(i)},
			id: w.hosts[c.Name].V4, source: cableEnd{w.hosts[c.Name].V4, w.hosts[c.Name].V6}}
	}
	for _, l := range b.Links {
		x, y := w.routers[l[0]], w.routers[l[1]]
		ends, err := w.cable(l[0], l[1])
		if err != nil {
			return err
		}
		x.neighbors = append(x.neighbors, neighbor{name: y.Name, local: ends[0], addr: ends[1], asn: y.ASN})
		y.neighbors = append(y.neighbors, neighbor{name: x.Name, local: ends[1], addr: ends[0], asn: x.ASN})
	}
	w.uplinks, w.balanced = map[string]cableEnd{}, map[string]balanceEnd{}
	for _, r := range b.Routers {
		if r.Site == "" {
			continue
		}
		for _, node := range w.siteNodes(r.Site) {
			ends, err := w.cable(r.Name, node)
			if err != nil {
				return err
			}
			w.routers[r.Name].neighbors = append(w.routers[r.Name].neighbors,
				neighbor{name: node, local: ends[0], addr: ends[1], asn: b.ASN, node: true})
			w.uplinks[node] = ends[0]
			if b.ECMP {
				if err := w.layBalance(r.Name, node, ends); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// startRouters starts the routing daemons.
func (w *World) startRouters(context.Context) error {
	if w.Spec.BGP == nil {
		return nil
	}
	w.opt.Say("starting %d routers", len(w.routers))
	for _, name := range sortedNames(w.routers) {
		r := w.routers[name]
		r.dir = filepath.Join(w.opt.Dir, "router-"+name)
		if err := os.MkdirAll(r.dir, 0o755); err != nil {
			return err
		}
		var err error
		if r.FRR {
			err = w.startFRR(r)
		} else {
			err = w.startBIRD(r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *World) daemon(r *router, name, path string, args ...string) error {
	p := &Process{Name: r.Name + "/" + name, Log: filepath.Join(r.dir, name+".log"), ns: w.NS(r.Name),
		binary: path, args: args}
	r.processes = append(r.processes, p)
	return p.Start()
}

func (b *BGPSpec) hold() int {
	if b.Hold > 0 {
		return b.Hold
	}
	return 9
}

// startFRR starts FRR, whose daemons give up root: they get a directory of their own.
func (w *World) startFRR(r *router) (err error) {
	if r.dir, err = os.MkdirTemp("", "nearcast-frr-"); err != nil {
		return err
	}
	frr, err := user.Lookup("frr")
	if err != nil {
		return fmt.Errorf("FRR is not installed: %w", err)
	}
	uid, _ := strconv.Atoi(frr.Uid)
	gid, _ := strconv.Atoi(frr.Gid)
	if err := errors.Join(os.Chmod(r.dir, 0o755), os.Chown(r.dir, uid, gid)); err != nil {
		return err
	}
	var c strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&c, format+"\n", args...) }
	p("hostname %s\nlog file %s/routes.log debugging\nrouter bgp %d\n bgp router-id %v", r.Name, r.dir, r.ASN, r.id)
	p(" no bgp ebgp-requires-policy\n no bgp network import-check\n timers bgp 3 %d", w.Spec.BGP.hold())
	p(" bgp graceful-restart")
	for _, n := range r.neighbors {
		p(" neighbor %v remote-as %d\n neighbor %v timers connect 2", n.addr.v4, n.asn, n.addr.v4)
		if n.node {
			p(" neighbor %v password %s\n neighbor %v ttl-security hops 1\n neighbor %v passive", n.addr.v4, bgpMD5,
				n.addr.v4, n.addr.v4)
		}
	}
	p(" address-family ipv4 unicast")
	for _, n := range r.neighbors {
		p("  neighbor %v route-map take in", n.addr.v4)
	}
	p(" exit-address-family\nbgp community-list standard draining permit graceful-shutdown")
	p("route-map take permit 10\n match community draining\n set local-preference 0\nroute-map take permit 20")
	conf := filepath.Join(r.dir, "frr.conf")
	if err := os.WriteFile(conf, []byte(c.String()), 0o644); err != nil {
		return err
	}
	socket := filepath.Join(r.dir, "zserv")
	for _, name := range []string{"zebra", "bgpd"} {
		err := w.daemon(r, name, frrPath+name, "-f", conf, "-z", socket, "-i",
			filepath.Join(r.dir, name+".pid"), "--vty_socket", r.dir, "-A", "127.0.0.1")
		if err != nil {
			return err
		}
		// bgpd asks zebra once in ten seconds if it is not there yet.
		for begin := time.Now(); name == "zebra" && time.Since(begin) < routerWait; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(socket); err == nil {
				break
			}
		}
	}
	return nil
}

// closeRouters returns the routing daemons that are to end, and what removes their directories then.
func (w *World) closeRouters() (all []*Process, removed func()) {
	for _, r := range w.routers {
		all = append(all, r.processes...)
	}
	return all, func() {
		for _, r := range w.routers {
			if r.FRR && r.dir != "" {
				_ = os.RemoveAll(r.dir)
			}
		}
	}
}

// Reject has every router of a site drop a prefix that its nodes announce, or take it again with none.
func (w *World) Reject(prefixes ...netip.Prefix) error {
	for _, r := range w.routers {
		if r.FRR {
			continue
		}
		r.reject = prefixes
		conf := filepath.Join(r.dir, "bird.conf")
		if err := os.WriteFile(conf, []byte(w.birdConf(r)), 0o644); err != nil {
			return err
		}
		for _, p := range r.processes {
			if err := p.Signal(syscall.SIGHUP); err != nil {
				return err
			}
		}
	}
	return nil
}

// RouterProcesses returns the daemons of a router.
func (w *World) RouterProcesses(name string) []*Process {
	if r := w.routers[name]; r != nil {
		return r.processes
	}
	return nil
}

// RouterLog returns what a router has noted so far.
func (w *World) RouterLog(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(w.routers[name].dir, "routes.log"))
	return string(text), err
}

// Birdc asks a router that is BIRD.
func (w *World) Birdc(ctx context.Context, name string, words ...string) (string, error) {
	args := append([]string{"-s", filepath.Join(w.routers[name].dir, "ctl")}, words...)
	out, err := w.NS(name).Cmd(ctx, "/usr/sbin/birdc", args...).CombinedOutput()
	return string(out), err
}

// Uplink is the address of the router that a node has its session with.
func (w *World) Uplink(node string) netip.Addr { return w.uplinks[node].v4 }

// configureBGP gives the sites their autonomous system and their sessions, as an operator would, once the
// nodes have enrolled.
func (w *World) configureBGP(ctx context.Context) error {
	b := w.Spec.BGP
	if b == nil {
		return nil
	}
	w.opt.Say("configuring BGP through the CLI")
	secret := filepath.Join(w.opt.Dir, "bgp-password")
	if err := os.WriteFile(secret, []byte(bgpMD5+"\n"), 0o600); err != nil {
		return err
	}
	for _, r := range b.Routers {
		if r.Site == "" {
			continue
		}
		if _, err := w.CLI(ctx, "site", "update", r.Site, "--asn", fmt.Sprint(b.ASN), "--drain-time", "2s"); err != nil {
			return err
		}
		for _, node := range w.siteNodes(r.Site) {
			if err := w.createPeer(ctx, r, r.Site+"/"+node, node, w.uplinks[node].v4, secret); err != nil {
				return err
			}
			if !w.Spec.dual() {
				continue
			}
			if err := w.createPeer(ctx, r, r.Site+"/"+node+"-v6", node, w.uplinks[node].v6, secret); err != nil {
				return err
			}
		}
	}
	return nil
}

// createPeer gives a node a session with a router, in the family of the router's address.
func (w *World) createPeer(ctx context.Context, r RouterSpec, name, node string, at netip.Addr, secret string) error {
	b := w.Spec.BGP
	args := []string{"peer", "create", name, "--node", node, "--address", at.String(), "--asn", fmt.Sprint(r.ASN),
		"--password-file", secret, "--ttl-security", "--hold-time", fmt.Sprintf("%ds", b.hold()), "--connect-retry", "2s"}
	if !b.NoBFD && !r.FRR {
		args = append(args, "--bfd", "--bfd-interval", fmt.Sprintf("%dms", bfdMillis))
	}
	_, err := w.CLI(ctx, append(args, b.Peer...)...)
	return err
}

// Routed waits until every city has a route to every address of an accelerator.
func (w *World) Routed(ctx context.Context, addrs []netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, routerWait)
	defer cancel()
	var missing string
	for ctx.Err() == nil {
		missing = ""
		for _, c := range w.Spec.Cities {
			for _, a := range addrs {
				out, err := w.NS(c.Name).Cmd(ctx, "ip", "route", "get", a.String()).CombinedOutput()
				if err != nil || !strings.Contains(string(out), " dev bgp") {
					missing = fmt.Sprintf("%s has no route to %v: %s", c.Name, a, strings.TrimSpace(string(out)))
				}
			}
		}
		if missing == "" {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(routersPoll):
		}
	}
	return fmt.Errorf("BGP does not settle: %s", missing)
}

func sortedNames(m map[string]*router) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
