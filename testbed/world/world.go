package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearcast/nearcast/testbed/load"
	"github.com/nearcast/nearcast/testbed/netns"
	"github.com/nearcast/nearcast/testbed/wan"
)

// Options say how to raise a world. Bin and Dir are needed.
type Options struct {
	Bin string // directory with the shipped binaries and nearcast-lab
	Dir string // for data directories and logs; made if missing, and not removed
	// Say is told each step in words, for a person to read. Nil: nobody.
	Say func(format string, args ...any)
	Log *slog.Logger // of the emulator; nil: discarded
	// NodeArgs and ControllerArgs are added to every node's and controller's command line.
	NodeArgs, ControllerArgs []string
	// EndpointCongestion is the congestion control of the endpoints' sockets, by their number in the
	// region; those beyond its end have cubic, as most servers do.
	EndpointCongestion []string
	// NodePools tells every node its own addresses, which accelerators on node pools are served at.
	NodePools bool
	// ClockOff are machines whose daemon has a wall clock that is so far ahead of the others' (below 0: behind).
	ClockOff map[string]time.Duration
	// Pins is a directory on a BPF file system in which nodes pin what outlives their processes, each below
	// its name. Empty: nothing does, and a world leaves nothing behind.
	Pins string
	// Balance has nodes of a site share its flows, where the routers spread them (bgp.ecmp).
	Balance bool
	// BalanceIPv6 has them reach each other over IPv6, and XDPNative has their kernel programs run in the driver.
	BalanceIPv6, XDPNative bool
	// Guard has them guard the interfaces on which they balance.
	Guard bool
	// Bare leaves controllers and nodes out: only the network and the endpoints.
	Bare bool
}

// World is a standing deployment. Its methods may be called concurrently, except Close.
type World struct {
	Spec   *Spec
	Fabric *wan.Fabric

	Nodes       map[string]*Process
	Controllers []*Process
	Endpoints   map[string]*Process

	opt     Options
	routers map[string]*router  // with BGP, by name
	uplinks map[string]cableEnd // with BGP: each node's router

	balanced map[string]balanceEnd // with ECMP, by node
	cables   int                   // laid between routers

	set       *netns.Set
	hosts     map[string]Host
	cancel    context.CancelFunc
	fabricEnd chan error
}

// Raise builds the network, starts the endpoints, controllers and nodes, and enrols the nodes. On an
// error everything that stood is torn down again.
func Raise(ctx context.Context, spec *Spec, opt Options) (w *World, err error) {
	if opt.Say == nil {
		opt.Say = func(string, ...any) {}
	}
	if err := spec.BGP.installed(); err != nil {
		return nil, err
	}
	w = &World{
		Spec: spec, opt: opt, hosts: map[string]Host{},
		Nodes: map[string]*Process{}, Endpoints: map[string]*Process{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
			w = nil
		}
	}()
	steps := []func(context.Context) error{w.raiseNetwork, w.startEndpoints, w.startRouters}
	if !opt.Bare {
		steps = append(steps, w.startControllers, w.configurePlaces, w.startNodes, w.configureBGP)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return w, err
		}
		if err := ctx.Err(); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *World) raiseNetwork(context.Context) error {
	hosts := w.Spec.plan()
	w.opt.Say("raising %d machines in network namespaces", len(hosts))
	if err := os.MkdirAll(w.opt.Dir, 0o755); err != nil {
		return err
	}
	var err error
	if w.set, err = netns.Create(w.Spec.Name + "-"); err != nil {
		return err
	}
	for _, h := range hosts {
		w.hosts[h.Name] = h
	}
	if w.Fabric, err = wan.Build(w.set, w.wanSpec(hosts)); err != nil {
		return err
	}
	// The network outlives the caller's context: the teardown still talks over it.
	run, cancel := context.WithCancel(context.Background())
	w.cancel, w.fabricEnd = cancel, make(chan error, 1)
	go func() { w.fabricEnd <- w.Fabric.Run(run) }()
	return errors.Join(w.layCables(), w.layRouters())
}

// layCables joins machines directly. Each cable is a network of its own, 172.16.N.0/24; accelerated
// addresses are routed over a city's cable to its node.
func (w *World) layCables() error {
	for i, c := range w.Spec.Cables {
		a, b := w.hosts[c.A], w.hosts[c.B]
		if a.Name == "" || b.Name == "" {
			return fmt.Errorf("cables: no machine %q or %q", c.A, c.B)
		}
		dev := fmt.Sprintf("cable%d", i)
		if err := netns.Veth(netns.End{NS: w.NS(c.A), Dev: dev}, netns.End{NS: w.NS(c.B), Dev: dev}); err != nil {
			return err
		}
		a.Cable, b.Cable = cableAddr(i, 1), cableAddr(i, 2)
		for _, end := range []Host{a, b} {
			if err := w.NS(end.Name).AddAddr(dev, netip.PrefixFrom(end.Cable, 24)); err != nil {
				return err
			}
		}
		if a.kind == kindCity {
			for _, pool := range w.Spec.Pools {
				for _, prefix := range pool.Prefixes {
					if !prefix.Addr().Is4() {
						continue
					}
					if err := w.NS(c.A).AddRoute(netns.Route{Dst: prefix, Dev: dev, Via: b.Cable}); err != nil {
						return err
					}
				}
			}
		}
		w.hosts[c.A], w.hosts[c.B] = a, b
	}
	return nil
}

func cableAddr(cable, end int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(cable), byte(end)})
}

// wanSpec translates the world file into hosts and links of the emulator.
func (w *World) wanSpec(hosts []Host) wan.Spec {
	spec := wan.Spec{Local: wan.Params{Delay: samePlaceRTT / 2}, Seed: 1, Log: w.opt.Log}
	places := w.Spec.places()
	sites := map[string]bool{}
	for _, s := range w.Spec.Sites {
		sites[s.Name] = true
	}
	for _, h := range hosts {
		host := wan.Host{Name: h.Name, Place: h.Place, Addrs: []netip.Addr{h.V4, h.V6}}
		if h.kind == kindCity {
			host.Place = "" // one host is the whole city
			host.Prefixes = []netip.Prefix{cityClients(h)}
		}
		spec.Hosts = append(spec.Hosts, host)
	}
	for i, a := range places {
		for _, b := range places[:i] {
			rtt, _ := w.Spec.rtt(a, b)
			p := wan.Params{Delay: rtt / 2}
			if sites[a] && sites[b] {
				p.Rate, p.Loss, p.Queue = int64(w.Spec.Backbone.Rate), float64(w.Spec.Backbone.Loss), w.Spec.Backbone.Queue
			}
			spec.Links = append(spec.Links, wan.Both(a, b, p)...)
		}
	}
	for _, c := range w.Spec.Cities {
		p := wan.Params{Rate: int64(c.Access.Rate), Loss: float64(c.Access.Loss), Queue: c.Access.Queue}
		spec.Access = append(spec.Access, wan.Access{At: c.Name, Up: p, Down: p})
		for _, pool := range w.Spec.Pools {
			for _, prefix := range pool.Prefixes {
				if w.Spec.BGP != nil {
					continue // routers lead there
				}
				spec.Routes = append(spec.Routes, wan.Route{Prefix: prefix, From: c.Name, To: w.siteNodes(c.Site)})
			}
		}
	}
	return spec
}

// cityClients are the addresses that a city's clients may have besides its host's own.
func cityClients(h Host) netip.Prefix {
	b := h.V4.As4()
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + b[2], 0, 0}), 16) // of RFC 6598's space
}

func (w *World) siteNodes(site string) []string {
	var names []string
	for _, s := range w.Spec.Sites {
		if s.Name == site {
			for n := range s.Nodes {
				names = append(names, nodeName(site, n))
			}
		}
	}
	return names
}

func (w *World) process(host, binary, health string, args ...string) *Process {
	return &Process{
		Name: host, Log: filepath.Join(w.opt.Dir, host+".log"), ns: w.Fabric.NS(host),
		binary: filepath.Join(w.opt.Bin, binary), args: args, health: health, ClockOff: w.opt.ClockOff[host],
	}
}

func (w *World) startEndpoints(ctx context.Context) error {
	for _, r := range w.Spec.Regions {
		for n := range r.Endpoints {
			name, congestion := endpointName(r.Name, n), "cubic"
			if n < len(w.opt.EndpointCongestion) {
				congestion = w.opt.EndpointCongestion[n]
			}
			p := w.process(name, "nearcast-lab", fmt.Sprintf("127.0.0.1:%d", load.PortControl),
				"endpoint", "--name", name, "--congestion", congestion)
			w.Endpoints[name] = p
			if err := p.Start(); err != nil {
				return err
			}
		}
	}
	for _, p := range w.Endpoints {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) startControllers(ctx context.Context) error {
	w.opt.Say("starting %d controller(s)", w.Spec.Controllers.Count)
	if w.Spec.Controllers.Count > 1 {
		if err := w.makePeerCertificates(ctx); err != nil {
			return err
		}
	}
	for n := range w.Spec.Controllers.Count {
		p := w.ControllerProcess(controllerName(n), append(w.clusterArgs(n), w.opt.ControllerArgs...)...)
		w.Controllers = append(w.Controllers, p)
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range w.Controllers {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// clusterArgs makes several controllers keep one store together.
func (w *World) clusterArgs(n int) []string {
	if w.Spec.Controllers.Count == 1 {
		return nil
	}
	member := func(i int) string { return netip.AddrPortFrom(w.hosts[controllerName(i)].V4, portPeer).String() }
	var members []string
	for i := range w.Spec.Controllers.Count {
		members = append(members, controllerName(i)+"="+member(i))
	}
	certs := filepath.Join(w.opt.Dir, "peer-certs")
	return []string{
		"--etcd-name", controllerName(n), "--etcd-peer-listen", member(n), "--etcd-peer-advertise", member(n),
		"--etcd-initial-cluster", strings.Join(members, ","), "--etcd-peer-ca", filepath.Join(certs, "ca.pem"),
		"--etcd-peer-cert", filepath.Join(certs, controllerName(n)+".pem"),
		"--etcd-peer-key", filepath.Join(certs, controllerName(n)+".key"),
	}
}

// makePeerCertificates has the shipped controller make the certificates of its store's members.
func (w *World) makePeerCertificates(ctx context.Context) error {
	args := []string{"peer-certs", "--out", filepath.Join(w.opt.Dir, "peer-certs")}
	for i := range w.Spec.Controllers.Count {
		args = append(args, fmt.Sprintf("%s=%s", controllerName(i), w.hosts[controllerName(i)].V4))
	}
	cmd := w.NS(controllerName(0)).Cmd(ctx, filepath.Join(w.opt.Bin, "nearcast-controller"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("peer-certs: %w: %s", err, out)
	}
	return nil
}

// configurePlaces tells the control plane about pools, regions and sites, as an operator would.
func (w *World) configurePlaces(ctx context.Context) error {
	w.opt.Say("describing pools, regions and sites through the CLI")
	for _, p := range w.Spec.Pools {
		args := p.create()
		for _, prefix := range p.Prefixes {
			args = append(args, "--prefix", prefix.String())
		}
		if _, err := w.CLI(ctx, args...); err != nil {
			return err
		}
	}
	for _, r := range w.Spec.Regions {
		if _, err := w.CLI(ctx, "region", "create", r.Name); err != nil {
			return err
		}
	}
	for _, s := range w.Spec.Sites {
		if _, err := w.CLI(ctx, "site", "create", s.Name, "--region", s.Region); err != nil {
			return err
		}
	}
	if w.Spec.nodePool() {
		return w.ConfigureSteering(ctx)
	}
	return nil
}

func (w *World) startNodes(ctx context.Context) error {
	w.opt.Say("enrolling the nodes with join tokens")
	for _, s := range w.Spec.Sites {
		for n := range s.Nodes {
			if err := w.startNode(ctx, s, n); err != nil {
				return err
			}
		}
	}
	for _, p := range w.Nodes {
		if err := p.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) startNode(ctx context.Context, s SiteSpec, n int) error {
	name := nodeName(s.Name, n)
	secret, err := w.JoinToken(ctx, s.Name, name, s.Roles)
	if err != nil {
		return err
	}
	w.Nodes[name] = w.NodeProcess(name, s.Name, s.Roles, secret)
	return w.Nodes[name].Start()
}

// NodeProcess returns the process of a node, not started, for a host of the world.
func (w *World) NodeProcess(name, site string, roles []string, token string) *Process {
	var controllers []string
	for i := range w.Spec.Controllers.Count {
		controllers = append(controllers, netip.AddrPortFrom(w.hosts[controllerName(i)].V4, portController).String())
	}
	h := w.hosts[name]
	backbone := h.V4
	if h.Cable.IsValid() {
		backbone = h.Cable // the last one laid: to the other node
	}
	pins := "none"
	if w.opt.Pins != "" {
		pins = filepath.Join(w.opt.Pins, name)
	}
	args := append([]string{
		"--data-dir", filepath.Join(w.opt.Dir, name), "--controllers", strings.Join(controllers, ","),
		"--join-token", token, "--name", name, "--site", site, "--roles", strings.Join(roles, ","),
		"--backbone-listen", fmt.Sprintf(":%d", portBackbone),
		"--backbone-advertise", netip.AddrPortFrom(backbone, portBackbone).String(),
		"--gossip-listen", netip.AddrPortFrom(h.V4, portGossip).String(),
		"--gossip-advertise", netip.AddrPortFrom(h.V4, portGossip).String(),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", portMetrics),
		"--kernel-pins", pins,
	}, w.opt.NodeArgs...)
	args = append(args, w.balanceArgs(name)...)
	if w.Spec.nodePool() {
		args = append(args, "--service-addresses", h.V4.String(), "--dns-listen", fmt.Sprintf(":%d", PortDNS))
	}
	if w.opt.NodePools {
		args = append(args, "--service-addresses", h.V4.String()+","+h.V6.String())
	}
	return w.process(name, "nearcast-edge", fmt.Sprintf("127.0.0.1:%d", portMetrics), args...)
}

// JoinToken makes a join token through the CLI.
func (w *World) JoinToken(ctx context.Context, site, node string, roles []string) (string, error) {
	args := []string{"token", "create", "--site", site, "--node", node, "--single-use", "-o", "json"}
	for _, r := range roles {
		args = append(args, "--"+r)
	}
	var out struct {
		Secret string `json:"secret"`
	}
	if err := w.CLIJSON(ctx, &out, args...); err != nil {
		return "", err
	}
	if out.Secret == "" {
		return "", errors.New("the CLI made a join token without a secret")
	}
	return out.Secret, nil
}

// ContextFile is the path of the admin's CLI contexts. Of several controllers the one that made the
// cluster wrote it.
func (w *World) ContextFile() string {
	for i := range w.Spec.Controllers.Count {
		path := filepath.Join(w.opt.Dir, controllerName(i), "admin-context.yaml")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return filepath.Join(w.opt.Dir, controllerName(0), "admin-context.yaml")
}

// DataDir is where a machine's daemon keeps its data.
func (w *World) DataDir(host string) string { return filepath.Join(w.opt.Dir, host) }

// Host returns a machine's plan entry; it must exist.
func (w *World) Host(name string) Host { return w.hosts[name] }

// NS returns a machine's namespace.
func (w *World) NS(name string) *netns.NS { return w.Fabric.NS(name) }

// Dial returns how clients of a city connect.
func (w *World) Dial(city string) load.Dial { return w.Fabric.NS(city).DialContext }

// EndpointAddr returns the n-th endpoint's address in a region, counted from 0; its cable's, if it
// has one.
func (w *World) EndpointAddr(region string, n int) netip.Addr {
	h := w.hosts[endpointName(region, n)]
	if h.Cable.IsValid() {
		return h.Cable
	}
	return h.V4
}

// Close ends everything: nodes first, so that they can say goodbye, then controllers, endpoints and
// the network. It reports what did not end in order.
func (w *World) Close() error {
	var errs []error
	routers, removed := w.closeRouters()
	defer removed()
	for _, group := range [][]*Process{values(w.Nodes), w.Controllers, values(w.Endpoints), routers} {
		results := make(chan error, len(group))
		for _, p := range group {
			go func() {
				_ = p.Signal(sigcont) // a frozen process cannot end
				results <- p.Stop()
			}()
		}
		for range group {
			errs = append(errs, <-results)
		}
	}
	if w.cancel != nil {
		w.cancel()
		select {
		case err := <-w.fabricEnd:
			errs = append(errs, err, w.Fabric.Close())
		case <-time.After(stopTimeout):
			errs = append(errs, errors.New("the emulated network does not end"))
		}
	}
	if w.set != nil {
		errs = append(errs, w.set.Close())
	}
	return errors.Join(errs...)
}
