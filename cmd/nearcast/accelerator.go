package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nearcast/nearcast/cmd/nearcast/manifest"
	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) acceleratorCommand() *cobra.Command {
	return c.noun("accelerator", "Static addresses and a DNS name, all over the world",
		"  nearcast accelerator create web --wait\n  nearcast accelerator list", []string{"accelerators", "acc"},
		c.acceleratorCreate(), c.acceleratorGet(), c.acceleratorList(), c.acceleratorUpdate(),
		c.acceleratorSwitch("enable", "Let an accelerator take traffic", true),
		c.acceleratorSwitch("disable", "Let an accelerator take no traffic; it keeps its addresses", false),
		c.acceleratorDelete(),
		c.tagCommand("ACCELERATOR", "web", c.completeAccelerators(), c.acceleratorID),
		c.untagCommand("ACCELERATOR", "web", c.completeAccelerators(), c.acceleratorID))
}

func (c *cli) acceleratorID(ctx context.Context, s *session, ref string) (string, error) {
	a, err := s.accelerator(ctx, ref)
	return a.GetId(), err
}

func (c *cli) acceleratorCreate() *cobra.Command {
	var (
		req            pb.CreateAcceleratorRequest
		a              pb.Accelerator
		dual, disabled bool
		tags           []string
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an accelerator",
		Long: "Create an accelerator. Its addresses come from two anycast pools of different zones, or it lies\n" +
			"on one node pool, where each node's own addresses serve. Without --pool they are chosen.",
		Example: "  nearcast accelerator create web --wait\n" +
			"  nearcast accelerator create web --pool anycast-a --pool anycast-b --dual-stack --tag env=prod\n" +
			"  nearcast accelerator create game --pool edges",
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			a.Name, a.Enabled = args[0], !disabled
			if dual {
				a.IpAddressType = pb.IPAddressType_IP_ADDRESS_TYPE_DUAL_STACK
			}
			if a.Tags, err = parseTags(tags); err != nil {
				return err
			}
			req.Accelerator = &a
			return c.changeAccelerator(cmd.Context(), func(ctx context.Context, s *session) (*pb.Accelerator, error) {
				return s.CreateAccelerator(ctx, &req)
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&a.Pools, "pool", nil, "`name` of a pool; twice for two anycast pools")
	f.StringSliceVar(&a.Addresses, "address", nil, "a certain free `address` of the pools")
	f.BoolVar(&dual, "dual-stack", false, "IPv6 addresses, too")
	f.BoolVar(&disabled, "disabled", false, "take no traffic yet")
	enumFlag(cmd, &a.Type, "type", "how it finds endpoints (default standard)")
	f.StringVar(&a.Project, "project", "", "whose it is (default \"default\")")
	f.StringVar(&req.IdempotencyToken, "idempotency-token", "",
		"a `word` of your own: the same create sent again makes no second one")
	addTags(cmd, &tags)
	c.addWait(cmd)
	mustComplete(cmd, "pool", c.completePools())
	return cmd
}

func (c *cli) acceleratorGet() *cobra.Command {
	return &cobra.Command{
		Use: "get ACCELERATOR", Aliases: []string{"show"}, Short: "Show an accelerator and what is below it",
		Example: "  nearcast accelerator get web\n  nearcast accelerator get web -o json",
		Args:    exactly("ACCELERATOR"), ValidArgsFunction: first(c.completeAccelerators()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			a, err := s.accelerator(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.showAccelerator(cmd.Context(), s, a)
		},
	}
}

// showAccelerator prints an accelerator with its listeners, groups and endpoints.
func (c *cli) showAccelerator(ctx context.Context, s *session, a *pb.Accelerator) error {
	if c.flags.output != "table" {
		return c.show(a, nil)
	}
	listeners, err := s.listeners(ctx, a.GetId())
	if err != nil {
		return err
	}
	p := c.page()
	acceleratorLines(p, a)
	if len(listeners) == 0 {
		p.heading("No listeners. Add one: nearcast listener create --accelerator %s --ports 443", a.GetName())
	}
	for _, l := range listeners {
		p.heading("Listener %s  %s %s", l.GetId(), enumText(l.GetProtocol()), portsText(l.GetPortRanges()))
		groups, err := s.groups(ctx, l.GetId())
		if err != nil {
			return err
		}
		if table := endpointRows(groups); len(table) > 1 {
			p.rows(table)
		}
	}
	return p.write()
}

func acceleratorLines(p *page, a *pb.Accelerator) {
	p.line("Name", a.GetName())
	p.line("ID", a.GetId())
	p.line("Status", enumText(a.GetStatus()))
	p.line("Enabled", yesNo(a.GetEnabled()))
	p.line("Addresses", addressesText(a))
	p.line("DNS name", a.GetDnsName())
	p.line("Pools", strings.Join(a.GetPools(), ", "))
	p.line("Family", enumText(a.GetIpAddressType()))
	p.line("Project", a.GetProject())
	p.line("Flow logs", flowLogsText(a.GetFlowLogs()))
	p.line("Tags", tagsText(a.GetTags()))
	p.line("Created", timeText(a.GetCreatedTime()))
	p.line("Changed", timeText(a.GetModifiedTime()))
}

func addressesText(a *pb.Accelerator) string {
	if len(a.GetAddresses()) == 0 {
		return "each node's own"
	}
	return strings.Join(a.GetAddresses(), " ")
}

// endpointRows lists groups with a line for each endpoint.
func endpointRows(groups []*pb.EndpointGroup) [][]string {
	table := [][]string{{"GROUP", "REGION", "DIAL", "ENDPOINT", "WEIGHT", "HEALTH", "REASON"}}
	for _, g := range groups {
		row := []string{g.GetId(), g.GetRegion(), dialText(g)}
		if len(g.GetEndpoints()) == 0 {
			table = append(table, append(row, "none", "", "", ""))
		}
		for _, e := range g.GetEndpoints() {
			table = append(table, append(row, e.GetId(), weightText(e), enumText(e.GetHealth()), e.GetHealthReason()))
			row = []string{" ", " ", " "}
		}
	}
	return table
}

func (c *cli) acceleratorList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the accelerators",
		Example: "  nearcast accelerator list\n  nearcast accelerator list -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.accelerators(cmd.Context())
			if err != nil {
				return err
			}
			type col = column[*pb.Accelerator]
			return showList(c, "accelerators", all,
				col{"NAME", (*pb.Accelerator).GetName},
				col{"ENABLED", func(a *pb.Accelerator) string { return yesNo(a.GetEnabled()) }},
				col{"STATUS", func(a *pb.Accelerator) string { return enumText(a.GetStatus()) }},
				col{"ADDRESSES", addressesText},
				col{"DNS NAME", (*pb.Accelerator).GetDnsName},
				col{"ID", (*pb.Accelerator).GetId})
		},
	}
}

func (c *cli) acceleratorUpdate() *cobra.Command {
	var (
		name string
		dual bool
		logs string
		rev  uint64
	)
	cmd := &cobra.Command{
		Use: "update ACCELERATOR", Aliases: []string{"set"},
		Short: "Change an accelerator's name, address families or flow logs",
		Example: "  nearcast accelerator update web --name shop\n" +
			"  nearcast accelerator update web --dual-stack --wait\n" +
			"  nearcast accelerator update web --flow-logs my-bucket/my/prefix",
		Args: exactly("ACCELERATOR"), ValidArgsFunction: first(c.completeAccelerators()),
		RunE: func(cmd *cobra.Command, args []string) error {
			mask := changed(cmd, map[string]string{"name": "name", "dual-stack": "ip_address_type",
				"flow-logs": "flow_logs"})
			if len(mask) == 0 {
				return usagef("nothing to change is said; use --name, --dual-stack or --flow-logs")
			}
			a := &pb.Accelerator{Name: name, IpAddressType: pb.IPAddressType_IP_ADDRESS_TYPE_IPV4}
			if dual {
				a.IpAddressType = pb.IPAddressType_IP_ADDRESS_TYPE_DUAL_STACK
			}
			if cmd.Flags().Changed("flow-logs") {
				if a.FlowLogs = flowLogs(logs); a.FlowLogs == nil {
					return usagef("--flow-logs %q: write BUCKET/PREFIX, or off", logs)
				}
			}
			return c.updateAccelerator(cmd.Context(), args[0], a, mask, rev)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "its new `name`")
	cmd.Flags().BoolVar(&dual, "dual-stack", false, "IPv6 addresses, too; =false takes them away")
	cmd.Flags().StringVar(&logs, "flow-logs", "", "`BUCKET/PREFIX` where nodes keep records of its flows, or off")
	addRevision(cmd, &rev)
	c.addWait(cmd)
	return cmd
}

func (c *cli) acceleratorSwitch(use, short string, on bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " ACCELERATOR", Short: short, Example: "  nearcast accelerator " + use + " web --wait",
		Args: exactly("ACCELERATOR"), ValidArgsFunction: first(c.completeAccelerators()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.updateAccelerator(cmd.Context(), args[0], &pb.Accelerator{Enabled: on}, []string{"enabled"}, 0)
		},
	}
	c.addWait(cmd)
	return cmd
}

func (c *cli) updateAccelerator(ctx context.Context, ref string, a *pb.Accelerator, mask []string,
	rev uint64) error {
	return c.changeAccelerator(ctx, func(ctx context.Context, s *session) (*pb.Accelerator, error) {
		found, err := s.accelerator(ctx, ref)
		if err != nil {
			return nil, err
		}
		a.Id = found.GetId()
		return s.UpdateAccelerator(ctx, &pb.UpdateAcceleratorRequest{
			Accelerator: a, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}, ExpectedRevision: rev,
		})
	})
}

// changeAccelerator makes a change, waits if that is wanted, and prints what has become of it.
func (c *cli) changeAccelerator(ctx context.Context, change func(context.Context, *session) (*pb.Accelerator,
	error)) error {
	s, err := c.admin()
	if err != nil {
		return err
	}
	a, err := change(ctx, s)
	if err != nil {
		return err
	}
	if c.flags.wait {
		if err := c.waitDeployed(ctx, s, a.GetId()); err != nil {
			return err
		}
		if a, err = s.GetAccelerator(ctx, &pb.GetRequest{Id: a.GetId()}); err != nil {
			return err
		}
	}
	return c.show(a, func(p *page) { acceleratorLines(p, a) })
}

func (c *cli) acceleratorDelete() *cobra.Command {
	var (
		cascade bool
		rev     uint64
	)
	cmd := &cobra.Command{
		Use: "delete ACCELERATOR", Aliases: []string{"rm"},
		Short:   "Delete an accelerator; its addresses become free",
		Example: "  nearcast accelerator delete web\n  nearcast accelerator delete web --cascade --yes",
		Args:    exactly("ACCELERATOR"), ValidArgsFunction: first(c.completeAccelerators()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			a, err := s.accelerator(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if cascade {
				return c.deleteTree(cmd.Context(), s, a)
			}
			if err := c.confirm("Delete accelerator %s (%s)?", a.GetName(), a.GetId()); err != nil {
				return err
			}
			_, err = s.DeleteAccelerator(cmd.Context(), &pb.DeleteRequest{Id: a.GetId(), ExpectedRevision: rev})
			return c.done(err, "deleted accelerator %s (%s)", a.GetName(), a.GetId())
		},
	}
	cmd.Flags().BoolVar(&cascade, "cascade", false, "disable it and delete its listeners and their groups first")
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}

// deleteTree disables an accelerator and deletes it with all that is below it.
func (c *cli) deleteTree(ctx context.Context, s *session, a *pb.Accelerator) error {
	listeners, err := s.listeners(ctx, a.GetId())
	if err != nil {
		return err
	}
	if err := c.confirm("Delete accelerator %s (%s) with its %s?", a.GetName(), a.GetId(),
		plural(len(listeners), "listener")); err != nil {
		return err
	}
	if a.GetEnabled() {
		_, err := s.UpdateAccelerator(ctx, &pb.UpdateAcceleratorRequest{
			Accelerator: &pb.Accelerator{Id: a.GetId()},
			UpdateMask:  &fieldmaskpb.FieldMask{Paths: []string{"enabled"}},
		})
		if err := c.done(err, "disabled accelerator %s", a.GetName()); err != nil {
			return err
		}
	}
	for _, l := range listeners {
		if err := c.deleteListener(ctx, s, l, label(a, l)); err != nil {
			return err
		}
	}
	_, err = s.DeleteAccelerator(ctx, &pb.DeleteRequest{Id: a.GetId()})
	return c.done(err, "deleted accelerator %s (%s)", a.GetName(), a.GetId())
}

// deleteListener deletes a listener with its groups.
func (c *cli) deleteListener(ctx context.Context, s *session, l *pb.Listener, name string) error {
	groups, err := s.groups(ctx, l.GetId())
	if err != nil {
		return err
	}
	for _, g := range groups {
		_, err := s.DeleteEndpointGroup(ctx, &pb.DeleteRequest{Id: g.GetId()})
		if err := c.done(err, "deleted group %s@%s (%s)", name, g.GetRegion(), g.GetId()); err != nil {
			return err
		}
	}
	_, err = s.DeleteListener(ctx, &pb.DeleteRequest{Id: l.GetId()})
	return c.done(err, "deleted listener %s (%s)", name, l.GetId())
}

// done says on stderr what has been done, unless it has not.
func (c *cli) done(err error, format string, args ...any) error {
	if err == nil {
		c.note(format, args...)
	}
	return err
}

// changed returns the fields of the flags that were given, in the order of the fields' names.
func changed(cmd *cobra.Command, fieldOf map[string]string) []string {
	given := map[string]bool{}
	for flag, field := range fieldOf {
		if cmd.Flags().Changed(flag) {
			given[field] = true
		}
	}
	return sorted(given)
}

func addRevision(cmd *cobra.Command, rev *uint64) {
	cmd.Flags().Uint64Var(rev, "expected-revision", 0, "do it only if the object still has this `revision`")
}

func addTags(cmd *cobra.Command, tags *[]string) {
	cmd.Flags().StringArrayVar(tags, "tag", nil, "`KEY=VALUE`; may be given several times")
}

// tagCommand makes "tag" for one kind of object.
func (c *cli) tagCommand(
	what, like string, complete cobra.CompletionFunc, find func(context.Context, *session, string) (string,
		error),
) *cobra.Command {
	return &cobra.Command{
		Use: "tag " + what + " KEY=VALUE…", Short: "Set tags; others stay",
		Example: "  nearcast " + strings.ToLower(what) + " tag " + like + " env=prod team=web",
		Args:    atLeast(what, "KEY=VALUE"), ValidArgsFunction: first(complete),
		RunE: func(cmd *cobra.Command, args []string) error {
			tags, err := parseTags(args[1:])
			if err != nil {
				return err
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			id, err := find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			_, err = s.TagResource(cmd.Context(), &pb.TagResourceRequest{Id: id, Tags: tags})
			return c.done(err, "tagged %s: %s", args[0], tagsText(tags))
		},
	}
}

// untagCommand makes "untag" for one kind of object.
func (c *cli) untagCommand(
	what, like string, complete cobra.CompletionFunc, find func(context.Context, *session, string) (string,
		error),
) *cobra.Command {
	return &cobra.Command{
		Use: "untag " + what + " KEY…", Short: "Remove tags",
		Example: "  nearcast " + strings.ToLower(what) + " untag " + like + " env team",
		Args:    atLeast(what, "KEY"), ValidArgsFunction: first(complete),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			id, err := find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			_, err = s.UntagResource(cmd.Context(), &pb.UntagResourceRequest{Id: id, Keys: args[1:]})
			return c.done(err, "removed tags of %s: %s", args[0], strings.Join(args[1:], " "))
		},
	}
}

func (c *cli) addWait(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.flags.wait, "wait", false, "wait until every live node has applied it")
	cmd.Flags().DurationVar(&c.flags.waitTimeout, "wait-timeout", 2*time.Minute, "how long --wait waits")
}

// waitStep is how often it is asked whether a change is deployed. Nodes apply a change in well under a
// second, so a slower rhythm would be most of the waiting.
const waitStep = 250 * time.Millisecond

// waitDeployed waits until accelerators are deployed, telling on stderr which nodes are being waited for.
func (c *cli) waitDeployed(ctx context.Context, s *session, ids ...string) error {
	deadline := c.now().Add(c.flags.waitTimeout)
	said := ""
	for _, id := range ids {
		for {
			a, err := s.GetAccelerator(ctx, &pb.GetRequest{Id: id})
			if err != nil {
				return err
			}
			if a.GetStatus() == pb.AcceleratorStatus_ACCELERATOR_STATUS_DEPLOYED {
				break
			}
			waiting := c.waitingFor(ctx, s, a)
			if c.now().After(deadline) {
				return fmt.Errorf("accelerator %s is not deployed after %s: %s\n"+
					"The change is made and will be applied; follow it with: nearcast accelerator get %s, nearcast status",
					a.GetName(), manifest.DurationText(c.flags.waitTimeout), waiting, a.GetName())
			}
			if text := "waiting for " + a.GetName() + ": " + waiting; text != said {
				c.note("%s", text)
				said = text
			}
			if err := c.sleep(ctx, waitStep); err != nil {
				return err
			}
		}
	}
	if said != "" {
		c.note("deployed")
	}
	return nil
}

// waitingFor names the nodes that have not applied an accelerator's latest change, and why if they said.
func (c *cli) waitingFor(ctx context.Context, s *session, a *pb.Accelerator) string {
	nodes, err := s.nodes(ctx)
	if err != nil {
		return "in progress"
	}
	var late []string
	for _, n := range nodes {
		if !n.GetConnected() || n.GetState() == pb.NodeState_NODE_STATE_REVOKED ||
			n.GetAppliedRevision() >= a.GetRevision() {
			continue
		}
		text := n.GetName()
		if r := n.GetRejections(); len(r) > 0 {
			text += fmt.Sprintf(" (refuses: %s: %s)", r[0].GetField(), r[0].GetMessage())
		}
		late = append(late, text)
	}
	if len(late) == 0 {
		return "in progress"
	}
	return fmt.Sprintf("%s of %d to apply it: %s", plural(len(late), "node"), len(nodes), few(late))
}
