package main

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/nearcast/nearcast/proto/nearcast/v1"
)

func (c *cli) subnetCommand() *cobra.Command {
	return c.noun("subnet", "Networks of machines that custom routing leads to",
		"  nearcast subnet create subnet-game --region eu-fra-1 --prefix 10.9.0.0/24\n  nearcast subnet list",
		[]string{"subnets"}, c.subnetCreate(), c.subnetGet(), c.subnetList(), c.subnetDelete())
}

func subnetLines(p *page, s *pb.Subnet) {
	p.line("Name", s.GetName())
	p.line("Prefix", s.GetPrefix())
	p.line("Region", s.GetRegion())
	p.line("Project", s.GetProject())
	p.line("Client address", enumText(s.GetClientAddress()))
	p.line("Tags", tagsText(s.GetTags()))
}

func (s *session) subnets(ctx context.Context) ([]*pb.Subnet, error) {
	return listAll("", 0, func(r *pb.ListRequest) (*pb.ListSubnetsResponse, error) {
		return s.ListSubnets(ctx, r)
	}, (*pb.ListSubnetsResponse).GetSubnets)
}

func (c *cli) completeSubnets() cobra.CompletionFunc {
	return completeWith(c, (*session).subnets, (*pb.Subnet).GetName)
}

func (c *cli) subnetCreate() *cobra.Command {
	var (
		n    pb.Subnet
		tags []string
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Declare a subnet, which the gateways of its region must reach",
		Example: "  nearcast subnet create subnet-game --region eu-fra-1 --prefix 10.9.0.0/24\n" +
			"  nearcast subnet create subnet-game --region eu-fra-1 --prefix 10.9.0.0/24 --client-address none",
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			n.Name = args[0]
			if n.Tags, err = parseTags(tags); err != nil {
				return err
			}
			s, err := c.admin()
			if err != nil {
				return err
			}
			made, err := s.CreateSubnet(cmd.Context(), &pb.CreateSubnetRequest{Subnet: &n})
			if err != nil {
				return err
			}
			return c.show(made, func(p *page) { subnetLines(p, made) })
		},
	}
	cmd.Flags().StringVar(&n.Prefix, "prefix", "", "IPv4 `network`, /16 to /32")
	cmd.Flags().StringVar(&n.Region, "region", "", "`region` where it is")
	cmd.Flags().StringVar(&n.Project, "project", "",
		"whose accelerators may lead to it without an attachment (default everybody's)")
	enumFlag(cmd, &n.ClientAddress, "client-address", "how its machines learn the client's address (default transparent)")
	addTags(cmd, &tags)
	mustComplete(cmd, "region", c.completeRegions())
	return need(cmd, "prefix", "region")
}

func (c *cli) subnetGet() *cobra.Command {
	return &cobra.Command{
		Use: "get SUBNET", Aliases: []string{"show"}, Short: "Show a subnet",
		Example: "  nearcast subnet get subnet-game",
		Args:    exactly("SUBNET"), ValidArgsFunction: first(c.completeSubnets()),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			n, err := s.GetSubnet(cmd.Context(), &pb.GetRequest{Id: args[0]})
			if err != nil {
				return err
			}
			return c.show(n, func(p *page) { subnetLines(p, n) })
		},
	}
}

func (c *cli) subnetList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the subnets", Example: "  nearcast subnet list",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.admin()
			if err != nil {
				return err
			}
			all, err := s.subnets(cmd.Context())
			if err != nil {
				return err
			}
			type col = column[*pb.Subnet]
			return showList(c, "subnets", all,
				col{"NAME", (*pb.Subnet).GetName},
				col{"PREFIX", (*pb.Subnet).GetPrefix},
				col{"REGION", (*pb.Subnet).GetRegion},
				col{"TAGS", func(n *pb.Subnet) string { return tagsText(n.GetTags()) }})
		},
	}
}

func (c *cli) subnetDelete() *cobra.Command {
	return c.deleteCommand("SUBNET", "Delete a subnet that no group uses", "nearcast subnet delete subnet-game",
		c.completeSubnets(), asIs, func(ctx context.Context, s *session, r *pb.DeleteRequest) error {
			_, err := s.DeleteSubnet(ctx, r)
			return err
		})
}
