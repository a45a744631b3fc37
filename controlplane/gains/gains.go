// Package gains answers: what does acceleration give each client network? It is pure.
//
// Measured of real flows, by edges: the round trip between client and edge, that between edge and gateway,
// and how long the gateway needed to connect to the endpoint. What a client would have without acceleration
// cannot be seen from flows that are accelerated: it is measured by probes in the client's network, given by
// an operator, or estimated by where the network and the region are. Every row says which.
//
// The first byte of an answer, without the time that the application thinks, takes
//
//	direct:       handshake, then request and answer                     2 direct
//	accelerated:  handshake with the edge; request and answer; meanwhile
//	              the gateway connects to the endpoint                    2 client + backbone + 2 connect
package gains

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/nearcast/nearcast/proto/model"
)

// Report is what one edge says.
type Report struct {
	Site     model.SiteName
	Networks []model.ClientNetwork
}

// Gain is what acceleration gives one client network at one site's edges towards one region.
type Gain struct {
	Network  netip.Prefix
	Region   model.RegionName
	Site     model.SiteName
	Flows    int
	Client   time.Duration // round trip between client and edge
	Backbone time.Duration // round trip between edge and gateway
	Connect  time.Duration // between gateway and endpoint
	Direct   time.Duration // round trip without acceleration; 0: not known
	DirectBy model.DirectSource
	Down     uint64 // bytes a second to the client; 0: not known
	// DownDirect is the same without acceleration, by a probe; 0: not known.
	DownDirect uint64
}

// FirstByte is the time until an answer's first byte.
func (g *Gain) FirstByte() time.Duration { return 2*g.Client + g.Backbone + 2*g.Connect }

// FirstByteDirect is the same without acceleration; 0: not known.
func (g *Gain) FirstByteDirect() time.Duration { return 2 * g.Direct }

// What a gain must at least be to be called one: less is within what round trips vary by.
const (
	noiseTime  = 2 * time.Millisecond
	noiseShare = 0.05
)

// Pays reports whether the first byte comes sooner by more than could be noise.
func (g *Gain) Pays() bool {
	saved := g.FirstByteDirect() - g.FirstByte()
	return g.Direct > 0 && saved > noiseTime && float64(saved) > noiseShare*float64(g.FirstByteDirect())
}

type key struct {
	network netip.Prefix
	region  model.RegionName
	site    model.SiteName
}

// Rows works the gains out, most flows first. direct is what is known of networks without acceleration; the
// longest network around a client's decides.
func Rows(reports []Report, direct []model.DirectWay) []Gain {
	sums := map[key]*Gain{}
	for _, r := range reports {
		for i := range r.Networks {
			n := &r.Networks[i]
			for j := range n.Regions {
				add(sums, r.Site, n, &n.Regions[j])
			}
		}
	}
	direct = slices.Clone(direct)
	slices.SortStableFunc(direct, func(a, b model.DirectWay) int { return cmp.Compare(b.Network.Bits(), a.Network.Bits()) })
	all := make([]Gain, 0, len(sums))
	for _, g := range sums {
		for i := range direct {
			d := &direct[i]
			if d.Region == g.Region && d.Network.Bits() <= g.Network.Bits() && d.Network.Contains(g.Network.Addr()) {
				g.Direct, g.DirectBy, g.DownDirect = d.RTT, d.Source, d.Down
				break
			}
		}
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b Gain) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), a.Network.Compare(b.Network),
			cmp.Compare(a.Region, b.Region), cmp.Compare(a.Site, b.Site))
	})
	return all
}

// add adds what one node says to what the others of its site said: averages by flows.
func add(sums map[key]*Gain, site model.SiteName, n *model.ClientNetwork, r *model.ClientRegion) {
	if r.Flows == 0 || len(n.Sites) == 0 {
		return
	}
	k := key{n.Prefix, r.Region, site}
	g := sums[k]
	if g == nil {
		g = &Gain{Network: n.Prefix, Region: r.Region, Site: site}
		sums[k] = g
	}
	before, now := float64(g.Flows), float64(r.Flows)
	mean := func(a, b time.Duration) time.Duration {
		return time.Duration((float64(a)*before + float64(b)*now) / (before + now))
	}
	g.Client, g.Backbone = mean(g.Client, n.Sites[0].RTT), mean(g.Backbone, r.Backbone)
	g.Connect = mean(g.Connect, max(r.Open-r.Backbone, 0))
	g.Direct = mean(g.Direct, r.Direct)
	g.DirectBy = max(g.DirectBy, r.DirectBy) // the weakest of the estimates
	if r.Down > 0 {
		g.Down = r.Down
	}
	g.Flows += r.Flows
}

// Summary is the gains of one region.
type Summary struct {
	Region  model.RegionName
	Flows   int
	Saved   time.Duration // of the first byte: the median of flows
	Losing  int           // flows for which acceleration does not pay
	Guessed int           // flows of which the direct round trip is an estimate
}

// Summarize sums rows up by region, sorted.
func Summarize(rows []Gain) []Summary {
	by := map[model.RegionName][]Gain{}
	for _, g := range rows {
		if g.Direct > 0 {
			by[g.Region] = append(by[g.Region], g)
		}
	}
	var all []Summary
	for region, list := range by {
		s := Summary{Region: region}
		saved := func(g *Gain) time.Duration { return g.FirstByteDirect() - g.FirstByte() }
		slices.SortFunc(list, func(a, b Gain) int { return cmp.Compare(saved(&a), saved(&b)) })
		for i := range list {
			s.Flows += list[i].Flows
			if !list[i].Pays() {
				s.Losing += list[i].Flows
			}
			if list[i].DirectBy > model.DirectOperator {
				s.Guessed += list[i].Flows
			}
		}
		half := 0
		for i := range list {
			if half += list[i].Flows; 2*half >= s.Flows {
				s.Saved = saved(&list[i])
				break
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Summary) int { return cmp.Compare(a.Region, b.Region) })
	return all
}
