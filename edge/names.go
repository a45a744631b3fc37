package edge

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nearcast/nearcast/edge/dns"
	"github.com/nearcast/nearcast/edge/dnssec"
	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/edge/zone"
	"github.com/nearcast/nearcast/proto/model"
)

// names is the part of a node that answers DNS: it keeps what the server answers from up to date with
// the snapshot, the databases, the measured networks, and who is alive.
type names struct {
	n      *Node
	server *dns.Server
	stats  dnssec.Stats
	wake   chan struct{} // 1: something has changed

	mu       sync.Mutex // guards below
	snapshot *model.Snapshot
	zones    *zone.Set
	signers  map[string]*dnssec.Signer // by apex
	db       *geo.Database
	dbNote   string // why the databases are not as the operator wants
	known    *geo.Map
	alive    *geo.Liveness
	clients  []model.ClientNetwork // as all nodes measured them
	kept     time.Time             // when they were written to disk
	stale    bool                  // known must be made anew
	why      map[model.NodeID]string
	shedding bool
}

// buildNames makes the DNS server, if this node is to have one.
func (n *Node) buildNames() error {
	if len(n.cfg.DNSListen) == 0 {
		return nil
	}
	d := &names{n: n, wake: make(chan struct{}, 1), alive: geo.NewLiveness(time.Now())}
	var err error
	d.server, err = dns.New(dns.Config{
		Listen: n.cfg.DNSListen, TLSListen: n.cfg.DNSTLSListen, TLS: n.cfg.DNSTLS, NSID: n.cfg.Name,
		Rate: n.cfg.DNSRate, Log: n.log.With("room", "dns"), Metrics: n.registry,
	})
	if err != nil {
		return fmt.Errorf("--dns-listen: %w", err)
	}
	if len(n.cfg.GeoDatabases) > 0 {
		if d.db, err = geo.Open(n.cfg.GeoDatabases); err != nil {
			d.server.Close()
			return fmt.Errorf("--geo-database: %w", err)
		}
	}
	if d.clients, err = loadClients(filepath.Join(n.cfg.DataDir, clientsFile), time.Now()); err != nil {
		n.log.Warn("what was measured of clients' networks is not used", "error", err)
	}
	n.names = d
	d.registerMetrics()
	return nil
}

// poke has answers worked out anew. It may be called on a node without DNS.
func (d *names) poke() {
	if d == nil {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// setSnapshot takes a snapshot over; zones were compiled from it.
func (d *names) setSnapshot(s *model.Snapshot, zones *zone.Set) {
	if d == nil {
		return
	}
	d.mu.Lock()
	d.snapshot, d.zones, d.stale = s, zones, true
	d.sign()
	d.refresh(time.Now(), true)
	d.mu.Unlock()
}

// sign makes the signers of the zones. A zone whose keys this node cannot use is served unsigned, which
// resolvers that know its DS refuse: better than to refuse everything. mu is held.
func (d *names) sign() {
	signers := map[string]*dnssec.Signer{}
	d.zones.All(func(z *zone.Zone) {
		s, err := dnssec.New(z, d.signers[string(z.Apex)], &d.stats)
		if err != nil {
			d.n.log.Error("zone is not signed", "zone", z.Name, "error", err)
		}
		if s != nil {
			signers[string(z.Apex)] = s
		}
	})
	d.signers = signers
}

// run serves, and looks who is alive, until ctx ends.
func (d *names) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- d.server.Run(ctx)
		cancel()
	}()
	look, files := time.NewTicker(aliveInterval), time.NewTicker(databaseInterval)
	defer look.Stop()
	defer files.Stop()
	stamp := databaseStamp(d.n.cfg.GeoDatabases)
	for {
		select {
		case <-ctx.Done():
			return <-done
		case <-files.C:
			if now := databaseStamp(d.n.cfg.GeoDatabases); now != stamp {
				stamp = now
				d.reload()
			}
			continue
		case <-look.C:
			d.shed()
		case <-d.wake:
		}
		d.mu.Lock()
		d.refresh(time.Now(), false)
		d.mu.Unlock()
	}
}

// databaseStamp tells whether the files are still the same.
func databaseStamp(paths []string) (stamp string) {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), " ")
		}
	}
	return stamp
}

// reload reads the databases again. What cannot be read leaves the ones before in use.
func (d *names) reload() {
	db, err := geo.Open(d.n.cfg.GeoDatabases)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.dbNote = "geo databases on disk are not readable, older ones are used: " + err.Error()
		d.n.log.Error("geo databases are not reloaded", "error", err)
		return
	}
	d.db, d.dbNote, d.stale = db, "", true
	d.n.log.Info("geo databases reloaded", "types", db.Types())
	d.poke()
}

// refresh works out who can be in answers, and swaps the server's state if that has changed. mu is held.
func (d *names) refresh(now time.Time, force bool) {
	if d.snapshot == nil {
		return
	}
	if d.stale {
		d.known = geo.NewMap(d.snapshot.Sites, d.snapshot.Steering, d.db, d.clients)
		d.stale, force = false, true
	}
	why := d.judge(now)
	same := len(why) == len(d.why)
	for id, reason := range why {
		old, there := d.why[id]
		same = same && there && old == reason
	}
	if same && !force {
		return
	}
	for id, reason := range why {
		if node := d.snapshot.Node(id); d.why[id] != reason && node != nil && d.why != nil {
			d.n.log.Info("DNS answers change", "node", node.Name, "out", reason)
		}
	}
	d.why = why
	signers := map[*zone.Zone]*dnssec.Signer{}
	d.zones.All(func(z *zone.Zone) {
		if s := d.signers[string(z.Apex)]; s != nil {
			signers[z] = s
		}
	})
	st := dns.State{
		Zones: d.zones, Signers: signers,
		Steer: geo.Compile(d.known, d.snapshot, func(n *model.Node) string { return why[n.ID] }),
	}
	for _, secret := range d.snapshot.CookieSecrets {
		st.Cookies = append(st.Cookies, [16]byte(secret))
	}
	d.server.Set(st)
}

// judge says of each edge why it cannot take clients, "" if it can. mu is held.
func (d *names) judge(now time.Time) map[model.NodeID]string {
	tunnels := map[model.NodeID]geo.Evidence{}
	if d.n.pool != nil {
		for id, p := range d.n.pool.Peers() {
			tunnels[id] = geo.Evidence{Tunnel: true, TunnelUp: p.Up}
		}
	}
	draining, shedding := map[model.NodeID]bool{}, map[model.NodeID]bool{}
	for _, m := range d.n.mesh.Members() {
		e := tunnels[m.ID]
		e.Gossip = true
		tunnels[m.ID] = e
		draining[m.ID], shedding[m.ID] = m.Meta.Draining, m.Meta.Shedding
	}
	shedding[d.n.self] = d.shedding
	why, free := map[model.NodeID]string{}, 0
	for i := range d.snapshot.Nodes {
		node := &d.snapshot.Nodes[i]
		if !node.Edge {
			continue
		}
		alive := node.ID == d.n.self
		if !alive {
			alive, _ = d.alive.Observe(now, node.ID, tunnels[node.ID])
		}
		switch {
		case !alive:
			why[node.ID] = "is not alive"
		case node.State == model.NodeDraining, draining[node.ID], node.ID == d.n.self && d.n.draining.Load():
			why[node.ID] = "drains"
		case shedding[node.ID]:
			why[node.ID] = "is nearly full"
		default:
			why[node.ID] = ""
			free++
		}
	}
	for id, reason := range why {
		if free == 0 && reason == "is nearly full" {
			why[id] = "" // nobody is better off elsewhere
		}
	}
	d.alive.Forget(func(id model.NodeID) bool { return d.snapshot.Node(id) != nil })
	return why
}

// shed tells the others when this node is nearly full, with hysteresis.
func (d *names) shed() {
	if d.n.traffic.doors == nil {
		return
	}
	flows := max(d.n.traffic.tcp.Flows(), d.n.traffic.udp.Flows())
	d.mu.Lock()
	before := d.shedding
	d.shedding = sheds(before, flows, d.n.cfg.MaxFlows)
	now := d.shedding
	d.mu.Unlock()
	if now != before {
		d.n.log.Warn("load shedding", "on", now, "flows", flows)
		d.n.mesh.SetShedding(now)
	}
}

// sheds reports whether a node with so many flows asks not to be named, given whether it did before.
func sheds(before bool, flows, most int) bool {
	if before {
		return float64(flows) >= shedUntil*float64(most)
	}
	return float64(flows) >= shedAt*float64(most)
}

// notes says what answers go without.
func (d *names) notes() (notes []string) {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dbNote != "" {
		notes = append(notes, d.dbNote)
	}
	if d.db == nil && d.snapshot != nil && slices.ContainsFunc(d.snapshot.Pools, func(p model.Pool) bool { return p.Kind == model.PoolNode }) {
		notes = append(notes, "DNS steers without a geo database: by the operator's networks and measured round trips alone")
	}
	return notes
}
