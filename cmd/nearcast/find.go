package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

// pageSize is what is asked for at once: the most that the API gives.
const pageSize = 1000

// listAll asks for pages until there is none left, or at least enough objects (0: all).
func listAll[T any, R interface{ GetNextPageToken() string }](
	parent string, enough int, page func(*pb.ListRequest) (R, error), items func(R) []T,
) ([]T, error) {
	var all []T
	token := ""
	for {
		size := uint32(pageSize)
		if enough > 0 {
			size = uint32(min(pageSize, enough-len(all)))
		}
		r, err := page(&pb.ListRequest{Parent: parent, PageSize: size, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, items(r)...)
		next := r.GetNextPageToken()
		switch {
		case next == "" || enough > 0 && len(all) >= enough:
			return all, nil
		case next == token:
			return nil, errors.New("the controller gives the same page again and again")
		}
		token = next
	}
}

func (s *session) accelerators(ctx context.Context) ([]*pb.Accelerator, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListAcceleratorsResponse, error) {
		return s.ListAccelerators(ctx, r)
	}, (*pb.ListAcceleratorsResponse).GetAccelerators)
}

func (s *session) listeners(ctx context.Context, accelerator string) ([]*pb.Listener, error) {
	return listAll(accelerator, 0, func(r *pb.ListRequest) (*pb.ListListenersResponse, error) {
		return s.ListListeners(ctx, r)
	}, (*pb.ListListenersResponse).GetListeners)
}

func (s *session) groups(ctx context.Context, listener string) ([]*pb.EndpointGroup, error) {
	return listAll(listener, 0, func(r *pb.ListRequest) (*pb.ListEndpointGroupsResponse, error) {
		return s.ListEndpointGroups(ctx, r)
	}, (*pb.ListEndpointGroupsResponse).GetGroups)
}

func (s *session) targets(ctx context.Context) ([]*pb.Target, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListTargetsResponse, error) {
		return s.ListTargets(ctx, r)
	}, (*pb.ListTargetsResponse).GetTargets)
}

func (s *session) pools(ctx context.Context) ([]*pb.Pool, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListPoolsResponse, error) {
		return s.ListPools(ctx, r)
	}, (*pb.ListPoolsResponse).GetPools)
}

func (s *session) sites(ctx context.Context) ([]*pb.Site, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListSitesResponse, error) {
		return s.ListSites(ctx, r)
	}, (*pb.ListSitesResponse).GetSites)
}

func (s *session) regions(ctx context.Context) ([]*pb.Region, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListRegionsResponse, error) {
		return s.ListRegions(ctx, r)
	}, (*pb.ListRegionsResponse).GetRegions)
}

func (s *session) nodes(ctx context.Context) ([]*pb.Node, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListNodesResponse, error) {
		return s.ListNodes(ctx, r)
	}, (*pb.ListNodesResponse).GetNodes)
}

func (s *session) tokens(ctx context.Context) ([]*pb.JoinToken, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListJoinTokensResponse, error) {
		return s.ListJoinTokens(ctx, r)
	}, (*pb.ListJoinTokensResponse).GetTokens)
}

func (s *session) accessKeys(ctx context.Context) ([]*pb.AccessKey, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListAccessKeysResponse, error) {
		return s.ListAccessKeys(ctx, r)
	}, (*pb.ListAccessKeysResponse).GetKeys)
}

func (s *session) operators(ctx context.Context) ([]*pb.Operator, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListOperatorsResponse, error) {
		return s.ListOperators(ctx, r)
	}, (*pb.ListOperatorsResponse).GetOperators)
}

func (s *session) health(ctx context.Context, group string) ([]*pb.EndpointHealthStatus, error) {
	return listAll(group, 0, func(r *pb.ListRequest) (*pb.ListHealthResponse, error) {
		return s.ListHealth(ctx, r)
	}, (*pb.ListHealthResponse).GetEndpoints)
}

func (s *session) paths(ctx context.Context) ([]*pb.NodePaths, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListPathsResponse, error) {
		return s.ListPaths(ctx, r)
	}, (*pb.ListPathsResponse).GetNodes)
}

func (s *session) audit(ctx context.Context, enough int) ([]*pb.AuditEntry, error) {
	return listAll("", enough, func(r *pb.ListRequest) (*pb.ListAuditResponse, error) {
		return s.ListAudit(ctx, r)
	}, (*pb.ListAuditResponse).GetEntries)
}

// pick returns the only object that a reference means: the one with this id, else the one with this
// name. Several of one name are an error that tells their ids.
func pick[T any](kind, ref string, all []T, id, name func(T) string) (found T, err error) {
	var ids, others []string
	for _, o := range all {
		switch {
		case id(o) == ref:
			return o, nil
		case name(o) == ref:
			found = o
			ids = append(ids, id(o))
		}
		others = append(others, name(o))
	}
	switch {
	case len(ids) == 1:
		return found, nil
	case len(ids) > 1:
		return found, fmt.Errorf("%d %ss are called %q; name one by its id: %s", len(ids), kind, ref, few(ids))
	}
	return found, fmt.Errorf("there is no %s %q; there are: %s", kind, ref, few(others))
}

// few joins names, and stops where a list would fill the screen.
func few(names []string) string {
	const enough = 12
	if len(names) > enough {
		return fmt.Sprintf("%s … and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
	}
	return orNone(names)
}

// accelerator finds one by id or name.
func (s *session) accelerator(ctx context.Context, ref string) (*pb.Accelerator, error) {
	all, err := s.accelerators(ctx)
	if err != nil {
		return nil, err
	}
	return pick("accelerator", ref, all, (*pb.Accelerator).GetId, (*pb.Accelerator).GetName)
}

// node finds one by id or name.
func (s *session) node(ctx context.Context, ref string) (*pb.Node, error) {
	all, err := s.nodes(ctx)
	if err != nil {
		return nil, err
	}
	return pick("node", ref, all, (*pb.Node).GetId, (*pb.Node).GetName)
}

// listener finds one by id, or as ACCELERATOR, ACCELERATOR:PORT or ACCELERATOR:PORT/PROTOCOL.
func (s *session) listener(ctx context.Context, ref string) (*pb.Listener, error) {
	all, err := s.listeners(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if l.GetId() == ref {
			return l, nil
		}
	}
	name, port, protocol, err := splitListenerRef(ref)
	if err != nil {
		return nil, err
	}
	a, err := s.accelerator(ctx, name)
	if err != nil && name == ref {
		return nil, fmt.Errorf("there is no listener %q, and no accelerator of that name or id; "+
			"see: nearcast listener list", ref)
	} else if err != nil {
		return nil, err
	}
	var found []*pb.Listener
	var ids []string
	for _, l := range all {
		if l.GetAcceleratorId() == a.GetId() && label(a, l) == a.GetName()+strings.TrimPrefix(ref, name) {
			return l, nil // as lists write it: "web:443" is the one for TCP, though UDP may have 443, too
		}
		if l.GetAcceleratorId() == a.GetId() && takes(l, port, protocol) {
			found = append(found, l)
			ids = append(ids, fmt.Sprintf("%s (%s %s)", l.GetId(), enumText(l.GetProtocol()),
				portsText(l.GetPortRanges())))
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("accelerator %s has no listener %q; see: nearcast listener list --accelerator %s",
			a.GetName(), ref, a.GetName())
	}
	return nil, fmt.Errorf("%q means %d listeners; name one by its id: %s", ref, len(found), few(ids))
}

// splitListenerRef takes "web:53/udp" apart; port 0 and protocol 0 are any.
func splitListenerRef(ref string) (name string, port uint32, protocol pb.Protocol, err error) {
	name, rest, hasPort := strings.Cut(ref, ":")
	if !hasPort {
		return name, 0, 0, nil
	}
	portText, protoText, hasProto := strings.Cut(rest, "/")
	if port, err = manifest.ParsePort(portText); err != nil {
		return "", 0, 0, fmt.Errorf("%q is not a listener; write its id, or ACCELERATOR:PORT like web:443", ref)
	}
	if hasProto {
		n, err := manifest.ParseEnum(protocol.Descriptor(), protoText)
		if err != nil {
			return "", 0, 0, fmt.Errorf("in %q: %w", ref, err)
		}
		protocol = pb.Protocol(n)
	}
	return name, port, protocol, nil
}

func takes(l *pb.Listener, port uint32, protocol pb.Protocol) bool {
	if l.GetProtocol()&protocol != protocol { // TCP is 1, UDP 2, both 3
		return false
	}
	for _, r := range l.GetPortRanges() {
		if port == 0 || r.GetFrom() <= port && port <= r.GetTo() {
			return true
		}
	}
	return false
}

// group finds one by id, or as LISTENER@REGION.
func (s *session) group(ctx context.Context, ref string) (*pb.EndpointGroup, error) {
	listenerRef, region, hasRegion := strings.Cut(ref, "@")
	parent := ""
	if hasRegion {
		l, err := s.listener(ctx, listenerRef)
		if err != nil {
			return nil, err
		}
		parent = l.GetId()
	}
	all, err := s.groups(ctx, parent)
	if err != nil {
		return nil, err
	}
	var regions []string
	for _, g := range all {
		if hasRegion && g.GetRegion() == region || !hasRegion && g.GetId() == ref {
			return g, nil
		}
		regions = append(regions, g.GetRegion())
	}
	if hasRegion {
		return nil, fmt.Errorf("listener %s has no group in region %q; it has groups in: %s",
			listenerRef, region, few(regions))
	}
	return nil, fmt.Errorf("there is no group %q; write its id, or LISTENER@REGION like web:443@eu-fra-1", ref)
}

// label names a listener as people do, like "web:443".
func label(a *pb.Accelerator, l *pb.Listener) string { return manifest.ListenerLabel(a.GetName(), l) }

// completionTimeout bounds what a press of TAB may take.
const completionTimeout = 3 * time.Second

// complete makes a completion out of what a controller lists. Without an answer there is nothing to
// offer, and a shell's prompt is no place for errors.
func (c *cli) complete(list func(context.Context, *session) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		s, err := c.admin()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		words, err := list(ctx, s)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// first lets a completion answer for the first argument only.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, word)
	}
}

func (c *cli) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	f, err := c.loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return f.names(), cobra.ShellCompDirectiveNoFileComp
}

// completeWith completes with one word for each object.
func completeWith[T any](c *cli, list func(*session, context.Context) ([]T, error),
	word func(T) string) cobra.CompletionFunc {
	return c.complete(func(ctx context.Context, s *session) ([]string, error) {
		all, err := list(s, ctx)
		var words []string
		for _, o := range all {
			words = append(words, word(o))
		}
		return words, err
	})
}

func (c *cli) completeAccelerators() cobra.CompletionFunc {
	return completeWith(c, (*session).accelerators, (*pb.Accelerator).GetName)
}

func (c *cli) completeRegions() cobra.CompletionFunc {
	return completeWith(c, (*session).regions, (*pb.Region).GetName)
}

func (c *cli) completeSites() cobra.CompletionFunc {
	return completeWith(c, (*session).sites, (*pb.Site).GetName)
}

func (c *cli) completePools() cobra.CompletionFunc {
	return completeWith(c, (*session).pools, (*pb.Pool).GetName)
}

func (c *cli) completeTargets() cobra.CompletionFunc {
	return completeWith(c, (*session).targets, (*pb.Target).GetName)
}

func (c *cli) completeNodes() cobra.CompletionFunc {
	return completeWith(c, (*session).nodes, (*pb.Node).GetName)
}

// completeListeners offers ids with what they are: shells part words at the ':' of the other form.
func (c *cli) completeListeners() cobra.CompletionFunc {
	return c.complete(func(ctx context.Context, s *session) ([]string, error) {
		names, listeners, err := s.named(ctx)
		var words []string
		for _, l := range listeners {
			words = append(words, cobra.CompletionWithDesc(l.GetId(), label(names[l.GetAcceleratorId()], l)))
		}
		return words, err
	})
}

// completeGroups offers ids with what they are.
func (c *cli) completeGroups() cobra.CompletionFunc {
	return c.complete(func(ctx context.Context, s *session) ([]string, error) {
		labels, groups, err := s.labelled(ctx, "")
		var words []string
		for _, g := range groups {
			words = append(words, cobra.CompletionWithDesc(g.GetId(), labels[g.GetListenerId()]+"@"+g.GetRegion()))
		}
		return words, err
	})
}

// named returns all listeners, and the accelerators by id.
func (s *session) named(ctx context.Context) (map[string]*pb.Accelerator, []*pb.Listener, error) {
	accelerators, err := s.accelerators(ctx)
	if err != nil {
		return nil, nil, err
	}
	byID := map[string]*pb.Accelerator{}
	for _, a := range accelerators {
		byID[a.GetId()] = a
	}
	listeners, err := s.listeners(ctx, "")
	return byID, listeners, err
}

// labelled returns the groups of a listener, or all, and what people call listeners by id.
func (s *session) labelled(ctx context.Context, listener string) (map[string]string, []*pb.EndpointGroup,
	error) {
	byID, listeners, err := s.named(ctx)
	if err != nil {
		return nil, nil, err
	}
	labels := map[string]string{}
	for _, l := range listeners {
		labels[l.GetId()] = label(byID[l.GetAcceleratorId()], l)
	}
	groups, err := s.groups(ctx, listener)
	return labels, groups, err
}
