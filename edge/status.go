package edge

import (
	"cmp"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/nearcast/nearcast/edge/agent"
	"github.com/nearcast/nearcast/edge/announce"
	"github.com/nearcast/nearcast/edge/kernel"
	"github.com/nearcast/nearcast/edge/site"
	"github.com/nearcast/nearcast/edge/steer"
	"github.com/nearcast/nearcast/proto/model"
)

// Status is the state of a node, as /status gives it.
type Status struct {
	ID       model.NodeID   `json:"id,omitempty"`
	Name     string         `json:"name"`
	Site     model.SiteName `json:"site"`
	Roles    []string       `json:"roles"`
	Version  string         `json:"version"`
	Ready    bool           `json:"ready"`
	Missing  []string       `json:"missing,omitempty"` // why it is not ready
	Draining bool           `json:"draining,omitempty"`
	Notes    []string       `json:"notes,omitempty"` // what it runs without

	Agent     agent.Status     `json:"agent"`
	Tunnels   []TunnelStatus   `json:"tunnels,omitempty"`   // to gateways
	Regions   []RegionStatus   `json:"regions,omitempty"`   // nearest first
	Groups    []GroupStatus    `json:"groups,omitempty"`    // that this gateway serves
	Endpoints []EndpointStatus `json:"endpoints,omitempty"` // as this gateway's prober sees them
	Members   []MemberStatus   `json:"members,omitempty"`   // alive, says gossip
	Traffic   TrafficStatus    `json:"traffic"`
	Announce  *announce.Status `json:"announce,omitempty"` // by BGP
	Kernel    []kernel.State   `json:"kernel,omitempty"`   // programs that an edge can use

	Balance []site.MemberStatus `json:"balance,omitempty"` // nodes of the site that share its flows, this one first
}

// TunnelStatus is a tunnel to a gateway.
type TunnelStatus struct {
	Peer     model.NodeID   `json:"peer"`
	Name     string         `json:"name,omitempty"`
	Site     model.SiteName `json:"site,omitempty"`
	Up       bool           `json:"up"`
	Draining bool           `json:"draining,omitempty"`
	RTT      float64        `json:"rtt_ms"`
	Loss     float32        `json:"loss"` // 0..1
	UDP      bool           `json:"udp"`  // datagrams go by UDP
	Carriers int            `json:"carriers"`
	Streams  int            `json:"streams"`
}

// RegionStatus is a region as the steering table has it.
type RegionStatus struct {
	Region   model.RegionName `json:"region"`
	Distance *float64         `json:"distance_ms,omitempty"` // absent: unknown
}

// GroupStatus is this gateway's own word on a group.
type GroupStatus struct {
	Group    model.GroupID `json:"group"`
	Servable bool          `json:"servable"`
}

// EndpointStatus is this prober's verdict on an endpoint.
type EndpointStatus struct {
	Group    model.GroupID    `json:"group"`
	Endpoint model.EndpointID `json:"endpoint"`
	State    string           `json:"state"`
	Reason   string           `json:"reason,omitempty"`
	Since    time.Time        `json:"since"`
	Latency  float64          `json:"latency_ms,omitempty"`
}

// MemberStatus is another node that gossip has for alive.
type MemberStatus struct {
	ID       model.NodeID   `json:"id"`
	Site     model.SiteName `json:"site,omitempty"`
	Version  string         `json:"version,omitempty"`
	Draining bool           `json:"draining,omitempty"`
	Since    time.Time      `json:"since"`
}

// Status returns the present state.
func (n *Node) Status() Status {
	s := Status{
		Name: n.cfg.Name, Site: model.SiteName(n.cfg.Site), Version: n.cfg.Version,
		Missing: n.missing(), Draining: n.draining.Load(),
	}
	s.Ready = len(s.Missing) == 0
	if n.cfg.Edge {
		s.Roles = append(s.Roles, "edge")
	}
	if n.cfg.Gateway {
		s.Roles = append(s.Roles, "gateway")
	}
	if !n.up.Load() {
		return s
	}
	s.ID = n.self
	s.Agent = n.agent.Status()
	s.Notes = append(n.agent.Notes(), n.notes()...)
	snapshot := n.snapshot.Load()
	if snapshot == nil {
		snapshot = new(model.Snapshot)
	}
	s.Tunnels = n.tunnelStatus(snapshot)
	if t := n.table.Load(); t != nil {
		s.Regions = regionStatus(t)
	}
	for id, servable := range n.traffic.groups() {
		s.Groups = append(s.Groups, GroupStatus{id, servable})
	}
	slices.SortFunc(s.Groups, func(a, b GroupStatus) int { return cmp.Compare(a.Group, b.Group) })
	s.Endpoints = n.endpointStatus()
	for _, m := range n.mesh.Members() {
		s.Members = append(s.Members, MemberStatus{
			ID: m.ID, Site: m.Meta.Site, Version: m.Meta.Version, Draining: m.Meta.Draining, Since: m.Since,
		})
	}
	s.Traffic = n.traffic.status()
	if n.announce != nil {
		announced := n.announce.Status()
		s.Announce = &announced
	}
	if n.kernel != nil {
		s.Kernel = n.kernel.States()
	}
	if n.site != nil {
		s.Balance = n.site.Status()
	}
	return s
}

func (n *Node) tunnelStatus(s *model.Snapshot) []TunnelStatus {
	if n.pool == nil {
		return nil
	}
	var all []TunnelStatus
	for id, p := range n.pool.Peers() {
		t := TunnelStatus{
			Peer: id, Up: p.Up, Draining: p.Draining, RTT: milliseconds(p.RTT), Loss: p.Loss, UDP: p.UDP,
			Carriers: p.Carriers, Streams: p.Streams,
		}
		if node := s.Node(id); node != nil {
			t.Name, t.Site = node.Name, node.Site
		}
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b TunnelStatus) int { return cmp.Compare(a.Peer, b.Peer) })
	return all
}

func regionStatus(t *steer.Table) []RegionStatus {
	var all []RegionStatus
	for _, name := range t.Regions() {
		r := RegionStatus{Region: name}
		if d, known := t.Distance(name); known {
			ms := milliseconds(d)
			r.Distance = &ms
		}
		all = append(all, r)
	}
	return all
}

func (n *Node) endpointStatus() []EndpointStatus {
	if n.prober == nil {
		return nil
	}
	names := map[model.HealthState]string{
		model.HealthInitial: "initial", model.HealthHealthy: "healthy", model.HealthUnhealthy: "unhealthy",
	}
	var all []EndpointStatus
	for _, v := range n.prober.Verdicts() {
		all = append(all, EndpointStatus{
			Group: v.Group, Endpoint: v.Endpoint, State: names[v.State], Reason: v.Reason, Since: v.Since,
			Latency: milliseconds(v.Latency),
		})
	}
	slices.SortFunc(all, func(a, b EndpointStatus) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return all
}

// missing says why this node is not ready to serve; empty: it is.
func (n *Node) missing() []string {
	switch {
	case n.draining.Load():
		return []string{"draining"}
	case !n.up.Load():
		return []string{"not enrolled yet"}
	case n.snapshot.Load() == nil:
		return []string{"no snapshot yet: neither on disk nor from a controller"}
	}
	return n.traffic.missing()
}

// filesWanted is how many files a busy node should be allowed to have open: each flow is one or two.
const filesWanted = 65_536

// notes lists what this node runs without, for `nearcast status`.
func (n *Node) notes() []string {
	if !n.up.Load() {
		return nil
	}
	notes := append(n.traffic.notes(), n.names.notes()...)
	if n.announce != nil {
		notes = append(notes, n.announce.Notes()...)
	}
	if n.site != nil {
		notes = append(notes, n.site.Notes()...)
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil && limit.Cur < filesWanted {
		notes = append(notes, fmt.Sprintf("open files are limited to %d (LimitNOFILE), which limits flows", limit.Cur))
	}
	if n.pool == nil {
		return notes
	}
	snapshot := n.snapshot.Load()
	var blocked []string
	for id, p := range n.pool.Peers() {
		if !p.Up || p.UDP {
			continue
		}
		name := string(id)
		if snapshot != nil {
			if node := snapshot.Node(id); node != nil {
				name = node.Name
			}
		}
		blocked = append(blocked, "no UDP to "+name+": datagrams ride the carriers")
	}
	slices.Sort(blocked)
	return append(notes, blocked...)
}
