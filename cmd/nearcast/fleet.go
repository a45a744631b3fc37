package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func maskOf(fields ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: fields} }

// deleteCommand makes "delete" for kinds that have nothing below them.
func (c *cli) deleteCommand(
	what, short, example string, complete cobra.CompletionFunc,
	find func(context.Context, *session, string) (string, error),
	remove func(context.Context, *session, *pb.DeleteRequest) error,
) *cobra.Command {
	var rev uint64
	cmd := &cobra.Command{
		Use: "delete " + what, Aliases: []string{"rm"}, Short: short, Example: "  " + example + "\n  " + example +
			" --yes",
		Args: exactly(what), ValidArgsFunction: first(complete),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			id, err := find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			if err := c.confirm("Delete %s %s?", strings.ToLower(what), args[0]); err != nil {
				return err
			}
			err = remove(cmd.Context(), s, &pb.DeleteRequest{Id: id, ExpectedRevision: rev})
			return c.done(err, "deleted %s %s", strings.ToLower(what), args[0])
		},
	}
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}

// getCommand makes "get" for kinds that are found by one call or a list.
func getCommand[T any](
	c *cli, what, example string, complete cobra.CompletionFunc,
	get func(context.Context, *session, string) (T, error), show func(T) error,
) *cobra.Command {
	return &cobra.Command{
		Use: "get " + what, Aliases: []string{"show"}, Short: "Show a " + strings.ToLower(what),
		Example: "  " + example,
		Args:    exactly(what), ValidArgsFunction: first(complete),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			o, err := get(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			return show(o)
		},
	}
}

// listCommand makes "list".
func listCommand[T any](
	c *cli, short, example string, list func(*session, context.Context) ([]T, error), show func([]T) error,
) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: short, Example: "  " + example + "\n  " + example + " -o json",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := list(s, cmd.Context())
			if err != nil {
				return err
			}
			return show(all)
		},
	}
}

func (c *cli) poolCommand() *cobra.Command {
	type col = column[*pb.Pool]
	return c.noun("pool", "Where accelerated addresses come from",
		"  nearcast pool create anycast-a --zone a --prefix 192.0.2.0/24\n  nearcast pool create edges --kind node",
		[]string{"pools"},
		c.poolCreate(),
		getCommand(c, "POOL", "nearcast pool get anycast-a", c.completePools(),
			func(ctx context.Context, s *session, name string) (*pb.Pool, error) {
				return s.GetPool(ctx, &pb.GetRequest{Id: name})
			}, c.showPool),
		listCommand(c, "List the pools", "nearcast pool list", (*session).pools, func(all []*pb.Pool) error {
			return showList(c, "pools", all,
				col{"NAME", (*pb.Pool).GetName},
				col{"KIND", func(p *pb.Pool) string { return enumText(p.GetKind()) }},
				col{"ZONE", (*pb.Pool).GetZone},
				col{"PREFIXES", func(p *pb.Pool) string { return strings.Join(p.GetPrefixes(), " ") }},
				col{"SITES", poolSites})
		}),
		c.poolUpdate(),
		c.deleteCommand("POOL", "Delete a pool that no accelerator uses", "nearcast pool delete old",
			c.completePools(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeletePool(ctx, r)
				return err
			}))
}

func poolSites(p *pb.Pool) string {
	if len(p.GetSites()) == 0 {
		return "all"
	}
	return strings.Join(p.GetSites(), " ")
}

func (c *cli) showPool(pool *pb.Pool) error {
	return c.show(pool, func(p *page) {
		p.line("Name", pool.GetName())
		p.line("Kind", enumText(pool.GetKind()))
		p.line("Zone", pool.GetZone())
		p.line("Prefixes", strings.Join(pool.GetPrefixes(), " "))
		p.line("Sites", poolSites(pool))
		p.line("Brought by project", pool.GetProject())
		if pool.GetWithheld() {
			p.line("Announced", "no: the range is not advertised")
		}
	})
}

func (c *cli) poolCreate() *cobra.Command {
	var pool pb.Pool
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a pool of accelerated addresses",
		Long: "Create a pool. An anycast pool has networks whose addresses every site announces, and lies in a\n" +
			"zone, an independent failure domain: an accelerator's two addresses come from two zones. A node\n" +
			"pool has each node's own addresses; the accelerator's DNS name picks the node. What a pool is\n" +
			"follows from --zone and --prefix if --kind does not say it.",
		Example: "  nearcast pool create anycast-a --zone a --prefix 192.0.2.0/24 --prefix 2001:db8:a::/48\n" +
			"  nearcast pool create edges --kind node --site fra --site iad",
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			pool.Name = args[0]
			if pool.Kind == 0 && (pool.Zone != "" || len(pool.Prefixes) > 0) {
				pool.Kind = pb.PoolKind_POOL_KIND_ANYCAST
			}
			if pool.Kind == 0 {
				return usagef("say --kind node, or --zone and --prefix for an anycast pool")
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreatePool(cmd.Context(), &pb.CreatePoolRequest{Pool: &pool})
			if err != nil {
				return err
			}
			return c.showPool(made)
		},
	}
	enumFlag(cmd, &pool.Kind, "kind", "who answers on its addresses")
	cmd.Flags().StringVar(&pool.Zone, "zone", "", "`zone` of an anycast pool")
	cmd.Flags().StringSliceVar(&pool.Prefixes, "prefix", nil,
		"`network` of an anycast pool; may be given several times")
	cmd.Flags().StringSliceVar(&pool.Sites, "site", nil, "`site` whose nodes serve a node pool (default all)")
	mustComplete(cmd, "site", c.completeSites())
	return cmd
}

func (c *cli) poolUpdate() *cobra.Command {
	var (
		pool  pb.Pool
		rev   uint64
		force bool
	)
	cmd := &cobra.Command{
		Use: "update POOL", Aliases: []string{"set"}, Short: "Replace a pool's networks or sites",
		Example: "  nearcast pool update anycast-a --prefix 192.0.2.0/24 --prefix 198.51.100.0/24\n" +
			"  nearcast pool update edges --site fra,iad,sin",
		Args: exactly("POOL"), ValidArgsFunction: first(c.completePools()),
		RunE: func(cmd *cobra.Command, args []string) error {
			mask := changed(cmd, map[string]string{"prefix": "prefixes", "site": "sites"})
			if len(mask) == 0 {
				return usagef("nothing to change is said; use --prefix or --site")
			}
			pool.Name = args[0]
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.UpdatePool(cmd.Context(), &pb.UpdatePoolRequest{
				Pool: &pool, UpdateMask: maskOf(mask...), ExpectedRevision: rev, Force: force,
			})
			if err != nil {
				return err
			}
			return c.showPool(made)
		},
	}
	cmd.Flags().StringSliceVar(&pool.Prefixes, "prefix", nil, "`network` of an anycast pool; all of them")
	cmd.Flags().StringSliceVar(&pool.Sites, "site", nil, "`site` whose nodes serve a node pool; all of them")
	addRevision(cmd, &rev)
	addForce(cmd, &force, forceServed)
	mustComplete(cmd, "site", c.completeSites())
	return cmd
}

func (c *cli) regionCommand() *cobra.Command {
	type col = column[*pb.Region]
	var region pb.Region
	create := &cobra.Command{
		Use: "create NAME", Short: "Create a region; one that a site or group names exists by itself",
		Example: "  nearcast region create eu-fra-1 --description Frankfurt", Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			region.Name = args[0]
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateRegion(cmd.Context(), &pb.CreateRegionRequest{Region: &region})
			if err != nil {
				return err
			}
			return c.showRegion(made)
		},
	}
	create.Flags().StringVar(&region.Description, "description", "", "`words` for people")
	return c.noun("region", "Where endpoints live",
		"  nearcast region create eu-fra-1 --description Frankfurt\n  nearcast region list", []string{"regions"},
		create,
		getCommand(c, "REGION", "nearcast region get eu-fra-1", c.completeRegions(),
			func(ctx context.Context, s *session, name string) (*pb.Region, error) {
				all, err := s.regions(ctx)
				if err != nil {
					return nil, err
				}
				return pick("region", name, all, (*pb.Region).GetName, (*pb.Region).GetName)
			}, c.showRegion),
		listCommand(c, "List the regions", "nearcast region list", (*session).regions,
			func(all []*pb.Region) error {
				return showList(c, "regions", all,
					col{"NAME", (*pb.Region).GetName}, col{"DESCRIPTION", (*pb.Region).GetDescription})
			}),
		c.deleteCommand("REGION", "Delete a region that nothing names", "nearcast region delete old",
			c.completeRegions(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteRegion(ctx, r)
				return err
			}))
}

func (c *cli) showRegion(r *pb.Region) error {
	return c.show(r, func(p *page) {
		p.line("Name", r.GetName())
		p.line("Description", r.GetDescription())
	})
}

func (c *cli) nodeCommand() *cobra.Command {
	var force bool
	forget := c.deleteCommand("NODE", "Forget a node; its certificate is refused from then on",
		"nearcast node delete fra-1",
		c.completeNodes(), func(ctx context.Context, s *session, ref string) (string, error) {
			n, err := s.node(ctx, ref)
			return n.GetId(), err
		}, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
			r.Force = force
			_, err := s.DeleteNode(ctx, r)
			return err
		})
	addForce(forget, &force, forceServed)
	return c.noun("node", "Machines that run the edge daemon",
		"  nearcast node list\n  nearcast node drain fra-1", []string{"nodes"},
		getCommand(c, "NODE", "nearcast node get fra-1", c.completeNodes(),
			func(ctx context.Context, s *session, ref string) (*pb.Node, error) { return s.node(ctx, ref) },
			c.showNode),
		listCommand(c, "List the nodes", "nearcast node list", (*session).nodes, func(all []*pb.Node) error {
			return showList(c, "nodes", all, c.nodeColumns()...)
		}),
		c.nodeState("drain", "Let a node take no new flows and finish the old ones",
			pb.NodeState_NODE_STATE_DRAINING, ""),
		c.nodeState("restore", "Let a drained node take flows again", pb.NodeState_NODE_STATE_ACTIVE, ""),
		c.nodeState("revoke", "Refuse a node's certificate everywhere, for good", pb.NodeState_NODE_STATE_REVOKED,
			"Revoke node %s (%s)? Its flows are cut, and it must enrol anew to come back."),
		forget)
}

func (c *cli) nodeColumns() []column[*pb.Node] {
	type col = column[*pb.Node]
	return []col{
		{"NAME", (*pb.Node).GetName},
		{"SITE", (*pb.Node).GetSite},
		{"ROLES", rolesText},
		{"STATE", c.nodeStateText},
		{"REVISION", func(n *pb.Node) string { return fmt.Sprint(n.GetAppliedRevision()) }},
		{"VERSION", (*pb.Node).GetVersion},
		{"ID", (*pb.Node).GetId},
	}
}

func rolesText(n *pb.Node) string {
	var roles []string
	if n.GetEdge() {
		roles = append(roles, "edge")
	}
	if n.GetGateway() {
		roles = append(roles, "gateway")
	}
	return strings.Join(roles, ",")
}

// nodeStateText is what operators want of a node, and whether it is there.
func (c *cli) nodeStateText(n *pb.Node) string {
	state := enumText(n.GetState())
	switch {
	case n.GetState() == pb.NodeState_NODE_STATE_REVOKED:
		return state
	case !n.GetConnected() && n.GetLastSeen() == nil:
		return state + ", never seen"
	case !n.GetConnected():
		return state + ", away since " + rough(c.now().Sub(n.GetLastSeen().AsTime()))
	case len(n.GetRejections()) > 0:
		return state + ", refuses the configuration"
	}
	return state
}

func (c *cli) showNode(n *pb.Node) error {
	return c.show(n, func(p *page) {
		p.line("Name", n.GetName())
		p.line("ID", n.GetId())
		p.line("Site", n.GetSite())
		p.line("Roles", rolesText(n))
		p.line("State", c.nodeStateText(n))
		p.line("Last seen", c.ago(n.GetLastSeen()))
		p.line("Applied revision", fmt.Sprint(n.GetAppliedRevision()))
		p.line("Version", n.GetVersion())
		p.line("Certificate until", timeText(n.GetCertificateExpires()))
		p.line("Backbone", strings.Join(n.GetBackboneAddresses(), " "))
		p.line("Gossip", n.GetGossipAddress())
		if n.GetBalanceAddress() != "" {
			p.line("Balance", fmt.Sprintf("%s, weight %d", n.GetBalanceAddress(), cmp.Or(n.GetBalanceWeight(), 100)))
		}
		p.line("Service addresses", strings.Join(n.GetServiceAddresses(), " "))
		if len(n.GetRejections()) > 0 {
			p.heading("Refuses the latest configuration:")
			for _, r := range n.GetRejections() {
				p.rows([][]string{{r.GetField(), r.GetMessage()}})
			}
		}
		if len(n.GetNotes()) > 0 {
			p.heading("Notes:")
			for _, note := range n.GetNotes() {
				p.rows([][]string{{note}})
			}
		}
	})
}

// nodeState makes a command that wants another state of a node, after asking if there is a question.
func (c *cli) nodeState(verb, short string, state pb.NodeState, question string) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: verb + " NODE", Short: short, Example: "  nearcast node " + verb + " fra-1",
		Args: exactly("NODE"), ValidArgsFunction: first(c.completeNodes()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			n, err := s.node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if question != "" {
				if err := c.confirm(question, n.GetName(), n.GetId()); err != nil {
					return err
				}
			}
			n, err = s.UpdateNode(cmd.Context(), &pb.UpdateNodeRequest{
				Node: &pb.Node{Id: n.GetId(), State: state}, UpdateMask: maskOf("state"), Force: force,
			})
			if err != nil {
				return err
			}
			return c.showNode(n)
		},
	}
	if state != pb.NodeState_NODE_STATE_ACTIVE {
		addForce(cmd, &force, forceServed)
	}
	if question != "" {
		c.addYes(cmd)
	}
	return cmd
}
