package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) customGroupCommand() *cobra.Command {
	type col = column[*pb.CustomRoutingGroup]
	return c.noun("custom-group", "Groups of custom routing: subnets behind a listener's ports",
		"  nearcast accelerator create game --type custom_routing\n"+
			"  nearcast listener create --accelerator game --protocol tcp_udp --ports 10000-20000\n"+
			"  nearcast custom-group create --listener game:10000 --region eu-fra-1 --destination 7777-7778/udp --subnet subnet-game\n"+
			"  nearcast custom-group allow 4f1d… --subnet subnet-game --all", []string{"custom-groups"},
		c.customGroupCreate(),
		getCommand(c, "GROUP", "nearcast custom-group get 4f1d…", c.completeCustomGroups(),
			func(ctx context.Context, s *session, id string) (*pb.CustomRoutingGroup, error) {
				return s.GetCustomRoutingGroup(ctx, &pb.GetRequest{Id: id})
			}, c.showCustomGroup),
		listCommand(c, "List the groups of custom routing", "nearcast custom-group list", (*session).customGroups,
			func(all []*pb.CustomRoutingGroup) error {
				return showList(c, "groups of custom routing", all,
					col{"ID", (*pb.CustomRoutingGroup).GetId},
					col{"LISTENER", (*pb.CustomRoutingGroup).GetListenerId},
					col{"REGION", (*pb.CustomRoutingGroup).GetRegion},
					col{"DESTINATIONS", destinationsText},
					col{"SUBNETS", func(g *pb.CustomRoutingGroup) string { return strings.Join(subnetsOf(g), " ") }})
			}),
		c.customGroupSubnets("add", "Make subnets endpoints of a group; each gets ports of the listener",
			func(s *session, ctx context.Context, id string, subnets []string) (*pb.CustomRoutingGroup, error) {
				return s.AddCustomRoutingEndpoints(ctx, &pb.AddCustomRoutingEndpointsRequest{GroupId: id, Subnets: subnets})
			}),
		c.customGroupSubnets("remove", "Take subnets out of a group; their ports are free then",
			func(s *session, ctx context.Context, id string, subnets []string) (*pb.CustomRoutingGroup, error) {
				return s.RemoveCustomRoutingEndpoints(ctx, &pb.RemoveCustomRoutingEndpointsRequest{GroupId: id, Subnets: subnets})
			}),
		c.customGroupTraffic("allow", "Let traffic through to destinations of a subnet", true),
		c.customGroupTraffic("deny", "Let no traffic through to destinations of a subnet", false),
		c.customGroupMappings(),
		c.deleteCommand("GROUP", "Delete a group of custom routing", "nearcast custom-group delete 4f1d…",
			c.completeCustomGroups(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteCustomRoutingGroup(ctx, r)
				return err
			}))
}

func (s *session) customGroups(ctx context.Context) ([]*pb.CustomRoutingGroup, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListCustomRoutingGroupsResponse, error) {
		return s.ListCustomRoutingGroups(ctx, r)
	}, (*pb.ListCustomRoutingGroupsResponse).GetGroups)
}

func (c *cli) completeCustomGroups() cobra.CompletionFunc {
	return completeWith(c, (*session).customGroups, (*pb.CustomRoutingGroup).GetId)
}

func subnetsOf(g *pb.CustomRoutingGroup) (names []string) {
	for _, e := range g.GetEndpoints() {
		names = append(names, e.GetSubnet())
	}
	return names
}

func destinationsText(g *pb.CustomRoutingGroup) string {
	var words []string
	for _, d := range g.GetDestinations() {
		words = append(words, portsText([]*pb.PortRange{{From: d.GetFrom(), To: d.GetTo()}})+"/"+enumText(d.GetProtocol()))
	}
	return strings.Join(words, " ")
}

func (c *cli) showCustomGroup(g *pb.CustomRoutingGroup) error {
	return c.show(g, func(p *page) {
		p.line("ID", g.GetId())
		p.line("Listener", g.GetListenerId())
		p.line("Region", g.GetRegion())
		p.line("Destinations", destinationsText(g))
		p.line("Tags", tagsText(g.GetTags()))
		p.heading("Subnets")
		for _, e := range g.GetEndpoints() {
			p.line(e.GetSubnet(), "ports "+portsText(e.GetPorts()))
		}
	})
}

// parseDestinations reads words like 7777-7778/udp; without a protocol both are meant.
func parseDestinations(words []string) (all []*pb.CustomRoutingDestination, err error) {
	for _, w := range words {
		ports, word, given := strings.Cut(w, "/")
		ranges, err := manifest.ParsePorts(ports)
		if err != nil {
			return nil, usagef("%q is not a destination: %v; write PORTS or PORTS/PROTOCOL, like 7777-7778/udp", w, err)
		}
		protocol := pb.Protocol_PROTOCOL_TCP_UDP
		if given {
			n, err := manifest.ParseEnum(protocol.Descriptor(), word)
			if err != nil {
				return nil, usagef("%q is not a destination: %v", w, err)
			}
			protocol = pb.Protocol(n)
		}
		for _, r := range ranges {
			all = append(all, &pb.CustomRoutingDestination{From: r.GetFrom(), To: r.GetTo(), Protocol: protocol})
		}
	}
	return all, nil
}

func (c *cli) customGroupCreate() *cobra.Command {
	var (
		req                             pb.CreateCustomRoutingGroupRequest
		g                               pb.CustomRoutingGroup
		listener                        string
		destinations, subnets, tagWords []string
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Put subnets behind the ports of a custom routing listener",
		Example: "  nearcast custom-group create --listener game:10000 --region eu-fra-1 --destination 7777-7778/udp \\\n" +
			"    --subnet subnet-game",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if g.Destinations, err = parseDestinations(destinations); err != nil {
				return err
			}
			if g.Tags, err = parseTags(tagWords); err != nil {
				return err
			}
			for _, name := range subnets {
				g.Endpoints = append(g.Endpoints, &pb.CustomRoutingEndpoint{Subnet: name})
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			l, err := s.listener(cmd.Context(), listener)
			if err != nil {
				return err
			}
			g.ListenerId, req.Group = l.GetId(), &g
			made, err := s.CreateCustomRoutingGroup(cmd.Context(), &req)
			if err != nil {
				return err
			}
			return c.showCustomGroup(made)
		},
	}
	f := cmd.Flags()
	f.StringVar(&listener, "listener", "", "`listener` of a custom routing accelerator, like game:10000")
	f.StringVar(&g.Region, "region", "", "`region` of the subnets")
	f.StringArrayVar(&destinations, "destination", nil, "`PORTS` or PORTS/PROTOCOL of every machine; may be given several times")
	f.StringSliceVar(&subnets, "subnet", nil, "`names` of subnets")
	f.StringVar(&req.IdempotencyToken, "idempotency-token", "",
		"a `word` of your own: the same create sent again makes no second one")
	addTags(cmd, &tagWords)
	mustComplete(cmd, "region", c.completeRegions())
	mustComplete(cmd, "subnet", c.completeSubnets())
	return need(cmd, "listener", "region", "destination")
}

func (c *cli) customGroupSubnets(verb, short string,
	do func(*session, context.Context, string, []string) (*pb.CustomRoutingGroup, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " GROUP SUBNET...", Short: short, Example: "  nearcast custom-group " + verb + " 4f1d… subnet-game",
		Args: atLeast("GROUP", "SUBNET"), ValidArgsFunction: first(c.completeCustomGroups()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := do(s, cmd.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			return c.showCustomGroup(made)
		},
	}
}

func (c *cli) customGroupTraffic(verb, short string, allow bool) *cobra.Command {
	req := pb.SetCustomRoutingTrafficRequest{Allow: allow}
	var ports []uint
	cmd := &cobra.Command{
		Use: verb + " GROUP", Short: short,
		Example: "  nearcast custom-group " + verb + " 4f1d… --subnet subnet-game --all\n" +
			"  nearcast custom-group " + verb + " 4f1d… --subnet subnet-game --address 10.9.0.7 --port 7777",
		Args: exactly("GROUP"), ValidArgsFunction: first(c.completeCustomGroups()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.All == (len(req.Addresses) > 0) {
				return usagef("say either --all or --address")
			}
			for _, p := range ports {
				req.Ports = append(req.Ports, uint32(min(p, 1<<16)))
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			req.GroupId = args[0]
			_, err = s.SetCustomRoutingTraffic(cmd.Context(), &req)
			return c.done(err, "done: %s", verb)
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Subnet, "subnet", "", "`name` of the subnet")
	f.BoolVar(&req.All, "all", false, "every destination of it")
	f.StringSliceVar(&req.Addresses, "address", nil, "`addresses` of it")
	f.UintSliceVar(&ports, "port", nil, "destination `ports` (default all of the group's)")
	mustComplete(cmd, "subnet", c.completeSubnets())
	return need(cmd, "subnet")
}

func (c *cli) customGroupMappings() *cobra.Command {
	var (
		req   pb.ListPortMappingsRequest
		limit int
	)
	cmd := &cobra.Command{
		Use: "mappings [ACCELERATOR]", Short: "List which accelerated ports lead where",
		Example: "  nearcast custom-group mappings game --limit 20\n" +
			"  nearcast custom-group mappings --subnet subnet-game --address 10.9.0.7",
		Args: atMost("ACCELERATOR"), ValidArgsFunction: first(c.completeAccelerators()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (req.Subnet != "") {
				return usagef("name an accelerator, or a destination with --subnet and --address")
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				a, err := s.accelerator(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				req.AcceleratorId = a.GetId()
			}
			all, err := s.mappings(cmd.Context(), &req, limit)
			if err != nil {
				return err
			}
			type col = column[*pb.PortMapping]
			return showList(c, "mappings", all,
				col{"PORT", func(m *pb.PortMapping) string { return fmt.Sprint(m.GetPort()) }},
				col{"PROTOCOL", func(m *pb.PortMapping) string { return enumText(m.GetProtocol()) }},
				col{"DESTINATION", func(m *pb.PortMapping) string {
					addr, _ := netip.ParseAddr(m.GetAddress())
					return netip.AddrPortFrom(addr, uint16(m.GetDestinationPort())).String()
				}},
				col{"SUBNET", (*pb.PortMapping).GetSubnet},
				col{"GROUP", (*pb.PortMapping).GetGroupId},
				col{"TRAFFIC", func(m *pb.PortMapping) string {
					if m.GetAllowed() {
						return "allow"
					}
					return "deny"
				}})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.GroupId, "group", "", "only of this `group`")
	f.StringVar(&req.Subnet, "subnet", "", "`name` of a subnet, with --address")
	f.StringVar(&req.Address, "address", "", "an `address` of the subnet")
	f.IntVar(&limit, "limit", 1000, "at most so many; 0: all")
	mustComplete(cmd, "subnet", c.completeSubnets())
	mustComplete(cmd, "group", c.completeCustomGroups())
	return cmd
}

// mappings lists up to limit mappings; 0 is all of them.
func (s *session) mappings(ctx context.Context, req *pb.ListPortMappingsRequest, limit int) (all []*pb.PortMapping, err error) {
	for {
		req.PageSize = 20_000
		if limit > 0 {
			req.PageSize = uint32(min(limit-len(all), 20_000))
		}
		page, err := s.ListPortMappings(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetMappings()...)
		req.PageToken = page.GetNextPageToken()
		if req.GetPageToken() == "" || limit > 0 && len(all) >= limit {
			return all, nil
		}
	}
}
