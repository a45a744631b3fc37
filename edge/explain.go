package edge

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nearcast/nearcast/edge/geo"
	"github.com/nearcast/nearcast/proto/model"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// explain says where this node would bring a client: by DNS if it answers DNS, and in any case by which
// regions it would serve it.
func (n *Node) explain(req *pb.ExplainSteerRequest) (*pb.ExplainSteerResponse, error) {
	s := n.snapshot.Load()
	if s == nil {
		return nil, errors.New("this node has no snapshot yet")
	}
	client, err := netip.ParseAddr(req.GetClient())
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	judged := client.Unmap()
	if req.GetResolver() != "" {
		if judged, err = netip.ParseAddr(req.GetResolver()); err != nil {
			return nil, fmt.Errorf("resolver: %w", err)
		}
		judged = judged.Unmap()
	}
	a := accelerator(s, model.AcceleratorID(req.GetAcceleratorId()))
	if a == nil {
		return nil, errors.New("there is no such enabled accelerator")
	}
	r := &pb.ExplainSteerResponse{AnsweredBy: n.cfg.Name, Name: a.DNSName, Regions: n.explainRegions(s, a)}
	if port := req.GetPort(); port != 0 {
		if r.Mapping, err = n.explainPort(s, a, port); err != nil {
			return nil, err
		}
	}
	if !s.OnNodePool(a) {
		r.Source, r.Reason = "anycast", "the accelerator has addresses of its own, and routing brings the client to an edge"
		for _, addr := range a.Addresses {
			r.Addresses = append(r.Addresses, addr.String())
		}
		return r, nil
	}
	if n.names == nil {
		return r, errors.New("this node answers no DNS; start it with --dns-listen, or ask another one with --node")
	}
	return r, n.names.explain(r, s, a, judged)
}

// accelerator returns the one with an id, or the first one on a node pool, or the first one.
func accelerator(s *model.Snapshot, id model.AcceleratorID) *model.Accelerator {
	var first *model.Accelerator
	for i := range s.Accelerators {
		a := &s.Accelerators[i]
		switch {
		case !a.Enabled || id != "" && a.ID != id:
		case id != "" || s.OnNodePool(a):
			return a
		case first == nil:
			first = a
		}
	}
	return first
}

func (d *names) explain(r *pb.ExplainSteerResponse, s *model.Snapshot, a *model.Accelerator, judged netip.Addr) error {
	st := d.server.State()
	if st == nil {
		return errors.New("this node has nothing to answer yet")
	}
	pool := st.Steer.Pool(a.Pools[0])
	if pool == nil {
		return errors.New("the accelerator's pool is not known here")
	}
	c, where, sites := st.Steer.Explain(pool, judged, false)
	for _, addr := range c.Addrs {
		r.Addresses = append(r.Addresses, addr.String())
	}
	r.Ttl, r.Source = durationpb.New(c.TTL), c.Source.String()
	if p, err := judged.Prefix(min(c.Scope, judged.BitLen())); err == nil {
		r.Scope = p.String()
	}
	r.Reason = reason(c, where)
	for _, e := range sites {
		r.Sites = append(r.Sites, &pb.ExplainedSite{Site: string(e.Site), DistanceKm: e.Kilometres, RttMs: e.RTT,
			Weight: uint32(e.Weight), Nodes: e.Nodes, PassedOver: e.PassedOver})
	}
	if ids := pool.NodesAt(c.Addrs); len(ids) > 0 {
		r.Edge = string(ids[0])
		if node := s.Node(ids[0]); node != nil {
			r.Edge = node.Name
		}
	}
	return nil
}

// reason says in words what decided.
func reason(c geo.Choice, where geo.Location) string {
	text := map[geo.Source]string{
		geo.SourceNetwork: "the operator's networks send it to " + string(c.Site),
		geo.SourceRTT:     string(c.Site) + " has the shortest measured round trip",
		geo.SourcePlace:   fmt.Sprintf("the database has it at %.2f,%.2f (%s)", where.Latitude, where.Longitude, where.Country),
		geo.SourceCountry: "the database has it in " + where.Country,
		geo.SourceDefault: "nothing is known about it, so it goes to the default site",
	}[c.Source]
	switch {
	case c.Open:
		text += "; no node can take clients, so all are named (fail open)"
	case c.Second:
		text += "; its best site cannot take clients now"
	}
	return text
}

// explainRegions lists the regions of the accelerator's first listener as this edge has them.
func (n *Node) explainRegions(s *model.Snapshot, a *model.Accelerator) (all []*pb.ExplainedRegion) {
	t := n.table.Load()
	at := slices.IndexFunc(s.Listeners, func(l model.Listener) bool { return l.Accelerator == a.ID })
	if t == nil || at < 0 {
		return nil
	}
	view := n.view()
	for i := range s.Groups {
		g := &s.Groups[i]
		if g.Listener != s.Listeners[at].ID {
			continue
		}
		r := &pb.ExplainedRegion{Region: string(g.Region), DistanceMs: -1, Dial: float64(g.TrafficDial)}
		if d, known := t.Distance(g.Region); known {
			r.DistanceMs = float64(d) / float64(time.Millisecond)
		}
		for id, groups := range view.Groups {
			if _, up := view.RTT[id]; !up || view.Draining[id] {
				continue
			}
			if servable, has := groups[g.ID]; has {
				r.Gateways++
				r.Servable = r.Servable || servable
			}
		}
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(x, y *pb.ExplainedRegion) int {
		return cmp.Or(cmp.Compare(b2i(x.DistanceMs < 0), b2i(y.DistanceMs < 0)), cmp.Compare(x.DistanceMs, y.DistanceMs))
	})
	return all
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// explainPort says where a port of a custom routing accelerator leads.
func (n *Node) explainPort(s *model.Snapshot, a *model.Accelerator, port uint32) (*pb.ExplainedMapping, error) {
	if a.Type != model.CustomRouting {
		return nil, fmt.Errorf("port: accelerator %s is not of custom routing, so its ports do not lead each to a "+
			"destination of its own; leave the port out", a.Name)
	}
	out := new(pb.ExplainedMapping)
	for i := range s.Listeners {
		l := &s.Listeners[i]
		if l.Accelerator != a.ID || port > 65535 {
			continue
		}
		for m, p := range model.NewPortTable(s, l.ID).After(uint16(port - 1)) {
			if uint32(p.Port) == port {
				out.GroupId, out.Region, out.Subnet = string(m.Group), string(m.Region), string(m.Subnet)
				out.Destination, out.Allowed = p.Destination.String(), p.Allowed
				out.Protocol = model.PortMappingToProto(p).GetProtocol()
				out.ClientAddress = model.SubnetToProto(*s.Subnet(m.Subnet)).GetClientAddress()
			}
			break
		}
		if t := n.table.Load(); t != nil && out.GroupId != "" {
			if served := t.ListenerByID(l.ID); served != nil {
				out.Gateways = nodeNames(s, served.GatewaysOf(model.GroupID(out.GroupId)))
			}
			break
		}
	}
	return out, nil
}

// nodeNames are the names of nodes, or their ids where the snapshot does not know them.
func nodeNames(s *model.Snapshot, ids []model.NodeID) (names []string) {
	for _, id := range ids {
		name := string(id)
		if node := s.Node(id); node != nil && node.Name != "" {
			name = node.Name
		}
		names = append(names, name)
	}
	return names
}
