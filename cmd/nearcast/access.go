package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) tokenCommand() *cobra.Command {
	type col = column[*pb.JoinToken]
	return c.noun("token", "Join tokens, which let machines become nodes",
		"  nearcast token create --site fra --edge --gateway --single-use\n  nearcast token list",
		[]string{"tokens"},
		c.tokenCreate(),
		listCommand(c, "List the join tokens, without their secrets", "nearcast token list", (*session).tokens,
			func(all []*pb.JoinToken) error {
				return showList(c, "join tokens", all,
					col{"ID", (*pb.JoinToken).GetId},
					col{"EXPIRES", func(t *pb.JoinToken) string { return c.until(t.GetExpires()) }},
					col{"ROLES", func(t *pb.JoinToken) string {
						return rolesText(&pb.Node{Edge: t.GetAllowEdge(), Gateway: t.GetAllowGateway()})
					}},
					col{"SITE", func(t *pb.JoinToken) string { return orAny(t.GetSite()) }},
					col{"NODE", func(t *pb.JoinToken) string { return orAny(t.GetNodeName()) }},
					col{"USES", usesText},
					col{"BY", (*pb.JoinToken).GetCreatedBy},
					col{"DESCRIPTION", (*pb.JoinToken).GetDescription})
			}),
		c.deleteCommand("TOKEN", "Delete a join token; nodes that used it stay", "nearcast token delete k3v9x2",
			completeWith(c, (*session).tokens, (*pb.JoinToken).GetId), asIs,
			func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteJoinToken(ctx, r)
				return err
			}))
}

func usesText(t *pb.JoinToken) string {
	if t.GetSingleUse() {
		return fmt.Sprintf("%d of 1", t.GetUses())
	}
	return fmt.Sprint(t.GetUses())
}

// until tells how long something will still be.
func (c *cli) until(t *timestamppb.Timestamp) string {
	switch {
	case t == nil:
		return "never"
	case t.AsTime().Before(c.now()):
		return "expired"
	}
	return "in " + rough(t.AsTime().Sub(c.now()))
}

func orAny(s string) string {
	if s == "" {
		return "any"
	}
	return s
}

func (c *cli) tokenCreate() *cobra.Command {
	var (
		t   pb.JoinToken
		ttl time.Duration
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Make a join token; it is printed once",
		Long: "Make a join token and print it. It is shown this once: keep it, or make another one. With\n" +
			"neither --edge nor --gateway it allows both.",
		Example: "  nearcast token create --site fra --node fra-1 --edge --gateway --single-use\n" +
			"  nearcast-edge --join-token $(nearcast token create --site fra) --controllers ctl-1:7443 \\\n" +
			"      --name fra-1 --site fra",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !t.AllowEdge && !t.AllowGateway {
				t.AllowEdge, t.AllowGateway = true, true
			}
			if cmd.Flags().Changed("expires") {
				t.Expires = timestamppb.New(c.now().Add(ttl))
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateJoinToken(cmd.Context(), &pb.CreateJoinTokenRequest{Token: &t})
			if err != nil {
				return err
			}
			if c.flags.output != "table" {
				return c.show(made, nil)
			}
			c.note("join token %s, expires %s, for site %s and node %s; it is not shown again:",
				made.GetToken().GetId(),
				c.until(made.GetToken().GetExpires()), orAny(made.GetToken().GetSite()),
				orAny(made.GetToken().GetNodeName()))
			_, err = fmt.Fprintln(c.stdout, made.GetSecret())
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&t.Site, "site", "", "the only `site` it may join (default any)")
	f.StringVar(&t.NodeName, "node", "", "the only node `name` it may take (default any)")
	f.BoolVar(&t.AllowEdge, "edge", false, "allow the edge role")
	f.BoolVar(&t.AllowGateway, "gateway", false, "allow the gateway role")
	f.BoolVar(&t.SingleUse, "single-use", false, "one node can use it, once")
	f.DurationVar(&ttl, "expires", time.Hour, "when it ends")
	f.StringVar(&t.Description, "description", "", "`words` for people")
	mustComplete(cmd, "site", c.completeSites())
	return cmd
}

func (c *cli) operatorCommand() *cobra.Command {
	type col = column[*pb.Operator]
	return c.noun("operator", "Who may use the admin API",
		"  nearcast operator create alice --role operator\n  nearcast operator list", []string{"operators"},
		c.operatorCreate(),
		listCommand(c, "List the operators", "nearcast operator list", (*session).operators,
			func(all []*pb.Operator) error {
				return showList(c, "operators", all,
					col{"NAME", (*pb.Operator).GetName},
					col{"ROLE", func(o *pb.Operator) string { return enumText(o.GetRole()) }},
					col{"SINCE", func(o *pb.Operator) string { return timeText(o.GetCreatedTime()) }})
			}),
		c.deleteCommand("OPERATOR", "Delete an operator; the token is refused from then on",
			"nearcast operator delete alice",
			completeWith(c, (*session).operators, (*pb.Operator).GetName), asIs,
			func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
				_, err := s.DeleteOperator(ctx, r)
				return err
			}))
}

func (c *cli) operatorCreate() *cobra.Command {
	var (
		o    pb.Operator
		file string
	)
	o.Role = pb.Role_ROLE_VIEWER
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make an operator; the token is printed once",
		Long: "Make an operator and print the bearer token. A viewer reads; an operator also changes\n" +
			"accelerators, what is below them, and targets, and drains nodes; an admin does everything.",
		Example: "  nearcast operator create alice --role operator\n" +
			"  nearcast operator create ci --role operator --context-file ci-context.yaml",
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateOperator(cmd.Context(), &pb.CreateOperatorRequest{Operator: &o})
			if err != nil {
				return err
			}
			if file != "" {
				name := clusterOf(s.target)
				entry := contextEntry{Name: name, Server: s.target.Server, CA: s.target.CA, Token: made.GetSecret()}
				err := writeContexts(file, &contextsFile{Current: name, Contexts: []contextEntry{entry}})
				return c.done(err, "made operator %s (%s); wrote %s: nearcast context import %s",
					args[0], enumText(made.GetOperator().GetRole()), file, file)
			}
			if c.flags.output != "table" {
				return c.show(made, nil)
			}
			c.note("operator %s, role %s; the token is not shown again:", args[0],
				enumText(made.GetOperator().GetRole()))
			_, err = fmt.Fprintln(c.stdout, made.GetSecret())
			return err
		},
	}
	enumFlag(cmd, &o.Role, "role", "what the operator may do")
	cmd.Flags().StringVar(&file, "context-file", "",
		"write a contexts `file` for the operator instead of printing the token")
	return cmd
}

func (c *cli) accessKeyCommand() *cobra.Command {
	type col = column[*pb.AccessKey]
	return c.noun("access-key", "Keys with which AWS clients use the cluster",
		"  nearcast access-key create --role operator\n  nearcast access-key list", []string{"access-keys"},
		c.accessKeyCreate(),
		listCommand(c, "List the access keys, without their secrets", "nearcast access-key list",
			(*session).accessKeys, func(all []*pb.AccessKey) error {
				return showList(c, "access keys", all,
					col{"ID", (*pb.AccessKey).GetId},
					col{"ROLE", func(k *pb.AccessKey) string { return enumText(k.GetRole()) }},
					col{"PROJECT", (*pb.AccessKey).GetProject},
					col{"ACCOUNT", (*pb.AccessKey).GetAccountId},
					col{"EXPIRES", func(k *pb.AccessKey) string { return c.until(k.GetExpires()) }},
					col{"SINCE", func(k *pb.AccessKey) string { return timeText(k.GetCreatedTime()) }},
					col{"BY", (*pb.AccessKey).GetCreatedBy},
					col{"DESCRIPTION", (*pb.AccessKey).GetDescription})
			}),
		c.accessKeySession(), c.accessKeyRotate(), c.accessKeyRevoke())
}

func (c *cli) accessKeyCreate() *cobra.Command {
	k := pb.AccessKey{Role: pb.Role_ROLE_OPERATOR}
	cmd := &cobra.Command{
		Use: "create", Short: "Make an access key; the secret is printed once",
		Long: "Make an access key for the aws command line, the AWS SDKs, Terraform and others, and print it as\n" +
			"lines of a shell. It sees and makes the accelerators of one project. A project has an account id,\n" +
			"which its first key fixes.",
		Example: "  nearcast access-key create --role operator --project shop --account-id 123456789012\n" +
			"  eval \"$(nearcast access-key create)\"",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateAccessKey(cmd.Context(), &pb.CreateAccessKeyRequest{Key: &k})
			if err != nil {
				return err
			}
			return c.showAccessKey(made)
		},
	}
	f := cmd.Flags()
	enumFlag(cmd, &k.Role, "role", "what it may do")
	f.StringVar(&k.Project, "project", "", "`name` of the project whose accelerators it sees (default \"default\")")
	f.StringVar(&k.AccountId, "account-id", "", "the project's account `id`, 12 digits (default: its own, or made up)")
	f.StringVar(&k.Description, "description", "", "`words` for people")
	return cmd
}

func (c *cli) accessKeyRotate() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "rotate KEY", Short: "Make a new key with the same rights; the old one ends",
		Example: "  nearcast access-key rotate NCAKQ2XJ4ZJ6M5RTVU7D --grace 24h",
		Args:    exactly("KEY"),
		ValidArgsFunction: first(completeWith(c, (*session).accessKeys,
			(*pb.AccessKey).GetId)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.RotateAccessKey(cmd.Context(), &pb.RotateAccessKeyRequest{Id: args[0],
				Grace: durationpb.New(grace)})
			if err != nil {
				return err
			}
			return c.showAccessKey(made)
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", time.Hour, "how long the old key still works; 0: not at all")
	return cmd
}

func (c *cli) accessKeyRevoke() *cobra.Command {
	var rev uint64
	cmd := &cobra.Command{
		Use: "revoke KEY", Aliases: []string{"delete", "rm"}, Short: "Revoke an access key at once",
		Example:           "  nearcast access-key revoke NCAKQ2XJ4ZJ6M5RTVU7D",
		Args:              exactly("KEY"),
		ValidArgsFunction: first(completeWith(c, (*session).accessKeys, (*pb.AccessKey).GetId)),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			if err := c.confirm("Revoke access key %s?", args[0]); err != nil {
				return err
			}
			_, err = s.DeleteAccessKey(cmd.Context(), &pb.DeleteRequest{Id: args[0], ExpectedRevision: rev})
			return c.done(err, "revoked access key %s", args[0])
		},
	}
	addRevision(cmd, &rev)
	c.addYes(cmd)
	return cmd
}

// showAccessKey prints a key and its secret, the only time that they are there together.
func (c *cli) showAccessKey(made *pb.AccessKeySecret) error {
	if c.flags.output != "table" {
		return c.show(made, nil)
	}
	k := made.GetKey()
	c.note("access key of role %s for project %s, account %s; the secret is not shown again:",
		enumText(k.GetRole()), k.GetProject(), k.GetAccountId())
	_, err := fmt.Fprintf(c.stdout, "export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY=%s\n",
		k.GetId(), made.GetSecret())
	return err
}

func (c *cli) auditCommand() *cobra.Command {
	var limit int
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the latest changes, newest first",
		Example: "  nearcast audit list\n  nearcast audit list --limit 500 -o json", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.audit(cmd.Context(), limit)
			if err != nil {
				return err
			}
			type col = column[*pb.AuditEntry]
			return showList(c, "audit entries", all,
				col{"TIME", func(e *pb.AuditEntry) string { return timeText(e.GetTime()) }},
				col{"OPERATOR", (*pb.AuditEntry).GetOperator},
				col{"METHOD", (*pb.AuditEntry).GetMethod},
				col{"OBJECT", (*pb.AuditEntry).GetObject},
				col{"OUTCOME", (*pb.AuditEntry).GetOutcome},
				col{"FROM", (*pb.AuditEntry).GetPeer})
		},
	}
	list.Flags().IntVar(&limit, "limit", 50, "how many at most")
	return c.noun("audit", "Who changed what", "  nearcast audit list", nil, list)
}

func (c *cli) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show whom the cluster takes you for", Example: "  nearcast whoami", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			o, err := s.WhoAmI(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			return c.show(o, func(p *page) {
				p.line("Operator", o.GetName())
				p.line("Role", enumText(o.GetRole()))
				p.line("Cluster", clusterOf(s.target))
				p.line("Context", s.target.Name)
				p.line("Server", s.target.Server)
			})
		},
	}
}

func (c *cli) settingsCommand() *cobra.Command {
	get := &cobra.Command{
		Use: "get", Aliases: []string{"show", "list", "ls"}, Short: "Show the cluster's limits",
		Example: "  nearcast settings get", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			settings, err := s.GetSettings(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			return c.showSettings(settings)
		},
	}
	return c.noun("settings", "The cluster's limits",
		"  nearcast settings get\n  nearcast settings update --accelerators-max 50", nil, get, c.settingsUpdate())
}

func (c *cli) settingsUpdate() *cobra.Command {
	var v pb.Settings
	fields := map[string]string{"endpoint-allow-network": "endpoint_allow_networks", "dns-suffix": "dns_suffix",
		"announce-aggregate": "announce_aggregates"}
	cmd := &cobra.Command{
		Use: "update", Aliases: []string{"set"}, Short: "Change limits; 0 means the default",
		Example: "  nearcast settings update --accelerators-max 50\n" +
			"  nearcast settings update --endpoint-allow-network 127.0.0.0/8,169.254.10.0/24",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			mask := changed(cmd, fields)
			if len(mask) == 0 {
				return usagef("nothing to change is said")
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			settings, err := s.UpdateSettings(cmd.Context(), &pb.UpdateSettingsRequest{Settings: &v,
				UpdateMask: maskOf(mask...)})
			if err != nil {
				return err
			}
			return c.showSettings(settings)
		},
	}
	f := cmd.Flags()
	for _, n := range []struct {
		flag  string
		to    *uint32
		usage string
	}{
		{"accelerators-max", &v.AcceleratorsMax, "accelerators (default 20)"},
		{"listeners-per-accelerator-max", &v.ListenersPerAcceleratorMax,
			"listeners of an accelerator (default 10)"},
		{"groups-per-accelerator-max", &v.GroupsPerAcceleratorMax, "groups of an accelerator (default 42)"},
		{"port-ranges-per-listener-max", &v.PortRangesPerListenerMax, "port ranges of a listener (default 10)"},
		{"port-overrides-per-group-max", &v.PortOverridesPerGroupMax, "port overrides of a group (default 10)"},
		{"endpoints-per-group-max", &v.EndpointsPerGroupMax, "endpoints of a group (default 10)"},
		{"tags-per-resource-max", &v.TagsPerResourceMax, "tags of one object (default 50)"},
		{"max-ejection-percent", &v.MaxEjectionPercent,
			"share of a group's endpoints that checks may take out (default 100)"},
		{"custom-routing-accelerators-max", &v.CustomRoutingAcceleratorsMax, "custom routing accelerators (default 10)"},
		{"attachments-max", &v.AttachmentsMax, "attachments of a project (default 10)"},
		{"principals-per-attachment-max", &v.PrincipalsPerAttachmentMax, "whom an attachment names (default 10)"},
		{"byoip-ranges-max", &v.ByoipRangesMax, "ranges that a project brings (default 2)"},
		{"announce-floor", &v.AnnounceFloor, "sites that announce a prefix in any case (default 1)"},
	} {
		f.Uint32Var(n.to, n.flag, 0, n.usage)
		fields[n.flag] = strings.ReplaceAll(n.flag, "-", "_")
	}
	f.StringSliceVar(&v.EndpointAllowNetworks, "endpoint-allow-network", nil,
		"`networks` that endpoints may lie in although they are refused by default; all of them")
	f.StringSliceVar(&v.AnnounceAggregates, "announce-aggregate", nil,
		"`networks` that are announced in place of the pools' prefixes in them; all of them")
	f.StringVar(&v.DnsSuffix, "dns-suffix", "",
		"`domain` of accelerators' names (default \"nearcast.internal\")")
	return cmd
}

func (c *cli) showSettings(s *pb.Settings) error {
	return c.show(s, func(p *page) {
		p.line("Accelerators", fmt.Sprint(s.GetAcceleratorsMax()))
		p.line("Listeners per accelerator", fmt.Sprint(s.GetListenersPerAcceleratorMax()))
		p.line("Groups per accelerator", fmt.Sprint(s.GetGroupsPerAcceleratorMax()))
		p.line("Port ranges per listener", fmt.Sprint(s.GetPortRangesPerListenerMax()))
		p.line("Port overrides per group", fmt.Sprint(s.GetPortOverridesPerGroupMax()))
		p.line("Endpoints per group", fmt.Sprint(s.GetEndpointsPerGroupMax()))
		p.line("Custom routing accelerators", fmt.Sprint(s.GetCustomRoutingAcceleratorsMax()))
		p.line("Attachments per project", fmt.Sprint(s.GetAttachmentsMax()))
		p.line("Principals per attachment", fmt.Sprint(s.GetPrincipalsPerAttachmentMax()))
		p.line("Ranges brought per project", fmt.Sprint(s.GetByoipRangesMax()))
		p.line("Tags per object", fmt.Sprint(s.GetTagsPerResourceMax()))
		p.line("Ejection at most", fmt.Sprintf("%d%%", s.GetMaxEjectionPercent()))
		p.line("Endpoints also in", strings.Join(s.GetEndpointAllowNetworks(), " "))
		p.line("DNS suffix", s.GetDnsSuffix())
		p.line("Announced aggregates", strings.Join(s.GetAnnounceAggregates(), " "))
		p.line("Announced by at least", fmt.Sprintf("%d sites", s.GetAnnounceFloor()))
	})
}
