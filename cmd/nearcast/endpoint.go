package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) endpointCommand() *cobra.Command {
	return c.noun("endpoint", "Addresses with weights in a group",
		"  nearcast endpoint add --group web:443@eu-fra-1 10.0.0.1 10.0.0.2=64\n  nearcast endpoint list",
		[]string{"endpoints", "ep"},
		c.endpointAdd(), c.endpointGet(), c.endpointList(), c.endpointSet(), c.endpointRemove())
}

// addGroupFlag adds --group to a command about endpoints.
func (c *cli) addGroupFlag(cmd *cobra.Command, group *string) {
	cmd.Flags().StringVarP(group, "group", "g", "", "id of the `group`, or LISTENER@REGION")
	mustComplete(cmd, "group", c.completeGroups())
}

func (c *cli) endpointAdd() *cobra.Command {
	var (
		group string
		mode  pb.ClientAddressMode
	)
	cmd := &cobra.Command{
		Use: "add ENDPOINT[=WEIGHT]…", Aliases: []string{"create"}, Short: "Add endpoints to a group",
		Long: "Add endpoints to a group. An endpoint is an IP address, a DNS name or the name of a target. Its\n" +
			"share of the group's new flows is its weight over all weights; weights are 0 to 255, 128 if not said.",
		Example: "  nearcast endpoint add --group web:443@eu-fra-1 10.0.0.1 10.0.0.2=64\n" +
			"  nearcast endpoint add -g 0a1b2c3d4e5f app.example.com --client-address proxy_v2 --wait",
		Args: atLeast("ENDPOINT"), ValidArgsFunction: c.completeTargets(),
		RunE: func(cmd *cobra.Command, args []string) error {
			endpoints, err := parseEndpoints(args, mode)
			if err != nil {
				return err
			}
			return c.changeGroup(cmd.Context(), func(ctx context.Context, s *session) (*pb.EndpointGroup, error) {
				g, err := s.group(ctx, group)
				if err != nil {
					return nil, err
				}
				return s.AddEndpoints(ctx, &pb.AddEndpointsRequest{GroupId: g.GetId(), Endpoints: endpoints})
			})
		},
	}
	c.addGroupFlag(cmd, &group)
	enumFlag(cmd, &mode, "client-address", "how they learn the client's address")
	c.addWait(cmd)
	return need(cmd, "group")
}

func (c *cli) endpointSet() *cobra.Command {
	var (
		group  string
		weight uint8
		mode   pb.ClientAddressMode
	)
	cmd := &cobra.Command{
		Use: "set ENDPOINT…", Aliases: []string{"update"}, Short: "Change endpoints' weight or client address mode",
		Example: "  nearcast endpoint set --group web:443@eu-fra-1 10.0.0.1 --weight 0\n" +
			"  nearcast endpoint set -g web@eu-fra-1 10.0.0.1 10.0.0.2 --client-address proxy_v1 --wait",
		Args: atLeast("ENDPOINT"), ValidArgsFunction: c.completeEndpoints(&group),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("weight") && !cmd.Flags().Changed("client-address") {
				return usagef("nothing to change is said; use --weight or --client-address")
			}
			return c.changeGroup(cmd.Context(), func(ctx context.Context, s *session) (*pb.EndpointGroup, error) {
				g, _, err := s.endpoints(ctx, group, args)
				if err != nil {
					return nil, err
				}
				req := &pb.UpdateEndpointsRequest{GroupId: g.GetId()}
				for _, id := range args {
					e := &pb.Endpoint{Id: id, ClientAddress: mode} // what is not said stays
					if cmd.Flags().Changed("weight") {
						e.Weight = proto.Uint32(uint32(weight))
					}
					req.Endpoints = append(req.Endpoints, e)
				}
				return s.UpdateEndpoints(ctx, req)
			})
		},
	}
	c.addGroupFlag(cmd, &group)
	cmd.Flags().Uint8Var(&weight, "weight", 0, "share of new flows, 0 to 255; 0 gives it no new flows")
	enumFlag(cmd, &mode, "client-address", "how they learn the client's address")
	c.addWait(cmd)
	return need(cmd, "group")
}

func (c *cli) endpointRemove() *cobra.Command {
	var (
		group string
		force bool
	)
	cmd := &cobra.Command{
		Use: "remove ENDPOINT…", Aliases: []string{"rm", "delete"}, Short: "Take endpoints out of a group",
		Long: "Take endpoints out of a group. Flows that they have are not cut; set their weight to 0 first to\n" +
			"let them drain. To leave fewer than half of several at once takes --force.",
		Example: "  nearcast endpoint remove --group web:443@eu-fra-1 10.0.0.1\n" +
			"  nearcast endpoint rm -g web@eu-fra-1 10.0.0.2 --yes\n" +
			"  nearcast endpoint rm -g web@eu-fra-1 10.0.0.2 10.0.0.3 --force",
		Args: atLeast("ENDPOINT"), ValidArgsFunction: c.completeEndpoints(&group),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeGroup(cmd.Context(), func(ctx context.Context, s *session) (*pb.EndpointGroup, error) {
				g, _, err := s.endpoints(ctx, group, args)
				if err != nil {
					return nil, err
				}
				if err := c.confirm("Remove %s from group %s (%s)?", few(args), g.GetId(), g.GetRegion()); err != nil {
					return nil, err
				}
				return s.RemoveEndpoints(ctx, &pb.RemoveEndpointsRequest{
					GroupId: g.GetId(), EndpointIds: args, Force: force,
				})
			})
		},
	}
	c.addGroupFlag(cmd, &group)
	addForce(cmd, &force, forceShrink)
	c.addYes(cmd)
	c.addWait(cmd)
	return need(cmd, "group")
}

// endpoints finds a group and certain endpoints in it.
func (s *session) endpoints(ctx context.Context, group string, ids []string) (*pb.EndpointGroup,
	[]*pb.Endpoint, error) {
	g, err := s.group(ctx, group)
	if err != nil {
		return nil, nil, err
	}
	var found []*pb.Endpoint
	for _, id := range ids {
		e, err := pick("endpoint", id, g.GetEndpoints(), (*pb.Endpoint).GetId, (*pb.Endpoint).GetId)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, e)
	}
	return g, found, nil
}

// completeEndpoints offers the endpoints of the group that --group says.
func (c *cli) completeEndpoints(group *string) cobra.CompletionFunc {
	return c.complete(func(ctx context.Context, s *session) ([]string, error) {
		g, err := s.group(ctx, *group)
		var ids []string
		for _, e := range g.GetEndpoints() {
			ids = append(ids, e.GetId())
		}
		return ids, err
	})
}

func (c *cli) endpointGet() *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use: "get ENDPOINT", Aliases: []string{"show"}, Short: "Show an endpoint",
		Example: "  nearcast endpoint get --group web:443@eu-fra-1 10.0.0.1",
		Args:    exactly("ENDPOINT"), ValidArgsFunction: first(c.completeEndpoints(&group)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			_, found, err := s.endpoints(cmd.Context(), group, args)
			if err != nil {
				return err
			}
			e := found[0]
			return c.show(e, func(p *page) {
				p.line("Endpoint", e.GetId())
				p.line("Address", e.GetHost())
				p.line("Weight", weightText(e))
				p.line("Client address", enumText(e.GetClientAddress()))
				p.line("Health", enumText(e.GetHealth()))
				p.line("Reason", e.GetHealthReason())
			})
		},
	}
	c.addGroupFlag(cmd, &group)
	return need(cmd, "group")
}

// placed is an endpoint and where it is.
type placed struct {
	*pb.Endpoint
	group string
}

func (c *cli) endpointList() *cobra.Command {
	var group string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List endpoints, of one group or of all",
		Example: "  nearcast endpoint list\n  nearcast endpoint list --group web:443@eu-fra-1",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			labels, groups, err := s.labelled(cmd.Context(), "")
			if err != nil {
				return err
			}
			if group != "" {
				id, err := c.groupID(cmd.Context(), s, group)
				if err != nil {
					return err
				}
				groups = filter(groups, func(g *pb.EndpointGroup) bool { return g.GetId() == id })
			}
			var all []placed
			for _, g := range groups {
				for _, e := range g.GetEndpoints() {
					all = append(all, placed{e, labels[g.GetListenerId()] + "@" + g.GetRegion()})
				}
			}
			return showList(c, "endpoints", all,
				column[placed]{"GROUP", func(e placed) string { return e.group }},
				column[placed]{"ENDPOINT", func(e placed) string { return e.GetId() }},
				column[placed]{"WEIGHT", func(e placed) string { return weightText(e.Endpoint) }},
				column[placed]{"CLIENT ADDRESS", func(e placed) string { return enumText(e.GetClientAddress()) }},
				column[placed]{"HEALTH", func(e placed) string { return enumText(e.GetHealth()) }},
				column[placed]{"REASON", func(e placed) string { return e.GetHealthReason() }})
		},
	}
	c.addGroupFlag(cmd, &group)
	return cmd
}

func filter[T any](all []T, keep func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(all), func(o T) bool { return !keep(o) })
}

func (c *cli) targetCommand() *cobra.Command {
	return c.noun("target", "Names that endpoints can use for an address",
		"  nearcast target create i-0123abcd --host 10.0.0.1 --region eu-fra-1\n  nearcast target list",
		[]string{"targets"},
		c.targetCreate(), c.targetGet(), c.targetList(), c.targetUpdate(), c.targetDelete(),
		c.tagCommand("TARGET", "i-0123abcd", c.completeTargets(), asIs),
		c.untagCommand("TARGET", "i-0123abcd", c.completeTargets(), asIs))
}

// asIs finds objects whose name is their id.
func asIs(_ context.Context, _ *session, ref string) (string, error) { return ref, nil }

func targetLines(p *page, t *pb.Target) {
	p.line("Name", t.GetName())
	p.line("Host", t.GetHost())
	p.line("Region", t.GetRegion())
	p.line("Project", t.GetProject())
	p.line("Tags", tagsText(t.GetTags()))
}

func (c *cli) targetCreate() *cobra.Command {
	var (
		t    pb.Target
		tags []string
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Name an address",
		Example: "  nearcast target create i-0123abcd --host 10.0.0.1 --region eu-fra-1",
		Args:    exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			t.Name = args[0]
			if t.Tags, err = parseTags(tags); err != nil {
				return err
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateTarget(cmd.Context(), &pb.CreateTargetRequest{Target: &t})
			if err != nil {
				return err
			}
			return c.show(made, func(p *page) { targetLines(p, made) })
		},
	}
	cmd.Flags().StringVar(&t.Host, "host", "", "IP `address` or DNS name")
	cmd.Flags().StringVar(&t.Region, "region", "", "`region` where it is (default anywhere)")
	cmd.Flags().StringVar(&t.Project, "project", "", "whose accelerators may use it without an attachment (default everybody's)")
	addTags(cmd, &tags)
	mustComplete(cmd, "region", c.completeRegions())
	return need(cmd, "host")
}

func (c *cli) targetUpdate() *cobra.Command {
	var (
		t   pb.Target
		rev uint64
	)
	cmd := &cobra.Command{
		Use: "update TARGET", Aliases: []string{"set"}, Short: "Let a name mean another address",
		Example: "  nearcast target update i-0123abcd --host 10.0.0.9",
		Args:    exactly("TARGET"), ValidArgsFunction: first(c.completeTargets()),
		RunE: func(cmd *cobra.Command, args []string) error {
			mask := changed(cmd, map[string]string{"host": "host", "region": "region", "project": "project"})
			if len(mask) == 0 {
				return usagef("nothing to change is said; use --host, --region or --project")
			}
			t.Name = args[0]
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.UpdateTarget(cmd.Context(), &pb.UpdateTargetRequest{
				Target: &t, UpdateMask: maskOf(mask...), ExpectedRevision: rev,
			})
			if err != nil {
				return err
			}
			return c.show(made, func(p *page) { targetLines(p, made) })
		},
	}
	cmd.Flags().StringVar(&t.Host, "host", "", "IP `address` or DNS name")
	cmd.Flags().StringVar(&t.Region, "region", "", "`region` where it is")
	cmd.Flags().StringVar(&t.Project, "project", "", "whose accelerators may use it without an attachment; \"\": everybody's")
	addRevision(cmd, &rev)
	mustComplete(cmd, "region", c.completeRegions())
	return cmd
}

func (c *cli) targetGet() *cobra.Command {
	return &cobra.Command{
		Use: "get TARGET", Aliases: []string{"show"}, Short: "Show a target",
		Example: "  nearcast target get i-0123abcd",
		Args:    exactly("TARGET"), ValidArgsFunction: first(c.completeTargets()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			t, err := s.GetTarget(cmd.Context(), &pb.GetRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return c.show(t, func(p *page) { targetLines(p, t) })
		},
	}
}

func (c *cli) targetList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the targets", Example: "  nearcast target list",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.targets(cmd.Context())
			if err != nil {
				return err
			}
			type col = column[*pb.Target]
			return showList(c, "targets", all,
				col{"NAME", (*pb.Target).GetName},
				col{"HOST", (*pb.Target).GetHost},
				col{"REGION", (*pb.Target).GetRegion},
				col{"TAGS", func(t *pb.Target) string { return tagsText(t.GetTags()) }})
		},
	}
}

func (c *cli) targetDelete() *cobra.Command {
	return c.deleteCommand("TARGET", "Delete a target that no endpoint uses",
		"nearcast target delete i-0123abcd",
		c.completeTargets(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
			_, err := s.DeleteTarget(ctx, r)
			return err
		})
}
