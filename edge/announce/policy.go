package announce

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/nearcast/nearcast/proto/model"
)

// setPolicy makes the filters those of the plan: nothing is taken from routers, and each is sent exactly
// the planned prefixes of its family, with what its session adds to them. What is filtered cannot leave,
// whatever else goes wrong.
func (s *speaker) setPolicy(p *Plan, want map[netip.Addr]model.BGPPeer) error {
	var sets [2]*api.DefinedSet // by family
	for i, name := range []string{"own4", "own6"} {
		sets[i] = &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_PREFIX, Name: name}
	}
	for _, e := range p.Entries {
		i := 0
		if e.Prefix.Addr().Is6() {
			i = 1
		}
		bits := uint32(e.Prefix.Bits())
		sets[i].Prefixes = append(sets[i].Prefixes,
			&api.Prefix{IpPrefix: e.Prefix.String(), MaskLengthMin: bits, MaskLengthMax: bits})
	}
	req := &api.SetPoliciesRequest{}
	export := &api.Policy{Name: "export"}
	for _, set := range sets {
		if len(set.Prefixes) > 0 {
			req.DefinedSets = append(req.DefinedSets, set)
		}
	}
	req.DefinedSets = append(req.DefinedSets, &api.DefinedSet{DefinedType: api.DefinedType_DEFINED_TYPE_COMMUNITY,
		Name: "draining", List: []string{"^" + string(model.GracefulShutdown) + "$"}})
	for _, b := range slices.SortedFunc(maps.Values(want), func(a, b model.BGPPeer) int {
		return cmp.Compare(a.Name, b.Name)
	}) {
		set := sets[0]
		if b.Address.Is6() {
			set = sets[1]
		}
		if len(set.Prefixes) == 0 {
			continue
		}
		host := netip.PrefixFrom(b.Address, b.Address.BitLen()).String()
		req.DefinedSets = append(req.DefinedSets, &api.DefinedSet{
			DefinedType: api.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: "to-" + b.Name, List: []string{host}})
		export.Statements = append(export.Statements,
			statement(p, &b, set.Name, true), statement(p, &b, set.Name, false))
	}
	// What this node itself announces passes the import filter, too; nothing of a router does.
	own := &api.Policy{Name: "import", Statements: []*api.Statement{{Name: "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	req.Policies = []*api.Policy{own}
	if len(export.Statements) > 0 {
		req.Policies = append(req.Policies, export)
	}
	key := strings.Join([]string{fmt.Sprint(req.DefinedSets), fmt.Sprint(req.Policies)}, "\n")
	if key == s.policy {
		return nil
	}
	if err := s.usePolicy(req); err != nil {
		return err
	}
	s.policy = key
	var errs []error
	for addr := range s.peers {
		errs = append(errs, s.server.ResetPeer(context.Background(), &api.ResetPeerRequest{
			Address: addr.String(), Soft: true, Direction: api.ResetPeerRequest_DIRECTION_OUT}))
	}
	return errors.Join(errs...)
}

func (s *speaker) usePolicy(req *api.SetPoliciesRequest) error {
	ctx := context.Background()
	if err := s.server.SetPolicies(ctx, req); err != nil {
		return fmt.Errorf("set filters: %w", err)
	}
	for _, a := range []*api.PolicyAssignment{
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: req.Policies[:1]},
		{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT, Policies: req.Policies[1:]},
	} {
		a.DefaultAction = api.RouteAction_ROUTE_ACTION_REJECT
		if err := s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: a}); err != nil {
			return fmt.Errorf("set filters: %w", err)
		}
	}
	return nil
}

// statement is what one session does to the planned prefixes; while they drain more than otherwise.
func statement(p *Plan, b *model.BGPPeer, set string, draining bool) *api.Statement {
	st := &api.Statement{
		Name: "to-" + b.Name,
		Conditions: &api.Conditions{
			PrefixSet:   &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: set},
			NeighborSet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: "to-" + b.Name},
		},
		Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}
	internal := b.ASN == p.BGP.LocalASN
	prepends, preference := b.Prepends, cmp.Or(b.LocalPreference, model.DefaultLocalPref)
	if draining {
		st.Name = "draining-" + b.Name
		st.Conditions.CommunitySet = &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: "draining"}
		prepends += p.BGP.DrainPrepends
		preference = 0 // RFC 8326 4.2
	}
	if internal {
		st.Actions.LocalPref = &api.LocalPrefAction{Value: preference}
	} else if prepends > 0 { // on internal BGP the own number in the path is a loop
		st.Actions.AsPrepend = &api.AsPrependAction{Asn: p.BGP.LocalASN, Repeat: uint32(prepends)}
	}
	if b.MED != nil {
		st.Actions.Med = &api.MedAction{Type: api.MedAction_TYPE_REPLACE, Value: int64(*b.MED)}
	}
	var plain, large []string
	for _, c := range b.Communities {
		parts, err := c.Parts()
		switch {
		case err != nil: // Validate has refused it
		case len(parts) == 3:
			large = append(large, string(c))
		default:
			plain = append(plain, fmt.Sprintf("%d:%d", parts[0]>>16, parts[0]&0xffff))
		}
	}
	if len(plain) > 0 {
		st.Actions.Community = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: plain}
	}
	if len(large) > 0 {
		st.Actions.LargeCommunity = &api.CommunityAction{Type: api.CommunityAction_TYPE_ADD, Communities: large}
	}
	return st
}

// look returns every session of a plan as it is now.
func (s *speaker) look(p *Plan) []Session {
	s.takeEvents()
	var all []Session
	for _, b := range p.Peers {
		x := Session{Peer: b}
		switch {
		case b.Disabled:
			x.State = "disabled"
		case p.BGP.DryRun:
			x.State = "dry run"
		case s.server == nil:
			x.State = "idle"
		default:
			s.lookAt(&x)
		}
		all = append(all, x)
	}
	return all
}

func (s *speaker) takeEvents() {
	for {
		select {
		case e := <-s.events:
			if s.sessions == nil {
				continue
			}
			if old := s.sessions[e.Peer.Address]; old != nil {
				if e.Reason == "" {
					e.Reason = old.Reason
				}
				if e.State == old.State {
					e.Since = old.Since
				}
			}
			s.sessions[e.Peer.Address] = &e
		default:
			return
		}
	}
}

func (s *speaker) lookAt(x *Session) {
	x.State = "idle"
	addr := x.Peer.Address
	_ = s.server.ListPeer(context.Background(), &api.ListPeerRequest{Address: addr.String()}, func(p *api.Peer) {
		x.State = sessionText[p.GetState().GetSessionState()]
		for _, af := range p.GetAfiSafis() {
			x.Received += int(af.GetState().GetReceived())
		}
	})
	if e := s.sessions[addr]; e != nil {
		x.Since = e.Since
		if x.State != "established" {
			x.Reason = e.Reason
		}
	}
	if x.State != "established" {
		return
	}
	family := bgp.RF_IPv4_UC
	if addr.Is6() {
		family = bgp.RF_IPv6_UC
	}
	_ = s.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_ADJ_OUT, Name: addr.String(),
		Family: family}, func(nlri bgp.NLRI, _ []*apiutil.Path) {
		if prefix, err := netip.ParsePrefix(nlri.String()); err == nil {
			x.Announced = append(x.Announced, prefix)
		}
	})
}

var sessionText = map[api.PeerState_SessionState]string{
	api.PeerState_SESSION_STATE_UNSPECIFIED: "idle",
	api.PeerState_SESSION_STATE_IDLE:        "idle",
	api.PeerState_SESSION_STATE_CONNECT:     "connect",
	api.PeerState_SESSION_STATE_ACTIVE:      "active",
	api.PeerState_SESSION_STATE_OPENSENT:    "open-sent",
	api.PeerState_SESSION_STATE_OPENCONFIRM: "open-confirm",
	api.PeerState_SESSION_STATE_ESTABLISHED: "established",
}

// count notes how many sessions are established.
func (s *speaker) count() {
	n := int64(0)
	if s.server != nil {
		_ = s.server.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
			if p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED {
				n++
			}
		})
	}
	s.established.Store(n)
}
