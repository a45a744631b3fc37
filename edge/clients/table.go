package clients

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nearcast/nearcast/proto/model"
)

// Sight is what one flow of a client saw. What is 0 was not seen.
type Sight struct {
	Client   netip.Addr
	RTT      time.Duration    // between client and this node
	Region   model.RegionName // "": no endpoint took the flow
	Open     time.Duration    // from asking a gateway until the endpoint's connection stood
	Backbone time.Duration    // round trip to that gateway
	Sent     uint64           // bytes that the client has acknowledged
	Busy     time.Duration    // time in which there was something to send
}

// Table is what was seen. One a node; safe for concurrent use.
type Table struct {
	seed    maphash.Seed
	shards  [shards]shard
	evicted atomic.Uint64
	rtts    prometheus.Histogram
}

type shard struct {
	mu       sync.Mutex // held briefly
	networks map[netip.Prefix]*network
}

type network struct {
	rtt     smoothed
	last    time.Time
	regions []region
}

type region struct {
	name           model.RegionName
	flows          int
	open, backbone smoothed
	down           smoothed // nanoseconds a megabyte
}

// smoothed is a smoothed value; the zero value has none.
type smoothed struct {
	value float64
	n     int
}

func (s *smoothed) add(v float64) {
	if s.n < 1<<30 {
		s.n++
	}
	s.value += (v - s.value) / float64(min(s.n, smoothing))
}

func (s *smoothed) time() time.Duration { return time.Duration(s.value) }

// New returns an empty Table.
func New(r prometheus.Registerer) (*Table, error) {
	t := &Table{seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i].networks = map[netip.Prefix]*network{}
	}
	t.rtts = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "nearcast_clients_rtt_seconds", Help: "Smallest round trip to clients, of TCP flows that ended.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 11),
	})
	if r == nil {
		return t, nil
	}
	known := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nearcast_clients_networks", Help: "Client networks that are remembered.",
	}, func() float64 { return float64(t.Len()) })
	evicted := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "nearcast_clients_networks_evicted_total", Help: "Client networks forgotten to make room for others.",
	}, func() float64 { return float64(t.evicted.Load()) })
	for _, c := range []prometheus.Collector{t.rtts, known, evicted} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// Len returns how many networks are remembered.
func (t *Table) Len() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.networks)
		s.mu.Unlock()
	}
	return n
}

// Saw takes what a flow saw. It allocates for a network or region that is new, and else nothing.
func (t *Table) Saw(x Sight, now time.Time) {
	if x.RTT <= 0 || !x.Client.IsValid() { // no round trip (SYN cookies): nothing to compare with
		return
	}
	t.rtts.Observe(x.RTT.Seconds())
	p := model.ClientNetworkOf(x.Client)
	s := &t.shards[maphash.Comparable(t.seed, p)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.networks[p]
	if n == nil {
		if len(s.networks) >= networksMax/shards {
			s.evict()
			t.evicted.Add(1)
		}
		n = new(network)
		s.networks[p] = n
	}
	if now.Sub(n.last) > keep {
		*n = network{}
	}
	n.last = now
	n.rtt.add(float64(x.RTT))
	if x.Region != "" && x.Open > 0 {
		n.saw(&x)
	}
}

// Restore takes over what an earlier process of the node told by Networks, as of then. It is called before
// Saw is.
func (t *Table) Restore(list []model.ClientNetwork, then time.Time) {
	for _, c := range list {
		s := &t.shards[maphash.Comparable(t.seed, c.Prefix)%shards]
		s.mu.Lock()
		if len(c.Sites) > 0 && len(s.networks) < networksMax/shards {
			n := &network{last: then, rtt: smoothed{float64(c.Sites[0].RTT), c.Sites[0].Samples}}
			for _, r := range c.Regions[:min(len(c.Regions), regionsMax)] {
				x := region{name: r.Region, flows: r.Flows, open: smoothed{float64(r.Open), r.Flows},
					backbone: smoothed{float64(r.Backbone), r.Flows}}
				if r.Down > 0 {
					x.down = smoothed{(1 << 20) * float64(time.Second) / float64(r.Down), 1}
				}
				n.regions = append(n.regions, x)
			}
			s.networks[c.Prefix] = n
		}
		s.mu.Unlock()
	}
}

// evict makes room: of a few networks (a map begins its iteration anywhere) the one not seen for longest
// goes. mu is held.
func (s *shard) evict() {
	var oldest netip.Prefix
	var last time.Time
	looked := 0
	for p, n := range s.networks {
		if looked == 0 || n.last.Before(last) {
			oldest, last = p, n.last
		}
		if looked++; looked == evictOf {
			break
		}
	}
	delete(s.networks, oldest)
}

func (n *network) saw(x *Sight) {
	i := slices.IndexFunc(n.regions, func(r region) bool { return r.name == x.Region })
	if i < 0 {
		if len(n.regions) == regionsMax {
			return
		}
		i = len(n.regions)
		n.regions = append(n.regions, region{name: x.Region})
	}
	r := &n.regions[i]
	r.flows = min(r.flows+1, 1<<30)
	r.open.add(float64(x.Open))
	r.backbone.add(float64(x.Backbone))
	if x.Sent >= downBytesMin && x.Busy >= downTimeMin {
		r.down.add(float64(x.Busy) / (float64(x.Sent) / (1 << 20)))
	}
}

// Networks returns the busiest networks that still count, at most so many, sorted by network, with site as
// the name of the site that this node is at.
func (t *Table) Networks(site model.SiteName, most int, now time.Time) []model.ClientNetwork {
	var all []model.ClientNetwork
	for i := range t.shards {
		all = t.shards[i].collect(all, site, now)
	}
	if len(all) > most {
		slices.SortFunc(all, func(a, b model.ClientNetwork) int {
			return cmp.Compare(b.Sites[0].Samples, a.Sites[0].Samples)
		})
		all = all[:most]
	}
	slices.SortFunc(all, func(a, b model.ClientNetwork) int { return a.Prefix.Compare(b.Prefix) })
	return all
}

func (s *shard) collect(all []model.ClientNetwork, site model.SiteName, now time.Time) []model.ClientNetwork {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, n := range s.networks {
		if now.Sub(n.last) > keep {
			delete(s.networks, p)
			continue
		}
		c := model.ClientNetwork{Prefix: p, Sites: []model.ClientSite{{Site: site, RTT: n.rtt.time(), Samples: n.rtt.n}}}
		for i := range n.regions {
			r := &n.regions[i]
			x := model.ClientRegion{Region: r.name, Flows: r.flows, Open: r.open.time(), Backbone: r.backbone.time()}
			if r.down.n > 0 && r.down.value > 0 {
				x.Down = uint64((1 << 20) * float64(time.Second) / r.down.value)
			}
			c.Regions = append(c.Regions, x)
		}
		all = append(all, c)
	}
	return all
}
