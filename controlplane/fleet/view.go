package fleet

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nearcast/nearcast/controlplane/health"
	"github.com/nearcast/nearcast/proto/model"
	v1 "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// This file answers what operators ask. Everything comes from the mirror and from what is published, so
// any controller answers, also while the store has no quorum.

// Controllers returns where the controllers that are there now can be reached; this one is among them.
func (f *Fleet) Controllers() []string {
	list := f.mirror.addresses()
	if own := f.cfg.Address; own != "" && !slices.Contains(list, own) {
		list = append(list, own)
	}
	return list
}

// ControllerStatuses describes the controllers that are there now, sorted by id. leader is the id of the
// leading one.
func (f *Fleet) ControllerStatuses(leader string) []*v1.ControllerStatus {
	f.mirror.mu.Lock()
	defer f.mirror.mu.Unlock()
	var list []*v1.ControllerStatus
	for _, id := range slices.Sorted(maps.Keys(f.mirror.controllers)) {
		c := f.mirror.controllers[id]
		list = append(list, &v1.ControllerStatus{Id: id, Address: c.Address, Version: c.Version,
			Leader: id == leader})
	}
	return list
}

// Describe fills in what is known of a node's present condition.
func (f *Fleet) Describe(n *v1.Node) {
	r, connected := f.mirror.node(model.NodeID(n.GetId()))
	n.Version, n.AppliedRevision, n.Notes = r.Version, r.AppliedRevision, r.Notes
	n.Rejections, n.Connected = r.Rejections, connected
	if !r.CertificateExpires.IsZero() {
		n.CertificateExpires = timestamppb.New(r.CertificateExpires)
	}
	switch {
	case connected:
		n.LastSeen = timestamppb.New(time.Now())
	case !r.LastSeen.IsZero():
		n.LastSeen = timestamppb.New(r.LastSeen)
	}
}

// Deployed reports whether every connected node has applied the accelerator as it is now. Nodes that are
// away do not count: they get it when they come back, before they serve anything new.
func (f *Fleet) Deployed(a model.Accelerator) bool { return f.Applied(a.Revision) }

// Applied is Deployed for a revision of the configuration.
func (f *Fleet) Applied(revision uint64) bool {
	p := f.published.Load()
	if p.Revision() < revision {
		return false
	}
	f.mirror.mu.Lock()
	defer f.mirror.mu.Unlock()
	for id := range f.mirror.connections {
		if n := p.nodes[id]; n == nil || n.State == model.NodeRevoked {
			continue
		}
		if f.mirror.nodes[id].AppliedRevision < revision {
			return false
		}
	}
	return true
}

// Health returns the verdict on every endpoint of a group, or of all groups with an empty id, and each
// prober's own report, sorted by group and endpoint.
func (f *Fleet) Health(group model.GroupID) []*v1.EndpointHealthStatus {
	p := f.published.Load()
	if p.State == nil {
		return nil
	}
	var list []*v1.EndpointHealthStatus
	index := map[health.Key]*v1.EndpointHealthStatus{}
	for _, g := range p.State.Groups {
		if group != "" && g.ID != group {
			continue
		}
		for _, e := range g.Endpoints {
			key := health.Key{Group: g.ID, Endpoint: e.ID}
			v := p.Verdicts[key]
			s := &v1.EndpointHealthStatus{GroupId: string(g.ID), EndpointId: string(e.ID),
				Verdict: model.HealthStateToProto(v.State), Reason: v.Reason}
			if !v.Since.IsZero() {
				s.Since = timestamppb.New(v.Since)
			}
			list = append(list, s)
			index[key] = s
		}
	}
	f.addReports(index)
	slices.SortFunc(list, func(a, b *v1.EndpointHealthStatus) int {
		return cmp.Or(cmp.Compare(a.GroupId, b.GroupId), cmp.Compare(a.EndpointId, b.EndpointId))
	})
	return list
}

func (f *Fleet) addReports(index map[health.Key]*v1.EndpointHealthStatus) {
	f.mirror.mu.Lock()
	defer f.mirror.mu.Unlock()
	for _, prober := range slices.Sorted(maps.Keys(f.mirror.health)) {
		for group, report := range f.mirror.health[prober].groups {
			for _, e := range report.GetEndpoints() {
				s := index[health.Key{Group: group, Endpoint: model.EndpointID(e.GetEndpointId())}]
				if s != nil {
					s.Reports = append(s.Reports, &v1.ProberReport{Prober: prober,
						Health: proto.CloneOf(e)})
				}
			}
		}
	}
}

// Paths returns what the nodes measure towards each other, sorted by node.
func (f *Fleet) Paths() []*v1.NodePaths {
	p := f.published.Load()
	f.mirror.mu.Lock()
	defer f.mirror.mu.Unlock()
	var list []*v1.NodePaths
	for _, id := range slices.Sorted(maps.Keys(f.mirror.paths)) {
		if p.nodes[id] != nil {
			list = append(list, proto.CloneOf(f.mirror.paths[id]))
		}
	}
	return list
}

// Leader returns the id of the controller that makes the verdicts, or "" if there is none or the store
// does not answer.
func (f *Fleet) Leader(ctx context.Context) string {
	id, err := f.cfg.Store.Leader(ctx, election)
	if err != nil {
		return ""
	}
	return id
}

// Leading reports whether this controller makes the verdicts.
func (f *Fleet) Leading() bool { return f.leading.Load() }

// Explain asks a node that is connected to this controller; "" is any edge. Errors are gRPC statuses.
func (f *Fleet) Explain(ctx context.Context, node model.NodeID, req *v1.ExplainSteerRequest) (
	*v1.ExplainSteerResponse, error) {
	reply := make(chan *v1.ExplainReply, 1)
	f.mu.Lock()
	x := f.sessions[node]
	if node == "" {
		p := f.published.Load()
		for _, id := range slices.Sorted(maps.Keys(f.sessions)) {
			if n := p.nodes[id]; n != nil && n.Edge {
				x = f.sessions[id]
				break
			}
		}
	}
	f.lastCall++
	call := &v1.ExplainCall{Id: f.lastCall, Request: req}
	f.asked[call.Id] = reply
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.asked, call.Id)
		f.mu.Unlock()
	}()
	if x == nil {
		return nil, status.Error(codes.Unavailable, "no such edge is connected to this controller")
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	select {
	case x.calls <- call:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	select {
	case r := <-reply:
		if r.GetError() != "" {
			return nil, status.Error(codes.FailedPrecondition, clip(r.GetError(), textMax))
		}
		return r.GetResponse(), nil
	case <-ctx.Done():
		return nil, status.Error(codes.Unavailable, "the node does not answer; it may be of an older version")
	}
}

// explained hands a node's answer to whoever waits for it.
func (f *Fleet) explained(r *v1.ExplainReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.asked[r.GetId()]; c != nil {
		select {
		case c <- r:
		default:
		}
	}
}
