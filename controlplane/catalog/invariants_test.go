package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nearcast/nearcast/proto/model"
)

// invariants checks a State against the rules, slowly and port by port, with nothing of the code that
// keeps them.
func invariants(s *State) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	pools, listeners := map[model.PoolName]model.Pool{}, map[model.ListenerID]model.Listener{}
	accelerators, sites := map[model.AcceleratorID]model.Accelerator{}, map[model.SiteName]bool{}
	regions, targets, nodeNames := map[model.RegionName]bool{}, map[string]model.Target{}, map[string]bool{}
	for _, r := range s.Regions {
		regions[r.Name] = true
	}
	for _, x := range s.Sites {
		sites[x.Name] = true
		if !regions[x.Region] {
			bad("site %s is in no region", x.Name)
		}
	}
	for _, x := range s.Targets {
		targets[x.Name] = x
		if x.Region != "" && !regions[x.Region] {
			bad("target %s is in no region", x.Name)
		}
	}
	for i, p := range s.Pools {
		pools[p.Name] = p
		for _, site := range p.Sites {
			if !sites[site] {
				bad("pool %s names no site %s", p.Name, site)
			}
		}
		for _, q := range s.Pools[:i] {
			for _, x := range p.Prefixes {
				for _, y := range q.Prefixes {
					if x.Overlaps(y) {
						bad("pools %s and %s overlap", p.Name, q.Name)
					}
				}
			}
		}
	}
	inPools := func(a netip.Addr) bool {
		for _, p := range s.Pools {
			for _, x := range p.Prefixes {
				if x.Contains(a) {
					return true
				}
			}
		}
		return false
	}
	nodePorts := map[netip.AddrPort]bool{}
	for _, n := range s.Nodes {
		if nodeNames[n.Name] || !sites[n.Site] {
			bad("node %s: its name is twice or its site is not", n.Name)
		}
		nodeNames[n.Name] = true
		for _, a := range append(n.BackboneAddresses, n.GossipAddress) {
			nodePorts[a] = true
			if inPools(a.Addr()) {
				bad("node %s lies in a pool", n.Name)
			}
		}
	}
	owner, names := map[netip.Addr]model.AcceleratorID{}, map[string]bool{}
	if len(s.Accelerators) > s.Settings.AcceleratorsMax {
		bad("%d accelerators", len(s.Accelerators))
	}
	for _, a := range s.Accelerators {
		accelerators[a.ID] = a
		if names[a.DNSName] {
			bad("two are called %s", a.DNSName)
		}
		names[a.DNSName] = true
		want := 2
		if a.IPAddressType == model.DualStack {
			want = 4
		}
		zones := map[string]bool{}
		for _, p := range a.Pools {
			if pools[p].Kind == model.PoolNode {
				want = 0
			}
			zones[pools[p].Zone] = true
		}
		if len(a.Addresses) != want || len(zones) != len(a.Pools) {
			bad("accelerator %s has addresses %v of pools %v", a.ID, a.Addresses, a.Pools)
		}
		for i, addr := range a.Addresses {
			if other, taken := owner[addr]; taken {
				bad("%v belongs to %s and %s", addr, other, a.ID)
			}
			owner[addr] = a.ID
			inside := false
			for _, x := range pools[a.Pools[i%2]].Prefixes {
				inside = inside || x.Contains(addr)
			}
			if !inside {
				bad("%v of %s is not in pool %s", addr, a.ID, a.Pools[i%2])
			}
		}
	}
	// Every port of every address, per protocol. A node pool's addresses are its sites.
	type place struct {
		at    string
		proto model.Protocol
		port  int
	}
	taken := map[place]model.ListenerID{}
	perAccelerator := map[model.AcceleratorID]int{}
	for _, l := range s.Listeners {
		listeners[l.ID] = l
		a, there := accelerators[l.Accelerator]
		if !there {
			bad("listener %s has no accelerator", l.ID)
			continue
		}
		if a.Revision < l.Revision {
			bad("listener %s is newer than its accelerator", l.ID)
		}
		if perAccelerator[a.ID]++; perAccelerator[a.ID] > s.Settings.ListenersPerAcceleratorMax {
			bad("%s has %d listeners", a.ID, perAccelerator[a.ID])
		}
		var at []string
		if p := pools[a.Pools[0]]; p.Kind == model.PoolNode {
			for site := range sites {
				if p.Serves(site) {
					at = append(at, "site "+string(site))
				}
			}
		} else {
			at = []string{"accelerator " + string(a.ID)}
		}
		for _, where := range at {
			for _, proto := range []model.Protocol{model.TCP, model.UDP} {
				for _, r := range l.PortRanges {
					for port := int(r.From); l.Protocol.Has(proto) && port <= int(r.To); port++ {
						k := place{where, proto, port}
						if other, twice := taken[k]; twice {
							bad("%v is taken by %s and %s", k, other, l.ID)
						}
						taken[k] = l.ID
					}
				}
			}
		}
	}
	hasPort := func(l model.Listener, port uint16) bool {
		for _, r := range l.PortRanges {
			if r.From <= port && port <= r.To {
				return true
			}
		}
		return false
	}
	groupsOf := map[model.AcceleratorID]int{}
	regionOf, endpointOf := map[string]bool{}, map[string]bool{}
	leads := map[string]uint16{}
	for _, g := range s.Groups {
		l, there := listeners[g.Listener]
		if !there || !regions[g.Region] {
			bad("group %s has no listener or no region", g.ID)
			continue
		}
		a := accelerators[l.Accelerator]
		if groupsOf[a.ID]++; groupsOf[a.ID] > s.Settings.GroupsPerAcceleratorMax || a.Revision < g.Revision {
			bad("accelerator %s at %d, group %s at %d, number %d", a.ID, a.Revision, g.ID, g.Revision, groupsOf[a.ID])
		}
		if k := string(g.Listener) + "/" + string(g.Region); regionOf[k] {
			bad("two groups of %s", k)
		} else {
			regionOf[k] = true
		}
		goesTo := map[uint16]bool{g.HealthCheck.Port: true}
		for _, r := range l.PortRanges {
			for port := int(r.From); port <= int(r.To); port++ {
				goesTo[g.EndpointPort(uint16(port))] = true
			}
		}
		for _, o := range g.PortOverrides {
			if !hasPort(l, o.ListenerPort) {
				bad("group %s overrides port %d, which it has not", g.ID, o.ListenerPort)
			}
			for _, other := range s.Listeners {
				if other.Accelerator == a.ID && hasPort(other, o.EndpointPort) {
					bad("group %s leads to port %d of listener %s", g.ID, o.EndpointPort, other.ID)
				}
			}
			k := fmt.Sprint(a.ID, o.EndpointPort)
			if from, there := leads[k]; there && from != o.ListenerPort {
				bad("ports %d and %d of %s lead to %d", from, o.ListenerPort, a.ID, o.EndpointPort)
			}
			leads[k] = o.ListenerPort
		}
		if len(g.Endpoints) > s.Settings.EndpointsPerGroupMax {
			bad("group %s has %d endpoints", g.ID, len(g.Endpoints))
		}
		for _, e := range g.Endpoints {
			host := string(e.ID)
			if t, is := targets[host]; is {
				host = t.Host
				if t.Region != "" && t.Region != g.Region {
					bad("target %s is not in the region of group %s", t.Name, g.ID)
				}
				if a.Revision < t.Revision {
					bad("target %s is newer than accelerator %s", t.Name, a.ID)
				}
			}
			if e.Host != host {
				bad("endpoint %s resolves to %s, not %s", e.ID, e.Host, host)
			}
			if k := string(l.ID) + "/" + string(e.ID); endpointOf[k] {
				bad("endpoint %s is twice under listener %s", e.ID, l.ID)
			} else {
				endpointOf[k] = true
			}
			if e.ClientAddress == model.ClientAddressProxyV1 && l.Protocol != model.TCP {
				bad("endpoint %s has PROXY_V1 under %v", e.ID, l.Protocol)
			}
			addr, err := netip.ParseAddr(host)
			if err != nil {
				if !strings.Contains(host, ".") {
					bad("endpoint %s means nothing", e.ID)
				}
				continue
			}
			if inPools(addr) || addr.IsLoopback() {
				bad("endpoint %s is forbidden", e.ID)
			}
			for _, n := range s.Nodes {
				for _, at := range n.ServiceAddresses {
					for _, other := range s.Listeners {
						for port := range goesTo {
							if at == addr && len(accelerators[other.Accelerator].Addresses) == 0 && hasPort(other, port) {
								bad("endpoint %s port %d is served by listener %s", e.ID, port, other.ID)
							}
						}
					}
				}
			}
			for port := range goesTo {
				if nodePorts[netip.AddrPortFrom(addr, port)] {
					bad("endpoint %s port %d is a node's own", e.ID, port)
				}
			}
		}
	}
	// And nodes would believe it.
	snapshot := &model.Snapshot{Cluster: s.Cluster, Accelerators: s.Accelerators, Listeners: s.Listeners,
		Groups: s.Groups, Pools: s.Pools, Regions: s.Regions, Sites: s.Sites, Nodes: s.Nodes}
	return errors.Join(append(errs, snapshot.Consistent())...)
}

// TestInvariants lets several goroutines at three controllers do thousands of random operations, from
// values so few that they meet all the time, and checks the States that come of it.
func TestInvariants(t *testing.T) {
	operations := 3000
	if n, err := strconv.Atoi(os.Getenv("NEARCAST_OPERATIONS")); err == nil {
		operations = n
	} else if testing.Short() {
		operations = 500
	}
	ctx := t.Context()
	st := newStore(t)
	var cs []*Catalog
	for range 3 {
		cs = append(cs, newCatalog(t, st))
	}
	ok(t)(cs[0].UpdateSettings(ctx, Options{}, func(s *model.Settings) error {
		s.AcceleratorsMax, s.ListenersPerAcceleratorMax, s.GroupsPerAcceleratorMax, s.EndpointsPerGroupMax = 8, 3, 5, 3
		return nil
	}))
	for _, site := range []model.SiteName{"s0", "s1", "s2"} {
		ok(t)(cs[0].CreateSite(ctx, model.Site{Name: site, Region: "r0"}, Options{}))
	}
	var done atomic.Int64
	var mu sync.Mutex
	counts := map[string]map[string]int{}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			r := &randomOps{c: cs[w%3], r: rand.New(rand.NewPCG(1, uint64(w)))}
			for n := done.Add(1); n <= int64(operations); n = done.Add(1) {
				name, err := r.one(t)
				outcome := "done"
				if err != nil {
					code := CodeOf(err)
					if outcome = code.String(); code == Internal || code == Unavailable || code == Aborted {
						t.Errorf("%s: %v", name, err)
					}
				}
				mu.Lock()
				if counts[name] == nil {
					counts[name] = map[string]int{}
				}
				counts[name][outcome]++
				mu.Unlock()
				if n%100 == 0 {
					s, err := r.c.Load(ctx)
					if err == nil {
						err = invariants(s)
					}
					if err != nil {
						t.Errorf("after %d operations: %v", n, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	last := must[*State](t)(cs[0].Load(ctx))
	if err := invariants(last); err != nil {
		t.Error(err)
	}
	for _, c := range append(cs[1:], newCatalog(t, st)) {
		if diff := difference(last, must[*State](t)(c.Load(ctx))); diff != "" {
			t.Errorf("controllers differ: %s", diff)
		}
	}
	for name, outcomes := range counts {
		if outcomes["done"] == 0 && operations >= 1000 {
			t.Errorf("%s never succeeded: %v", name, outcomes)
		}
	}
	t.Logf("%d operations: %v; left: %d accelerators, %d listeners, %d groups, %d pools, %d nodes", operations, counts,
		len(last.Accelerators), len(last.Listeners), len(last.Groups), len(last.Pools), len(last.Nodes))
}
