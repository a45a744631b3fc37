package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nearcast/nearcast/controlplane/gains"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file is about clients' networks: each edge says what it measures of them, and nodes that answer DNS
// are told what all did.
//
//	node ─▶ tookClients ─▶ store (a record a node) ─▶ mirror of every controller ─▶ shareClients ─▶ nodes

// clientsReport is one node's word.
type clientsReport struct {
	networks []model.ClientNetwork
	at       time.Time
}

// knownClients is what nodes are told; immutable.
type knownClients struct {
	message *v1.ControllerMessage // nil: nothing is known yet
	next    chan struct{}         // closed when there is something newer
}

// tookClients keeps what a node measured.
func (x *session) tookClients(p *v1.ClientNetworks) {
	list, err := model.ClientNetworksFromProto(p, model.ClientNetworksMax)
	if err != nil {
		x.f.metrics.dropped.Inc()
		x.log.Warn("node reports clients' networks that cannot be understood", "err", err)
		return
	}
	report := model.ClientNetworksToProto(list)
	report.Time = now()
	x.mu.Lock()
	x.clients = report
	x.mu.Unlock()
	x.poke()
}

// flushClients writes what the node measured, the larger it is the more seldom.
func (x *session) flushClients(ctx context.Context) error {
	x.mu.Lock()
	report := x.clients
	if report == nil || time.Now().Before(x.clientsNext) {
		x.mu.Unlock()
		return nil // the next report, or last_seen, brings it along
	}
	x.clients = nil
	x.mu.Unlock()
	value, err := proto.Marshal(report)
	if err != nil {
		return fmt.Errorf("encode the node's clients: %w", err)
	}
	if _, err := x.f.cfg.Store.Put(ctx, clientsPrefix+string(x.id), value); err != nil {
		return fmt.Errorf("store the node's clients: %w", err)
	}
	x.clientsNext = time.Now().Add(clientsWait(len(value), clientsBytes))
	return nil
}

// clientsWait is how long to wait after so many bytes.
func clientsWait(bytes, perSecond int) time.Duration {
	return max(clientsLeast, time.Duration(bytes)*time.Second/time.Duration(perSecond))
}

// putClients takes a record over. Precondition: mu is held.
func (m *mirror) putClients(node model.NodeID, value []byte) error {
	p := new(v1.ClientNetworks)
	if err := proto.Unmarshal(value, p); err != nil {
		return err
	}
	list, err := model.ClientNetworksFromProto(p, model.ClientNetworksMax)
	if err != nil {
		return err
	}
	m.clients[node] = clientsReport{list, p.GetTime().AsTime()}
	m.clientsNews++
	return nil
}

// putDirect takes a record over. Precondition: mu is held.
func (m *mirror) putDirect(key string, value []byte) error {
	p := new(v1.DirectPath)
	if err := proto.Unmarshal(value, p); err != nil {
		return err
	}
	d, err := model.DirectPathFromProto(p)
	if err == nil {
		m.direct[key] = d
	}
	return err
}

// clientsSince returns all reports if they have changed since version.
func (m *mirror) clientsSince(version uint64) (reports map[model.NodeID]clientsReport, now uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if version == m.clientsNews {
		return nil, version
	}
	return maps.Clone(m.clients), m.clientsNews
}

// shareClients makes what nodes are told of clients' networks, until ctx ends.
func (f *Fleet) shareClients(ctx context.Context) error {
	tick := time.NewTicker(clientsLeast)
	defer tick.Stop()
	var seen uint64
	var due time.Time
	var before []model.ClientNetwork
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			p := f.published.Load()
			if now.Before(due) || p.State == nil {
				continue
			}
			reports, version := f.mirror.clientsSince(seen)
			if version == seen {
				continue
			}
			seen = version
			site := func(id model.NodeID) model.SiteName {
				if n := p.nodes[id]; n != nil && n.State != model.NodeRevoked {
					return n.Site
				}
				return ""
			}
			list, left := mergeClients(reports, site, before, now)
			f.metrics.clients.Set(float64(len(list)))
			f.metrics.clientsLeft.Set(float64(left))
			message := model.ClientNetworksToProto(list)
			due, before = now.Add(clientsWait(proto.Size(message), clientsTold)), list
			old := f.known.Swap(&knownClients{
				message: &v1.ControllerMessage{Body: &v1.ControllerMessage_Clients{Clients: message}}, next: make(chan struct{})})
			close(old.next)
		}
	}
}

// mergeClients makes one list of what nodes said: for each network and site the average by samples. Of more
// networks than nodes are told the busiest remain; left is how many are not told. A round trip that has hardly
// moved stays as it was told before, so that answers do not swing with the noise of two sites that are as near.
func mergeClients(reports map[model.NodeID]clientsReport, site func(model.NodeID) model.SiteName,
	before []model.ClientNetwork, now time.Time) (list []model.ClientNetwork, left int) {
	by := map[netip.Prefix]*model.ClientNetwork{}
	for _, id := range slices.Sorted(maps.Keys(reports)) {
		r, at := reports[id], site(id)
		if at == "" || now.Sub(r.at) > clientsAge {
			continue
		}
		for i := range r.networks {
			n := &r.networks[i]
			if len(n.Sites) == 0 {
				continue
			}
			if by[n.Prefix] == nil {
				by[n.Prefix] = &model.ClientNetwork{Prefix: n.Prefix}
			}
			mergeSite(by[n.Prefix], at, n.Sites[0])
		}
	}
	for _, n := range by {
		slices.SortFunc(n.Sites, func(a, b model.ClientSite) int { return cmp.Compare(a.Site, b.Site) })
		list = append(list, *n)
	}
	if left = max(0, len(list)-model.ClientNetworksKnown); left > 0 {
		slices.SortFunc(list, func(a, b model.ClientNetwork) int {
			return cmp.Or(cmp.Compare(samples(&b), samples(&a)), a.Prefix.Compare(b.Prefix))
		})
		list = list[:model.ClientNetworksKnown]
	}
	slices.SortFunc(list, func(a, b model.ClientNetwork) int { return a.Prefix.Compare(b.Prefix) })
	for i := range list {
		at, ok := slices.BinarySearchFunc(before, list[i].Prefix, func(n model.ClientNetwork, p netip.Prefix) int {
			return n.Prefix.Compare(p)
		})
		if ok {
			steady(&list[i], &before[at])
		}
	}
	return list, left
}

func mergeSite(n *model.ClientNetwork, at model.SiteName, s model.ClientSite) {
	s.Site = at // not what the node says, but where it is enrolled
	i := slices.IndexFunc(n.Sites, func(o model.ClientSite) bool { return o.Site == at })
	if i < 0 {
		n.Sites = append(n.Sites, s)
		return
	}
	o := &n.Sites[i]
	total := max(o.Samples+s.Samples, 1)
	o.RTT = time.Duration((float64(o.RTT)*float64(o.Samples) + float64(s.RTT)*float64(s.Samples)) / float64(total))
	o.Samples = min(total, 1<<30)
}

func samples(n *model.ClientNetwork) (sum int) {
	for _, s := range n.Sites {
		sum += s.Samples
	}
	return sum
}

// What a round trip must have moved by, both, to be told anew.
const (
	steadyTime  = 2 * time.Millisecond
	steadyShare = 0.1
)

func steady(n, before *model.ClientNetwork) {
	for i := range n.Sites {
		s := &n.Sites[i]
		for _, o := range before.Sites {
			moved := (s.RTT - o.RTT).Abs()
			if o.Site == s.Site && (moved < steadyTime || float64(moved) < steadyShare*float64(o.RTT)) {
				s.RTT = o.RTT
			}
		}
	}
}

// Gains says what acceleration gives clients, most flows first.
func (f *Fleet) Gains() []gains.Gain {
	p := f.published.Load()
	if p.State == nil {
		return nil
	}
	var reports []gains.Report
	f.mirror.mu.Lock()
	for id, r := range f.mirror.clients {
		if n := p.nodes[id]; n != nil && time.Since(r.at) < clientsAge {
			reports = append(reports, gains.Report{Site: n.Site, Networks: r.networks})
		}
	}
	direct := slices.Collect(maps.Values(f.mirror.direct))
	f.mirror.mu.Unlock()
	return gains.Rows(reports, direct)
}

// ErrDirectFull says that no further direct path can be kept.
var ErrDirectFull = errors.New("too many direct paths are kept; remove some, or give shorter networks")

// SetDirect keeps what a network has to a region without acceleration, or takes it out.
func (f *Fleet) SetDirect(ctx context.Context, d model.DirectWay, remove bool) error {
	key := string(d.Region) + "/" + d.Network.String()
	if remove {
		_, err := f.cfg.Store.Delete(ctx, directPrefix+key)
		return err
	}
	f.mirror.mu.Lock()
	_, there := f.mirror.direct[key]
	full := len(f.mirror.direct) >= directMax
	f.mirror.mu.Unlock()
	if full && !there {
		return ErrDirectFull
	}
	value, err := proto.Marshal(model.DirectPathToProto(d))
	if err != nil {
		return fmt.Errorf("encode a direct path: %w", err)
	}
	_, err = f.cfg.Store.Put(ctx, directPrefix+key, value)
	return err
}
